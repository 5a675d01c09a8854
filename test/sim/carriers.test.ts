/** A carrier's NAT over the home's, on one side or on both, and two homes behind one carrier, with hairpin and without. */
import { describe, expect, test } from "vitest";
import type { NatBehavior } from "./nat.ts";
import { FULL_CONE, PORT_RESTRICTED_CONE, RESTRICTED_CONE, SYMMETRIC } from "./nats.ts";
import { behindCarrier, expectationOf } from "./oracle.ts";
import { areDirect, meshPacket, World } from "./world.ts";

const BLOCK: NatBehavior = { ...SYMMETRIC, allocation: { kind: "block", first: 40_000, size: 512 }, overloads: true };
const CARRIERS: Readonly<Record<string, NatBehavior>> = {
  "a full cone": FULL_CONE,
  "a restricted cone": RESTRICTED_CONE,
  "a port-restricted cone": PORT_RESTRICTED_CONE,
  symmetric: SYMMETRIC,
  "a block of 512": BLOCK,
};
const NAMES = Object.keys(CARRIERS);
const WITHIN_MS = { plain: 500, attempt: 3000, luck: 0, none: 6000 };

describe.each([
  ["a restricted home", RESTRICTED_CONE],
  ["a port-restricted home", PORT_RESTRICTED_CONE],
] as const)("%s behind a carrier", (_, home) => {
  const pairs = NAMES.flatMap((a, index) => NAMES.slice(index).map((b) => [a, b] as const));
  test.each(pairs)("that is %s x one that is %s", (a, b) => {
    const world = new World({ seed: 7, roundTripMs: 50, jitterMs: 2 });
    const [outerA, outerB] = [a, b].map((name) => CARRIERS[name] ?? FULL_CONE);
    if (outerA === undefined || outerB === undefined) throw new Error("Two carriers expected");
    const one = world.addAgent("one", world.addSite(home, world.addCarrier(outerA)));
    const two = world.addAgent("two", world.addSite(home, world.addCarrier(outerB)));
    world.joinAll();
    const expected = expectationOf(behindCarrier(home, outerA), behindCarrier(home, outerB));
    world.run(WITHIN_MS[expected], () => areDirect(one, two));
    if (expected !== "luck") expect(areDirect(one, two)).toBe(expected !== "none");
  });
});

describe.each(["a full cone", "a port-restricted cone"])("two homes behind one carrier that is %s", (name) => {
  test.each([true, false])("are joined if it turns packets round: %s", (hairpin) => {
    const world = new World({ seed: 8, roundTripMs: 50 });
    const carrier = world.addCarrier({ ...(CARRIERS[name] ?? FULL_CONE), hairpin });
    const one = world.addAgent("one", world.addSite(PORT_RESTRICTED_CONE, carrier));
    const two = world.addAgent("two", world.addSite(PORT_RESTRICTED_CONE, carrier));
    expect(one.host.publicIp).toBe(two.host.publicIp);
    world.joinAll();
    world.run(hairpin ? 500 : 6000, () => areDirect(one, two));
    expect(areDirect(one, two)).toBe(hairpin);
    if (!hairpin) return;
    const packet = meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(1));
    one.sendPacket(packet);
    world.run(20);
    expect(two.received).toEqual([packet]);
  });
});

test("two machines behind one home with hairpin end on the LAN", () => {
  const world = new World({ seed: 9, roundTripMs: 50 });
  const site = world.addSite({ ...PORT_RESTRICTED_CONE, hairpin: true });
  const [one, two] = [world.addAgent("one", site), world.addAgent("two", site)];
  world.joinAll();
  world.run(1000);
  expect(areDirect(one, two)).toBe(true);
  const before = one.host.sentTo.get(one.host.publicIp) ?? 0;
  one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(1)));
  world.run(5);
  expect(two.received).toHaveLength(1);
  expect(one.host.sentTo.get(one.host.publicIp) ?? 0).toBe(before);
});
