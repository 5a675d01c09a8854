import { describe, expect, test } from "vitest";
import { judgeReuse, type PortSample, samplesToTell } from "../../../../agent/path/port_reuse.ts";
import { MAPPING_LIFETIME_MS, PortUse } from "../../../../agent/path/port_use.ts";
import { instant } from "../../../../shared/time.ts";
import { SeededRandom } from "../../../sim/random.ts";

const DESTINATIONS = 4;
const TRIALS = 400;

/** Ports of a block, each drawn anew for each mapping; `isShared`: only towards one destination they differ. */
function drawn(seed: number, block: number, count: number, isShared: boolean): PortSample[] {
  const random = new SeededRandom(seed);
  const taken = new Set<string>();
  return Array.from({ length: count }, (_, index) => {
    const destination = `server ${index % DESTINATIONS}`;
    for (;;) {
      const port = random.between(40_000, 40_000 + block - 1);
      const key = isShared ? `${port} ${destination}` : `${port}`;
      if (taken.has(key)) continue;
      taken.add(key);
      return { port, destination };
    }
  });
}

describe.each([256, 512, 1024])("a block of %i", (block) => {
  const wanted = samplesToTell(block, DESTINATIONS) ?? Number.NaN;
  const verdicts = (isShared: boolean): (boolean | undefined)[] =>
    Array.from({ length: TRIALS }, (_, seed) => judgeReuse(drawn(seed, block, wanted, isShared), block));

  test("whose ports serve one destination each is never taken for another, and always told", () => {
    expect(new Set(verdicts(false))).toEqual(new Set([false]));
  });

  test("that shares its ports is told so in 99 % of cases", () => {
    expect(verdicts(true).filter((verdict) => verdict === true).length).toBeGreaterThanOrEqual(TRIALS * 0.985);
  });

  test("takes no more than a third of itself to tell", () => {
    expect(wanted).toBeLessThan(block / 3);
  });
});

test("a few samples without a repetition say nothing, one repetition says it all", () => {
  const few = drawn(1, 1024, 24, false);
  expect(judgeReuse(few, 1024)).toBeUndefined();
  const [first] = few;
  if (first === undefined) throw new Error("A sample expected");
  expect(judgeReuse([...few, { port: first.port, destination: "another" }], 1024)).toBe(true);
  // The same mapping, seen twice.
  expect(judgeReuse([...few, first], 1024)).toBeUndefined();
});

test("a large block, or a coordinator with one port, is not asked for more", () => {
  expect(samplesToTell(4096, DESTINATIONS)).toBeUndefined();
  expect(samplesToTell(256, 1)).toBeUndefined();
});

describe("ports in use", () => {
  test("are those of the last two minutes", () => {
    const use = new PortUse();
    use.note(100, instant(0));
    use.note(50, instant(60_000));
    expect([use.inUse(instant(MAPPING_LIFETIME_MS - 1)), use.inUse(instant(MAPPING_LIFETIME_MS))]).toEqual([150, 50]);
  });

  test("tell when few enough of them are left", () => {
    const use = new PortUse();
    use.note(100, instant(0));
    use.note(50, instant(60_000));
    expect(use.waitMs(150, instant(60_000))).toBe(0);
    expect(use.waitMs(50, instant(60_000))).toBe(60_000);
    expect(use.waitMs(0, instant(60_000))).toBe(120_000);
  });
});
