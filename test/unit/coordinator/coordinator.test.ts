import { createSocket } from "node:dgram";
import { statSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
// @ts-types="@types/ws"
import { WebSocket } from "ws";
import { afterEach, describe, expect, test } from "vitest";
import { utf8 } from "../../../shared/bytes.ts";
import { peerIdOf } from "../../../shared/session/identity.ts";
import { hmacSha256 } from "../../../shared/session/primitives.ts";
import { decodeStun, encodeStun, STUN_BINDING } from "../../../shared/wire/stun.ts";
import { CoordinatorProcess, runCoordinator, SocketAgent, temporaryDirectory } from "./coordinator_process.ts";
import { TEST_CERTIFICATE, TEST_PRIVATE_KEY } from "./tls_fixture.ts";

const started: { stop(): Promise<unknown> }[] = [];
const agents: SocketAgent[] = [];
afterEach(async () => {
  for (const agent of agents.splice(0)) agent.close();
  await Promise.all(started.splice(0).map((coordinator) => coordinator.stop()));
});

async function start(argv: string[] = [], dataDir?: string): Promise<CoordinatorProcess> {
  const coordinator = await CoordinatorProcess.start(argv, dataDir);
  started.push(coordinator);
  return coordinator;
}

function connectAgent(url: string, options: ConstructorParameters<typeof SocketAgent>[1]): SocketAgent {
  const agent = new SocketAgent(url, options);
  agents.push(agent);
  return agent;
}

describe("the running coordinator", () => {
  test("tells each socket with its real port, how to join, and that it is ready and healthy", async () => {
    const coordinator = await start(["--listen", "127.0.0.2:0"]);
    const listening = coordinator.events.filter(({ event }) => event === "listening");
    expect(listening.map(({ kind, address }) => `${String(kind)} ${String(address)}`)).toEqual([
      "stun 127.0.0.1",
      "stun 127.0.0.1",
      "ssh 127.0.0.1",
      "http 127.0.0.1",
      "http 127.0.0.2",
    ]);
    expect(listening.every(({ port }) => Number(port) > 0)).toBe(true);
    const line = coordinator.events.find(({ event }) => event === "join_line")?.["command"];
    expect(line).toMatch(
      /^tunnelmesh-agent up http:\/\/127\.0\.0\.1:\d+ --key tmk_[a-z2-7]{8}_[a-z2-7]{32}_[a-z2-7]{26}$/,
    );
    const health = await fetch(`${coordinator.url}/healthz`);
    expect([health.status, await health.text()]).toEqual([200, "ok\n"]);
    expect((await fetch(`${coordinator.url}/other`)).status).toBe(404);
    expect(statSync(coordinator.dataDir).mode & 0o777).toBe(0o700);
  });

  test("serves HTTPS and its WebSockets beside HTTP", async () => {
    const dataDir = temporaryDirectory();
    const [cert, key] = [join(dataDir, "cert.pem"), join(dataDir, "key.pem")];
    writeFileSync(cert, TEST_CERTIFICATE);
    writeFileSync(key, TEST_PRIVATE_KEY);
    const argv = ["--listen", "https://127.0.0.1:0", "--tls-cert", cert, "--tls-key", key];
    const coordinator = await start(argv, dataDir);
    const url = `https://127.0.0.1:${coordinator.port("https")}`;
    const agent = connectAgent(url, { name: "a", key: coordinator.joinKey, fill: 1, ca: TEST_CERTIFICATE });
    expect((await agent.message("welcome")).listeners).toEqual([coordinator.url, url]);
  });

  test("stops within two seconds, with exit code 0, and tells agents", async () => {
    const coordinator = await start();
    const agent = connectAgent(coordinator.url, { name: "a", key: coordinator.joinKey, fill: 1 });
    await agent.message("welcome");
    const startedAt = performance.now();
    expect(await coordinator.stop("SIGTERM")).toBe(0);
    expect(performance.now() - startedAt).toBeLessThan(2000);
    expect(await agent.closed).toBe(1001);
  });

  test("two agents join, see each other, exchange bodies with attested addresses, and fire together", async () => {
    const coordinator = await start();
    const { url, joinKey } = coordinator;
    const a = connectAgent(url, { name: "a", key: joinKey, fill: 1, fingerprint: joinKey.split("_").at(-1)! });
    const b = connectAgent(url, { name: "b", key: joinKey, fill: 2 });
    const welcome = await a.message("welcome");
    await b.message("welcome");
    expect(welcome.listeners).toEqual([url]);
    await a.message("peers", ({ peers }) => peers.some(({ name, online }) => name === "b" && online));

    const port = await bindingRequest(welcome);
    expect((await a.message("observed")).addresses).toEqual([{ ip: "127.0.0.1", port }]);

    const [idA, idB] = [peerIdOf(a.identity.publicKey), peerIdOf(b.identity.publicKey)];
    a.send({ type: "to_peer", to: idB, body: Uint8Array.of(7) });
    expect(await b.message("from_peer")).toEqual({
      type: "from_peer",
      from: idA,
      body: Uint8Array.of(7),
      attested: [{ ip: "127.0.0.1", port }],
    });

    a.send({ type: "punch_request", peer: idB, round: 1 });
    for (const [agent, peer] of [
      [a, idB],
      [b, idA],
    ] as const) {
      const { fireAt } = await agent.message("punch");
      const wait = fireAt - performance.now();
      expect(wait).toBeLessThan(500);
      setTimeout(
        () => agent.send({ type: "punch_fired", peer, round: 1, firedAt: performance.now() }),
        Math.max(0, wait),
      );
    }
    expect(Number((await coordinator.event("punch_signalled"))["skewMs"])).toBeLessThan(250);
  });

  test("remembers its members and itself after kill -9", async () => {
    const first = await start();
    const key = first.joinKey;
    const agent = connectAgent(first.url, { name: "a", key, fill: 1 });
    const before = await agent.message("welcome");
    await first.stop("SIGKILL");
    const second = await start([], first.dataDir);
    expect(second.events.some(({ event }) => event === "join_line")).toBe(false);
    const again = connectAgent(second.url, { name: "a", fill: 1, fingerprint: key.split("_").at(-1)! });
    const after = await again.message("welcome");
    expect([after.name, after.meshIPv4, after.meshIPv6]).toEqual([before.name, before.meshIPv4, before.meshIPv6]);
  });

  test("lets in, approves and removes within two seconds of the command", async () => {
    const coordinator = await start();
    const { dataDir, url } = coordinator;
    const waiting = connectAgent(url, { name: "nas", fill: 3 });
    const { code } = await waiting.message("pending");
    const list = await runCoordinator(["peer", "list", "--json", "--data-dir", dataDir]);
    expect(JSON.parse(list.stdout)).toMatchObject({ schema: 1, peers: [{ name: "nas", state: "pending", code }] });

    const approved = await runCoordinator(["peer", "approve", code, "--data-dir", dataDir]);
    expect([approved.code, approved.stdout]).toEqual([0, expect.stringContaining('Approved "nas"')]);
    const approvedAt = performance.now();
    expect((await waiting.message("welcome")).name).toBe("nas");
    expect(performance.now() - approvedAt).toBeLessThan(2000);

    const created = await runCoordinator(["key", "create", "--json", "--data-dir", dataDir]);
    const { key, id, reusable } = JSON.parse(created.stdout) as { key: string; id: string; reusable: boolean };
    expect(reusable).toBe(false);
    const joined = connectAgent(url, { name: "b", key, fill: 4 });
    await joined.message("welcome");
    const keys = await runCoordinator(["key", "list", "--json", "--data-dir", dataDir]);
    expect(JSON.parse(keys.stdout).keys.find((entry: { id: string }) => entry.id === id)).toMatchObject({
      state: "used",
    });

    await runCoordinator(["peer", "remove", "nas", "--data-dir", dataDir]);
    expect((await waiting.message("refused")).reason).toBe("removed");
    expect(await waiting.closed).toBe(1008);
    await joined.message("peer_removed");
  });

  test("a revoked key lets nobody in", async () => {
    const coordinator = await start();
    const revoked = await runCoordinator(["key", "revoke", coordinator.joinKey, "--data-dir", coordinator.dataDir]);
    expect(revoked.code).toBe(0);
    const agent = connectAgent(coordinator.url, { name: "a", key: coordinator.joinKey, fill: 1 });
    expect((await agent.message("refused")).reason).toBe("key_invalid");
  });
});

describe("hostile clients", () => {
  test("before authentication more than 4 KiB in one message is refused as it comes", async () => {
    const coordinator = await start();
    const socket = new WebSocket(`${coordinator.url.replace("http", "ws")}/v1/signal`);
    const code = await new Promise((resolve) => {
      socket.on("open", () => socket.send(new Uint8Array(5000)));
      socket.on("close", resolve);
      socket.on("error", () => {});
    });
    expect(code).toBe(1009);
  });

  test("a member may send more than that, up to its own limit", async () => {
    const coordinator = await start();
    const agent = connectAgent(coordinator.url, { name: "a", key: coordinator.joinKey, fill: 1 });
    await agent.message("welcome");
    agent.sendPlaintext(utf8(" ".repeat(60_000)));
    agent.sendPlaintext(utf8(" ".repeat(70_000)));
    expect(await agent.closed).toBe(1009);
  });

  test("one source gets 16 unauthenticated connections, and a member still comes in after five seconds", async () => {
    const coordinator = await start();
    const url = `${coordinator.url.replace("http", "ws")}/v1/signal`;
    const outcomes = await Promise.all(
      Array.from({ length: 24 }, () => {
        const socket = new WebSocket(url);
        return new Promise<string>((resolve) => {
          socket.on("open", () => resolve("open"));
          socket.on("error", (error: Error) => resolve(error.message));
        });
      }),
    );
    expect(outcomes.filter((outcome) => outcome === "open").length).toBe(16);
    // Beside them, connections that say nothing at all, or never finish what they say.
    const slow = Array.from({ length: 20 }, (_, i) => {
      const socket = connect(coordinator.port("http"), "127.0.0.1");
      if (i % 2 === 0) socket.write("GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ");
      return socket;
    });
    const closed = slow.map(
      (socket) =>
        new Promise<number>((resolve) => {
          socket.on("error", () => {});
          socket.on("close", () => resolve(performance.now()));
          socket.resume();
        }),
    );
    const openedAt = performance.now();
    const lifetimes = (await Promise.all(closed)).map((at) => at - openedAt);
    expect(lifetimes.filter((lifetime) => lifetime < 2000).length).toBe(4);
    expect(Math.max(...lifetimes)).toBeLessThan(8000);
    const agent = connectAgent(coordinator.url, { name: "a", key: coordinator.joinKey, fill: 1 });
    await agent.message("welcome");
  });

  test("noise on every port is survived", async () => {
    const coordinator = await start();
    const noise = (length: number): Uint8Array => crypto.getRandomValues(new Uint8Array(length));
    const udp = createSocket("udp4");
    for (let i = 0; i < 200; i++) udp.send(noise(1 + (i % 100) * 14), coordinator.port("stun"), "127.0.0.1");
    for (let i = 0; i < 20; i++) {
      await new Promise<void>((resolve) => {
        const socket = connect(coordinator.port("http"), "127.0.0.1", () => socket.end(noise(2000)));
        socket.on("error", () => resolve());
        socket.on("close", () => resolve());
        socket.resume();
      });
    }
    udp.close();
    expect((await fetch(`${coordinator.url}/healthz`)).status).toBe(200);
  });
});

describe("starting", () => {
  test("without permissions says which and how, exit 78", async () => {
    const { code, stderr } = await runCoordinator([], []);
    expect([code, stderr.split("\n")[0]]).toEqual([78, "Cannot start: Deno does not allow what the coordinator needs"]);
    expect(stderr).toContain("  deno run -P coordinator/main.ts\n");
  });

  test("wrong usage is exit 2, bad configuration 78, a busy port or a broken database 1, each in one line", async () => {
    const dataDir = temporaryDirectory();
    const result = async (...argv: string[]) => {
      const { code, stderr } = await runCoordinator(["--data-dir", dataDir, ...argv]);
      return [
        code,
        stderr
          .split("\n")
          .filter((line) => line !== "" && !line.includes("experimental"))
          .at(-1),
      ];
    };
    expect(await result("--nonsense")).toEqual([2, "Unknown flag --nonsense; run with --help to see all"]);
    expect(await result("--stun-port", "x")).toEqual([78, '--stun-port is "x"; it must be a port from 0 to 65535']);
    expect(await result("--listen", "https://127.0.0.1:0", "--tls-cert", "/none", "--tls-key", "/none")).toEqual([
      78,
      expect.stringContaining("error: Cannot read --tls-cert /none:"),
    ]);
    const coordinator = await start();
    const busy = [
      "--ssh-listen",
      "127.0.0.1:0",
      "--listen",
      `127.0.0.1:${coordinator.port("http")}`,
      "--stun-port",
      "0",
      "--stun-alternate-port",
      "0",
    ];
    expect(await result(...busy)).toEqual([
      1,
      expect.stringContaining("the port is in use; stop the other program or choose another with --listen"),
    ]);
    expect((await runCoordinator(["peer", "list", "--data-dir", join(dataDir, "none")])).code).toBe(1);
    const inFile = await runCoordinator(["--data-dir", "/dev/null/x"]);
    expect([inFile.code, inFile.stderr]).toEqual([1, expect.stringContaining("Cannot open the database")]);
  });
});

/** One signed Binding request; returns the port that it came from. */
function bindingRequest(welcome: {
  stun: { ip: string; port: number }[];
  stunUsername: string;
  stunSecret: Uint8Array;
}): Promise<number> {
  const socket = createSocket("udp4");
  const send = (sequence: number, echo: Uint8Array | undefined): void => {
    const header = { class: "request", method: STUN_BINDING, transactionId: new Uint8Array(12) } as const;
    const bytes = encodeStun(
      { ...header, username: welcome.stunUsername, sequence, echo },
      { integrity: { key: welcome.stunSecret, hmacSha256 } },
    );
    socket.send(bytes, welcome.stun[0]!.port, welcome.stun[0]!.ip);
  };
  return new Promise((resolve) => {
    socket.once("message", (answer) => {
      send(2, decodeStun(answer)?.echo);
      socket.once("message", () => {
        const { port } = socket.address();
        socket.close();
        resolve(port);
      });
    });
    send(1, undefined);
  });
}
