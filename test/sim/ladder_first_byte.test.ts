/**
 * Traffic at once: how long the first packet between two joined agents takes by a relay, before any direct path is there.
 *
 * A relayed path is twice the way to the coordinator, so its round trip is two of theirs. Without a session the packet waits for one
 * exchange of keys, and then travels: PRODUCT.md grants two relayed round trips and 50 ms, and one and 20 ms where the session stands.
 */
import { describe, expect, test } from "vitest";
import type { SimAgent } from "./agent.ts";
import { PORT_RESTRICTED_CONE, SYMMETRIC } from "./nats.ts";
import { meshPacket, World } from "./world.ts";

/** Longer than a peer is kept that nobody uses. */
const IDLE_MS = 320_000;

describe.each([0, 50, 200])("at %i ms round trip to the coordinator", (roundTripMs) => {
  const relayedMs = 2 * roundTripMs;

  test.each([
    ["direct is possible", {}],
    ["UDP is blocked", { isUdpBlocked: true }],
    ["only the WebSocket is left", { isUdpBlocked: true, isSshBlocked: true }],
  ] as const)(
    "a packet without a session arrives within two relayed round trips and 50 ms, one with within one and 20: %s",
    (_name, site) => {
      const world = new World({ seed: 3, roundTripMs, hasRelays: true });
      const one = world.addAgent("one", PORT_RESTRICTED_CONE);
      const two = world.addAgent("two", SYMMETRIC);
      Object.assign(one.host, site);
      world.joinAll();
      world.run(IDLE_MS);
      expect(one.view(two.id)?.route).toBeUndefined();
      expect(deliveryMs(world, one, two)).toBeLessThanOrEqual(2 * relayedMs + 50);
      expect(one.view(two.id)?.route?.kind).not.toBe("direct");
      expect(deliveryMs(world, one, two)).toBeLessThanOrEqual(relayedMs + 20);
    },
  );
});

function deliveryMs(world: World, from: SimAgent, to: SimAgent): number {
  const { now: sentAt } = world;
  const before = to.received.length;
  from.sendPacket(meshPacket(from.meshIPv4, to.meshIPv4, Uint8Array.of(1)));
  world.run(5000, () => to.received.length > before);
  expect(to.received.length).toBe(before + 1);
  return world.now - sentAt;
}
