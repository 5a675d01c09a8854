import { describe, expect, test } from "vitest";
import { FairQueue, FRAME_OVERHEAD_BYTES } from "../../../../shared/relay/fair_queue.ts";
import type { PeerId } from "../../../../shared/session/identity.ts";
import { type Instant, instant } from "../../../../shared/time.ts";

const [loud, quiet] = ["loud", "quiet"] as PeerId[] as [PeerId, PeerId];
const FRAME_BYTES = 1000 - FRAME_OVERHEAD_BYTES;
const frame = (number: number): Uint8Array => new Uint8Array(FRAME_BYTES).fill(number);
const at = (milliseconds: number): Instant => instant(milliseconds);
const STANDING = { targetMs: 50, intervalMs: 500 };

describe("a queue that is full", () => {
  test("loses the oldest of the source that fills it, and nothing of the others", () => {
    const queue = new FairQueue({ maxSourceBytes: 10_000, maxBytes: 100_000 });
    queue.push(quiet, frame(255), at(0));
    let dropped = 0;
    for (let i = 0; i < 25; i++) dropped += queue.push(loud, frame(i), at(i));
    expect(dropped).toBe(15);
    const taken = queue.take(1e6, 0);
    expect(taken.filter(({ from }) => from === quiet)).toHaveLength(1);
    expect(taken.filter(({ from }) => from === loud).map((it) => it.frame[0])).toEqual([
      15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
    ]);
  });

  test("as a whole takes from the one that has most", () => {
    const queue = new FairQueue({ maxSourceBytes: 10_000, maxBytes: 10_000 });
    for (let i = 0; i < 9; i++) queue.push(loud, frame(i), at(i));
    for (let i = 0; i < 3; i++) queue.push(quiet, frame(i), at(10 + i));
    expect(queue.bytes).toBe(10_000);
    expect(queue.take(1e6, 0).filter(({ from }) => from === quiet)).toHaveLength(3);
  });
});

describe("a queue that stands", () => {
  /** One frame in and one out each millisecond, behind `backlog` others. */
  const run = (backlog: number, milliseconds: number): { dropped: number; backlog: number } => {
    const queue = new FairQueue({ maxSourceBytes: 1e9, maxBytes: 1e9, standing: STANDING });
    for (let i = 0; i < backlog; i++) queue.push(loud, frame(i), at(0));
    let dropped = 0;
    for (let now = 1; now <= milliseconds; now++) {
      queue.push(loud, frame(0), at(now));
      dropped += queue.dropStanding(at(now));
      queue.take(FRAME_BYTES, 0);
    }
    return { dropped, backlog: queue.bytes / 1000 };
  };

  test("loses nothing while what waits is a burst that passes", () => {
    expect(run(0, 2000)).toEqual({ dropped: 0, backlog: 0 });
    expect(run(45, 2000)).toMatchObject({ dropped: 0 });
    expect(run(200, 400)).toMatchObject({ dropped: 0 });
  });

  test("loses one now and then, ever more often, until it waits less than the target", () => {
    expect(run(60, 1000).dropped).toBeGreaterThan(0);
    expect(run(60, 1000).dropped).toBeLessThan(5);
    expect(run(100, 60_000).backlog).toBeLessThan(55);
  });
});
