/** Connections to the coordinator that have died without a word: the challenge ends them in its time, whatever else is asked meanwhile. */
import { randomBytes } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { WebSocketServer } from "ws";
import { afterEach, describe, expect, test } from "vitest";
import { challengeTimes } from "../../../../agent/driver/challenge_times.ts";
import { SignalClient } from "../../../../agent/driver/signal_client.ts";
import { CoordinatorChannel } from "../../../../shared/signal/channel.ts";
import { encodeMessage } from "../../../../shared/signal/messages.ts";
import { X25519Key } from "../../../../shared/session/primitives.ts";
import { instant } from "../../../../shared/time.ts";
import { RelayWorld } from "../../coordinator/relay/relay_world.ts";
import { agentLeg } from "./agent_leg.ts";
import { Line } from "./line.ts";

/** Without a round trip. */
const TIMES = challengeTimes(0);
const CHALLENGE_MS = TIMES.timeoutMs;
const AT_ONCE_MS = 100;
/** Timers of a busy machine. */
const LATE_MS = 300;

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

const sleep = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds));

describe.each(["websocket", "ssh"] as const)("a relay connection by %s", (kind) => {
  test("that has fallen silent is given up 300 ms after the first challenge, however many follow", async () => {
    const on = await RelayWorld.start();
    const leg = await agentLeg(on, kind, on.identity(1));
    closers.push(leg.close, () => on.close());
    leg.line.mute();
    const askedAt = performance.now();
    leg.relay.challenge(CHALLENGE_MS);
    // The keepalive's own question, and those of other peers that suspect their path.
    leg.relay.challenge(6000);
    const again = setInterval(() => leg.relay.challenge(CHALLENGE_MS), 50);
    closers.push(() => clearInterval(again));
    await on.until("the end", () => leg.states.length === 2);
    const tookMs = (leg.states[1]?.at ?? 0) - askedAt;
    expect(leg.states[1]?.isUp).toBe(false);
    expect(tookMs).toBeGreaterThanOrEqual(CHALLENGE_MS - 5);
    expect(tookMs).toBeLessThan(CHALLENGE_MS + LATE_MS);
  });

  test("that lives answers, and stays, also under a flood", async () => {
    const on = await RelayWorld.start();
    const [self, other] = [on.identity(1), on.identity(2)];
    const leg = await agentLeg(on, kind, self);
    closers.push(leg.close, () => on.close());
    await (await on.webSocket(other)).bind(self.id);
    for (let i = 0; i < 30; i++) {
      leg.relay.send(
        other.id,
        Array.from({ length: 50 }, () => new Uint8Array(1300)),
      );
      leg.relay.challenge(CHALLENGE_MS);
      await sleep(20);
    }
    await sleep(CHALLENGE_MS + 50);
    expect(leg.states).toHaveLength(1);
  });
});

test("an old answer does not vouch for a connection that has died since: what was asked later is due all the same", async () => {
  const on = await RelayWorld.start();
  const leg = await agentLeg(on, "websocket", on.identity(1));
  closers.push(leg.close, () => on.close());
  leg.relay.challenge(6000);
  // The answer to it is on its way back when nothing leaves any more.
  await sleep(20);
  leg.line.mute();
  leg.relay.challenge(CHALLENGE_MS);
  await on.until("the end", () => leg.states.length === 2);
  expect(leg.states[1]?.isUp).toBe(false);
});

describe("signalling that has fallen silent", () => {
  test("is given up 300 ms after the challenge, when no relay is silent too, and goes on with the connection opened beside it", async () => {
    const { client, line, states, server, lost } = await signalling(() => false);
    client.challenge(TIMES);
    await sleep(CHALLENGE_MS + 100);
    expect(states).toHaveLength(1);
    line.mute();
    const askedAt = performance.now();
    client.challenge(TIMES);
    const again = setInterval(() => client.challenge(TIMES), 50);
    closers.push(() => clearInterval(again));
    await lost;
    const tookMs = (states[1]?.at ?? 0) - askedAt;
    expect(states[1]).toMatchObject({ isUp: false, problem: "the coordinator did not answer a challenge" });
    expect(tookMs).toBeGreaterThanOrEqual(CHALLENGE_MS - 5);
    expect(tookMs).toBeLessThan(CHALLENGE_MS + LATE_MS);
    await server.until(2);
    while (states.length < 3) await sleep(5);
    expect(states[2]?.isUp).toBe(true);
    expect(server.connections()).toBe(2);
  });

  test("and is reset when asked, is opened anew at once", async () => {
    const { client, line, states, lost } = await signalling(() => false);
    line.mute();
    client.challenge({ timeoutMs: 5000, usualMs: 5000 });
    line.reset();
    await lost;
    while (states.length < 3) await sleep(5);
    // A connection that is lost without a challenge is waited for at least 125 ms.
    expect((states[2]?.at ?? Infinity) - (states[1]?.at ?? 0)).toBeLessThan(AT_ONCE_MS);
  });

  test("is given up as soon as another connection is there, when the relays are silent too", async () => {
    const { client, line, states, lost } = await signalling(() => true);
    line.mute();
    const askedAt = performance.now();
    client.challenge({ timeoutMs: 5000, usualMs: TIMES.usualMs });
    await lost;
    expect((states[1]?.at ?? 0) - askedAt).toBeLessThan(TIMES.usualMs + LATE_MS);
    while (states.length < 3) await sleep(5);
    expect(states[2]?.isUp).toBe(true);
  });
});

test("signalling that answers late stays, and what was opened beside it is closed", async () => {
  const { client, line, states, server } = await signalling(() => false);
  line.hold(TIMES.usualMs + 100);
  client.challenge({ timeoutMs: 2000, usualMs: TIMES.usualMs });
  await server.until(2);
  while (server.open() > 1) await sleep(5);
  await sleep(TIMES.usualMs);
  expect(states).toHaveLength(1);
  expect(server.connections()).toBe(2);
});

/** A client that is connected by a line. */
async function signalling(areOthersSilent: () => boolean) {
  const server = await signallingServer();
  const line = await Line.to(server.port);
  closers.push(() => line.close(), server.close);
  const states: { readonly isUp: boolean; readonly at: number; readonly problem: string | undefined }[] = [];
  const { promise: opened, resolve: onOpen } = Promise.withResolvers<void>();
  const { promise: lost, resolve: onLost } = Promise.withResolvers<void>();
  const client = new SignalClient({
    urls: () => [`http://127.0.0.1:${line.port}`],
    webSocket: () => ({}),
    sessionKey: new X25519Key(new Uint8Array(32).fill(3)),
    hello: () => ({
      version: 1,
      features: 0,
      identity: new Uint8Array(32),
      signature: new Uint8Array(64),
      name: "one",
      nameIsExplicit: true,
      software: "test",
      instance: 1,
    }),
    accept: () => true,
    now: () => instant(performance.now()),
    onMessage: () => {},
    onState: (isUp, problem) => {
      states.push({ isUp, at: performance.now(), problem });
      (isUp ? onOpen : onLost)();
    },
    onWrongFingerprint: () => {},
    areOthersSilent,
  });
  closers.push(() => client.stop());
  client.start();
  await opened;
  return { client, line, states, server, lost };
}

/** As much of a coordinator as answers a hello and pings. */
async function signallingServer(): Promise<{
  readonly port: number;
  readonly close: () => void;
  readonly until: (connections: number) => Promise<void>;
  /** So far, and of these still open. */
  readonly connections: () => number;
  readonly open: () => number;
}> {
  const http = createServer();
  const sockets = new WebSocketServer({ server: http });
  const key = (): X25519Key => new X25519Key(new Uint8Array(randomBytes(32)));
  const staticKey = key();
  let count = 0;
  const waiting = new Set<() => void>();
  sockets.on("connection", (socket) => {
    count++;
    for (const look of waiting) look();
    const channel = new CoordinatorChannel({ staticKey, ephemeral: key() });
    socket.on("message", (data: Buffer) => {
      const outcome = channel.handle(new Uint8Array(data));
      if (outcome.type === "reply") socket.send(outcome.bytes);
      if (outcome.type === "message") socket.send(channel.seal(encodeMessage({ type: "pong", id: 0 })));
    });
  });
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
  return {
    port: (http.address() as AddressInfo).port,
    close: () => {
      for (const socket of sockets.clients) socket.terminate();
      http.close();
    },
    connections: () => count,
    open: () => sockets.clients.size,
    until: (connections) =>
      new Promise((resolve) => {
        const look = (): void => {
          if (count >= connections) resolve();
        };
        waiting.add(look);
        look();
      }),
  };
}
