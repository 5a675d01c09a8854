/** The whole coordinator as a process: agents that join by signalling, get tokens and the SSH host key, and talk through the relay. */
import { afterEach, expect, test } from "vitest";
import { opensshPrivateKey, publicBlobOf } from "../../../../coordinator/ssh/host_key.ts";
import { peerIdOf } from "../../../../shared/session/identity.ts";
import { CoordinatorProcess, runCoordinator, SocketAgent } from "../coordinator_process.ts";
import { SshLeg, WebSocketLeg } from "./relay_world.ts";

const closers: (() => unknown)[] = [];
afterEach(() => Promise.all(closers.splice(0).map((close) => close())));

async function start(dataDir?: string): Promise<CoordinatorProcess> {
  const coordinator = await CoordinatorProcess.start([], dataDir);
  closers.push(() => coordinator.stop());
  return coordinator;
}

async function join(coordinator: CoordinatorProcess, name: string, fill: number) {
  const agent = new SocketAgent(coordinator.url, { name, key: coordinator.joinKey, fill });
  closers.push(() => agent.close());
  const welcome = await agent.message("welcome");
  const seed = new Uint8Array(32).fill(fill);
  const identity = { id: welcome.id, privateKey: opensshPrivateKey(seed, agent.identity.publicKey) };
  return { agent, welcome, identity };
}

async function webSocket(coordinator: CoordinatorProcess, agent: SocketAgent): Promise<WebSocketLeg> {
  agent.send({ type: "relay_token_request" });
  const { token } = await agent.message("relay_token");
  const url = `${coordinator.url.replace("http", "ws")}/v1/relay`;
  const leg = new WebSocketLeg(peerIdOf(agent.identity.publicKey), url, token, () => {});
  closers.push(() => leg.close());
  await leg.opened;
  return leg;
}

async function until(isTrue: () => boolean): Promise<void> {
  for (let waited = 0; !isTrue(); waited += 10) {
    if (waited > 5000) throw new Error("Waited in vain");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

test("two members talk by one leg of each kind, hear of each other's, and lose them when they are removed", async () => {
  const coordinator = await start();
  const [a, b] = [await join(coordinator, "a", 1), await join(coordinator, "b", 2)];
  const { ssh } = b.welcome;
  expect(ssh).toMatchObject({ host: "127.0.0.1", port: coordinator.port("ssh") });

  const legA = await webSocket(coordinator, a.agent);
  const legB = new SshLeg(b.identity, ssh?.port ?? 0, () => {});
  closers.push(() => legB.close());
  await legB.opened;
  await legA.bind(b.identity.id);
  await legB.bind(a.identity.id);
  await a.agent.message("peer_leg", ({ leg }) => leg === "ssh");
  await b.agent.message("peer_leg", ({ leg }) => leg === "websocket");
  legA.send(b.identity.id, [Uint8Array.of(1)]);
  legB.send(a.identity.id, [Uint8Array.of(2)]);
  await until(() => legA.received.length === 1 && legB.received.length === 1);

  a.agent.send({ type: "block", peers: [b.identity.id] });
  await until(() => legB.channels.size === 0);
  await runCoordinator(["peer", "remove", "b", "--data-dir", coordinator.dataDir]);
  await until(() => legB.isClosed);
  await expect(new SshLeg(b.identity, ssh?.port ?? 0, () => {}).opened).rejects.toThrow();
});

test("the host key is the one that agents were told, and stays the same after kill -9", async () => {
  const first = await start();
  const before = (await join(first, "a", 1)).welcome.ssh;
  await first.stop("SIGKILL");
  const second = await start(first.dataDir);
  const agent = new SocketAgent(second.url, { name: "a", fill: 1 });
  closers.push(() => agent.close());
  const after = (await agent.message("welcome")).ssh;
  expect(after?.hostKey).toEqual(before?.hostKey);
  expect(before?.hostKey.length).toBe(publicBlobOf(new Uint8Array(32)).length);

  const seed = new Uint8Array(32).fill(1);
  const identity = {
    id: peerIdOf(agent.identity.publicKey),
    privateKey: opensshPrivateKey(seed, agent.identity.publicKey),
  };
  const leg = new SshLeg(identity, after?.port ?? 0, () => {});
  closers.push(() => leg.close());
  await leg.opened;
  expect(leg.hostKey).toEqual(after?.hostKey);
});

test("a relay leg outlives the signalling connection, and its agent is told again when that comes back", async () => {
  const coordinator = await start();
  const [a, b] = [await join(coordinator, "a", 1), await join(coordinator, "b", 2)];
  const [legA, legB] = [await webSocket(coordinator, a.agent), await webSocket(coordinator, b.agent)];
  await legA.bind(b.identity.id);
  await a.agent.message("peer_leg", ({ leg }) => leg === "websocket");
  a.agent.close();
  await coordinator.event("agent_left");
  legA.send(b.identity.id, [Uint8Array.of(1)]);
  await until(() => legB.received.length === 1);
  const again = new SocketAgent(coordinator.url, { name: "a", fill: 1 });
  closers.push(() => again.close());
  expect(await again.message("peer_leg")).toEqual({ type: "peer_leg", peer: b.identity.id, leg: "websocket" });
});
