/** The operator chooses a rung (`path PEER ...`): what the traffic does until it is there, on both sides, when it never comes, and when it is lost. */
import { describe, expect, test } from "vitest";
import type { SimAgent } from "./agent.ts";
import { PORT_RESTRICTED_CONE } from "./nats.ts";
import { areDirect, meshPacket, World } from "./world.ts";

/** As traffic.ts, with what a step of this test and a tick of the node add. */
const PATIENCE_MS = 5000;

describe.each([0, 50, 200])("at %i ms round trip", (roundTripMs) => {
  test.each(["the chooser", "the peer"] as const)(
    "ssh is chosen while the SSH connection of %s is still opening: traffic stays direct until it is there",
    (who) => {
      const { world, one, two } = direct(roundTripMs, (a, b) => [who === "the chooser" ? a : b]);
      const before = [moves(one, two), moves(two, one)];
      choose(one, two, "ssh");
      talk(world, one, two, 1000);
      expect([kind(one, two), kind(two, one)]).toEqual(["direct", "direct"]);
      for (const { host } of [one, two]) host.isSshBlocked = false;
      talk(world, one, two, 4000 + 10 * roundTripMs);
      expect([news(before[0], moves(one, two)), news(before[1], moves(two, one))]).toEqual([
        ["direct > ssh"],
        ["direct > ssh"],
      ]);
    },
  );

  test("a relay chosen after the other goes there without a step on the direct path in between", () => {
    const { world, one, two } = direct(roundTripMs);
    choose(one, two, "websocket");
    talk(world, one, two, 2000);
    const before = [moves(one, two), moves(two, one)];
    choose(one, two, "ssh");
    talk(world, one, two, 2000);
    choose(one, two, "websocket");
    talk(world, one, two, 2000);
    const expected = ["websocket > ssh", "ssh > websocket"];
    expect([news(before[0], moves(one, two)), news(before[1], moves(two, one))]).toEqual([expected, expected]);
  });
});

test("a chosen rung that cannot be had is waited for five seconds, and then the best one carries on", () => {
  const { world, one, two } = direct(20, (_one, peer) => [peer]);
  choose(one, two, "websocket");
  talk(world, one, two, 2000);
  choose(one, two, "ssh");
  talk(world, one, two, PATIENCE_MS - 1000);
  expect([kind(one, two), kind(two, one)]).toEqual(["websocket", "websocket"]);
  talk(world, one, two, 2000);
  expect([kind(one, two), kind(two, one)]).toEqual(["direct", "direct"]);
  expect(one.view(two.id)?.history.at(-1)?.reason).toBe("ssh was chosen, and is not there");
  two.host.isSshBlocked = false;
  talk(world, one, two, 5000);
  expect([kind(one, two), kind(two, one)]).toEqual(["ssh", "ssh"]);
});

test("a chosen rung that is lost gives way to the best one, and is taken again when it is back", () => {
  const { world, one, two } = direct(20);
  choose(one, two, "ssh");
  talk(world, one, two, 2000);
  const before = moves(one, two);
  world.coordinator.stop();
  talk(world, one, two, 3000);
  expect([kind(one, two), kind(two, one)]).toEqual(["direct", "direct"]);
  world.coordinator.start();
  talk(world, one, two, 8000);
  expect([kind(one, two), kind(two, one)]).toEqual(["ssh", "ssh"]);
  expect(news(before, moves(one, two))).toEqual(["ssh > direct", "direct > ssh"]);
});

/** Two agents on a direct path; SSH does not get out of the sites named. */
function direct(roundTripMs: number, withoutSsh: (one: SimAgent, two: SimAgent) => readonly SimAgent[] = () => []) {
  const world = new World({ seed: 1, roundTripMs, hasRelays: true });
  const one = world.addAgent("one", PORT_RESTRICTED_CONE);
  const two = world.addAgent("two", PORT_RESTRICTED_CONE);
  for (const { host } of withoutSsh(one, two)) host.isSshBlocked = true;
  world.joinAll();
  world.run(10_000, () => areDirect(one, two));
  talk(world, one, two, 2000);
  expect([kind(one, two), kind(two, one)]).toEqual(["direct", "direct"]);
  return { world, one, two };
}

const choose = (one: SimAgent, two: SimAgent, rung: "ssh" | "websocket"): void =>
  one.do((node, now) => node.choosePath(two.id, rung, now));

/** Both sides send, ten packets a second. */
function talk(world: World, one: SimAgent, two: SimAgent, milliseconds: number): void {
  for (let left = milliseconds; left > 0; left -= 100) {
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, new Uint8Array(40)));
    two.sendPacket(meshPacket(two.meshIPv4, one.meshIPv4, new Uint8Array(40)));
    world.run(100);
  }
}

const kind = (agent: SimAgent, peer: SimAgent): string | undefined => agent.view(peer.id)?.route?.kind;

const moves = (agent: SimAgent, peer: SimAgent): string[] =>
  agent.view(peer.id)?.history.map(({ from, to }) => `${from} > ${to}`) ?? [];

const news = (before: readonly string[] | undefined, all: readonly string[]): string[] => all.slice(before?.length);
