import { connect } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import type { PeerId } from "../../../../shared/session/identity.ts";
import { FIRST_COORDINATOR_INDEX } from "../../../../shared/wire/relay.ts";
import { PeerIndexes } from "../../../../coordinator/relay/peer_indexes.ts";
import { RelayWorld } from "./relay_world.ts";

let world: RelayWorld | undefined;
afterEach(() => world?.close());

async function start(): Promise<RelayWorld> {
  world = await RelayWorld.start();
  return world;
}

/** The status of an upgrade with these headers. */
function upgrade(on: RelayWorld, ...headers: string[]): Promise<number> {
  const { port } = new URL(on.url);
  return new Promise((resolve) => {
    const socket = connect(Number(port), "127.0.0.1");
    const lines = ["GET /v1/relay HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket"];
    const websocket = ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="];
    socket.write([...lines, ...websocket, ...headers, "", ""].join("\r\n"));
    socket.once("data", (data: Buffer) => {
      resolve(Number(data.toString().split(" ")[1]));
      socket.destroy();
    });
    socket.on("error", () => resolve(-1));
  });
}

describe("a relay WebSocket", () => {
  test("a run of 49 frames that comes in one message leaves in one or two", async () => {
    const on = await start();
    const [a, b] = [on.identity(1), on.identity(2)];
    const [from, to] = [await on.webSocket(a), await on.webSocket(b)];
    await from.bind(b.id);
    await to.bind(a.id);
    const run = Array.from({ length: 49 }, (_, i) => new Uint8Array(1330).fill(i));
    from.send(b.id, run);
    await on.until("the whole run", () => to.received.length === 49);
    const messages = to.messages.filter(({ type }) => type === "frames");
    // Its headers are larger by what the indexes take, so the last frame may miss the first message.
    expect(messages.length).toBeLessThanOrEqual(2);
    expect(to.received.map(({ frame }) => frame[0])).toEqual(run.map((frame) => frame[0]));
  });

  test("is opened by a token, once", async () => {
    const on = await start();
    const token = "abcdefghijklmnopqrstuvwxyz";
    on.tokens.set(token, on.identity(1).id);
    const headers = [undefined, "Bearer x", `Basic ${token}`, `Bearer ${token}`, `Bearer ${token}`];
    const statuses: number[] = [];
    for (const value of headers)
      statuses.push(await upgrade(on, ...(value === undefined ? [] : [`Authorization: ${value}`])));
    expect(statuses).toEqual([401, 401, 401, 101, 401]);
  });

  test("answers a challenge at once", async () => {
    const on = await start();
    const leg = await on.webSocket(on.identity(1));
    const startedAt = performance.now();
    leg.write({ type: "challenge", nonce: 0xfedc_ba98 });
    await on.until("the answer", () => leg.messages.length === 1);
    expect(leg.messages).toEqual([{ type: "answer", nonce: 0xfedc_ba98 }]);
    expect(performance.now() - startedAt).toBeLessThan(300);
  });

  test("of a peer that has bound nothing gets an index of the coordinator's, and answers on it", async () => {
    const on = await start();
    const [a, b] = [on.identity(1), on.identity(2)];
    const [legA, legB] = [await on.webSocket(a), await on.webSocket(b)];
    await legA.bind(b.id);
    legA.send(b.id, [Uint8Array.of(1)]);
    await on.until("the frame", () => legB.received.length === 1);
    expect(legB.received[0]?.from).toBe(a.id);
    legB.send(a.id, [Uint8Array.of(2)]);
    await on.until("the answer", () => legA.received.length === 1);
    expect(legA.received[0]).toEqual({ from: b.id, frame: Uint8Array.of(2) });
  });

  test("is told when nobody is there, and frames flow on the same index once somebody is", async () => {
    const on = await start();
    const [a, b] = [on.identity(1), on.identity(2)];
    const legA = await on.webSocket(a);
    await legA.bind(b.id);
    await on.until("unbound", () => legA.messages.length === 1);
    expect(legA.messages).toEqual([{ type: "unbound", index: 0 }]);
    expect(on.notices).toContainEqual({ to: a.id, peer: b.id, leg: null });
    const legB = await on.webSocket(b);
    expect(on.notices.at(-1)).toEqual({ to: a.id, peer: b.id, leg: "websocket" });
    legA.send(b.id, [Uint8Array.of(1)]);
    await on.until("the frame", () => legB.received.length === 1);
    legB.close();
    await on.until("unbound again", () => legA.messages.length === 2);
    expect(on.notices.at(-1)).toEqual({ to: a.id, peer: b.id, leg: null });
  });

  test("is closed when another takes its place, or the agent is removed", async () => {
    const on = await start();
    const a = on.identity(1);
    const first = await on.webSocket(a);
    const second = await on.webSocket(a);
    await on.until("the first to be replaced", () => first.closeReason === "replaced");
    on.members.clear();
    on.relay.onRulesChanged(a.id);
    await on.until("the second to be closed", () => second.closeReason === "removed");
  });

  test("that sends too much at once, or text, is closed; noise and unknown indexes are counted", async () => {
    const on = await start();
    const [noisy, large, text] = [
      await on.webSocket(on.identity(1)),
      await on.webSocket(on.identity(2)),
      await on.webSocket(on.identity(3)),
    ];
    noisy.socket.send(Uint8Array.of(99, 1, 2));
    noisy.socket.send(Uint8Array.of(1, 0, 0, 0, 50, 1));
    noisy.write({ type: "frames", frames: [{ index: 7, frame: Uint8Array.of(1) }] });
    noisy.write({ type: "bind", index: FIRST_COORDINATOR_INDEX, peer: on.identity(2).id });
    await on.until("the binding to be refused", () => noisy.messages.length === 1);
    expect(on.relay.counters.droppedMalformed).toBe(3);
    large.socket.send(new Uint8Array(128 * 1024 + 1));
    text.socket.send("text");
    await on.until("both to be closed", () => large.closeReason !== undefined && text.closeReason !== undefined);
    expect(noisy.closeReason).toBe(undefined);
  });
});

describe("indexes", () => {
  const [a, b] = ["a".repeat(26), "b".repeat(26)] as [PeerId, PeerId];

  test("an agent's may be bound again, the coordinator's are chosen once, and both name their peer", () => {
    const indexes = new PeerIndexes();
    expect([indexes.bind(3, a), indexes.bind(0x8000, a)]).toEqual([true, false]);
    expect([indexes.indexOf(a), indexes.peerOf(3)]).toEqual([3, a]);
    expect(indexes.bind(3, b)).toBe(true);
    expect([indexes.indexOf(a), indexes.indexOf(b)]).toEqual([undefined, 3]);
    expect([indexes.choose(a), indexes.peerOf(0x8000)]).toEqual([0x8000, a]);
    expect([indexes.release(a), indexes.peerOf(0x8000), indexes.choose(a)]).toEqual([[0x8000], undefined, 0x8001]);
  });

  test("there is an end to both kinds", () => {
    const indexes = new PeerIndexes();
    const bound = Array.from({ length: 0x8000 }, (_, index) => indexes.bind(index, a)).filter(Boolean).length;
    expect(bound).toBe(4096);
    let last: number | undefined = 0;
    for (let i = 0; i < 0x8000; i++) last = indexes.choose(b);
    expect([last, indexes.choose(b)]).toEqual([0xffff, undefined]);
  });
});
