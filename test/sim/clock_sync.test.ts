/**
 * One instant for both: how far apart two agents really fire, in virtual time, although no two clocks agree on origin or speed.
 *
 * NTP's arithmetic takes both ways to be equally long. Where they are not, an agent's clock is misjudged by half the difference, and
 * that is what its start is off by; nothing measured at one end can tell.
 */
import { describe, expect, test } from "vitest";
import { PORT_RESTRICTED_CONE } from "./nats.ts";
import type { Delay } from "./network.ts";
import { areDirect, World, type WorldOptions } from "./world.ts";

interface Skews {
  /** Measured in virtual time. */
  readonly real: number;
  /** What the coordinator logs. */
  readonly reported: number;
}

function skewsOf(options: WorldOptions, delays: readonly [Delay, Delay]): Skews {
  const world = new World(options);
  const [one, two] = [
    world.addAgent("one", PORT_RESTRICTED_CONE, delays[0]),
    world.addAgent("two", PORT_RESTRICTED_CONE, delays[1]),
  ];
  world.joinAll();
  world.run(10_000, () => areDirect(one, two));
  world.run(1000);
  const [a, b] = [one.firedAt[0], two.firedAt[0]];
  const [reported] = world.coordinator.reportedSkewsMs;
  if (a === undefined || b === undefined || reported === undefined) throw new Error("Nobody fired");
  return { real: Math.abs(a - b), reported };
}

const SEEDS = Array.from({ length: 25 }, (_, index) => index + 1);

describe("both agents fire at one instant", () => {
  test.each([
    {
      name: "25 ms each way for both",
      delays: [
        { upMs: 25, downMs: 25 },
        { upMs: 25, downMs: 25 },
      ],
    },
    {
      name: "5 ms and 150 ms each way",
      delays: [
        { upMs: 5, downMs: 5 },
        { upMs: 150, downMs: 150 },
      ],
    },
  ] as const)("within half a millisecond at $name without jitter", ({ delays }) => {
    for (const seed of SEEDS) expect(skewsOf({ seed }, delays).real, `seed ${seed}`).toBeLessThan(0.5);
  });

  test("within 10 ms where each message is up to 10 ms late", () => {
    const delay = { upMs: 25, downMs: 25 };
    for (const seed of SEEDS)
      expect(skewsOf({ seed, jitterMs: 10 }, [delay, delay]).real, `seed ${seed}`).toBeLessThan(10);
  });

  test("off by half the difference of the two ways where one agent's ways differ, which the log cannot see", () => {
    const { real, reported } = skewsOf({ seed: 1 }, [
      { upMs: 60, downMs: 20 },
      { upMs: 25, downMs: 25 },
    ]);
    expect(real).toBeCloseTo(20, 0);
    expect(reported).toBeLessThan(1);
  });

  test("and still in time to be direct: asymmetric ways cost a few early retransmits", () => {
    const world = new World({ seed: 2 });
    const one = world.addAgent("one", PORT_RESTRICTED_CONE, { upMs: 80, downMs: 20 });
    const two = world.addAgent("two", PORT_RESTRICTED_CONE, { upMs: 25, downMs: 25 });
    world.joinAll();
    world.run(700, () => areDirect(one, two));
    expect(areDirect(one, two)).toBe(true);
  });
});
