/**
 * Random bytes on every UDP, TCP and WebSocket port of both programs: nothing crashes, nothing grows, nobody notices.
 *
 * The noise is bounded, so that this is a test and not a load test; memory may grow by what garbage collectors leave lying about, far
 * less than what was sent at it.
 */
import { createSocket } from "node:dgram";
import { connect } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Agent, type Coordinator, residentBytes, Stage } from "./programs.ts";

const DATAGRAMS = 20_000;
/** Loopback drops what a receiver does not fetch in time; then the programs would not see all of it. */
const DATAGRAMS_PER_BURST = 100;
/** At each TCP port. */
const CONNECTIONS = 500;
const CONNECTIONS_AT_ONCE = 25;
const WEBSOCKETS = 100;
const CONNECTION_BYTES = 8_192;
const CONNECTION_LIFETIME_MS = 1_000;
/**
 * V8 lets a heap grow before it looks for garbage: a coordinator that has just started at 80 MB stays at 185 MB after this noise, and
 * after twelve times as much. An agent stays within 10 MB.
 */
const MAX_COORDINATOR_GROWTH_BYTES = 160 << 20;
const MAX_AGENT_GROWTH_BYTES = 40 << 20;

const stage = new Stage();
let coordinator: Coordinator;
let a: Agent;
let b: Agent;
beforeAll(async () => {
  coordinator = await stage.coordinator();
  [a, b] = await Promise.all([stage.member(coordinator, "a"), stage.member(coordinator, "b")]);
});
afterAll(() => stage.end());

test("random bytes on every port change nothing", { timeout: 40_000 }, async () => {
  expect((await a.command("wait", "--for", "direct=b", "--timeout", "10")).code).toBe(0);
  const programs = [coordinator.process, a.process, b.process];
  const before = programs.map(residentBytes);
  const agentPort = await udpPort(a);
  const changesBefore = a.events.all("path_changed").length;

  for (const port of [...coordinator.ports("stun"), agentPort]) await throwDatagrams(port, DATAGRAMS / 3);
  await throwConnections(coordinator.port("http"));
  await throwConnections(coordinator.port("ssh"));
  await throwWebSockets(coordinator.port("http"));

  expect(programs.map(({ running }) => running)).toEqual([true, true, true]);
  expect(await coordinator.isHealthy()).toBe(true);
  expect((await a.command("ping", "b", "-c", "3", "-i", "0.1")).code).toBe(0);
  expect(((await a.json("status")) as { peers: { path: { kind: string } }[] }).peers[0]?.path.kind).toBe("direct");
  expect(a.events.all("path_changed").length).toBe(changesBefore);
  for (const [index, program] of programs.entries()) {
    const growth = (residentBytes(program) ?? 0) - (before[index] ?? 0);
    console.log(`${program.name}: ${(growth / 1e6).toFixed(1)} MB more, ${program.lines.length} lines of log`);
    expect(growth).toBeLessThan(
      program === coordinator.process ? MAX_COORDINATOR_GROWTH_BYTES : MAX_AGENT_GROWTH_BYTES,
    );
    // A log that strangers can fill is a full disk.
    expect(program.lines.length).toBeLessThan(100);
  }
  // A newcomer from the very address that made the noise still gets in, once its connections are gone.
  const late = await stage.member(coordinator, "late");
  expect((await late.command("wait", "--for", "direct=a", "--timeout", "10")).code).toBe(0);
});

const noise = (maximum: number): Uint8Array =>
  crypto.getRandomValues(new Uint8Array(1 + Math.floor(Math.random() * maximum)));

async function udpPort(agent: Agent): Promise<number> {
  const { peers } = (await agent.json("status")) as { peers: { path: { localAddress: string } }[] };
  return Number(peers[0]?.path.localAddress.split(":").at(-1));
}

async function throwDatagrams(port: number, count: number): Promise<void> {
  const socket = createSocket("udp4");
  // A first byte of each known kind now and then, so that the decoders behind the demultiplexer get their share.
  const kinds = [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x40, 0x80];
  for (let sent = 0; sent < count; sent += DATAGRAMS_PER_BURST) {
    for (let i = 0; i < DATAGRAMS_PER_BURST; i++) {
      const bytes = noise(1_400);
      if (i % 2 === 0) bytes[0] = kinds[(i / 2) % kinds.length] ?? 0;
      socket.send(bytes, port, "127.0.0.1");
    }
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  socket.close();
}

/** Half of them begin as HTTP, so that the noise also meets what comes after the request line. */
async function throwConnections(port: number): Promise<void> {
  const one = async (index: number): Promise<void> =>
    new Promise((resolve) => {
      const socket = connect(port, "127.0.0.1");
      const timer = setTimeout(() => socket.destroy(), CONNECTION_LIFETIME_MS);
      socket.on("connect", () => {
        if (index % 2 === 0) socket.write("GET /v1/signal HTTP/1.1\r\nHost: x\r\n");
        socket.end(noise(CONNECTION_BYTES));
      });
      socket.on("error", () => undefined);
      socket.on("close", () => {
        clearTimeout(timer);
        resolve();
      });
      socket.resume();
    });
  for (let opened = 0; opened < CONNECTIONS; opened += CONNECTIONS_AT_ONCE) {
    await Promise.all(Array.from({ length: CONNECTIONS_AT_ONCE }, async (_, i) => one(opened + i)));
  }
}

/** Proper WebSockets with noise inside, where the handshake is expected. */
async function throwWebSockets(port: number): Promise<void> {
  const one = async (): Promise<void> =>
    new Promise((resolve) => {
      const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/signal`);
      const timer = setTimeout(() => socket.close(), CONNECTION_LIFETIME_MS);
      socket.addEventListener("open", () => socket.send(noise(4_000) as Uint8Array<ArrayBuffer>));
      socket.addEventListener("error", () => undefined);
      socket.addEventListener("close", () => {
        clearTimeout(timer);
        resolve();
      });
    });
  for (let opened = 0; opened < WEBSOCKETS; opened += 10) {
    await Promise.all(Array.from({ length: 10 }, one));
  }
}
