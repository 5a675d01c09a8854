/** What happens to a path over time: idleness, outages, restarts, reboots. */
import { describe, expect, test } from "vitest";
import type { SimAgent } from "./agent.ts";
import type { NatBehavior } from "./nat.ts";
import { FULL_CONE, PORT_RESTRICTED_CONE, RESTRICTED_CONE } from "./nats.ts";
import { areDirect, meshPacket, World, type WorldOptions } from "./world.ts";

interface Pair {
  readonly world: World;
  readonly one: SimAgent;
  readonly two: SimAgent;
}

/** Two agents with a direct path, three seconds old. */
function directPair(a: NatBehavior, b: NatBehavior, options: Partial<WorldOptions> = {}): Pair {
  const world = new World({ seed: 1, roundTripMs: 50, ...options });
  const [one, two] = [world.addAgent("one", a), world.addAgent("two", b)];
  world.joinAll();
  world.run(5000, () => areDirect(one, two));
  world.run(3000);
  expect(areDirect(one, two)).toBe(true);
  return { world, one, two };
}

/** Both send a packet each `gapMs` for so long; returns how many arrived, of how many. */
function exchange(
  { world, one, two }: Pair,
  milliseconds: number,
  gapMs: number,
  done = () => false,
): [number, number] {
  const before = one.received.length + two.received.length;
  let sent = 0;
  for (let at = 0; at < milliseconds && !done(); at += gapMs) {
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(1)));
    two.sendPacket(meshPacket(two.meshIPv4, one.meshIPv4, Uint8Array.of(2)));
    sent += 2;
    world.run(gapMs);
  }
  world.run(500);
  return [one.received.length + two.received.length - before, sent];
}

function losses(agent: SimAgent): string[] {
  return agent.events.flatMap(({ event }) =>
    event.type === "path_changed" && event.from === "direct" && event.to !== "direct" ? [event.reason] : [],
  );
}

describe("mappings that last 30 s", () => {
  const nat = { ...PORT_RESTRICTED_CONE, lifetimeMs: 30_000 };

  test("a path in use stays without traffic, since it is kept alive", () => {
    const pair = directPair(nat, nat);
    pair.world.run(115_000);
    expect(losses(pair.one)).toEqual([]);
    expect(exchange(pair, 1000, 100)).toEqual([20, 20]);
  });

  test("a path that is no longer in use stays until it is idle; then both let it go", () => {
    const { world, one, two } = directPair(nat, nat);
    world.run(280_000);
    expect(areDirect(one, two)).toBe(true);
    world.run(30_000);
    expect([...losses(one), ...losses(two)].every((reason) => reason.includes("idle"))).toBe(true);
    expect([one.isDirectTo(two.id), two.isDirectTo(one.id)]).toEqual([false, false]);
    expect(one.view(two.id)?.why).toMatch(/idle/i);
  });

  test("after it was let go the first packet opens it again, and arrives within half a second", () => {
    const { world, one, two } = directPair(nat, nat);
    world.run(600_000);
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(7)));
    world.run(500);
    expect(two.received).toHaveLength(1);
    world.run(5000);
    expect(areDirect(one, two)).toBe(true);
  });

  test("a side that alone has let go, without being heard, is reached again all the same", () => {
    const { world, one, two } = directPair(nat, nat);
    world.network.lossPercent = 100;
    world.run(320_000);
    world.network.lossPercent = 0;
    world.run(30_000);
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(7)));
    world.run(5000, () => two.received.length > 0);
    expect(two.received).toHaveLength(1);
  });
});

describe("a coordinator that is away", () => {
  test("costs a live path nothing: data flows through rekeying, nothing is said of blocked UDP", () => {
    const pair = directPair(PORT_RESTRICTED_CONE, PORT_RESTRICTED_CONE);
    pair.world.coordinator.stop();
    expect(exchange(pair, 300_000, 1000)).toEqual([600, 600]);
    pair.world.coordinator.start();
    expect(exchange(pair, 20_000, 1000)).toEqual([40, 40]);
    for (const agent of [pair.one, pair.two]) {
      expect(losses(agent)).toEqual([]);
      expect(agent.events.filter(({ event }) => event.type === "nat_detected")).toHaveLength(1);
      expect(agent.node.gathering.natReport().udpBlocked).toBe(false);
    }
  });

  test("when both have found another address meanwhile, the path is back within a second of its return", () => {
    const random = { ...PORT_RESTRICTED_CONE, allocation: "random" } as const;
    const pair = directPair(random, random);
    const { world, one, two } = pair;
    world.coordinator.stop();
    for (const { host } of [one, two]) if (host.site !== undefined) world.rebootNat(host.site);
    exchange(pair, 60_000, 500);
    expect(areDirect(one, two)).toBe(false);
    world.coordinator.start();
    exchange(pair, 20_000, 100, () => areDirect(one, two));
    const joinedAgainAt = Math.max(
      ...world.coordinator.events.flatMap(({ at, event }) => (event.event === "agent_joined" ? [at] : [])),
    );
    expect(areDirect(one, two)).toBe(true);
    expect(lastDirectAt(one, two) - joinedAgainAt).toBeLessThan(1000);
  });
});

test("an agent that starts again is direct again within 500 ms of joining", () => {
  for (const seed of [1, 2, 3, 4, 5]) {
    const { world, one, two } = directPair(PORT_RESTRICTED_CONE, RESTRICTED_CONE, { seed });
    one.restart();
    world.run(5000, () => one.isJoined);
    world.run(500, () => areDirect(one, two));
    expect(areDirect(one, two)).toBe(true);
    expect(losses(two)).toEqual(["the peer has restarted"]);
  }
});

describe("a NAT that reboots under traffic in both directions", () => {
  test.each([FULL_CONE, RESTRICTED_CONE, PORT_RESTRICTED_CONE])(
    "$filtering, same port again: nothing is noticed",
    (nat) => {
      const pair = directPair(nat, nat);
      if (pair.one.host.site !== undefined) pair.world.rebootNat(pair.one.host.site);
      const [arrived, sent] = exchange(pair, 5000, 100);
      expect(sent - arrived).toBeLessThanOrEqual(2);
      expect(losses(pair.one)).toEqual([]);
    },
  );

  test("another port: a peer that lets strangers in hears the probes and follows within 1.2 s", () => {
    const pair = directPair({ ...FULL_CONE, allocation: "random" }, { ...FULL_CONE, allocation: "random" });
    if (pair.one.host.site !== undefined) pair.world.rebootNat(pair.one.host.site);
    // What it sends goes to the old address until the path is found dead.
    const [arrived, sent] = exchange(pair, 5000, 100);
    expect(sent - arrived).toBeLessThanOrEqual(12);
    expect(losses(pair.two)).toEqual([]);
  });

  test("another port, strict filters, signalling still up: direct again within 1.5 s", () => {
    const random = { ...PORT_RESTRICTED_CONE, allocation: "random" } as const;
    const pair = directPair(random, random);
    const since = pair.world.now;
    pair.one.host.site?.nat.reboot();
    exchange(pair, 30_000, 100, () => losses(pair.one).length > 0 && areDirect(pair.one, pair.two));
    expect(lastDirectAt(pair.one, pair.two) - since).toBeLessThan(1500);
  });

  test("another port, strict filters, signalling dead too: direct again a moment after signalling is back", () => {
    const random = { ...PORT_RESTRICTED_CONE, allocation: "random" } as const;
    const pair = directPair(random, random);
    if (pair.one.host.site !== undefined) pair.world.rebootNat(pair.one.host.site);
    exchange(pair, 40_000, 100);
    const joinedAt = pair.world.coordinator.events.findLast(({ event }) => event.event === "agent_joined")?.at ?? 0;
    expect(lastDirectAt(pair.one, pair.two) - joinedAt).toBeLessThan(500);
  });
});

test("ten seconds without any packet: the path is back with the next background probes, within 4.5 s", () => {
  const pair = directPair(PORT_RESTRICTED_CONE, PORT_RESTRICTED_CONE);
  pair.world.network.lossPercent = 100;
  exchange(pair, 10_000, 100);
  expect(areDirect(pair.one, pair.two)).toBe(false);
  pair.world.network.lossPercent = 0;
  const since = pair.world.now;
  exchange(pair, 20_000, 100, () => areDirect(pair.one, pair.two));
  expect(lastDirectAt(pair.one, pair.two) - since).toBeLessThan(4500);
});

test("a path whose packets vanish under traffic is given up within a second", () => {
  const pair = directPair(PORT_RESTRICTED_CONE, PORT_RESTRICTED_CONE);
  exchange(pair, 1000, 100);
  const since = pair.world.now;
  pair.world.network.lossPercent = 100;
  exchange(pair, 3000, 100);
  for (const agent of [pair.one, pair.two]) {
    const at = agent.events.findLast(({ event }) => event.type === "path_changed")?.at ?? Infinity;
    expect(at - since).toBeLessThan(1100);
  }
});

function lastDirectAt(one: SimAgent, two: SimAgent): number {
  const last = (agent: SimAgent): number =>
    agent.events.findLast(({ event }) => event.type === "path_changed" && event.to === "direct")?.at ?? Infinity;
  return Math.max(last(one), last(two));
}
