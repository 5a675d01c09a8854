/** NATs that are not what STUN shows of them: what comes of the attempts, and of peers' words, corrects the label. */
import { describe, expect, test } from "vitest";
import { natLabel } from "../../agent/path/nat_behavior.ts";
import type { SimAgent } from "./agent.ts";
import type { NatBehavior } from "./nat.ts";
import { FULL_CONE, PORT_RESTRICTED_CONE, RESTRICTED_CONE, SYMMETRIC } from "./nats.ts";
import { areDirect, World } from "./world.ts";

/** One port for the coordinator, whichever of its addresses is asked, and another for each peer. */
const LIAR: NatBehavior = { ...SYMMETRIC, filterPerMapping: true, showsOnePortTo: "203.0.113." };

const punches = (agent: SimAgent): number => agent.events.filter(({ event }) => event.type === "punched").length;
const labelOf = (agent: SimAgent): string => natLabel(agent.node.gathering.natReport());

describe.each([0, 2])("at %i per cent loss", (lossPercent) => {
  test.each([
    ["a liar x port-restricted", LIAR, PORT_RESTRICTED_CONE],
    ["port-restricted x a liar", PORT_RESTRICTED_CONE, LIAR],
  ])("%s is direct within half a minute, in 10 of 10 worlds", (_, a, b) => {
    for (let seed = 1; seed <= 10; seed++) {
      const world = new World({ seed, roundTripMs: 50, lossPercent });
      const [one, two] = [world.addAgent("one", a), world.addAgent("two", b)];
      world.joinAll();
      world.run(3000);
      // Believed at first, so nothing but plain rounds is tried.
      expect([areDirect(one, two), punches(one)]).toEqual([false, 0]);
      world.run(27_000, () => areDirect(one, two));
      expect(areDirect(one, two), `seed ${seed}`).toBe(true);
    }
  });
});

test("two liars: four attempts at most, however long it goes on", () => {
  const world = new World({ seed: 1, roundTripMs: 50 });
  const [one, two] = [world.addAgent("one", LIAR), world.addAgent("two", LIAR)];
  world.joinAll();
  for (let minute = 0; minute < 30; minute++) {
    one.do((node, now) => node.use(two.id, now));
    two.do((node, now) => node.use(one.id, now));
    world.run(60_000);
  }
  expect(areDirect(one, two)).toBe(false);
  expect(punches(one)).toBeLessThanOrEqual(4);
});

test("a firewall that lets no peer through gets four attempts at most", () => {
  const world = new World({ seed: 2, roundTripMs: 50 });
  const [one, two] = [world.addAgent("one", FULL_CONE), world.addAgent("two", PORT_RESTRICTED_CONE)];
  const peers = [one.host.publicIp, two.host.publicIp];
  world.network.swallows = ({ from, to }) => peers.includes(from.ip) && peers.includes(to.ip);
  world.joinAll();
  for (let minute = 0; minute < 30; minute++) {
    one.do((node, now) => node.use(two.id, now));
    world.run(60_000);
  }
  expect(areDirect(one, two)).toBe(false);
  expect([punches(one), punches(two)].map((count) => count > 0 && count <= 4)).toEqual([true, true]);
});

describe("what two peers see of us that STUN does not", () => {
  test("corrects the label, and a strict peer is then reached at once", () => {
    const world = new World({ seed: 3, roundTripMs: 50 });
    const liar = world.addAgent("liar", LIAR);
    const witnesses = [world.addAgent("one", FULL_CONE), world.addAgent("two", RESTRICTED_CONE)];
    world.joinAll();
    world.run(30_000, () => labelOf(liar) === "symmetric");
    expect(witnesses.map((witness) => areDirect(liar, witness))).toEqual([true, true]);
    expect(liar.node.gathering.natReport()).toMatchObject({ mapping: "address-and-port-dependent", certain: false });
    const strict = world.addAgent("strict", PORT_RESTRICTED_CONE);
    strict.start();
    world.run(3000, () => areDirect(liar, strict));
    expect(areDirect(liar, strict)).toBe(true);
  });

  test("a router that has given us another port meanwhile is no liar: STUN says so", () => {
    const world = new World({ seed: 4, roundTripMs: 50 });
    const site = world.addSite({ ...PORT_RESTRICTED_CONE, allocation: "random" });
    const one = world.addAgent("one", site);
    const others = [1, 2, 3].map((number) => world.addAgent(`other-${number}`, FULL_CONE));
    world.joinAll();
    world.run(5000);
    world.rebootNat(site);
    for (let second = 0; second < 60; second++) {
      for (const other of others) one.do((node, now) => node.use(other.id, now));
      world.run(1000);
      expect(labelOf(one)).toBe("port-restricted cone");
    }
    expect(others.every((other) => areDirect(one, other))).toBe(true);
  });
});
