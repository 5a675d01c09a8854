import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { REPLAY_WINDOW_BITS, ReplayWindow } from "../../../../shared/session/replay_window.ts";

/** The same rule with a set that never forgets. */
class NaiveWindow {
  readonly #seen = new Set<number>();
  #newest = -1;

  accept(counter: number): boolean {
    if (counter >= Number.MAX_SAFE_INTEGER || this.#seen.has(counter)) return false;
    if (this.#newest - counter >= REPLAY_WINDOW_BITS) return false;
    this.#seen.add(counter);
    this.#newest = Math.max(this.#newest, counter);
    return true;
  }
}

/** Where the next counter lies: near the newest, at the window's edges, or anywhere. */
const step = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: -70, max: 70 }) },
  { weight: 2, arbitrary: fc.integer({ min: -REPLAY_WINDOW_BITS - 40, max: -REPLAY_WINDOW_BITS + 40 }) },
  { weight: 2, arbitrary: fc.integer({ min: REPLAY_WINDOW_BITS - 40, max: REPLAY_WINDOW_BITS + 80 }) },
  { weight: 1, arbitrary: fc.integer({ min: -REPLAY_WINDOW_BITS, max: 2 ** 44 }) },
);

test("it accepts exactly what a set of all counters seen would accept", () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 40 }), fc.array(step, { maxLength: 120 }), (start, steps) => {
      const window = new ReplayWindow();
      const naive = new NaiveWindow();
      let newest = start;
      for (const move of [0, ...steps]) {
        const counter = Math.max(0, newest + move);
        const may = window.mayAccept(counter);
        const expected = naive.accept(counter);
        expect(window.accept(counter), `counter ${counter}, newest ${newest}`).toBe(expected);
        expect(may).toBe(expected);
        expect(window.mayAccept(counter)).toBe(false);
        newest = Math.max(newest, counter);
      }
    }),
    { numRuns: 150 },
  );
});

test("a run in any order is accepted once each, and not a second time", () => {
  const window = new ReplayWindow();
  // A step that shares no factor with 5000 visits each number once.
  const order = Array.from({ length: 5000 }, (_, i) => (i * 1777) % 5000);
  for (const counter of order) expect(window.accept(counter)).toBe(true);
  for (const counter of order) expect(window.accept(counter)).toBe(false);
});

describe("the edge of the window", () => {
  test.each([0, 1, 31, 32, 33])(
    "newest at bit %i of its word: the oldest counter inside is accepted, the next one is not",
    (bit) => {
      const window = new ReplayWindow();
      const newest = 1_000_000 * 32 + bit;
      window.accept(newest);
      expect(window.accept(newest - REPLAY_WINDOW_BITS)).toBe(false);
      expect(window.accept(newest - REPLAY_WINDOW_BITS + 1)).toBe(true);
      expect(window.accept(newest - REPLAY_WINDOW_BITS + 1)).toBe(false);
    },
  );

  test("sliding by one lets the oldest fall out and forgets nothing else", () => {
    const window = new ReplayWindow();
    for (let counter = 0; counter < REPLAY_WINDOW_BITS; counter++) window.accept(counter);
    for (let counter = 0; counter < REPLAY_WINDOW_BITS; counter++)
      if (window.mayAccept(counter)) expect.fail(`${counter}`);
    expect(window.accept(REPLAY_WINDOW_BITS)).toBe(true);
    expect(window.mayAccept(0)).toBe(false);
    for (let counter = 1; counter <= REPLAY_WINDOW_BITS; counter++)
      if (window.mayAccept(counter)) expect.fail(`${counter}`);
  });
});

describe("far jumps", () => {
  test("forget everything behind them, and nothing old becomes acceptable", () => {
    const window = new ReplayWindow();
    for (const counter of [0, 5, 100]) window.accept(counter);
    const far = 2 ** 45;
    expect(window.accept(far)).toBe(true);
    for (const old of [0, 5, 6, 100, 131_072]) expect(window.accept(old)).toBe(false);
    expect(window.accept(far - 1)).toBe(true);
    expect(window.accept(far - 1)).toBe(false);
  });

  test("by whole turns of the ring leave no bits of the turn before", () => {
    for (const turns of [1, 2, 3]) {
      const window = new ReplayWindow();
      for (let counter = 0; counter < 64; counter++) window.accept(counter);
      window.accept(turns * 4096 * 32 + 63);
      for (let bit = 0; bit < 63; bit++) expect(window.accept(turns * 4096 * 32 + bit)).toBe(true);
    }
  });

  test("to numbers that cannot be told apart are refused", () => {
    const window = new ReplayWindow();
    expect(window.accept(2 ** 53)).toBe(false);
    expect(window.accept(2 ** 64)).toBe(false);
    expect(window.accept(Number.MAX_SAFE_INTEGER - 1)).toBe(true);
    expect(window.accept(0)).toBe(false);
  });
});

test("a check alone does not move the window", () => {
  const window = new ReplayWindow();
  window.accept(10);
  expect(window.mayAccept(10 ** 9)).toBe(true);
  expect(window.accept(9)).toBe(true);
});
