import { describe, expect, test } from "vitest";
import { Backoff } from "../../../agent/driver/backoff.ts";

describe("the wait before the coordinator is tried again", () => {
  const waits = (backoff: Backoff, count: number, wasFound: boolean): number[] =>
    Array.from({ length: count }, () => backoff.next(wasFound, 0.5));

  test("stays short for the seconds that a restart takes, and grows when nobody is found for longer", () => {
    const found = waits(new Backoff(), 18, false);
    expect(found).toEqual([...Array.from({ length: 12 }, () => 250), 500, 1000, 2000, 3500, 3500, 3500]);
  });

  test("grows at once where somebody is there and ends the connection", () => {
    expect(waits(new Backoff(), 6, true)).toEqual([250, 500, 1000, 2000, 3500, 3500]);
  });

  test("begins anew when it works", () => {
    const backoff = new Backoff();
    waits(backoff, 20, false);
    backoff.reset();
    expect(waits(backoff, 12, false)).toEqual(Array.from({ length: 12 }, () => 250));
    backoff.reset();
    expect(backoff.next(true, 0.5)).toBe(250);
  });

  test("is spread by half of it either way", () => {
    expect(new Backoff().next(false, 0)).toBe(125);
    expect(new Backoff().next(false, 1)).toBe(375);
  });
});
