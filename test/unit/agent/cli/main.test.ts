/** The program as a process: streams, signals, exit codes, and what a kill leaves behind. No coordinator is there to be reached. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import type { Status } from "../../../../agent/local/contract.ts";
import { serveLocalApi } from "../../../../agent/local/server.ts";
import { EXIT } from "../../../../agent/state/user_error.ts";
import { FakeControl, peerStatus, STATUS } from "../local/fake_control.ts";
import { scratchDir } from "../state/scratch.ts";

const MAIN = join(import.meta.dirname, "../../../../agent/main.ts");
/** Nothing listens on port 1 of loopback: the agent tries for ever. */
const UNREACHABLE = "http://127.0.0.1:1";
const running: Bun.Subprocess[] = [];

afterEach(async () => {
  for (const child of running.splice(0)) {
    child.kill("SIGKILL");
    await child.exited;
  }
});

describe("commands", () => {
  test("answers on stdout, errors on stderr, one line and no stack", async () => {
    expect(await finish("version")).toMatchObject({
      code: EXIT.ok,
      stdout: expect.stringMatching(/^tunnelmesh-agent /),
    });
    expect(await finish("--help")).toMatchObject({
      code: EXIT.ok,
      stdout: expect.stringContaining("Examples:"),
      stderr: "",
    });
    const { code, stdout, stderr } = await finish("statsu");
    expect({ code, stdout }).toEqual({ code: EXIT.usage, stdout: "" });
    expect(stderr).toMatch(/^Unknown command "statsu".*\n$/);
  });

  test("the environment reaches it", async () => {
    const { stdout } = await finish("version", { TUNNELMESH_JSON: "1" });
    expect(JSON.parse(stdout)).toMatchObject({ schema: 1 });
  });
});

test("a status that is larger than a pipe reaches a slow reader whole", async () => {
  const stateDir = scratchDir();
  const socketPath = join(stateDir, "agent.sock");
  const control = new FakeControl();
  const names = Array.from({ length: 1000 }, (_, index) => `peer-${index}`);
  control.current = { ...STATUS, peers: names.map((name) => peerStatus(name)) };
  const server = await serveLocalApi(control, { socketPath, stateDir, onBug: () => {} });
  const command = `"${process.execPath}" "${MAIN}" status --json --state-dir "${stateDir}" | { sleep 0.5; cat; }`;
  const reader = Bun.spawn(["sh", "-c", command], { stdout: "pipe" });
  const { peers } = JSON.parse(await new Response(reader.stdout).text()) as Status;
  expect(peers.map(({ name }) => name)).toEqual(names);
  await server.stop();
});

describe("up", () => {
  test.each(["SIGINT", "SIGTERM"] as const)(
    "%s stops it gracefully: code 0, socket and lock are free",
    async (signal) => {
      const stateDir = scratchDir();
      const agent = await startAgent(stateDir);
      agent.kill(signal);
      expect(await agent.exited).toBe(EXIT.ok);
      expect(existsSync(join(stateDir, "agent.sock"))).toBe(false);
      expect((await finish("status", { TUNNELMESH_STATE_DIR: stateDir })).code).toBe(EXIT.agentNotRunning);
    },
  );

  test("a second one on the same directory exits 1 and names the first, which goes on", async () => {
    const stateDir = scratchDir();
    const agent = await startAgent(stateDir);
    const second = await finish(`up ${UNREACHABLE} --tun off --state-dir ${stateDir}`);
    expect(second).toMatchObject({ code: EXIT.failed, stderr: expect.stringContaining(`(pid ${agent.pid})`) });
    expect((await finish(`status --json --state-dir ${stateDir}`)).code).toBe(EXIT.ok);
  });

  test("after kill -9 the next one starts with the same identity", async () => {
    const stateDir = scratchDir();
    const killed = await startAgent(stateDir);
    killed.kill("SIGKILL");
    await killed.exited;
    const identity = readFileSync(join(stateDir, "identity"), "utf8");
    expect(existsSync(join(stateDir, "agent.sock"))).toBe(true);
    await startAgent(stateDir);
    expect(readFileSync(join(stateDir, "identity"), "utf8")).toBe(identity);
    expect((await finish(`status --state-dir ${stateDir}`)).stdout).toContain("not connected");
  });

  test("down ends it, and a new one may follow at once", async () => {
    const stateDir = scratchDir();
    const agent = await startAgent(stateDir);
    expect(await finish(`down --state-dir ${stateDir}`)).toMatchObject({ code: EXIT.ok, stderr: "" });
    await startAgent(stateDir);
    expect(await agent.exited).toBe(EXIT.ok);
  });

  test("--timeout ends it with code 7 while the coordinator cannot be reached", async () => {
    const ended = await finish(`up ${UNREACHABLE} --tun off --timeout 0.5 --state-dir ${scratchDir()}`);
    expect(ended.code).toBe(EXIT.timedOut);
  });
});

describe("commands that last", () => {
  test("a reader that has gone ends status --watch", async () => {
    const stateDir = scratchDir();
    await startAgent(stateDir);
    const watch = spawn(`status --watch --state-dir ${stateDir}`);
    const reader = watch.stdout.getReader();
    await reader.read();
    await reader.cancel();
    expect(await watch.exited).toBe(EXIT.ok);
  });

  test("Ctrl-C ends status --watch with code 0, and wait like any program", async () => {
    const stateDir = scratchDir();
    await startAgent(stateDir);
    const watch = spawn(`status --watch --state-dir ${stateDir}`);
    await watch.stdout.getReader().read();
    watch.kill("SIGINT");
    expect(await watch.exited).toBe(EXIT.ok);
    const wait = spawn(`wait --for joined --state-dir ${stateDir}`);
    // Gives it time to install its handlers; without them the code would be the same.
    await finish(`status --state-dir ${stateDir}`);
    wait.kill("SIGINT");
    expect(await wait.exited).toBe(130);
  });
});

type Child = Bun.Subprocess<"ignore", "pipe", "pipe">;

function spawn(command: string, env: Record<string, string> = {}): Child {
  const child = Bun.spawn([process.execPath, MAIN, ...command.split(" ")], {
    env: { PATH: process.env["PATH"], HOME: "/nonexistent", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  running.push(child);
  return child;
}

async function finish(
  command: string,
  env: Record<string, string> = {},
): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = spawn(command, env);
  const [stdout = "", stderr = ""] = await Promise.all(
    [child.stdout, child.stderr].map((stream) => new Response(stream).text()),
  );
  return { code: await child.exited, stdout, stderr };
}

/** Returns once it says that its local API answers. */
async function startAgent(stateDir: string): Promise<Child> {
  const child = spawn(`up ${UNREACHABLE} --tun off --udp-port 0 --log-format json --state-dir ${stateDir}`);
  let log = "";
  const reader = child.stderr.getReader();
  const decoder = new TextDecoder();
  while (!log.includes('"event":"started"')) {
    const { done, value } = await reader.read();
    if (done) throw new Error(`The agent did not start: ${log}`);
    log += decoder.decode(value);
  }
  reader.releaseLock();
  return child;
}
