/**
 * What keeping and seeking paths costs, in datagrams and bytes an hour, as one agent's access line sees it, and in frames and bytes on its
 * relays where those carry the traffic: bounds, and the figures that they leave room for. The packets themselves are counted too; signalling
 * is not, nor what TCP adds.
 */
import { expect, test } from "vitest";
import type { NatBehavior } from "./nat.ts";
import { PORT_RESTRICTED_CONE, SYMMETRIC } from "./nats.ts";
import { meshPacket, World } from "./world.ts";

/** Measured, and reckoned up to an hour. */
const MEASURED_MS = 600_000;
const PER_HOUR = 3_600_000 / MEASURED_MS;
/** IPv4 and UDP headers. */
const HEADER_BYTES = 28;

interface Cost {
  readonly datagrams: number;
  readonly bytes: number;
  readonly relayFrames: number;
  readonly relayBytes: number;
}

/** What leaves the first one's site, an hour, once the pair has settled. */
function hour(
  a: NatBehavior,
  b: NatBehavior,
  options: { readonly packetEveryMs?: number; readonly isBlocked?: boolean; readonly hasRelays?: boolean },
): Cost {
  const world = new World({ seed: 5, roundTripMs: 50, hasRelays: options.hasRelays === true });
  const [one, two] = [world.addAgent("one", a), world.addAgent("two", b)];
  two.host.isUdpBlocked = options.isBlocked === true;
  world.joinAll();
  world.run(360_000);
  let datagrams = 0;
  let bytes = 0;
  world.network.tap = (datagram) => {
    if (datagram.from.ip !== one.host.publicIp) return;
    datagrams++;
    bytes += datagram.bytes.length + HEADER_BYTES;
  };
  let relayFrames = 0;
  let relayBytes = 0;
  world.coordinator.tap = (from, frame) => {
    if (from !== one.id) return;
    relayFrames++;
    relayBytes += frame.length;
  };
  const gapMs = options.packetEveryMs ?? MEASURED_MS;
  for (let at = 0; at < MEASURED_MS; at += gapMs) {
    if (options.packetEveryMs !== undefined) one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(1)));
    world.run(gapMs);
  }
  return {
    datagrams: datagrams * PER_HOUR,
    bytes: bytes * PER_HOUR,
    relayFrames: relayFrames * PER_HOUR,
    relayBytes: relayBytes * PER_HOUR,
  };
}

test.each([
  ["an idle peer", {}, 250],
  ["a peer in use, one packet a minute", { packetEveryMs: 60_000 }, 2500],
  ["a peer in use, ten packets a second", { packetEveryMs: 100 }, 36_000 + 30_000],
] as const)("with a direct path, %s", (name, options, most) => {
  const cost = hour(PORT_RESTRICTED_CONE, PORT_RESTRICTED_CONE, options);
  console.log(`direct, ${name}: ${cost.datagrams} datagrams and ${cost.bytes} bytes an hour`);
  expect(cost.datagrams).toBeLessThan(most);
});

test.each([
  ["an idle peer", {}, 250],
  ["a peer in use, one packet a minute", { packetEveryMs: 60_000 }, 8000],
] as const)("without one, where it is not to be had, %s", (name, options, most) => {
  const cost = hour(PORT_RESTRICTED_CONE, SYMMETRIC, options);
  console.log(`no direct path, ${name}: ${cost.datagrams} datagrams and ${cost.bytes} bytes an hour`);
  expect(cost.datagrams).toBeLessThan(most);
});

test.each([
  ["an idle peer", {}, { datagrams: 250, relayFrames: 0, relayBytes: 0 }],
  [
    "a peer in use, one packet a minute",
    { packetEveryMs: 60_000 },
    { datagrams: 8000, relayFrames: 2000, relayBytes: 150_000 },
  ],
  [
    "a peer in use, ten packets a second",
    { packetEveryMs: 100 },
    { datagrams: 8000, relayFrames: 36_000 + 2000, relayBytes: 36_000 * 60 + 150_000 },
  ],
] as const)("relayed, where UDP is blocked, %s", (name, options, most) => {
  const cost = hour(PORT_RESTRICTED_CONE, PORT_RESTRICTED_CONE, { ...options, isBlocked: true, hasRelays: true });
  console.log(
    `relayed, ${name}: ${cost.relayFrames} frames and ${cost.relayBytes} bytes on relays, ${cost.datagrams} datagrams and ${cost.bytes} bytes an hour`,
  );
  expect(cost.datagrams).toBeLessThan(most.datagrams);
  expect(cost.relayFrames).toBeLessThanOrEqual(most.relayFrames);
  expect(cost.relayBytes).toBeLessThanOrEqual(most.relayBytes);
});
