/** Delay, jitter, loss and topology: what they cost until a path is direct, and what they may not cost. */
import { describe, expect, test } from "vitest";
import { FIREWALL, FULL_CONE, PORT_RESTRICTED_CONE, RESTRICTED_CONE, SYMMETRIC } from "./nats.ts";
import type { SimAgent } from "./agent.ts";
import { areDirect, World, type WorldOptions } from "./world.ts";
import type { NatBehavior } from "./nat.ts";

/** Virtual time from the moment when all have joined until both have a path; undefined after ten seconds without one. */
function timeToDirect(options: WorldOptions, a: NatBehavior, b: NatBehavior): number | undefined {
  const world = new World(options);
  const [one, two] = [world.addAgent("one", a), world.addAgent("two", b)];
  world.joinAll();
  const since = world.now;
  world.run(10_000, () => areDirect(one, two));
  return areDirect(one, two) ? world.now - since : undefined;
}

const CONES = [FULL_CONE, RESTRICTED_CONE, PORT_RESTRICTED_CONE];
const SEEDS = Array.from({ length: 20 }, (_, index) => index + 1);

/**
 * One round trip to learn one's own address, one for the initiation to reach the peer, one until both hear when to fire, two for a probe
 * and its answer between the peers: five, and 50 ms for margins and early retransmits.
 */
const boundMs = (roundTripMs: number): number => 5 * roundTripMs + 50;

describe.each([0, 50, 100, 200, 400])("at %i ms round trip to the coordinator", (roundTripMs) => {
  test("cones are direct within five round trips and 50 ms", () => {
    for (const a of CONES) {
      for (const b of CONES) {
        for (const seed of [1, 2]) expect(timeToDirect({ seed, roundTripMs }, a, b)).toBeLessThan(boundMs(roundTripMs));
      }
    }
  });
});

test("50 ms of jitter costs no more than itself", () => {
  for (const seed of SEEDS) {
    const taken = timeToDirect({ seed, roundTripMs: 50, jitterMs: 50 }, PORT_RESTRICTED_CONE, PORT_RESTRICTED_CONE);
    expect(taken, `seed ${seed}`).toBeLessThan(boundMs(50 + 2 * 50));
  }
});

describe.each([
  { lossPercent: 2, medianMs: 350, worstMs: 1500 },
  { lossPercent: 5, medianMs: 700, worstMs: 2500 },
  { lossPercent: 10, medianMs: 1000, worstMs: 4000 },
])("at $lossPercent % loss and 50 ms round trip", ({ lossPercent, medianMs, worstMs }) => {
  test(`half of all port-restricted cones are direct within ${medianMs} ms, all within ${worstMs} ms`, () => {
    const times = SEEDS.map((seed) => {
      const options = { seed, roundTripMs: 50, lossPercent, jitterMs: 5 };
      return timeToDirect(options, PORT_RESTRICTED_CONE, PORT_RESTRICTED_CONE) ?? Infinity;
    }).toSorted((a, b) => a - b);
    expect(times[SEEDS.length / 2]).toBeLessThan(medianMs);
    expect(times.at(-1)).toBeLessThan(worstMs);
  });
});

test("a sender that is twenty times slower than its peer is direct as soon as its own delay allows", () => {
  for (const seed of [1, 2, 3]) {
    const world = new World({ seed });
    const one = world.addAgent("one", PORT_RESTRICTED_CONE, { upMs: 200, downMs: 200 });
    const two = world.addAgent("two", PORT_RESTRICTED_CONE, { upMs: 10, downMs: 10 });
    world.joinAll();
    world.run(boundMs(400), () => areDirect(one, two));
    expect(areDirect(one, two), `seed ${seed}`).toBe(true);
  }
});

describe("topology", () => {
  test("with one coordinator address paths are the same, and full and restricted cone are not told apart", () => {
    const world = new World({ seed: 5, roundTripMs: 50, coordinatorAddresses: 1 });
    const [one, two] = [world.addAgent("one", FULL_CONE), world.addAgent("two", PORT_RESTRICTED_CONE)];
    world.joinAll();
    world.run(boundMs(50), () => areDirect(one, two));
    expect(areDirect(one, two)).toBe(true);
    world.run(3000);
    expect(one.node.gathering.natReport()).toMatchObject({ filtering: "address-dependent", certain: false });
    expect(two.node.gathering.natReport()).toMatchObject({ filtering: "address-and-port-dependent", certain: true });
  });

  test.each([PORT_RESTRICTED_CONE, SYMMETRIC])("two agents behind one NAT ($mapping) meet on the LAN", (nat) => {
    const world = new World({ seed: 6, roundTripMs: 50 });
    const site = world.addSite(nat);
    const [one, two] = [world.addAgent("one", site), world.addAgent("two", site)];
    world.joinAll();
    world.run(boundMs(50), () => areDirect(one, two));
    world.run(1000);
    expect([remoteIp(one), remoteIp(two)]).toEqual([two.host.ip, one.host.ip]);
  });

  test("an agent with a public address is reached by everybody", () => {
    for (const nat of [...CONES, SYMMETRIC, FIREWALL]) {
      const world = new World({ seed: 7, roundTripMs: 50 });
      const [one, two] = [world.addAgent("one", "public"), world.addAgent("two", nat)];
      world.joinAll();
      world.run(boundMs(50), () => areDirect(one, two));
      expect(areDirect(one, two), JSON.stringify(nat)).toBe(true);
    }
  });

  test("two public addresses behind stateful firewalls open both", () => {
    expect(timeToDirect({ seed: 8, roundTripMs: 50 }, FIREWALL, FIREWALL)).toBeLessThan(boundMs(50));
  });

  test("where UDP is blocked there is no direct path, and both sides say why", () => {
    const world = new World({ seed: 9, roundTripMs: 50 });
    const [one, two] = [world.addAgent("one", FULL_CONE), world.addAgent("two", FULL_CONE)];
    two.host.isUdpBlocked = true;
    world.joinAll();
    world.run(10_000);
    expect(areDirect(one, two)).toBe(false);
    expect(one.view(two.id)?.why).toContain('the network of "two" blocks UDP');
    expect(two.view(one.id)?.why).toContain("this network blocks UDP");
  });

  test("where both NATs are symmetric, both sides say why after one round of four seconds", () => {
    for (const roundTripMs of [0, 50, 200]) {
      const world = new World({ seed: 1, roundTripMs });
      const [one, two] = [world.addAgent("one", SYMMETRIC), world.addAgent("two", SYMMETRIC)];
      world.joinAll();
      world.run(2000);
      expect(one.view(two.id)?.why).toBe('Looking for a direct path to "two"');
      world.run(3500);
      for (const why of [one.view(two.id)?.why, two.view(one.id)?.why])
        expect(why).toContain("both routers use a different port per destination (symmetric)");
    }
  });

  test("five agents behind different cones have ten paths", () => {
    const world = new World({ seed: 10, roundTripMs: 50, jitterMs: 5 });
    for (let i = 0; i < 5; i++) world.addAgent(`agent-${i}`, CONES[i % 3] ?? FULL_CONE);
    world.joinAll(0);
    const areAllDirect = (): boolean =>
      world.agents.every((a) => world.agents.every((b) => a === b || areDirect(a, b)));
    world.run(boundMs(50) + 300, areAllDirect);
    expect(areAllDirect()).toBe(true);
  });

  test("an agent that joins while two others are punching gets its paths, and they theirs", () => {
    for (let lateMs = 0; lateMs <= 400; lateMs += 20) {
      const world = new World({ seed: 11, roundTripMs: 50, jitterMs: 5 });
      const [one, two, three] = ["one", "two", "three"].map((name) => world.addAgent(name, PORT_RESTRICTED_CONE)) as [
        SimAgent,
        SimAgent,
        SimAgent,
      ];
      one.start();
      two.start();
      world.run(100 + lateMs);
      three.start();
      world.run(3000, () => areDirect(one, two) && areDirect(one, three) && areDirect(two, three));
      expect([areDirect(one, two), areDirect(one, three), areDirect(two, three)], `${lateMs} ms late`).toEqual([
        true,
        true,
        true,
      ]);
    }
  });
});

function remoteIp(agent: SimAgent): string | undefined {
  const changes = agent.events.flatMap(({ event }) => (event.type === "path_changed" ? [event.remote?.ip] : []));
  return changes.at(-1);
}
