/** How long NATs remember idle mappings: found out, and idle paths kept open accordingly, at no more cost than that takes. */
import { describe, expect, test } from "vitest";
import type { SimAgent } from "./agent.ts";
import type { NatBehavior } from "./nat.ts";
import { FIREWALL, FULL_CONE, PORT_RESTRICTED_CONE } from "./nats.ts";
import { areDirect, World } from "./world.ts";

/** Forgets after so many seconds, and gives another port to what comes later. */
const forgetful = (seconds: number): NatBehavior => ({
  ...PORT_RESTRICTED_CONE,
  allocation: "random",
  lifetimeMs: seconds * 1000,
});
/** In use for two minutes after joining, then idle until five minutes are over. */
const IDLE_FROM_MS = 130_000;
const IDLE_UNTIL_MS = 290_000;
/** The test of a lifetime is over by then. */
const MEASURED_MS = 220_000;

interface Idle {
  readonly one: SimAgent;
  readonly two: SimAgent;
  /** External ports that the first one's data came from while the path was idle, and how many datagrams left its site. */
  readonly ports: ReadonlySet<number>;
  readonly datagrams: number;
}

/** Joins two agents and leaves them alone. */
function idle(a: NatBehavior, b: NatBehavior, lossPercent = 0): Idle {
  const world = new World({ seed: 7, roundTripMs: 50, lossPercent });
  const [one, two] = [world.addAgent("one", a), world.addAgent("two", b)];
  world.joinAll();
  world.run(5000, () => areDirect(one, two));
  expect(areDirect(one, two)).toBe(true);
  world.run(IDLE_FROM_MS - world.now);
  const ports = new Set<number>();
  let datagrams = 0;
  world.network.tap = ({ from, to }) => {
    if (from.ip !== one.host.publicIp) return;
    datagrams++;
    if (to.ip === two.host.publicIp) ports.add(from.port);
  };
  world.run(IDLE_UNTIL_MS - world.now);
  return { one, two, ports, datagrams };
}

const lossesOf = (agent: SimAgent): string[] =>
  agent.events.flatMap(({ event }) =>
    event.type === "path_changed" && event.from === "direct" && event.to !== "direct" ? [event.reason] : [],
  );

describe.each([10, 15, 30, 120])("a NAT that forgets idle mappings after %i s", (seconds) => {
  test("is found out within four minutes, on either side of the pair", () => {
    const world = new World({ seed: seconds, roundTripMs: 50 });
    const agents = [world.addAgent("one", forgetful(seconds)), world.addAgent("two", forgetful(seconds))];
    world.joinAll();
    world.run(MEASURED_MS);
    for (const agent of agents) {
      const lifetime = agent.node.gathering.tests.lifetime;
      expect(lifetime?.stoodSeconds).toBeLessThanOrEqual(seconds);
      expect(lifetime?.stoodSeconds).toBeGreaterThanOrEqual(Math.min(seconds / 1.5, 90));
      if (seconds < 90) expect(lifetime?.fellSeconds).toBeGreaterThan(seconds);
      // The sockets of the tests are closed.
      expect(agent.host.sockets.size).toBe(1);
    }
  });

  test.each([0, 5])("never forgets an idle path, nor changes its port, at %i per cent loss", (lossPercent) => {
    const { one, two, ports } = idle(forgetful(seconds), forgetful(seconds), lossPercent);
    expect([lossesOf(one), lossesOf(two)]).toEqual([[], []]);
    expect(ports.size).toBe(1);
  });

  test("opposite one that never forgets each side keeps its own mapping", () => {
    for (const [a, b] of [
      [forgetful(seconds), FULL_CONE],
      [FULL_CONE, forgetful(seconds)],
    ] as const) {
      const { one, two } = idle(a, b);
      expect([lossesOf(one), lossesOf(two)]).toEqual([[], []]);
    }
  });
});

test("the longer a NAT remembers the fewer packets an idle agent sends", () => {
  const [ten, thirty, minutes] = [10, 30, 120].map((seconds) => idle(forgetful(seconds), FULL_CONE).datagrams);
  console.log(
    `datagrams in ${(IDLE_UNTIL_MS - IDLE_FROM_MS) / 1000} s at 10, 30, 120 s: ${ten}, ${thirty}, ${minutes}`,
  );
  expect(minutes).toBeLessThan((3 / 4) * (thirty ?? 0));
  expect(thirty).toBeLessThan((2 / 3) * (ten ?? 0));
});

test("a stateful firewall in front of a public address is measured as well, an address open to all is not", () => {
  const world = new World({ seed: 3, roundTripMs: 50 });
  const walled = world.addAgent("one", { ...FIREWALL, lifetimeMs: 20_000 });
  const open = world.addAgent("two", "public");
  world.joinAll();
  world.run(MEASURED_MS);
  expect(walled.node.gathering.tests.lifetime).toEqual({ stoodSeconds: 18, fellSeconds: 27 });
  expect(open.node.gathering.tests.lifetime).toBeUndefined();
});

test("a coordinator that is restarted in the middle leads to no wrong belief, and the test begins again", () => {
  const world = new World({ seed: 4, roundTripMs: 50 });
  const agent = world.addAgent("one", forgetful(120));
  world.joinAll();
  world.run(20_000);
  world.coordinator.stop();
  world.run(30_000);
  expect(agent.node.gathering.tests.lifetime?.fellSeconds).toBeUndefined();
  world.coordinator.start();
  world.run(MEASURED_MS + 60_000);
  expect(agent.node.gathering.tests.lifetime).toEqual({ stoodSeconds: 90, fellSeconds: undefined });
});
