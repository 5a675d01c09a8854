/** How streams use a line in virtual time: alone, with random loss, on busy hosts, and beside others. Reno stands for the rest of the internet. */
import { describe, expect, test } from "vitest";
import { type Conditions, Line, Pair } from "./mux_pair.ts";
import { RenoFlow } from "./reno_flow.ts";

const SEEDS = [1, 2];
/** 40 Mbit/s at 40 ms, with a queue as long as the line holds. */
const LINE: Partial<Conditions> = { delayMs: 20, rate: 5000, queueBytes: 200_000 };
const MORE_THAN_ENOUGH = 10_000_000_000;

function start(seed: number, conditions: Partial<Conditions>, streams = 1, line = new Line()): Pair {
  const pair = new Pair(seed, conditions, line);
  for (let i = 0; i < streams; i++) pair.left.sendTo(80 + i, MORE_THAN_ENOUGH);
  return pair;
}

/** What each of these carries in the next so many milliseconds, as a share of the line. */
function shares(senders: readonly { readonly total: number }[], line: Line, rate: number, forMs: number): number[] {
  const before = senders.map(({ total }) => total);
  line.clock.runUntil(line.clock.now + forMs);
  return senders.map(({ total }, i) => (total - (before[i] ?? 0)) / (forMs * rate));
}

function shareOf(pair: Pair, afterMs: number, forMs: number): number {
  pair.run(afterMs);
  const [share = 0] = shares([pair.right], pair.line, pair.conditions.rate, forMs);
  expect(pair.problems).toEqual([]);
  return share;
}

const jain = (values: readonly number[]): number =>
  values.reduce((a, b) => a + b, 0) ** 2 / (values.length * values.reduce((a, b) => a + b * b, 0));

describe("random loss", () => {
  test.each([
    [1, 1, 0.93],
    [1, 10, 0.93],
    [3, 1, 0.9],
    [3, 10, 0.9],
  ])("of %i percent leaves nearly the whole line to %i streams", (lossPercent, streams, share) => {
    for (const seed of SEEDS)
      expect(shareOf(start(seed, { ...LINE, lossPercent }, streams), 2000, 4000)).toBeGreaterThan(share);
  });

  test.each([1, 3])("of %i percent on hosts that are busy now and then is not taken for congestion", (lossPercent) => {
    const busy = { ...LINE, lossPercent, stallEveryMs: 100, stallMs: 50 };
    for (const seed of SEEDS)
      for (const streams of [1, 10]) expect(shareOf(start(seed, busy, streams), 2000, 4000)).toBeGreaterThan(0.75);
  });

  test("with jitter is not taken for congestion either", () => {
    const jittery = { ...LINE, lossPercent: 3, jitterMs: 10 };
    const found = SEEDS.map((seed) => shareOf(start(seed, jittery), 2000, 4000));
    expect(found.reduce((a, b) => a + b, 0) / SEEDS.length).toBeGreaterThan(0.8);
  });

  test("of 20 percent is: something drops on purpose", () => {
    const pair = start(1, { ...LINE, lossPercent: 20 });
    expect(shareOf(pair, 3000, 4000)).toBeLessThan(0.4);
  });
});

describe("a deep queue", () => {
  /** Half a second of 20 Mbit/s. */
  const DEEP: Partial<Conditions> = { delayMs: 20, rate: 2500, queueBytes: 1_250_000 };

  test.each([1, 2, 4])("is not filled by %i senders", (senders) => {
    const line = new Line();
    const pairs: Pair[] = [];
    for (let i = 0; i < senders; i++) {
      pairs.push(start(10 + i, DEEP, 1, line));
      line.clock.runUntil(line.clock.now + 500);
    }
    line.clock.runUntil(line.clock.now + 2000);
    line.takeWaitMs();
    const found = shares(
      pairs.map(({ right }) => right),
      line,
      2500,
      10_000,
    );
    const [half = 0, most = 0] = line.takeWaitMs(50, 95);
    expect(half).toBeLessThan(30);
    expect(most).toBeLessThan(50);
    expect(found.reduce((a, b) => a + b, 0)).toBeGreaterThan(0.9);
    expect(jain(found)).toBeGreaterThan(0.95);
  });

  test("is empty again soon after the line has become narrow", () => {
    const pair = start(1, { ...DEEP, rate: 5000 });
    pair.run(3000);
    pair.conditions.rate = 1250;
    pair.run(3000);
    pair.line.takeWaitMs();
    expect(shareOf(pair, 0, 3000)).toBeGreaterThan(0.85);
    expect(pair.line.takeWaitMs(50)[0]).toBeLessThan(50);
  });
});

test("a line that has become four times as wide is used within two seconds", () => {
  const pair = start(1, { ...LINE, rate: 1250 });
  pair.run(4000);
  pair.conditions.rate = 5000;
  expect(shareOf(pair, 2000, 2000)).toBeGreaterThan(0.85);
});

describe("others on the line", () => {
  test.each([0, 1, 3])(
    "a newcomer of the same kind has its share within four seconds, at %i percent loss",
    (lossPercent) => {
      for (const seed of SEEDS) {
        const line = new Line();
        const first = start(seed, { ...LINE, rate: 2500, queueBytes: 100_000, lossPercent }, 1, line);
        first.run(4000);
        const second = start(seed + 100, { ...LINE, rate: 2500, queueBytes: 100_000, lossPercent }, 1, line);
        first.run(4000);
        const found = shares([first.right, second.right], line, 2500, 6000);
        expect(Math.min(...found)).toBeGreaterThan(0.35);
      }
    },
  );

  test("two on a line that drops instead of queueing lose little, and neither starves", () => {
    const shallow = { delayMs: 20, rate: 2500, queueBytes: 15_000 };
    const line = new Line();
    const pairs = [start(1, shallow, 1, line), start(2, shallow, 1, line)];
    line.clock.runUntil(4000);
    const before = pairs.map(({ left }) => left.mux.stats);
    const found = shares(
      pairs.map(({ right }) => right),
      line,
      2500,
      10_000,
    );
    for (const [i, { left }] of pairs.entries()) {
      const { losses, frames } = left.mux.stats;
      expect((losses - (before[i]?.losses ?? 0)) / (frames - (before[i]?.frames ?? 0))).toBeLessThan(0.09);
    }
    expect(Math.min(...found)).toBeGreaterThan(0.2);
    expect(found.reduce((a, b) => a + b, 0)).toBeGreaterThan(0.85);
  });

  test.each([0.5, 1, 2, 5])(
    "Reno keeps its share of a queue of %f times what the line holds, and leaves some",
    (queue) => {
      const rate = 2500;
      const conditions = { delayMs: 20, rate, queueBytes: rate * 40 * queue };
      for (const comesFirst of ["stream", "reno"]) {
        const line = new Line();
        const reno = comesFirst === "reno" ? new RenoFlow(line, conditions) : undefined;
        if (reno !== undefined) line.clock.runUntil(3000);
        const pair = start(7, conditions, 1, line);
        if (reno === undefined) line.clock.runUntil(3000);
        const other = reno ?? new RenoFlow(line, conditions);
        line.clock.runUntil(line.clock.now + 5000);
        const [ours = 0, theirs = 0] = shares([pair.right, other], line, rate, 10_000);
        expect(theirs).toBeGreaterThan(0.25);
        expect(ours).toBeGreaterThan(0.1);
      }
    },
  );
});
