/** A peer that sends whatever it likes inside well-sealed frames: nothing throws, nothing grows beyond the caps, honest streams to come work. */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { MuxAction } from "../../../../agent/overlay/contract.ts";
import { INITIAL_STREAM_WINDOW, MAX_HALF_OPEN, MAX_REFUSING } from "../../../../agent/overlay/limits.ts";
import { StreamMux } from "../../../../agent/overlay/stream_mux.ts";
import { BatchWriter } from "../../../../shared/batch.ts";
import { instant } from "../../../../shared/time.ts";
import { decodeStreamFrame, type StreamRecord } from "../../../../shared/wire/stream.ts";
import { encodeStreamFrame } from "../../../golden/wire_codecs.ts";

const PEER = 77;

class Victim {
  #instances = 1000;
  readonly mux = new StreamMux(() => ++this.#instances, instant(0));
  readonly actions: MuxAction[] = [];
  #number = 0;
  now = 0;

  constructor() {
    this.mux.handlePath({ rttMs: 10, frameBytes: 1280 }, instant(0));
  }

  send(records: readonly StreamRecord[], number = this.#number++, from = PEER): void {
    const batch = new BatchWriter(100);
    batch.push(encodeStreamFrame({ from, to: 0, number, records }));
    this.mux.handleFrames(batch.take(), instant(this.now));
    this.drain();
  }

  drain(): void {
    for (let action = this.mux.poll(); action !== undefined; action = this.mux.poll()) this.actions.push(action);
  }

  of<T extends MuxAction["type"]>(type: T): Extract<MuxAction, { type: T }>[] {
    return this.actions.filter((action): action is Extract<MuxAction, { type: T }> => action.type === type);
  }
}

describe("a hostile peer", () => {
  test("sends any records in any order", () => {
    const stream = fc.integer({ min: 0, max: 9 });
    const offset = fc.oneof(fc.nat(70_000), fc.integer({ min: 2 ** 40, max: 2 ** 48 - 1 }));
    const record: fc.Arbitrary<StreamRecord> = fc.oneof(
      fc.record({ type: fc.constant("open" as const), stream, port: fc.nat(65_535) }),
      fc.record({ type: fc.constant("accept" as const), stream }),
      fc.record({
        type: fc.constant("data" as const),
        stream,
        offset,
        bytes: fc.uint8Array({ maxLength: 50 }),
        isLast: fc.boolean(),
      }),
      fc.record({
        type: fc.constant("reset" as const),
        stream,
        code: fc.constantFrom("cancelled" as const, "refused" as const),
        finalSize: offset,
      }),
      fc.record({ type: fc.constant("stream_credit" as const), stream, limit: offset }),
      fc.record({ type: fc.constant("session_credit" as const), limit: offset }),
      fc.record({ type: fc.constant("ping" as const) }),
      fc
        .tuple(fc.nat(30), fc.nat(5))
        .map(([low, run]) => ({ type: "ack" as const, delayMs: 0, ranges: [{ low, high: low + run }] })),
    );
    const step = fc.record({
      records: fc.array(record, { minLength: 1, maxLength: 4 }),
      number: fc.nat(40),
      waitMs: fc.constantFrom(0, 1, 50, 3000),
      local: fc.constantFrom("open", "write", "end", "reset", "accept", "read", "nothing"),
      id: stream,
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const victim = new Victim();
        for (const { records, number, waitMs, local, id } of steps) {
          victim.now += waitMs;
          const at = instant(victim.now);
          victim.mux.handleTimeout(at);
          if (local === "open") victim.mux.open(1, at);
          else if (local === "write") victim.mux.write(id, new Uint8Array(3000), at);
          else if (local === "end") victim.mux.end(id, at);
          else if (local === "reset") victim.mux.reset(id, "cancelled", at);
          else if (local === "accept") victim.mux.accept(id, at);
          else if (local === "read") victim.mux.consumed(id, 25, at);
          victim.send(records, number);
        }
        // Whatever came of it, an honest stream of another start of that peer works.
        victim.actions.length = 0;
        victim.send([{ type: "open", stream: 1, port: 22 }], 0, PEER + 1);
        expect(victim.of("opened")).toEqual([{ type: "opened", stream: 0, port: 22 }]);
      }),
      { numRuns: 300 },
    );
  });

  test("gets half-open streams up to the cap, then refusals, then nothing", () => {
    const victim = new Victim();
    for (let i = 0; i < 2 * MAX_REFUSING; i++) victim.send([{ type: "open", stream: i * 2 + 1, port: 80 }]);
    expect(victim.of("opened").length).toBe(MAX_HALF_OPEN);
    expect(victim.mux.streamCount).toBe(MAX_REFUSING);
  });

  test("that sends more than its credit is cut off with all its streams", () => {
    const victim = new Victim();
    victim.send([{ type: "open", stream: 1, port: 80 }]);
    victim.send([{ type: "data", stream: 1, offset: INITIAL_STREAM_WINDOW, bytes: Uint8Array.of(1), isLast: false }]);
    expect(victim.of("closed")).toEqual([{ type: "closed", stream: 0, code: "broken" }]);
    // It is not heard again until it begins anew.
    victim.send([{ type: "open", stream: 3, port: 80 }]);
    expect(victim.of("opened").length).toBe(1);
  });

  test("that acknowledges what was never sent moves nothing", () => {
    const victim = new Victim();
    const stream = victim.mux.open(80, instant(0)) ?? 0;
    victim.mux.write(stream, new Uint8Array(100_000), instant(0));
    victim.drain();
    const before = victim.mux.stats;
    victim.send([{ type: "ack", delayMs: 0, ranges: [{ low: 0, high: 5000 }] }]);
    expect(victim.mux.stats.inFlightBytes).toBe(before.inFlightBytes);
    expect(victim.mux.stats.windowBytes).toBe(before.windowBytes);
  });

  test("its datagrams and strangers' frames cost one answer each at most", () => {
    const victim = new Victim();
    const batch = new BatchWriter(100);
    for (let i = 0; i < 100; i++)
      batch.push(encodeStreamFrame({ from: 5, to: 6, number: i, records: [{ type: "ping" }] }));
    victim.mux.handleFrames(batch.take(), instant(0));
    victim.drain();
    const [answer, ...more] = victim.of("transmit");
    expect(more).toEqual([]);
    expect(decodeStreamFrame(answer?.batch.subarray(2) ?? new Uint8Array())).toMatchObject({
      to: 5,
      records: [{ type: "ping" }],
    });
  });
});
