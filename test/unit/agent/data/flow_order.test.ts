/** The order of each flow at a change of the leg, where a sender's queue has let flows pass each other. */
import { describe, expect, test } from "vitest";
import { FlowOrder } from "../../../../agent/data/flow_order.ts";
import { flowHash } from "../../../../agent/data/ip_packet.ts";
import { FIRST_RELAY_LEG } from "../../../../agent/data/plane.ts";
import { CONTROL, FLOWS, FlowQueue, laneOf } from "../../../../shared/relay/flow_queue.ts";
import { ReplayWindow } from "../../../../shared/session/replay_window.ts";
import { after, instant } from "../../../../shared/time.ts";
import { FRAME_PACKET, writeSegmentHeader } from "../../../../shared/wire/frame.ts";
import { SeededRandom } from "../../../sim/random.ts";

const T0 = instant(1000);
const OLD = FIRST_RELAY_LEG;
const NEW = FIRST_RELAY_LEG + 1;

/** A UDP packet of this flow, with a number in its payload. */
function packet(flow: number, counter: number): Uint8Array {
  const bytes = new Uint8Array(32);
  bytes.set([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 100, 96, 0, 1, 100, 96, 0, 2, flow >> 8, flow, 0, 53]);
  new DataView(bytes.buffer).setUint32(28, counter);
  return bytes;
}

const plaintext = (flow: number, counter: number): Uint8Array => Uint8Array.of(FRAME_PACKET, ...packet(flow, counter));
const counterOf = (bytes: Uint8Array): number => new DataView(bytes.buffer, bytes.byteOffset).getUint32(29);
const flowOf = (bytes: Uint8Array): number => new DataView(bytes.buffer, bytes.byteOffset).getUint16(21);

/** An order, and what it has let go, by counters. */
function orderOf() {
  const window = new ReplayWindow();
  const order = new FlowOrder(window);
  const delivered: { readonly flow: number; readonly counter: number }[] = [];
  const take = (all: readonly Uint8Array[]): void => {
    for (const bytes of all) delivered.push({ flow: flowOf(bytes), counter: counterOf(bytes) });
  };
  const receive = (leg: number, flow: number, counter: number, isData = true, now = T0): void => {
    window.accept(counter);
    const bytes = plaintext(flow, counter);
    if (isData) take(order.accept(counter, leg, bytes, 0, bytes.length, now) ?? [bytes]);
    else take(order.handleOther());
  };
  return { order, window, receive, take, delivered };
}

/** Flows. */
const KNOWN = 7;
const BULK = 5000;
const PING = 5001;

describe("at a change of our own leg", () => {
  test("a frame that has passed others of a flow says nothing about them: they are waited for", () => {
    const { order, receive, delivered } = orderOf();
    for (let counter = 0; counter < 10; counter++) receive(OLD, BULK, counter);
    order.start(T0);
    receive(NEW, BULK, 14);
    // 13 has passed 10 to 12, which the old leg is still to bring.
    receive(OLD, PING, 13);
    for (const counter of [10, 11, 12]) receive(OLD, BULK, counter);
    const bulk = delivered.filter(({ flow }) => flow === BULK).map(({ counter }) => counter);
    expect(bulk).toEqual(Array.from({ length: 14 }, (_, i) => (i < 13 ? i : 14)));
    expect(order.gapsGivenUp).toBe(0);
  });

  test("a frame of the flow itself does: what is missing before it is lost and not waited for", () => {
    const { order, receive, delivered } = orderOf();
    for (let counter = 0; counter < 10; counter++) receive(OLD, BULK, counter);
    order.start(T0);
    receive(NEW, BULK, 13);
    for (const counter of [11, 12]) receive(OLD, BULK, counter);
    expect(delivered.slice(10).map(({ counter }) => counter)).toEqual([11, 12, 13]);
  });

  test("a flow of which nothing has come waits for what was sent before it, and no longer than for anything", () => {
    const { order, receive, take, delivered } = orderOf();
    receive(OLD, BULK, 0);
    order.start(T0);
    receive(NEW, PING, 2);
    expect(delivered).toHaveLength(1);
    take(order.overdue(after(T0, 400)));
    expect(delivered.map(({ counter }) => counter)).toEqual([0, 2]);
  });

  test("a flow that begins a while after it waits for nothing, whatever has been lost", () => {
    const { order, receive, delivered } = orderOf();
    receive(OLD, BULK, 0);
    order.start(T0);
    receive(NEW, BULK, 1);
    receive(NEW, BULK, 3, true, after(T0, 300));
    receive(NEW, PING, 5, true, after(T0, 301));
    receive(NEW, PING, 7, true, after(T0, 302));
    expect(delivered.map(({ counter }) => counter)).toEqual([0, 1, 3, 5, 7]);
  });

  test("pieces of a run are of the flow that its first piece tells", () => {
    const { order, window } = orderOf();
    const piece = (counter: number, leg: number, run: number, offset: number): number | undefined => {
      window.accept(counter);
      const bytes = new Uint8Array(60);
      writeSegmentHeader(bytes, 0, run, offset, 1000);
      bytes.set(packet(offset === 0 ? run : 0, counter), 11);
      return order.accept(counter, leg, bytes, 0, bytes.length, T0)?.length;
    };
    expect(piece(0, OLD, BULK, 0)).toBeUndefined();
    expect(piece(1, OLD, PING, 0)).toBeUndefined();
    order.start(T0);
    expect(piece(5, NEW, BULK, 100)).toBe(0);
    // It is of the other run, and says nothing about 2 and 3, which may still come.
    expect(piece(4, OLD, PING, 200)).toBeUndefined();
    expect([piece(2, OLD, BULK, 50), piece(3, OLD, BULK, 70)]).toEqual([1, 2]);
  });
});

test("whatever passes whatever in the sender's queue, and wherever the leg changes, no flow's packets come out of order, and none is lost", () => {
  for (let seed = 1; seed <= 150; seed++) {
    const random = new SeededRandom(seed);
    const below = (limit: number): number => Math.floor(random.next() * limit);
    const queue = new FlowQueue();
    const sent: { readonly flow: number; readonly counter: number }[] = [];
    let counter = 0;
    // What is sealed waits, and leaves in the queue's own order. Of each flow something has come before the change.
    const leaving: Uint8Array[] = [];
    for (let i = 0; i < 400; i++) {
      const flow = i < KNOWN ? i : below(4) === 0 ? 1 + below(KNOWN - 1) : 0;
      const isControl = i >= KNOWN && below(20) === 0;
      const bytes = Uint8Array.of(FRAME_PACKET, ...packet(6000 + flow, counter));
      const lane = laneOf(isControl ? CONTROL : flowHash(bytes, 1, bytes.length, 7) % FLOWS, counter);
      queue.push(isControl ? Uint8Array.of(0, ...bytes) : bytes, T0, lane);
      if (!isControl) sent.push({ flow: 6000 + flow, counter });
      counter++;
      if (i < KNOWN || below(3) > 0) leaving.push(queue.shift()?.frame ?? bytes);
    }
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) leaving.push(next.frame);
    // The relay takes the one leg up to somewhere and then the other, which is faster or slower.
    const change = 50 + below(300);
    const legs = [leaving.slice(0, change), leaving.slice(change)] as const;
    const { order, receive, take, delivered } = orderOf();
    const startsAfter = KNOWN + below(40);
    for (let received = 0; legs[0].length + legs[1].length > 0; received++) {
      if (received === startsAfter) order.start(T0);
      const isNew = received > startsAfter && legs[1].length > 0 && (legs[0].length === 0 || below(3) > 0);
      const bytes = legs[isNew ? 1 : 0].shift();
      if (bytes === undefined) continue;
      const isControl = bytes[0] === 0;
      const frame = isControl ? bytes.subarray(1) : bytes;
      receive(isNew ? NEW : OLD, flowOf(frame), counterOf(frame), !isControl);
    }
    take(order.overdue(after(T0, 2000)));
    for (const flow of new Set(sent.map((it) => it.flow))) {
      const counters = (list: typeof sent): number[] => list.filter((it) => it.flow === flow).map((it) => it.counter);
      expect(counters(delivered), `seed ${seed}, flow ${flow}`).toEqual(counters(sent));
    }
    expect(order.gapsGivenUp, `seed ${seed}`).toBe(0);
  }
});
