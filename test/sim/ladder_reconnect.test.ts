/**
 * A router restarts, or gets another public address, under a flow of a hundred packets a second: the direct path has died, and every TCP
 * connection to the coordinator with it, without a word. Whoever moves must find both out, connect anew and carry on within a second,
 * whatever the moment: swept over the phases of proofs, reports and counts.
 */
import { describe, expect, test } from "vitest";
import type { SimAgent } from "./agent.ts";
import { PORT_RESTRICTED_CONE } from "./nats.ts";
import { areDirect, meshPacket, World } from "./world.ts";

const GAP_MS = 10;
/** With 50 ms to the coordinator; what is further away is asked, and opened, some ten of its round trips later. */
const MOST_MS = 1000;
const USUAL_MS = 50;
const ROUND_TRIPS = 10;
const mostMs = (roundTripMs: number): number => MOST_MS + ROUND_TRIPS * Math.max(0, roundTripMs - USUAL_MS);
/** Steps that no timer's interval is a multiple of, over longer than the longest interval that matters here, that of proofs. */
const PHASES = Array.from({ length: 12 }, (_, index) => index * 117);
/** Enough to see what a longer way adds. */
const FEW_PHASES = PHASES.filter((_, index) => index % 3 === 0);
/** Another port, or another address: the peer's router lets neither in. */
const NAT = { ...PORT_RESTRICTED_CONE, allocation: "random" } as const;

const EVENTS = {
  "its router restarts": (world: World, one: SimAgent) => {
    if (one.host.site !== undefined) world.rebootNat(one.host.site);
  },
  "its router gets another address": (world: World, one: SimAgent) => void world.changePublicAddress(one),
} as const;
const FLOWS = ["sends", "receives", "does both"] as const;

/** The longest time without a delivery, in any direction that packets flow in. */
function longestGapMs(
  phaseMs: number,
  roundTripMs: number,
  flow: (typeof FLOWS)[number],
  happen: (world: World, one: SimAgent) => void,
): number {
  const world = new World({ seed: 1 + phaseMs, roundTripMs, hasRelays: true });
  const [one, two] = [world.addAgent("one", NAT), world.addAgent("two", NAT)];
  world.joinAll();
  world.run(5000, () => areDirect(one, two));
  world.run(3000);
  const directions = [
    { isUsed: flow !== "receives", from: one, to: two, deliveredAt: [] as number[] },
    { isUsed: flow !== "sends", from: two, to: one, deliveredAt: [] as number[] },
  ].filter(({ isUsed }) => isUsed);
  const talk = (milliseconds: number): void => {
    for (let left = milliseconds; left > 0; left -= GAP_MS) {
      for (const { from, to } of directions)
        from.sendPacket(meshPacket(from.meshIPv4, to.meshIPv4, new Uint8Array(200)));
      world.run(Math.min(left, GAP_MS));
      for (const { to, deliveredAt } of directions) {
        if (to.received.length > 0) deliveredAt.push(world.now);
        to.received.length = 0;
      }
    }
  };
  talk(1000 + phaseMs);
  const since = world.now;
  happen(world, one);
  talk(mostMs(roundTripMs) + 1000);
  const gaps = directions.map(({ deliveredAt }) => {
    const moments = [...deliveredAt.filter((at) => at >= since - GAP_MS), world.now];
    return Math.max(...moments.map((at, index) => at - (moments[index - 1] ?? since)));
  });
  return Math.max(...gaps);
}

const CASES = Object.entries(EVENTS).flatMap(([what, happen]) => FLOWS.map((flow) => ({ what, flow, happen })));

describe.each([
  { roundTripMs: 0, phases: FEW_PHASES },
  { roundTripMs: 50, phases: PHASES },
  { roundTripMs: 200, phases: FEW_PHASES },
])("at $roundTripMs ms round trip to the coordinator", ({ roundTripMs, phases }) => {
  test.each(CASES)("when $what, an agent that $flow goes on in time, at any moment", ({ what, flow, happen }) => {
    const gaps = phases.map((phaseMs) => longestGapMs(phaseMs, roundTripMs, flow, happen)).toSorted((a, b) => a - b);
    const worst = gaps.at(-1) ?? Infinity;
    console.log(
      `${roundTripMs} ms, ${what}, ${flow}: ${gaps[gaps.length >> 1]?.toFixed(0)} ms in the median, ${worst.toFixed(0)} at worst`,
    );
    expect(worst).toBeLessThan(mostMs(roundTripMs));
  });
});
