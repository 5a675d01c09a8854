/**
 * Links that carry less than Ethernet and do not say so: the size of frames is found, followed when it changes under traffic, and not
 * mistaken when packets are merely lost.
 */
import { describe, expect, test } from "vitest";
import type { SimAgent } from "./agent.ts";
import { FULL_CONE, PORT_RESTRICTED_CONE } from "./nats.ts";
import { areDirect, meshPacket, World, type WorldOptions } from "./world.ts";

const ETHERNET_FRAME_BYTES = 1500 - 28;
/** Of a frame around an IP packet (PROTOCOL.md, "Sealed frames"). */
const SEALING_BYTES = 30;

interface Pair {
  readonly world: World;
  readonly one: SimAgent;
  readonly two: SimAgent;
}

function directPair(options: WorldOptions & { readonly linkMtu?: number }): Pair {
  const world = new World(options);
  const [one, two] = [world.addAgent("one", FULL_CONE), world.addAgent("two", PORT_RESTRICTED_CONE)];
  two.host.linkMtu = options.linkMtu ?? 1500;
  world.joinAll();
  world.run(10_000, () => areDirect(one, two));
  return { world, one, two };
}

const frameBytesOf = (agent: SimAgent, peer: SimAgent): number | undefined => {
  const route = agent.view(peer.id)?.route;
  return route?.kind === "direct" ? route.pair.mtu.size : undefined;
};

/** One sends packets of so many bytes at a rate; what the other got, and the longest time without any. */
function flow({ world, one, two }: Pair, bytes: number, gapMs: number, forMs: number, at?: () => void) {
  let sent = 0;
  let lastAt = world.now;
  let longestGapMs = 0;
  let received = 0;
  two.received.length = 0;
  for (let left = forMs; left > 0; left -= gapMs) {
    if (sent * gapMs >= forMs / 2) at?.();
    sent++;
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, new Uint8Array(bytes - 20)));
    world.run(gapMs);
    if (two.received.length === 0) continue;
    received += two.received.length;
    two.received.length = 0;
    longestGapMs = Math.max(longestGapMs, world.now - lastAt);
    lastAt = world.now;
  }
  const endedAt = world.now;
  world.run(1000);
  received += two.received.length;
  return { sent, received, longestGapMs: Math.max(longestGapMs, endedAt - lastAt) };
}

describe("the size of frames", () => {
  test("on Ethernet is known within two round trips of the path", () => {
    const pair = directPair({ seed: 1, roundTripMs: 50 });
    pair.world.run(200);
    expect([frameBytesOf(pair.one, pair.two), frameBytesOf(pair.two, pair.one)]).toEqual([
      ETHERNET_FRAME_BYTES,
      ETHERNET_FRAME_BYTES,
    ]);
  });

  test.each([1280, 1300, 1400, 1420, 1492])(
    "on a link of %i bytes is found within three seconds, both ways",
    (linkMtu) => {
      for (const seed of [1, 2, 3]) {
        const pair = directPair({ seed, roundTripMs: 50, linkMtu });
        pair.world.run(3000);
        for (const size of [frameBytesOf(pair.one, pair.two), frameBytesOf(pair.two, pair.one)]) {
          expect(size).toBeLessThanOrEqual(linkMtu - 28);
          expect(size).toBeGreaterThan(linkMtu - 28 - 4);
        }
        // From the first moment on, larger packets than that go as fragments.
        expect(flow(pair, 1280, 10, 1000)).toMatchObject({ received: 100 });
        expect(pair.one.view(pair.two.id)?.history).toHaveLength(1);
      }
    },
  );
});

describe("a path that becomes narrower under traffic", () => {
  // As long as it takes to know that a path has died (path_watch.ts), which it would have: 250 ms, two and a quarter round trips between
  // the two, twice as long as those to the coordinator here, 330 ms, and until the next packet has come.
  test.each([
    [0, 10, 700],
    [50, 10, 1000],
    [50, 50, 1000],
    [200, 10, 1750],
  ])("stays, and carries packets again soon: %i ms round trip, one each %i ms", (roundTripMs, gapMs, withinMs) => {
    for (const seed of [1, 2, 3]) {
      const pair = directPair({ seed, roundTripMs });
      pair.world.run(2000);
      const packetBytes = ETHERNET_FRAME_BYTES - SEALING_BYTES;
      const { longestGapMs } = flow(pair, packetBytes, gapMs, 10_000, () => {
        pair.two.host.linkMtu = 1400;
      });
      expect(longestGapMs, `seed ${seed}`).toBeLessThan(withinMs);
      expect(pair.one.view(pair.two.id)?.history.map(({ to }) => to)).toEqual(["direct"]);
      // Each size that does not pass takes three probes, and each of them its usual time.
      pair.world.run(20 * roundTripMs);
      const size = frameBytesOf(pair.one, pair.two);
      expect(size).toBeLessThanOrEqual(1400 - 28);
      expect(size).toBeGreaterThan(1400 - 28 - 4);
    }
  });

  test("below what every path has to carry is left for a relay, if there is one", () => {
    const pair = directPair({ seed: 4, roundTripMs: 50, hasRelays: true });
    pair.world.run(2000);
    const { longestGapMs } = flow(pair, 1200, 10, 6000, () => {
      pair.two.host.linkMtu = 1000;
    });
    expect(longestGapMs).toBeLessThan(1000);
    expect(pair.one.view(pair.two.id)?.route?.kind).toBe("ssh");
  });
});

test("5 % loss each way for an hour is not mistaken for a narrow path", () => {
  let shrunk = 0;
  let unlucky = 0;
  for (const seed of [1, 2, 3, 4]) {
    const pair = directPair({ seed, roundTripMs: 50, jitterMs: 5, lossPercent: 5 });
    pair.world.run(5000);
    if (frameBytesOf(pair.one, pair.two) !== ETHERNET_FRAME_BYTES) unlucky++;
    pair.one.events.length = 0;
    flow(pair, 1400, 50, 900_000);
    shrunk += pair.one.events.filter(
      ({ event }) => event.type === "mtu_changed" && event.packetBytes < ETHERNET_FRAME_BYTES - SEALING_BYTES - 4,
    ).length;
  }
  // A path may have lost three probes of one size at the very start, once in a thousand times.
  expect(unlucky).toBeLessThanOrEqual(1);
  expect(shrunk).toBe(0);
});
