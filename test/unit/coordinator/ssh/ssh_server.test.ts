/** The SSH endpoint by real sockets: limits before login, new keys, dead clients, members that are removed or blocked. */
import { connect, type Socket } from "node:net";
import { afterEach, expect, test } from "vitest";
import { RelayWorld, SshLeg } from "../relay/relay_world.ts";

let world: RelayWorld | undefined;
afterEach(() => world?.close());

async function start(options: { readonly rekeyAfterBytes?: number } = {}): Promise<RelayWorld> {
  world = await RelayWorld.start(options);
  return world;
}

test("a flood of connections that never log in stays at 16, and ends after ten seconds at the latest", async () => {
  const on = await start();
  const member = on.identity(1);
  const sockets: Socket[] = [];
  const open = (): number => sockets.filter((socket) => !socket.destroyed).length;
  for (let i = 0; i < 40; i++) {
    const socket = connect(on.ssh.bound.port, "127.0.0.1");
    socket.on("error", () => socket.destroy());
    socket.on("close", () => socket.destroy());
    // Some say nothing, some are half way through a key exchange.
    if (i % 2 === 0) socket.write("SSH-2.0-flood\r\n");
    socket.resume();
    sockets.push(socket);
  }
  await on.until("the ones above the limit to be closed", () => open() === 16);
  const startedAt = performance.now();
  await new Promise<void>((resolve) => {
    const look = setInterval(() => {
      if (open() > 0 && performance.now() - startedAt < 15_000) return;
      clearInterval(look);
      resolve();
    }, 50);
  });
  expect(open()).toBe(0);
  expect(performance.now() - startedAt).toBeLessThan(11_500);
  await on.sshLeg(member);
});

test("a run of 49 frames that comes in one write leaves in messages as full as SSH allows", async () => {
  const on = await start();
  const [a, b] = [on.identity(1), on.identity(2)];
  const [legA, legB] = [await on.sshLeg(a), await on.sshLeg(b)];
  await legA.bind(b.id);
  await legB.bind(a.id);
  const run = Array.from({ length: 49 }, (_, i) => new Uint8Array(1330).fill(i));
  legA.send(b.id, run);
  await on.until("the whole run", () => legB.received.length === 49);
  // RFC 4254 has packets of 32 KB; the run is twice that, and may be parted once on either side of the coordinator.
  expect(legB.chunks).toBeLessThanOrEqual(5);
  expect(legB.received.map(({ frame }) => frame[0])).toEqual(run.map((frame) => frame[0]));
});

test("keys are changed after the given number of bytes, without losing a frame", async () => {
  const on = await start({ rekeyAfterBytes: 2_000_000 });
  const [a, b] = [on.identity(1), on.identity(2)];
  const [legA, legB] = [await on.sshLeg(a), await on.sshLeg(b)];
  const exchanges: unknown[] = [];
  legB.client.on("handshake", (negotiated) => exchanges.push(negotiated));
  await legA.bind(b.id);
  await legB.bind(a.id);
  let sent = 0;
  const frame = (number: number): Uint8Array => Uint8Array.from({ length: 1300 }, (_, i) => (number + i) & 0xff);
  while (exchanges.length < 2) {
    legA.send(
      b.id,
      Array.from({ length: 40 }, () => frame(sent++)),
    );
    await on.until("what was sent", () => legB.received.length === sent);
  }
  expect(legB.received.every((received, i) => Buffer.compare(received.frame, frame(i)) === 0)).toBe(true);
});

test("a client may ask for new keys too", async () => {
  const on = await start();
  const [a, b] = [on.identity(1), on.identity(2)];
  const [legA, legB] = [await on.sshLeg(a), await on.sshLeg(b)];
  await legA.bind(b.id);
  await legB.bind(a.id);
  // The client of ssh2 has no public way to ask.
  await new Promise<void>((resolve) => {
    legA.client.once("handshake", () => resolve());
    (legA.client as unknown as { _protocol: { rekey(): void } })._protocol.rekey();
  });
  legA.send(b.id, [Uint8Array.of(1)]);
  legB.send(a.id, [Uint8Array.of(2)]);
  await on.until("frames both ways", () => legA.received.length === 1 && legB.received.length === 1);
});

test("a keepalive request is answered within a round trip", async () => {
  const on = await start();
  const leg = await on.sshLeg(on.identity(1));
  // What an agent challenges its connection with.
  const { _protocol: protocol, _callbacks: callbacks } = leg.client as unknown as {
    _protocol: { ping(): void };
    _callbacks: (() => void)[];
  };
  const startedAt = performance.now();
  await new Promise<void>((resolve) => {
    callbacks.push(resolve);
    protocol.ping();
  });
  expect(performance.now() - startedAt).toBeLessThan(300);
});

test("a channel to nobody we know, to oneself, or to anything else is refused in words", async () => {
  const on = await start();
  const [a, stranger] = [on.identity(1), on.identity(2, false)];
  const leg = await on.sshLeg(a);
  await expect(leg.bind(stranger.id)).rejects.toThrow("That peer is unknown");
  await expect(leg.bind(a.id)).rejects.toThrow("That peer is unknown");
  await expect(
    new Promise((_resolve, reject) => leg.client.forwardOut("", 0, "127.0.0.1", 22, (error) => reject(error))),
  ).rejects.toThrow("TunnelMesh carries tunnels between its agents only");
});

test("an agent that is removed is thrown out at once, with or without a leg", async () => {
  const on = await start();
  const [a, b] = [on.identity(1), on.identity(2)];
  const [leg, look] = [await on.sshLeg(a), new SshLeg(b, on.ssh.bound.port, () => on.changed(), "somebody")];
  await look.opened;
  expect(on.relay.legCount).toBe(1);
  on.members.clear();
  on.relay.onRulesChanged();
  on.ssh.onRulesChanged();
  await on.until("both to be closed", () => leg.isClosed && look.isClosed);
  expect(on.relay.legCount).toBe(0);
  await expect(new SshLeg(a, on.ssh.bound.port, () => {}).opened).rejects.toThrow();
});

test("a peer that blocks an agent closes its channel, and a second connection replaces the first", async () => {
  const on = await start();
  const [a, b] = [on.identity(1), on.identity(2)];
  const [first, legB] = [await on.sshLeg(a), await on.sshLeg(b)];
  await legB.bind(a.id);
  const second = await on.sshLeg(a);
  await on.until("the first to be closed", () => first.isClosed);
  await second.bind(b.id);
  on.blocked.add(`${b.id} ${a.id}`);
  on.relay.onRulesChanged(b.id);
  await on.until("both channels to close", () => second.channels.size === 0 && legB.channels.size === 0);
  await expect(second.bind(b.id)).rejects.toThrow("refuses the other");
  expect(second.isClosed).toBe(false);
});
