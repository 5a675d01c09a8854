/** What an agent sends through its relay connections: bounded, oldest dropped first, fair, and never seconds of queue. Real sockets. */
import { createRequire } from "node:module";
import { afterEach, describe, expect, test, vi } from "vitest";
import { MAX_PEER_BYTES } from "../../../../agent/driver/relay_uplink.ts";
import { laneOf } from "../../../../shared/relay/flow_queue.ts";
import type { PeerId } from "../../../../shared/session/identity.ts";
import { RelayWorld, type WebSocketLeg } from "../../coordinator/relay/relay_world.ts";
import { type AgentLeg, agentLeg, type AgentLegOptions } from "./agent_leg.ts";

const FRAME_BYTES = 1300;
/** Flows, and the first number of a ping. */
const [DOWNLOAD, PING] = [1, 2];
const PINGS = 1_000_000;
const frame = (number: number): Uint8Array => {
  const bytes = new Uint8Array(FRAME_BYTES);
  new DataView(bytes.buffer).setUint32(0, number);
  return bytes;
};
const numberOf = (bytes: Uint8Array): number => new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
const frames = (from: number, count: number): Uint8Array[] => Array.from({ length: count }, (_, i) => frame(from + i));
const sleep = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds));

let close: (() => void) | undefined;
afterEach(() => close?.());

interface Scene {
  readonly on: RelayWorld;
  readonly agent: AgentLeg;
  /** Two peers, each by a leg of its own that reads at once. */
  readonly loud: WebSocketLeg;
  readonly quiet: WebSocketLeg;
}

async function scene(kind: "ssh" | "websocket", options: AgentLegOptions = {}): Promise<Scene> {
  const on = await RelayWorld.start();
  const self = on.identity(1);
  const agent = await agentLeg(on, kind, self, options);
  close = () => {
    agent.close();
    on.close();
  };
  const [loud, quiet] = [await on.webSocket(on.identity(2)), await on.webSocket(on.identity(3))];
  for (const leg of [loud, quiet]) {
    await leg.bind(self.id);
    agent.relay.send(leg.id, [frame(0)]);
    await on.until("the first frame", () => leg.received.length === 1);
    leg.received.length = 0;
  }
  return { on, agent, loud, quiet };
}

/** More than the line carries, evenly, until stopped. */
function flood(agent: AgentLeg, to: PeerId, bytesPerSecond: number, flow = 0): { stop(): number } {
  const startedAt = performance.now();
  let sent = 0;
  const timer = setInterval(() => {
    const due = Math.floor(((performance.now() - startedAt) * bytesPerSecond) / 1000 / FRAME_BYTES);
    const batch = frames(sent, Math.max(0, due - sent));
    if (batch.length > 0)
      agent.relay.send(
        to,
        batch,
        batch.map((_, i) => laneOf(flow, sent + i)),
      );
    sent = Math.max(sent, due);
  }, 4);
  return {
    stop() {
      clearInterval(timer);
      return sent;
    },
  };
}

describe.each(["websocket", "ssh"] as const)("the uplink by %s", (kind) => {
  test("a quiet peer's frames pass a loud one's on a line of 10 Mbit/s, and none of them is dropped", async () => {
    const { on, agent, loud, quiet } = await scene(kind, { bytesPerSecond: 1_250_000 });
    const flooding = flood(agent, loud.id, 3_000_000);
    await sleep(1000);
    const delays: number[] = [];
    for (let i = 0; i < 40; i++) {
      const sentAt = performance.now();
      agent.relay.send(quiet.id, [frame(i)]);
      await on.until(`frame ${i}`, () => quiet.received.length > i);
      delays.push(performance.now() - sentAt);
      await sleep(20);
    }
    const sent = flooding.stop();
    delays.sort((a, b) => a - b);
    const dropped = agent.counters.droppedOverflow + agent.counters.droppedLate;
    console.log(
      `${kind}: beside a flood of 3 MB/s on 1.25 MB/s a frame of the quiet peer took ${delays[20]?.toFixed(0)} ms in the median, ${delays.at(-1)?.toFixed(0)} at most; ${dropped} of ${sent} of the flood dropped`,
    );
    expect(quiet.received.map((received) => numberOf(received.frame))).toEqual(delays.map((_, i) => i));
    expect(delays[20]).toBeLessThan(3 * 75);
    expect(delays.at(-1)).toBeLessThan(1000);
    // The line was not left idle for that: the loud one has what is left of it.
    expect(loud.bytesReceived).toBeGreaterThan(1_250_000 * 0.7);
    expect(dropped).toBeGreaterThan(0);
    const numbers = loud.received.map((received) => numberOf(received.frame));
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
  });

  test("a ping passes a download to the same peer on a line of 10 Mbit/s, and none is dropped", async () => {
    const { on, agent, loud } = await scene(kind, { bytesPerSecond: 1_250_000 });
    const flooding = flood(agent, loud.id, 3_000_000, DOWNLOAD);
    await sleep(1000);
    const delays: number[] = [];
    const pings = (): number => loud.received.filter((received) => numberOf(received.frame) >= PINGS).length;
    for (let i = 0; i < 30; i++) {
      const sentAt = performance.now();
      agent.relay.send(loud.id, [frame(PINGS + i).subarray(0, 100)], [laneOf(PING, i)]);
      await on.until(`ping ${i}`, () => pings() > i);
      delays.push(performance.now() - sentAt);
      await sleep(10);
    }
    flooding.stop();
    delays.sort((a, b) => a - b);
    const dropped = agent.counters.droppedOverflow + agent.counters.droppedLate;
    console.log(
      `${kind}: beside a download that fills 10 Mbit/s a ping took ${delays[15]?.toFixed(0)} ms in the median, ${delays.at(-1)?.toFixed(0)} at most`,
    );
    // What the queue holds alone is 800 ms.
    expect(delays[15]).toBeLessThan(3 * 60);
    expect(dropped).toBeGreaterThan(0);
    const numbers = loud.received.map((received) => numberOf(received.frame)).filter((number) => number < PINGS);
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
  });

  test("a line that has stopped holds a bounded queue, whose newest frames survive", async () => {
    const { on, agent, loud } = await scene(kind, { bytesPerSecond: 1_250_000 });
    const count = 8000;
    agent.relay.send(loud.id, frames(0, count));
    await on.until("the newest", () => loud.received.some((received) => numberOf(received.frame) === count - 1));
    const numbers = loud.received.map((received) => numberOf(received.frame));
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
    expect(numbers.length * FRAME_BYTES).toBeLessThan(2 * MAX_PEER_BYTES);
    expect(numbers.length + agent.counters.droppedOverflow + agent.counters.droppedLate).toBe(count);
  });

  test("a burst that the queue holds loses nothing, however slow the line", async () => {
    const { on, agent, loud } = await scene(kind, { bytesPerSecond: 1_250_000 });
    agent.relay.send(loud.id, frames(0, 400));
    await on.until("all of it", () => loud.received.length === 400);
    expect(agent.counters).toMatchObject({ droppedOverflow: 0, droppedLate: 0 });
  });

  test("a fast line is used as such: 10 MB pass in a moment without a loss", async () => {
    const { on, agent, loud } = await scene(kind);
    const startedAt = performance.now();
    // Less than the coordinator takes of an agent at once, faster than a gigabit.
    const count = 8000;
    // As a TCP inside would: no more under way than the coordinator's queue of 256 KiB holds.
    for (let sent = 0; sent < count; sent += 100) {
      agent.relay.send(loud.id, frames(sent, 100));
      await on.until("most of it", () => loud.received.length > sent - 60);
    }
    await on.until("all of it", () => loud.received.length === count);
    const seconds = (performance.now() - startedAt) / 1000;
    console.log(`${kind}: ${((count * FRAME_BYTES * 8) / 1e6 / seconds).toFixed(0)} Mbit/s with 160 frames under way`);
    expect(agent.counters).toMatchObject({ droppedOverflow: 0, droppedLate: 0 });
    expect(seconds).toBeLessThan(3);
  });
});

test("a channel of the SSH tunnel that is stuck leaves the others alone", async () => {
  const { on, agent, loud, quiet } = await scene("ssh");
  // As ssh2 tells of a channel whose window is closed.
  const { Channel } = createRequire(import.meta.url)("ssh2/lib/Channel.js") as {
    Channel: { prototype: { write(bytes: Uint8Array): boolean } };
  };
  const write = vi.spyOn(Channel.prototype, "write").mockImplementationOnce(() => false);
  agent.relay.send(loud.id, frames(0, 10));
  agent.relay.send(loud.id, frames(10, 500));
  agent.relay.send(quiet.id, [frame(7)]);
  await on.until("the other's frame", () => quiet.received.length === 1);
  expect(loud.received).toHaveLength(0);
  write.mockRestore();
});

test("a connection that has stalled altogether does not stall the other kind", async () => {
  const { on, agent, quiet } = await scene("ssh");
  const other = await agentLeg(on, "websocket", on.identity(1));
  agent.line.mute();
  agent.relay.send(quiet.id, frames(0, 2000));
  const startedAt = performance.now();
  other.relay.send(quiet.id, [frame(9)]);
  await on.until("the other's frame", () => quiet.received.some((received) => numberOf(received.frame) === 9));
  expect(performance.now() - startedAt).toBeLessThan(300);
  other.close();
});
