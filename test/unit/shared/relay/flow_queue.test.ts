/** Flows that wait for one peer: who goes first, who loses, and that each keeps its order. */
import { describe, expect, test } from "vitest";
import { FairQueue } from "../../../../shared/relay/fair_queue.ts";
import { CONTROL, FLOWS, FlowQueue, laneOf, MARK, STREAMS } from "../../../../shared/relay/flow_queue.ts";
import type { PeerId } from "../../../../shared/session/identity.ts";
import { instant } from "../../../../shared/time.ts";
import { SeededRandom } from "../../../sim/random.ts";

const T0 = instant(0);
const BULK = 1;
const OTHER_BULK = 2;
const PING = 3;
let packets = 0;

const frame = (name: number, bytes = 1400): Uint8Array => {
  const made = new Uint8Array(bytes);
  new DataView(made.buffer).setUint32(0, name);
  return made;
};
const nameOf = (bytes: Uint8Array | undefined): number | undefined =>
  bytes === undefined ? undefined : new DataView(bytes.buffer).getUint32(0);
const push = (queue: FlowQueue, flow: number, name: number, bytes?: number): void =>
  queue.push(frame(name, bytes), T0, laneOf(flow, packets++));
const drain = (queue: FlowQueue): (number | undefined)[] => {
  const names: (number | undefined)[] = [];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) names.push(nameOf(next.frame));
  return names;
};

describe("whose turn it is", () => {
  test("a ping leaves before a download that waits, however long that has been there", () => {
    const queue = new FlowQueue();
    for (let i = 0; i < 500; i++) push(queue, BULK, i);
    for (let i = 0; i < 100; i++) queue.shift();
    push(queue, PING, 9999, 100);
    expect(nameOf(queue.shift()?.frame)).toBe(9999);
    expect(nameOf(queue.shift()?.frame)).toBe(100);
  });

  test("of two downloads each has half, whatever the size of their frames", () => {
    const queue = new FlowQueue();
    for (let i = 0; i < 1000; i++) push(queue, BULK, 1, 1400);
    for (let i = 0; i < 7000; i++) push(queue, OTHER_BULK, 2, 140);
    const bytes = [0, 0, 0];
    for (let taken = 0; taken < 400_000; ) {
      const next = queue.shift()?.frame ?? new Uint8Array();
      taken += next.length + 64;
      bytes[nameOf(next) ?? 0]! += next.length + 64;
    }
    expect((bytes[1] ?? 0) / 400_000).toBeCloseTo(0.5, 1);
  });

  test("one that always has a little more, but asks for more than its share, is no ping", () => {
    const queue = new FlowQueue();
    for (let i = 0; i < 1000; i++) push(queue, BULK, 1);
    let others = 0;
    for (let i = 0; i < 400; i++) {
      for (let more = 0; more < 2; more++) push(queue, OTHER_BULK, 2);
      if (nameOf(queue.shift()?.frame) === 2) others++;
    }
    expect(others).toBeGreaterThan(180);
    expect(others).toBeLessThan(220);
  });

  test("control frames go before everything", () => {
    const queue = new FlowQueue();
    for (let i = 0; i < 10; i++) push(queue, BULK, i);
    push(queue, PING, 50, 100);
    push(queue, STREAMS, 60);
    push(queue, CONTROL, 99, 50);
    expect(nameOf(queue.shift()?.frame)).toBe(99);
  });

  test("the frames of one packet stay together where downloads take turns", () => {
    const queue = new FlowQueue();
    for (let run = 0; run < 6; run++) {
      for (const flow of [BULK, OTHER_BULK]) {
        for (let piece = 0; piece < 5; piece++) queue.push(frame(flow * 100 + run, 12_000), T0, laneOf(flow, run));
      }
    }
    const names = drain(queue);
    for (let at = 0; at < names.length; at += 5) expect(new Set(names.slice(at, at + 5)).size).toBe(1);
    expect(new Set(names.slice(0, 20).map((name) => Math.floor((name ?? 0) / 100))).size).toBe(2);
  });

  test("a mark passes nothing and is passed by nothing, control frames included", () => {
    const queue = new FlowQueue();
    for (let i = 0; i < 3; i++) push(queue, BULK, i);
    push(queue, MARK, 100, 30);
    push(queue, CONTROL, 101, 30);
    push(queue, PING, 102, 30);
    push(queue, MARK, 200, 30);
    push(queue, PING, 201, 30);
    expect(drain(queue)).toEqual([0, 1, 2, 100, 101, 102, 200, 201]);
    push(queue, MARK, 300, 30);
    push(queue, PING, 301, 30);
    push(queue, CONTROL, 302, 30);
    expect(drain(queue)).toEqual([300, 302, 301]);
  });
});

describe("what a full queue loses", () => {
  const [peer] = ["peer"] as PeerId[] as [PeerId];

  test("is the oldest of the fattest flow, and nothing of a ping, nor of a smaller download", () => {
    const queue = new FairQueue({ maxSourceBytes: 100_000, maxBytes: 1_000_000 });
    const add = (flow: number, name: number, bytes?: number): number =>
      queue.push(peer, frame(name, bytes), T0, laneOf(flow, packets++));
    add(PING, 1, 100);
    for (let i = 0; i < 20; i++) add(OTHER_BULK, 1000 + i);
    let dropped = 0;
    for (let i = 0; i < 200; i++) dropped += add(BULK, 2000 + i);
    const names = queue.take(1e6, 0).map((taken) => nameOf(taken.frame) ?? 0);
    expect(names.filter((name) => name < 2000)).toHaveLength(21);
    const bulk = names.filter((name) => name >= 2000);
    expect(bulk).toEqual(Array.from({ length: 200 - dropped }, (_, i) => 2000 + dropped + i));
    expect(dropped).toBeGreaterThan(100);
  });

  test("where flows are not known is a large frame rather than a small one before it", () => {
    const queue = new FairQueue({ maxSourceBytes: 50_000, maxBytes: 1_000_000 });
    for (let i = 0; i < 100; i++) queue.push(peer, frame(i, i % 10 === 0 ? 100 : 1400), T0);
    const names = queue.take(1e6, 0).map((taken) => nameOf(taken.frame) ?? 0);
    expect(names.filter((name) => name % 10 === 0)).toHaveLength(10);
    expect(names).toEqual(names.toSorted((a, b) => a - b));
    // As many bytes as before, and the newest of them.
    expect(names.filter((name) => name % 10 !== 0)).toHaveLength(33);
    expect(names.at(-1)).toBe(99);
  });

  test("never is a mark, and never leaves it more than it may hold, with any number of flows", () => {
    const queue = new FairQueue({ maxSourceBytes: 100_000, maxBytes: 1_000_000 });
    const random = new SeededRandom(7);
    for (let i = 0; i < 20_000; i++) {
      const flow = i === 5000 ? MARK : Math.floor(random.next() * FLOWS);
      queue.push(peer, frame(i, 40 + Math.floor(random.next() * 3000)), T0, laneOf(flow, i));
      expect(queue.bytes).toBeLessThanOrEqual(100_000);
    }
    expect(queue.take(1e6, 0).some((taken) => nameOf(taken.frame) === 5000)).toBe(true);
  });
});

test("within a flow the order is always kept, nothing comes twice, and every byte is accounted for", () => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = new SeededRandom(seed);
    const below = (limit: number): number => Math.floor(random.next() * limit);
    const queue = new FlowQueue({ targetMs: 5, intervalMs: 50 });
    const last = new Map<number, number>();
    let [pushed, gone, marks] = [0, 0, 0];
    const flows: number[] = [];
    const check = (name: number): void => {
      const flow = flows[name] ?? -1;
      expect(name, `seed ${seed}`).toBeGreaterThan(last.get(flow) ?? -1);
      last.set(flow, name);
      // All marks are in order with everything.
      if (flow === MARK)
        for (const known of new Set(flows.slice(0, name))) last.set(known, Math.max(name, last.get(known) ?? -1));
      gone++;
    };
    for (let step = 0; step < 1500; step++) {
      const now = instant(step);
      const what = below(20);
      if (what < 11) {
        const flow = below(40) === 0 ? MARK : below(30) === 0 ? CONTROL : below(3) === 0 ? below(20) : 0;
        if (flow === MARK) marks++;
        flows.push(flow);
        queue.push(frame(pushed, 4 + below(3000)), now, laneOf(flow, pushed >> 2));
        pushed++;
      } else if (what < 18) {
        const peeked = queue.peek();
        const next = queue.shift();
        expect(next?.frame).toBe(peeked);
        if (next !== undefined) check(nameOf(next.frame) ?? -1);
      } else if (what === 18 && queue.length > 0) {
        const before = queue.length;
        queue.dropOne();
        expect(before - queue.length).toBe(1);
        gone++;
      } else gone += below(2) === 0 ? queue.dropStanding(now) : queue.dropBefore(instant(step - 400));
    }
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) check(nameOf(next.frame) ?? -1);
    expect([queue.length, queue.bytes, gone], `seed ${seed}`).toEqual([0, 0, pushed]);
    expect(marks).toBeGreaterThan(5);
  }
});
