/** Forwarding by real sockets: every pair of kinds of leg, unchanged bytes, true senders, and slow readers that harm nobody else. */
import { afterEach, describe, expect, test } from "vitest";
import { RelayWorld, type TestIdentity, type TestLeg } from "./relay_world.ts";

let world: RelayWorld | undefined;
afterEach(() => world?.close());

async function start(): Promise<RelayWorld> {
  world = await RelayWorld.start();
  return world;
}

const legOf = (on: RelayWorld, kind: "ssh" | "websocket", identity: TestIdentity): Promise<TestLeg> =>
  kind === "ssh" ? on.sshLeg(identity) : on.webSocket(identity);

const frameOf = (length: number, fill: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + fill) & 0xff);

describe.each([
  ["websocket", "websocket"],
  ["ssh", "ssh"],
  ["websocket", "ssh"],
  ["ssh", "websocket"],
] as const)("%s to %s", (from, to) => {
  test("frames arrive byte for byte and in order, from the connection's agent whatever they say, both ways", async () => {
    const on = await start();
    const [a, b, c] = [on.identity(1), on.identity(2), on.identity(3)];
    const [legA, legB] = [await legOf(on, from, a), await legOf(on, to, b)];
    await legA.bind(b.id);
    await legB.bind(a.id);
    // One looks like a relay message that names another sender, one like a bind, others have awkward sizes.
    const forged = Uint8Array.from([0x02, 0, 0, ...new TextEncoder().encode(c.id)]);
    const frames = [frameOf(1, 1), forged, frameOf(1300, 2), frameOf(65_535, 3), frameOf(32_768, 4), frameOf(17, 5)];
    legA.send(b.id, frames);
    legB.send(a.id, frames);
    await on.until(
      "all frames",
      () => legA.received.length === frames.length && legB.received.length === frames.length,
    );
    expect(legB.received.map(({ from: sender }) => sender)).toEqual(frames.map(() => a.id));
    expect(legA.received.map(({ from: sender }) => sender)).toEqual(frames.map(() => b.id));
    for (const leg of [legA, legB])
      expect(leg.received.every(({ frame }, i) => Buffer.compare(frame, frames[i] ?? new Uint8Array()) === 0)).toBe(
        true,
      );
    expect(on.relay.counters).toMatchObject({ forwardedFrames: frames.length * 2, droppedOverflow: 0 });
  });

  test("many frames of 1300 bytes, as fast as they go", async () => {
    const on = await start();
    const [a, b] = [on.identity(1), on.identity(2)];
    const [legA, legB] = [await legOf(on, from, a), await legOf(on, to, b)];
    await legA.bind(b.id);
    await legB.bind(a.id);
    const batch = Array.from({ length: 49 }, (_, i) => frameOf(1300, i));
    const total = 49 * 600;
    const startedAt = performance.now();
    // A window of frames under way, as a congestion control inside would have.
    let sent = 0;
    while (sent < total) {
      if (sent - legB.received.length > 150) {
        await new Promise((resolve) => setImmediate(resolve));
        continue;
      }
      legA.send(b.id, batch);
      sent += batch.length;
    }
    await on.until("the last frame", () => legB.received.length === total);
    const seconds = (performance.now() - startedAt) / 1000;
    console.log(
      `${from} to ${to}: ${((legB.bytesReceived * 8) / seconds / 1e6).toFixed(0)} Mbit/s in frames of 1300 bytes, both agents and the relay in one process`,
    );
    expect(on.relay.counters.droppedOverflow).toBe(0);
  });
});
