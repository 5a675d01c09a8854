/** Real sockets that stop reading: what is for them is bounded and loses its oldest, and nobody else waits for them. */
import type { Socket } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import type { PeerId } from "../../../../shared/session/identity.ts";
import { RelayWorld, type TestLeg } from "./relay_world.ts";

let world: RelayWorld | undefined;
afterEach(() => world?.close());

const FRAME_BYTES = 1300;
const BATCH = 49;

/** A frame that carries its number. */
function numbered(number: number): Uint8Array {
  const frame = new Uint8Array(FRAME_BYTES);
  new DataView(frame.buffer).setUint32(0, number);
  return frame;
}
const numberOf = (frame: Uint8Array | undefined): number =>
  frame === undefined ? -1 : new DataView(frame.buffer, frame.byteOffset).getUint32(0);

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1));

/** Sends `count` batches; between them everybody has a turn. */
async function flood(leg: TestLeg, to: PeerId, count: number): Promise<number> {
  let number = 0;
  for (let i = 0; i < count; i++) {
    leg.send(
      to,
      Array.from({ length: BATCH }, () => numbered(number++)),
    );
    await turn();
  }
  return number;
}

describe.each(["websocket", "ssh"] as const)("a reader on a %s leg that stops", (kind) => {
  test("delays nobody else, keeps a bounded backlog, and gets the newest when it goes on", async () => {
    world = await RelayWorld.start();
    const on = world;
    const [a, slow, c, d] = [on.identity(1), on.identity(2), on.identity(3), on.identity(4)];
    const legA = await on.webSocket(a);
    await legA.bind(slow.id);
    const ssh = kind === "ssh" ? await on.sshLeg(slow) : undefined;
    const webSocket = kind === "ssh" ? undefined : await on.webSocket(slow);
    const legSlow = ssh ?? webSocket;
    if (legSlow === undefined) throw new Error("no leg");
    await legSlow.bind(a.id);
    const [legC, legD] = [await on.webSocket(c), await on.webSocket(d)];
    await legC.bind(d.id);
    await legD.bind(c.id);

    const socket = ssh === undefined ? webSocket?.socket : (ssh.client as unknown as { _sock: Socket })._sock;
    socket?.pause();
    const flooding = flood(legA, slow.id, 400);
    const delays: number[] = [];
    for (let i = 0; i < 100; i++) {
      const sentAt = performance.now();
      legC.send(d.id, [numbered(i)]);
      await on.until(`frame ${i} of the other pair`, () => legD.received.length === i + 1);
      delays.push(performance.now() - sentAt);
    }
    const last = (await flooding) - 1;
    await on.until("the flood to arrive", () => on.relay.counters.droppedOverflow > 0);
    await turn();
    delays.sort((x, y) => x - y);
    socket?.resume();
    await on.until("the newest frame", () => numberOf(legSlow.received.at(-1)?.frame) === last);
    const numbers = legSlow.received.map(({ frame }) => numberOf(frame));
    const backlogBytes = numbers.length * FRAME_BYTES;
    console.log(
      `${kind}: ${last + 1} frames for a reader that stopped, ${numbers.length} of them kept (${(backlogBytes / 1e6).toFixed(1)} MB with the kernel's buffers), ${on.relay.counters.droppedOverflow} dropped; the other pair took ${delays[50]?.toFixed(1)} ms in the median, ${delays.at(-1)?.toFixed(1)} at most`,
    );
    expect(numbers).toEqual([...numbers].sort((x, y) => x - y));
    expect(numbers.length + on.relay.counters.droppedOverflow).toBe(last + 1);
    expect(delays[50]).toBeLessThan(20);
    expect(delays.at(-1)).toBeLessThan(1000);
  });
});

test("a channel whose client does not read it leaves the other channels of that agent alone", async () => {
  world = await RelayWorld.start();
  const on = world;
  const [a, b, reader] = [on.identity(1), on.identity(2), on.identity(3)];
  const [legA, legB, leg] = [await on.webSocket(a), await on.webSocket(b), await on.sshLeg(reader)];
  await legA.bind(reader.id);
  await legB.bind(reader.id);
  await leg.bind(a.id);
  await leg.bind(b.id);
  leg.channels.get(a.id)?.pause();
  // More than the window of 2 MiB and all queues behind it.
  await flood(legA, reader.id, 100);
  await on.until("the channel to be stuck", () => on.relay.counters.droppedOverflow > 0);
  await flood(legB, reader.id, 20);
  await on.until(
    "all frames on the other",
    () => leg.received.filter(({ from }) => from === b.id).length === 20 * BATCH,
  );
});

test("two senders to one slow reader get equal shares, even if one sends ten times as much", async () => {
  world = await RelayWorld.start();
  const on = world;
  const [loud, quiet, reader] = [on.identity(1), on.identity(2), on.identity(3)];
  const [legLoud, legQuiet, leg] = [await on.webSocket(loud), await on.webSocket(quiet), await on.webSocket(reader)];
  await legLoud.bind(reader.id);
  await legQuiet.bind(reader.id);
  leg.socket.pause();
  await flood(legLoud, reader.id, 300);
  await on.until("a full queue", () => on.relay.counters.droppedOverflow > 0);
  const before = on.relay.counters.droppedOverflow;
  // 64 KB, which fits the quiet one's own share of the queue.
  legQuiet.send(
    reader.id,
    Array.from({ length: BATCH }, (_, i) => numbered(i)),
  );
  await turn();
  leg.socket.resume();
  await on.until(
    "everything of the quiet one",
    () => leg.received.filter(({ from }) => from === quiet.id).length === BATCH,
  );
  expect(on.relay.counters.droppedOverflow).toBe(before);
  // It did not have to wait for the whole queue of the loud one.
  const waiting = leg.received.slice(leg.received.findIndex(({ from }) => from === quiet.id));
  expect(waiting.slice(0, 2 * BATCH).filter(({ from }) => from === quiet.id).length).toBeGreaterThan(BATCH * 0.8);
});
