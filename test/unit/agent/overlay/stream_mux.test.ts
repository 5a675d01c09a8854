/** The streams of one peer over a network of every kind: every byte once, in order, and nothing is left behind. */
import { heapStats } from "bun:jsc";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { INITIAL_STREAM_WINDOW, MAX_HALF_OPEN, MAX_STREAMS } from "../../../../agent/overlay/limits.ts";
import { SILENCE_MS } from "../../../../agent/overlay/stream_mux.ts";
import { Pair } from "./mux_pair.ts";

const SEED = 7;

describe("a stream", () => {
  test("carries bytes and its end both ways, and is forgotten at both ends", () => {
    const pair = new Pair(SEED);
    pair.right.onOpened = (stream, port) => {
      pair.right.run((now) => pair.right.mux.accept(stream, now));
      pair.right.writeAll(stream, port, 50_000);
    };
    const stream = pair.left.sendTo(80, 100_000);
    pair.run(5000);
    expect(pair.problems).toEqual([]);
    expect(pair.left.arrivals.get(stream)).toMatchObject({
      bytes: 50_000,
      accepted: true,
      ended: true,
      finished: true,
    });
    expect([...pair.right.arrivals.values()]).toMatchObject([
      { bytes: 100_000, port: 80, ended: true, finished: true },
    ]);
    expect([pair.left.mux.streamCount, pair.right.mux.streamCount]).toEqual([0, 0]);
    expect([pair.left.mux.deadline(), pair.right.mux.deadline()]).toEqual([undefined, undefined]);
  });

  test("has its first bytes at the other end after half a round trip", () => {
    const pair = new Pair(SEED, { delayMs: 50 });
    pair.left.sendTo(80, 1000);
    const took = pair.run(1000, () => pair.right.total === 1000);
    expect(took).toBeLessThan(52);
  });

  test("that is refused is closed with the code, and the other end knows nothing of it any more", () => {
    const pair = new Pair(SEED);
    pair.right.onOpened = (stream) => pair.right.run((now) => pair.right.mux.reset(stream, "refused", now));
    const stream = pair.left.sendTo(80, 1000);
    pair.run(1000);
    expect(pair.left.arrivals.get(stream)).toMatchObject({ closed: "refused", accepted: false, bytes: 0 });
    expect([pair.left.mux.streamCount, pair.right.mux.streamCount]).toEqual([0, 0]);
  });

  test("that is reset in the middle ends at both ends, and others go on", () => {
    const pair = new Pair(SEED, { lossPercent: 5 });
    const broken = pair.left.sendTo(80, 10_000_000);
    const other = pair.left.sendTo(81, 300_000);
    pair.run(50);
    pair.left.run((now) => pair.left.mux.reset(broken, "cancelled", now));
    pair.run(20_000);
    const [first, second] = [...pair.right.arrivals.values()];
    expect(first).toMatchObject({ closed: "cancelled", ended: false });
    expect(second).toMatchObject({ bytes: 300_000, ended: true });
    expect(other).not.toBe(broken);
    // The other direction of the second is open still: it has not been ended.
    expect(pair.right.mux.streamCount).toBe(1);
  });

  test("a reader that stops holds back its own stream and no other, at its window", () => {
    const pair = new Pair(SEED);
    pair.right.onOpened = (stream, port) => {
      const arrival = pair.right.arrivals.get(stream);
      if (arrival !== undefined) arrival.isStalled = port === 80;
      pair.right.run((now) => pair.right.mux.accept(stream, now));
    };
    pair.left.sendTo(80, 5_000_000);
    pair.left.sendTo(81, 5_000_000);
    pair.run(5000);
    const [stalled, free] = [...pair.right.arrivals.entries()];
    expect(stalled?.[1].bytes).toBe(INITIAL_STREAM_WINDOW);
    expect(free?.[1]).toMatchObject({ bytes: 5_000_000, ended: true });
    // It goes on where it was once the program reads.
    if (stalled !== undefined) {
      stalled[1].isStalled = false;
      pair.right.read(stalled[0], stalled[1].unread);
    }
    pair.run(5000);
    expect(stalled?.[1]).toMatchObject({ bytes: 5_000_000, ended: true });
    expect(pair.problems).toEqual([]);
  });

  test("many readers that stop do not use up the session's credit", () => {
    const pair = new Pair(SEED, { delayMs: 5 });
    pair.right.onOpened = (stream, port) => {
      const arrival = pair.right.arrivals.get(stream);
      if (arrival !== undefined) arrival.isStalled = port === 80;
      pair.right.run((now) => pair.right.mux.accept(stream, now));
    };
    for (let i = 0; i < 400; i++) pair.left.sendTo(80, 200_000);
    pair.run(3000);
    pair.left.sendTo(81, 1_000_000);
    pair.run(3000);
    expect([...pair.right.arrivals.values()].at(-1)).toMatchObject({ port: 81, bytes: 1_000_000, ended: true });
  });
});

describe("every byte once, in order", () => {
  test("over loss, reordering, duplication, jitter, changes of path and black holes", () => {
    fc.assert(
      fc.property(
        fc.record({
          seed: fc.nat(),
          lossPercent: fc.constantFrom(0, 1, 3, 10),
          jitterMs: fc.constantFrom(0, 5, 40),
          delayMs: fc.constantFrom(0.2, 10, 60),
          duplicatePercent: fc.constantFrom(0, 5),
          rate: fc.constantFrom(0, 1250),
          streams: fc.integer({ min: 1, max: 12 }),
          bytes: fc.integer({ min: 0, max: 120_000 }),
          events: fc.array(
            fc.record({ at: fc.integer({ min: 1, max: 1500 }), kind: fc.constantFrom("switch", "hole", "lost path") }),
            { maxLength: 4 },
          ),
        }),
        ({ streams, bytes, events, seed, ...conditions }) => {
          const pair = new Pair(seed, conditions);
          pair.right.onOpened = (stream, port) => {
            pair.right.run((now) => pair.right.mux.accept(stream, now));
            pair.right.writeAll(stream, port, bytes);
          };
          for (const { at, kind } of events) {
            pair.clock.after(at, () => {
              if (kind === "switch") {
                pair.conditions.delayMs = pair.random.between(0, 80);
                pair.setPath({ frameBytes: pair.random.pick([1200, 1280, 1400]) });
              } else if (kind === "hole") {
                pair.conditions.isDown = true;
                pair.clock.after(700, () => {
                  pair.conditions.isDown = false;
                });
              } else {
                pair.dropPath();
                pair.clock.after(400, () => pair.setPath());
              }
            });
          }
          for (let i = 0; i < streams; i++) pair.left.sendTo(i, bytes);
          const isDone = () => pair.left.mux.streamCount + pair.right.mux.streamCount === 0;
          pair.run(120_000, () => pair.clock.now > 3000 && isDone());
          expect(pair.problems).toEqual([]);
          expect(isDone()).toBe(true);
          for (const end of [pair.left, pair.right]) {
            expect(end.arrivals.size).toBe(streams);
            for (const arrival of end.arrivals.values())
              expect(arrival).toMatchObject({ bytes, ended: true, finished: true });
          }
        },
      ),
      { numRuns: 150, seed: SEED },
    );
  });
});

describe("congestion", () => {
  test("fills a bottleneck of 40 Mbit/s at 40 ms with one stream", () => {
    const pair = new Pair(SEED, { delayMs: 20, rate: 5000, queueBytes: 200_000 });
    pair.left.sendTo(80, 30_000_000);
    pair.run(1500);
    const before = pair.right.total;
    pair.run(3000);
    const share = (pair.right.total - before) / (3000 * 5000);
    expect(share).toBeGreaterThan(0.85);
    expect(pair.problems).toEqual([]);
  });

  test.each([1, 3])("%i %% of random loss at 40 ms leave most of 40 Mbit/s", (lossPercent) => {
    const pair = new Pair(SEED, { delayMs: 20, rate: 5000, queueBytes: 200_000, lossPercent });
    pair.left.sendTo(80, 60_000_000);
    pair.run(2000);
    const before = pair.right.total;
    pair.run(5000);
    expect((pair.right.total - before) / (5000 * 5000)).toBeGreaterThan(0.6);
  });

  test("a bottleneck that drops instead of queueing is found: it loses a few percent, not half", () => {
    const pair = new Pair(SEED, { delayMs: 20, rate: 2500, queueBytes: 15_000 });
    pair.left.sendTo(80, 60_000_000);
    pair.run(3000);
    const before = pair.left.mux.stats;
    const bytes = pair.right.total;
    pair.run(5000);
    const { losses, frames } = pair.left.mux.stats;
    expect((losses - before.losses) / (frames - before.frames)).toBeLessThan(0.09);
    expect((pair.right.total - bytes) / (5000 * 2500)).toBeGreaterThan(0.7);
  });

  test("ten streams share it evenly", () => {
    const pair = new Pair(SEED, { delayMs: 20, rate: 6250, queueBytes: 250_000 });
    for (let i = 0; i < 10; i++) pair.left.sendTo(i, 30_000_000);
    pair.run(5000);
    const shares = [...pair.right.arrivals.values()].map(({ bytes }) => bytes);
    const sum = shares.reduce((a, b) => a + b, 0);
    // Jain's index: 1 is perfectly fair, 0.1 is one stream having it all.
    expect(sum ** 2 / (10 * shares.reduce((a, b) => a + b * b, 0))).toBeGreaterThan(0.98);
  });

  test("reordering by jitter costs next to nothing once it is known", () => {
    const rate = (jitterMs: number): number => {
      const pair = new Pair(SEED, { delayMs: 20, jitterMs, rate: 5000, queueBytes: 200_000 });
      pair.left.sendTo(80, 30_000_000);
      pair.run(4000);
      return pair.right.total;
    };
    expect(rate(10)).toBeGreaterThan(0.6 * rate(0));
  });

  test("a change to a slower path and back does not stop the flow", () => {
    const pair = new Pair(SEED, { delayMs: 10, rate: 5000, queueBytes: 200_000 });
    pair.left.sendTo(80, 40_000_000);
    pair.run(1500);
    const during: number[] = [];
    for (let i = 0; i < 6; i++) {
      pair.conditions.delayMs = i % 2 === 0 ? 40 : 10;
      pair.setPath();
      const before = pair.right.total;
      pair.run(500);
      during.push((pair.right.total - before) / (500 * 5000));
    }
    expect(Math.min(...during)).toBeGreaterThan(0.5);
    expect(pair.problems).toEqual([]);
  });

  test("after a black hole of two seconds it goes on within a second", () => {
    const pair = new Pair(SEED, { delayMs: 20, rate: 5000, queueBytes: 200_000 });
    pair.left.sendTo(80, 30_000_000);
    pair.run(1000);
    pair.conditions.isDown = true;
    pair.run(2000);
    pair.conditions.isDown = false;
    const before = pair.right.total;
    pair.run(1000);
    expect(pair.right.total).toBeGreaterThan(before);
    expect(pair.left.mux.stats.losses).toBeGreaterThan(0);
  });
});

describe("the other end is gone", () => {
  test("streams end at both ends within the stated time, the idle one too", () => {
    const pair = new Pair(SEED);
    const stream = pair.left.sendTo(80, 10_000_000);
    pair.run(100);
    pair.conditions.isDown = true;
    const isOver = () => pair.left.arrivals.get(stream)?.closed !== undefined && pair.right.mux.streamCount === 0;
    const took = pair.run(120_000, isOver);
    expect(pair.left.arrivals.get(stream)?.closed).toBe("silent");
    expect([...pair.right.arrivals.values()][0]?.closed).toBe("silent");
    expect(took).toBeGreaterThan(SILENCE_MS - 1000);
    expect(took).toBeLessThan(SILENCE_MS + 1000);
  });

  test.each([0, 2500, 4900])("idle streams end as soon when the cut comes %i ms after the last word", (quietMs) => {
    const pair = new Pair(SEED);
    let stream: number | undefined;
    pair.left.run((now) => {
      stream = pair.left.mux.open(80, now);
      if (stream !== undefined) pair.left.arrival(stream, 80);
    });
    pair.run(1000 + quietMs);
    pair.conditions.isDown = true;
    const took = pair.run(120_000, () => pair.left.mux.streamCount + pair.right.mux.streamCount === 0);
    expect(pair.left.arrivals.get(stream ?? 0)?.closed).toBe("silent");
    expect([...pair.right.arrivals.values()][0]?.closed).toBe("silent");
    // The peer has been silent already when the cut comes, by at most a keepalive's pause.
    expect(took).toBeGreaterThan(SILENCE_MS - 6000);
    expect(took).toBeLessThan(SILENCE_MS + 1000);
  });

  test("an outage of 20 seconds loses nothing", () => {
    const pair = new Pair(SEED);
    pair.left.sendTo(80, 2_000_000);
    pair.run(100);
    pair.dropPath();
    pair.run(20_000);
    pair.setPath();
    pair.run(5000);
    expect([...pair.right.arrivals.values()][0]).toMatchObject({ bytes: 2_000_000, ended: true });
    expect(pair.problems).toEqual([]);
  });

  test("an agent that has restarted ends the old streams at once, and new ones work", () => {
    const pair = new Pair(SEED);
    const stream = pair.left.sendTo(80, 10_000_000);
    pair.run(200);
    pair.restartRight();
    pair.run(1000);
    expect(pair.left.arrivals.get(stream)?.closed).toBe("restarted");
    pair.left.sendTo(81, 100_000);
    pair.run(1000);
    expect([...pair.right.arrivals.values()]).toMatchObject([{ port: 81, bytes: 100_000, ended: true }]);
    expect(pair.problems).toEqual([]);
  });

  test("the one that has restarted may open first", () => {
    const pair = new Pair(SEED);
    const stream = pair.left.sendTo(80, 10_000_000);
    pair.run(200);
    pair.restartRight();
    pair.right.sendTo(82, 1000);
    pair.run(2000);
    expect(pair.left.arrivals.get(stream)?.closed).toBe("restarted");
    expect([...pair.left.arrivals.values()].at(-1)).toMatchObject({ port: 82, bytes: 1000, ended: true });
  });
});

describe("caps", () => {
  test("so many streams and no more", () => {
    const pair = new Pair(SEED);
    let opened = 0;
    pair.left.run((now) => {
      while (pair.left.mux.open(80, now) !== undefined) opened++;
    });
    expect(opened).toBe(MAX_STREAMS);
    pair.run(2000);
    const codes = [...pair.right.arrivals.values()];
    expect(codes.length).toBe(MAX_STREAMS);
  });

  test("opened all at once, none is refused: those that the peer has not answered are never more than it takes", () => {
    const pair = new Pair(SEED, { delayMs: 50, lossPercent: 2 });
    let unanswered = 0;
    let most = 0;
    pair.right.onOpened = (stream) => {
      most = Math.max(most, ++unanswered);
      // A program here takes a while to answer.
      pair.clock.after(pair.random.between(1, 30), () => {
        unanswered--;
        pair.right.run((now) => {
          pair.right.mux.accept(stream, now);
          pair.right.mux.end(stream, now);
        });
      });
    };
    // Every fifth of those whose turn has not come is given up.
    const isGivenUp = (i: number) => i >= 500 && i % 5 === 0;
    const streams = Array.from({ length: 3000 }, () => pair.left.sendTo(80, 100));
    const given = streams.filter((_, i) => isGivenUp(i));
    pair.left.run((now) => {
      for (const stream of given) pair.left.mux.reset(stream, "cancelled", now);
    });
    pair.run(10_000);
    expect(most).toBeLessThanOrEqual(MAX_HALF_OPEN);
    expect(most).toBeGreaterThan(100);
    const kept = streams.filter((_, i) => !isGivenUp(i)).map((stream) => pair.left.arrivals.get(stream));
    expect(kept.filter((arrival) => arrival?.finished === true).length).toBe(2500);
    expect([...pair.right.arrivals.values()].filter(({ bytes, ended }) => bytes === 100 && ended).length).toBe(2500);
    expect([pair.left.mux.streamCount, pair.right.mux.streamCount]).toEqual([0, 0]);
    expect(pair.problems).toEqual([]);
  });

  test("ten thousand short streams leave nothing behind", () => {
    const pair = new Pair(SEED, { delayMs: 1, lossPercent: 1 });
    pair.right.onOpened = (stream) => {
      pair.right.run((now) => {
        pair.right.mux.accept(stream, now);
        pair.right.mux.end(stream, now);
      });
    };
    for (let round = 0; round < 50; round++) {
      for (let i = 0; i < 200; i++) pair.left.sendTo(80, 10);
      pair.left.arrivals.clear();
      pair.run(300);
      pair.left.problems.length = 0;
      pair.right.arrivals.clear();
      pair.right.problems.length = 0;
    }
    pair.run(10_000);
    expect([pair.left.mux.streamCount, pair.right.mux.streamCount]).toEqual([0, 0]);
  });
});

test("an idle stream takes less than a kilobyte at each end", () => {
  const pair = new Pair(SEED, { delayMs: 1 });
  const opened = 2000;
  const open = (count: number): void => {
    for (let i = 0; i < count; i++) {
      pair.left.run((now) => {
        const stream = pair.left.mux.open(22, now);
        pair.left.mux.write(stream ?? 0, new Uint8Array(100), now);
      });
    }
    pair.run(2000);
    for (const end of [pair.left, pair.right]) end.arrivals.clear();
  };
  open(100);
  const before = heapBytes();
  open(opened);
  expect([pair.left.mux.streamCount, pair.right.mux.streamCount]).toEqual([opened + 100, opened + 100]);
  expect((heapBytes() - before) / opened / 2).toBeLessThan(1024);
});

describe("datagrams", () => {
  test("go and come back along their flow, some are lost, none is repeated by us", () => {
    const pair = new Pair(SEED, { lossPercent: 20 });
    for (let i = 0; i < 100; i++) {
      pair.left.run((now) => pair.left.mux.sendDatagram(3, 53, Uint8Array.of(i), now));
    }
    pair.run(1000);
    expect(pair.right.datagrams.length).toBeGreaterThan(50);
    expect(new Set(pair.right.datagrams.map(({ bytes }) => bytes[0])).size).toBe(pair.right.datagrams.length);
    expect(pair.right.datagrams[0]).toMatchObject({ flow: 2, port: 53 });
    pair.conditions.lossPercent = 0;
    pair.right.run((now) => pair.right.mux.sendDatagram(2, 53, Uint8Array.of(7, 7), now));
    pair.run(1000);
    expect(pair.left.datagrams).toEqual([{ flow: 3, port: 53, bytes: Uint8Array.of(7, 7) }]);
  });
});

function heapBytes(): number {
  Bun.gc(true);
  const { heapSize, extraMemorySize } = heapStats();
  return heapSize + extraMemorySize;
}
