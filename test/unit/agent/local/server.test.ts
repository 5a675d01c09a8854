import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { LocalClient } from "../../../../agent/local/client.ts";
import { createLocalApp, type LocalServer, serveLocalApi } from "../../../../agent/local/server.ts";
import { EXIT, UserError } from "../../../../agent/state/user_error.ts";
import { scratchDir } from "../state/scratch.ts";
import { FakeControl, STATUS } from "./fake_control.ts";

const signal = new AbortController().signal;
const servers: LocalServer[] = [];
const bugs: unknown[] = [];

afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop();
  bugs.length = 0;
});

describe("the socket", () => {
  test("may be opened by its owner only and is gone after the stop", async () => {
    const { socketPath, server } = await serve(new FakeControl());
    expect(statSync(socketPath).mode & 0o777).toBe(0o600);
    await server.stop();
    expect(statSync(socketPath, { throwIfNoEntry: false })).toBeUndefined();
  });

  test("one that a killed agent left behind is replaced", async () => {
    const socketPath = join(scratchDir(), "a.sock");
    const killed = Bun.spawn([
      process.execPath,
      "-e",
      `Bun.serve({ unix: ${JSON.stringify(socketPath)}, fetch: () => new Response() }); process.kill(process.pid, "SIGKILL")`,
    ]);
    await killed.exited;
    expect(statSync(socketPath).isSocket()).toBe(true);
    await serve(new FakeControl(), socketPath);
    expect(await client(socketPath).status(signal)).toEqual(STATUS);
  });

  test("one that is answered, by whomever, is not taken away", async () => {
    const socketPath = join(scratchDir(), "a.sock");
    const other = createServer();
    await new Promise<void>((resolve) => other.listen(socketPath, resolve));
    await expect(serve(new FakeControl(), socketPath)).rejects.toMatchObject({ exitCode: EXIT.failed });
    other.close();
  });

  test("a file in its place is refused and kept", async () => {
    const socketPath = join(scratchDir(), "a.sock");
    writeFileSync(socketPath, "mine");
    await expect(serve(new FakeControl(), socketPath)).rejects.toMatchObject({ exitCode: EXIT.badConfiguration });
    expect(statSync(socketPath).size).toBe(4);
  });

  test("a directory that does not exist is told", async () => {
    const socketPath = join(scratchDir(), "none", "a.sock");
    await expect(serve(new FakeControl(), socketPath)).rejects.toThrow(/Cannot make the socket .*--socket/);
    mkdirSync(join(socketPath, ".."));
    await serve(new FakeControl(), socketPath);
  });
});

describe("the client", () => {
  test("no agent: exit code 3 and the words it was given", async () => {
    const missing = client(join(scratchDir(), "a.sock"));
    await expect(missing.status(signal)).rejects.toMatchObject({
      exitCode: EXIT.agentNotRunning,
      message: "none runs",
    });
    await expect(missing.ping("nas", PING, () => {}, signal)).rejects.toMatchObject({ exitCode: EXIT.agentNotRunning });
  });

  test("an agent that stops while it is asked: exit code 3", async () => {
    const control = new FakeControl();
    control.wait = () => new Promise(() => {});
    control.pingsForever = true;
    const { socketPath, server } = await serve(control);
    const waiting = client(socketPath).wait({ for: "joined" }, undefined, signal);
    const started = Promise.withResolvers<void>();
    control.pings = [{ seq: 1, lost: true }];
    const pinging = client(socketPath).ping("nas", PING, () => started.resolve(), signal);
    await started.promise;
    const ends = Promise.allSettled([waiting, pinging]);
    await server.stop();
    for (const end of await ends) {
      expect(end).toMatchObject({ status: "rejected", reason: { exitCode: EXIT.agentNotRunning } });
    }
  });

  test("a peer's name that nobody has: exit code 5", async () => {
    const { socketPath } = await serve(new FakeControl());
    await expect(client(socketPath).why("x", signal)).rejects.toMatchObject({ exitCode: EXIT.peerUnavailable });
    await expect(client(socketPath).trust("x", signal)).rejects.toMatchObject({ exitCode: EXIT.peerUnavailable });
    await expect(client(socketPath).block("x", signal)).rejects.toMatchObject({ exitCode: EXIT.peerUnavailable });
  });

  test("what the agent throws for the user arrives with its code and text, also in the middle of a stream", async () => {
    const control = new FakeControl();
    control.ping = async (_peer, _options, onEvent) => {
      onEvent({ seq: 1, lost: true });
      throw new UserError(EXIT.peerUnavailable, '"nas" went offline');
    };
    const { socketPath } = await serve(control);
    const events: unknown[] = [];
    const ended = client(socketPath).ping("nas", PING, (event) => events.push(event), signal);
    await expect(ended).rejects.toMatchObject({ exitCode: EXIT.peerUnavailable, message: '"nas" went offline' });
    expect(events).toEqual([{ seq: 1, lost: true }]);
  });

  test("a fault of the agent's own is logged there and told without its details", async () => {
    const control = new FakeControl();
    control.status = () => {
      throw new Error("secret detail");
    };
    const { socketPath } = await serve(control);
    await expect(client(socketPath).status(signal)).rejects.toMatchObject({
      exitCode: EXIT.failed,
      message: expect.not.stringContaining("secret"),
    });
    expect(bugs).toHaveLength(1);
  });

  test("leaving a ping ends it in the agent", async () => {
    const control = new FakeControl();
    control.pings = [{ seq: 1, rttMs: 5, path: "direct" }];
    control.pingsForever = true;
    const { socketPath } = await serve(control);
    const leave = new AbortController();
    await client(socketPath).ping("nas", PING, () => leave.abort(), leave.signal);
    await control.pingEnded.promise;
  });
});

describe("requests", () => {
  test.each([
    ["not JSON", "{"],
    ["another shape", '{"peer":5}'],
    ["a name too long", JSON.stringify({ name: "x".repeat(65) })],
  ])("%s: an error in JSON, never a crash", async (_name, body) => {
    const app = createLocalApp(new FakeControl(), "/s", (error) => bugs.push(error));
    for (const path of ["ping", "why", "wait", "trust", "block"]) {
      const response = await app.request(`/v1/${path}`, { method: "POST", body });
      expect(response.status).toBe(400);
      expect(await response.json()).toMatchObject({ error: { exitCode: EXIT.failed } });
    }
    expect(bugs).toEqual([]);
  });

  test("one that is too large is refused unread, an unknown one by its version", async () => {
    const app = createLocalApp(new FakeControl(), "/s", (error) => bugs.push(error));
    const large = await app.request("/v1/why", { method: "POST", body: JSON.stringify({ name: "x".repeat(5000) }) });
    expect(await large.json()).toEqual({ error: { exitCode: EXIT.usage, message: "The request is too large" } });
    expect(await (await app.request("/v1/forward")).json()).toMatchObject({ error: { exitCode: EXIT.failed } });
  });
});

const PING = { count: 1, intervalMs: 10, untilDirect: false, timeoutMs: undefined };
const client = (socketPath: string): LocalClient => new LocalClient(socketPath, "none runs");

async function serve(
  control: FakeControl,
  socketPath = join(scratchDir(), "a.sock"),
): Promise<{ socketPath: string; server: LocalServer }> {
  const server = await serveLocalApi(control, { socketPath, stateDir: "/s", onBug: (error) => bugs.push(error) });
  servers.push(server);
  return { socketPath, server };
}
