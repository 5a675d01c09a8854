import { describe, expect, test } from "vitest";
import { judgePorts } from "../../../../agent/path/port_allocation.ts";
import { SeededRandom } from "../../../sim/random.ts";

/** As many ports as discovery asks for. */
const SAMPLES = 24;
const TRIALS = 400;

const drawn = (random: SeededRandom, first: number, count: number, samples = SAMPLES): number[] =>
  Array.from({ length: samples }, () => random.between(first, first + count - 1));

/** Of so many NATs of one kind, how many are judged right? */
function rightOf(make: (random: SeededRandom) => readonly number[], kind: string): number {
  let right = 0;
  for (let seed = 1; seed <= TRIALS; seed++) if (judgePorts(make(new SeededRandom(seed)))?.kind === kind) right++;
  return right;
}

describe("a counter", () => {
  test.each([1, 2, 4, -1])("with step %i, beside other traffic", (stride) => {
    const make = (random: SeededRandom): number[] => {
      let port = random.between(20_000, 60_000);
      return Array.from({ length: SAMPLES }, () => (port += stride * (random.chance(20) ? random.between(2, 4) : 1)));
    };
    expect(rightOf(make, "sequential")).toBeGreaterThanOrEqual(TRIALS * 0.99);
  });

  test("whose requests overtook each other", () => {
    const shuffled = (random: SeededRandom): number[] => {
      const first = random.between(20_000, 60_000);
      const ports = Array.from({ length: SAMPLES }, (_, index) => first + index);
      for (let i = 0; i < SAMPLES - 1; i++)
        if (random.chance(30)) [ports[i], ports[i + 1]] = [ports[i + 1] ?? 0, ports[i] ?? 0];
      return ports;
    };
    expect(rightOf(shuffled, "sequential")).toBe(TRIALS);
  });

  test("that begins again in the middle", () => {
    const ports = Array.from({ length: SAMPLES }, (_, index) => 20_000 + ((4090 + index) % 4096));
    expect(judgePorts(ports)).toEqual({ kind: "sequential", ports: { first: 20_018, last: 20_018, stride: 1 } });
  });

  test("tells the port that comes next", () => {
    expect(judgePorts([5000, 5002, 5004, 5006])?.ports).toEqual({ first: 5008, last: 5008, stride: 2 });
  });
});

describe("a block", () => {
  test.each([256, 512, 1000, 1024, 2048])("of %i ports, and never mistaken for a counter", (size) => {
    expect(rightOf((random) => drawn(random, 40_000, size), "block")).toBe(TRIALS);
  });

  test.each([256, 512, 1024])("of %i ports: its borders take in nearly all of it, and little more", (size) => {
    let covered = 0;
    let told = 0;
    for (let seed = 1; seed <= TRIALS; seed++) {
      const ports = judgePorts(drawn(new SeededRandom(seed), 40_000, size))?.ports;
      if (ports === undefined) continue;
      covered += Math.min(ports.last, 40_000 + size - 1) - Math.max(ports.first, 40_000) + 1;
      told += ports.last - ports.first + 1;
    }
    expect(covered / TRIALS / size).toBeGreaterThan(0.94);
    expect(told / TRIALS / size).toBeLessThan(1.08);
  });
});

describe("everything else", () => {
  test("random ports, also of a large block, are random", () => {
    expect(rightOf((random) => drawn(random, 1024, 64_512), "random")).toBe(TRIALS);
    expect(rightOf((random) => drawn(random, 20_000, 16_384), "random")).toBe(TRIALS);
  });

  test("fewer than four ports say nothing, fewer than eight no block", () => {
    expect(judgePorts([1, 2, 3])).toBeUndefined();
    expect(judgePorts([40_000, 40_090, 40_050, 40_011, 40_077])?.kind).toBe("random");
  });
});
