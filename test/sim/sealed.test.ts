/** The coordinator carries what it cannot read: every byte that reaches it is searched for what two agents say to each other. */
import { describe, expect, test } from "vitest";
import { batchEntries } from "../../shared/batch.ts";
import type { SimAgent } from "./agent.ts";
import { PORT_RESTRICTED_CONE } from "./nats.ts";
import { meshPacket, World } from "./world.ts";

const ROUNDS = 20;

describe.each(["ssh", "websocket"] as const)("by %s, with UDP blocked at both ends", (rung) => {
  test("nothing of packets and streams, either way, is to be found in what reaches the coordinator", () => {
    const world = new World({ seed: 9, roundTripMs: 20, hasRelays: true });
    const one = world.addAgent("one", PORT_RESTRICTED_CONE);
    const two = world.addAgent("two", PORT_RESTRICTED_CONE);
    for (const { host } of [one, two]) {
      host.isUdpBlocked = true;
      host.isSshBlocked = rung === "websocket";
    }
    const seen: Uint8Array[] = [];
    const frames = new Map<SimAgent, Uint8Array[]>([
      [one, []],
      [two, []],
    ]);
    world.coordinator.onReceived = (bytes) => seen.push(bytes.slice());
    for (const agent of [one, two]) {
      // Opened by the coordinator: the same as it finds in the channel.
      agent.onSignal = (message) => {
        if (message.type === "to_peer") seen.push(message.body.slice());
        else seen.push(new TextEncoder().encode(JSON.stringify(message)));
      };
      agent.onStreamFrames = (batch) => frames.get(agent)?.push(...Array.from(batchEntries(batch), (it) => it.slice()));
    }
    world.joinAll();
    world.run(15_000, () => one.view(two.id)?.route?.kind === rung && two.view(one.id)?.route?.kind === rung);
    // The keys are in use both ways from the first packet on; a stream frame without them is not kept, as streams repeat theirs.
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, new Uint8Array(8)));
    two.sendPacket(meshPacket(two.meshIPv4, one.meshIPv4, new Uint8Array(8)));
    world.run(1000);
    const before = seen.length;
    for (let round = 0; round < ROUNDS; round++) {
      for (const [from, to] of [
        [one, two],
        [two, one],
      ] as const) {
        from.sendPacket(meshPacket(from.meshIPv4, to.meshIPv4, marker(from, "packet")));
        from.sendStreamFrame(to.id, marker(from, "stream"));
      }
      world.run(100);
    }
    world.run(1000);
    expect([one.view(two.id)?.route?.kind, two.view(one.id)?.route?.kind]).toEqual([rung, rung]);
    // It went that way, and it arrived: the same search finds it there.
    expect(seen.length - before).toBeGreaterThanOrEqual(4 * ROUNDS);
    for (const [from, to] of [
      [one, two],
      [two, one],
    ] as const) {
      expect(to.received.filter((packet) => holds(packet, marker(from, "packet")))).toHaveLength(ROUNDS);
      expect((frames.get(to) ?? []).filter((frame) => holds(frame, marker(from, "stream")))).toHaveLength(ROUNDS);
    }
    const markers = [one, two].flatMap((agent) => [marker(agent, "packet"), marker(agent, "stream")]);
    expect(seen.filter((bytes) => markers.some((text) => holds(bytes, text)))).toEqual([]);
  });
});

/** 32 bytes that nothing else would say. */
const marker = (from: SimAgent, how: "packet" | "stream"): Uint8Array =>
  new TextEncoder().encode(`plaintext of ${from.name} by ${how} `.padEnd(32, "#"));

/** In one piece, or any sixteen bytes of it in a row. */
function holds(bytes: Uint8Array, text: Uint8Array): boolean {
  const haystack = Buffer.from(bytes);
  for (let at = 0; at + 16 <= text.length; at++)
    if (haystack.includes(Buffer.from(text.subarray(at, at + 16)))) return true;
  return false;
}
