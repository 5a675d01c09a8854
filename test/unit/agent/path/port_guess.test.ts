import { describe, expect, test } from "vitest";
import { guessPorts } from "../../../../agent/path/port_guess.ts";
import { type NatReport, type PortRange, UNKNOWN_NAT } from "../../../../shared/wire/candidates.ts";
import { SeededRandom } from "../../../sim/random.ts";

const nat = (allocation: NatReport["allocation"], ports?: PortRange): NatReport => ({
  ...UNKNOWN_NAT,
  mapping: "address-and-port-dependent",
  allocation,
  ...(ports === undefined ? {} : { ports }),
});
const BLOCK = nat("block", { first: 40_000, last: 40_511, stride: 0 });
const counter = (first: number, stride: number): NatReport => nat("sequential", { first, last: first, stride });

const guesses = (
  report: NatReport,
  count: number,
  options: { meeting?: number; socket?: number; seed?: number } = {},
) => {
  const random = new SeededRandom(options.seed ?? 1);
  const guess = guessPorts(report, options.meeting, () => random.next());
  return Array.from({ length: count }, (_, index) => guess(options.socket ?? 0, index));
};

describe("of a block", () => {
  test("each port once before any comes again, whatever the seed", () => {
    for (let seed = 1; seed <= 50; seed++) {
      const ports = guesses(BLOCK, 512, { seed });
      expect(new Set(ports).size).toBe(512);
      expect([Math.min(...ports), Math.max(...ports)]).toEqual([40_000, 40_511]);
    }
  });

  test("another order for each socket", () => {
    const random = new SeededRandom(3);
    const guess = guessPorts(BLOCK, 16, () => random.next());
    const orders = [0, 1, 2].map((socket) => Array.from({ length: 20 }, (_, index) => guess(socket, index)).join());
    expect(new Set(orders).size).toBe(3);
  });

  test("of one port is that port", () => {
    expect(guesses(nat("block", { first: 7000, last: 7000, stride: 0 }), 3)).toEqual([7000, 7000, 7000]);
  });
});

test("where nothing is known: any port above the well-known ones, each once", () => {
  const ports = guesses(nat("random"), 4000);
  expect(new Set(ports).size).toBe(4000);
  expect(Math.min(...ports)).toBeGreaterThanOrEqual(1024);
  expect(Math.max(...ports)).toBeLessThanOrEqual(65_535);
});

describe("of a counter", () => {
  test("the ports that come a little after the next one, in order; the next few, which plain probes may have taken, and those before come late", () => {
    expect(guesses(counter(5000, 2), 4)).toEqual([5008, 5010, 5012, 5014]);
    expect(guesses(counter(5000, -1), 3)).toEqual([4996, 4995, 4994]);
    expect(guesses(counter(5000, 2), 70).slice(58)).toEqual([
      5124, 5126, 5006, 5004, 5002, 5000, 4998, 4996, 4994, 4992, 5128, 5130,
    ]);
  });

  test("goes round at the end", () => {
    expect(guesses(counter(65_531, 1), 2)).toEqual([65_535, 1024]);
  });

  test("that moves with each packet: about the port of the peer's packet of the same number", () => {
    const ports = guesses(counter(5000, 1), 500, { meeting: 16 });
    const drifts = ports.map((port, index) => port - 5000 - index);
    expect([Math.min(...drifts), Math.max(...drifts)]).toEqual([-12, 19]);
  });

  test("that moves with each socket only", () => {
    const report: NatReport = { ...counter(5000, 1), mapping: "address-dependent" };
    expect(Math.max(...guesses(report, 500, { meeting: 16 }))).toBeLessThan(5000 + 16 + 20);
  });
});
