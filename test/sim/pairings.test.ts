/** All 81 pairings of mapping and filtering: the oracle says where a direct path appears, and how soon is bounded by virtual time. */
import { describe, expect, test } from "vitest";
import type { NatBehavior } from "./nat.ts";
import { ALL_NATS, ALL_PAIRINGS, directPathExpected, expectationOf } from "./oracle.ts";
import { areDirect, meshPacket, World } from "./world.ts";

/** A whole round of probes, and what is left of the background. More seeds and more time: `npm run sim -- --pairings`. */
const IMPOSSIBLE_FOR_MS = 4500;
/** What an attempt takes that must find a port among all: discovery, consent and 1.7 s at worst. */
const ATTEMPT_MS = 3000;

describe.each([
  { seed: 1, roundTripMs: 0, jitterMs: 0, boundMs: 300 },
  { seed: 2, roundTripMs: 50, jitterMs: 3, boundMs: 500 },
])("at $roundTripMs ms round trip", (conditions) => {
  test.each(ALL_NATS)("$mapping / $filtering: direct to all it can reach, in time", (a) => {
    for (const b of ALL_NATS) expectOracle(a, b, conditions);
  });
});

test("with filters kept per mapping four more pairings are blocked, and no other", () => {
  const perMapping = (nat: NatBehavior): NatBehavior => ({ ...nat, filterPerMapping: true });
  const blocked = ALL_PAIRINGS.filter(
    ({ a, b }) => directPathExpected(a, b) && !directPathExpected(perMapping(a), perMapping(b)),
  );
  expect(blocked).toHaveLength(4);
  for (const { a, b } of ALL_PAIRINGS)
    expectOracle(perMapping(a), perMapping(b), { seed: 3, roundTripMs: 20, jitterMs: 1, boundMs: 500 });
});

test("a NAT that gives cones random ports changes nothing", () => {
  const random = (nat: NatBehavior): NatBehavior => ({ ...nat, allocation: "random" });
  for (const { a, b } of ALL_PAIRINGS)
    expectOracle(random(a), random(b), { seed: 4, roundTripMs: 50, jitterMs: 2, boundMs: 500 });
});

interface Conditions {
  readonly seed: number;
  readonly roundTripMs: number;
  readonly jitterMs: number;
  /** From the moment when the second agent has joined until both have a path. */
  readonly boundMs: number;
}

function expectOracle(a: NatBehavior, b: NatBehavior, { boundMs, ...options }: Conditions): void {
  const world = new World(options);
  const one = world.addAgent("one", a);
  const two = world.addAgent("two", b);
  world.joinAll();
  const label = `${describeNat(a)} x ${describeNat(b)}, seed ${options.seed}`;
  const expected = expectationOf(a, b);
  const isExpected = expected !== "none";
  const withinMs = { plain: boundMs, attempt: ATTEMPT_MS, luck: 0, none: IMPOSSIBLE_FOR_MS }[expected];
  world.run(withinMs, () => areDirect(one, two));
  expect(areDirect(one, two), label).toBe(isExpected);
  if (!isExpected) return;
  const packet = meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(options.seed));
  one.sendPacket(packet);
  world.run(options.roundTripMs * 2 + 20);
  expect(two.received, label).toEqual([packet]);
}

const describeNat = ({ mapping, filtering }: NatBehavior): string => `${mapping}/${filtering}`;
