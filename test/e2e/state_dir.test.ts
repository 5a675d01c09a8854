/** What an agent does with a state directory that is in use, broken, full or open to others, and with a machine it cannot use. */
import { execFileSync } from "node:child_process";
import { createSocket } from "node:dgram";
import { chmodSync, existsSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Coordinator, Stage } from "./programs.ts";

const stage = new Stage();
let coordinator: Coordinator;
const mounts: string[] = [];
beforeAll(async () => {
  coordinator = await stage.coordinator();
});
afterAll(async () => {
  for (const mount of mounts) execFileSync("umount", ["--lazy", mount]);
  await stage.end();
});

const joinArguments = (): string[] => [coordinator.url, "--key", coordinator.joinKey];

describe("the state directory", () => {
  test("of a running agent is refused to a second one with code 1, which names the first", async () => {
    const first = stage.agent(joinArguments());
    await first.joined();
    const second = stage.agent([], { stateDir: first.stateDir });
    expect(await second.outcome()).toEqual({
      code: 1,
      message: expect.stringContaining(`Another agent (pid ${first.process.pid}) is already running in`),
    });
    expect((await first.command("status")).code).toBe(0);
    first.process.signal("SIGKILL");
    await first.process.exited;
    const third = stage.agent([], { stateDir: first.stateDir });
    await third.joined();
    await third.process.stop();
  });

  test("is private, whatever the umask says", async () => {
    const stateDir = join(stage.directory("parent"), "state");
    const agent = stage.agent(joinArguments(), { stateDir });
    await agent.joined();
    expect(statSync(stateDir).mode & 0o777).toBe(0o700);
    for (const file of ["state.json", "agent.sock"]) {
      expect([file, statSync(join(stateDir, file)).mode & 0o077]).toEqual([file, 0]);
    }
    await agent.process.stop();
  });

  test("into which others may write is refused with code 78 and the cure", async () => {
    const stateDir = stage.directory("agent");
    chmodSync(stateDir, 0o777);
    expect(await stage.agent(joinArguments(), { stateDir }).outcome()).toEqual({
      code: 78,
      message: expect.stringContaining(`run "chmod 700 ${stateDir}"`),
    });
  });

  test.each([
    ["state.json", "{ broken"],
    ["state.json", '{ "schema": 99 }'],
    ["trust.json", "[]"],
  ])("with a broken %s (%s) is code 78, and the file is left for its owner to look at", async (file, text) => {
    const agent = stage.agent(joinArguments());
    await agent.joined();
    await agent.process.stop();
    const path = join(agent.stateDir, file);
    writeFileSync(path, text);
    const again = stage.agent([], { stateDir: agent.stateDir });
    expect(await again.outcome()).toEqual({ code: 78, message: expect.stringContaining(path) });
    expect(readFileSync(path, "utf8")).toBe(text);
  });

  test("with a broken identity is code 78 and never replaced", async () => {
    const agent = stage.agent(joinArguments());
    await agent.joined();
    await agent.process.stop();
    const path = ["identity", "id_ed25519", "identity_key"]
      .map((name) => join(agent.stateDir, name))
      .find((candidate) => existsSync(candidate));
    expect(path).toBeDefined();
    writeFileSync(path ?? "", "not a key\n");
    expect((await stage.agent([], { stateDir: agent.stateDir }).outcome()).code).toBe(78);
    expect(readFileSync(path ?? "", "utf8")).toBe("not a key\n");
  });

  const noMounts = canMount();
  test.skipIf(noMounts !== undefined)(`on a full disk is code 1 with a plain message${noMounts ?? ""}`, async () => {
    const full = smallDisk();
    writeFileSync(join(full, "filler"), Buffer.alloc(1 << 20).subarray(0, freeBytes(full)));
    const fresh = await stage.agent(joinArguments(), { stateDir: join(full, "state") }).outcome();
    expect(fresh).toEqual({ code: 1, message: expect.stringMatching(/disk is full/) });
  });

  test.skipIf(noMounts !== undefined)(
    `that fills up while the agent runs costs it nothing but the next save${noMounts ?? ""}`,
    async () => {
      const disk = smallDisk();
      const agent = stage.agent(joinArguments(), { stateDir: join(disk, "state") });
      const { id } = await agent.joined();
      writeFileSync(join(disk, "filler"), Buffer.alloc(1 << 20).subarray(0, freeBytes(disk)));
      const other = stage.agent([...joinArguments(), "--name", "other"]);
      await other.joined();
      expect((await agent.command("wait", "--for", "direct=other", "--timeout", "10")).code).toBe(0);
      expect((await agent.command("block", "other")).code).toBe(1);
      expect((await agent.command("status")).code).toBe(0);
      expect(await agent.process.stop()).toBe(0);
      // The start tells in order that it cannot save; with room again, everything is there.
      const again = stage.agent([], { stateDir: agent.stateDir });
      expect(await again.outcome()).toEqual({ code: 1, message: expect.stringMatching(/disk is full/) });
      rmSync(join(disk, "filler"));
      const third = stage.agent([], { stateDir: agent.stateDir });
      expect((await third.joined())["id"]).toBe(id);
      await Promise.all([third, other].map((each) => each.process.stop()));
    },
  );
});

describe("the machine", () => {
  test("a UDP port that is taken is code 1 and names the port", async () => {
    const socket = createSocket("udp4");
    await new Promise<void>((resolve) => socket.bind(0, "0.0.0.0", resolve));
    const { port } = socket.address();
    const agent = stage.agent([...joinArguments(), "--udp-port", `${port}`]);
    expect(await agent.outcome()).toEqual({
      code: 1,
      message: expect.stringContaining(`Cannot bind UDP port ${port}: `),
    });
    socket.close();
  });

  test("flags that contradict are code 78", async () => {
    const file = join(stage.directory("key"), "key.txt");
    writeFileSync(file, coordinator.joinKey);
    const both = stage.agent([...joinArguments(), "--key-file", file]);
    expect(await both.outcome()).toMatchObject({ code: 78, message: expect.stringContaining("contradict each other") });
    const missing = stage.agent([coordinator.url, "--key-file", "/does/not/exist"]);
    expect(await missing.outcome()).toMatchObject({ code: 78, message: expect.stringContaining("does not exist") });
  });
});

/** Undefined when this process may mount a file system, else why not, for the name of the test. */
function canMount(): string | undefined {
  if (process.platform !== "linux") return " (skipped: needs Linux)";
  if (process.getuid?.() !== 0) return " (skipped: needs root to mount a small disk)";
  try {
    smallDisk();
    return undefined;
  } catch {
    return " (skipped: this machine forbids mounting)";
  }
}

function smallDisk(): string {
  const path = stage.directory("disk");
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", path], { stdio: "pipe" });
  mounts.push(path);
  return path;
}

function freeBytes(path: string): number {
  const [, free = "0"] = execFileSync("df", ["--output=avail", "-B1", path], { encoding: "utf8" }).trim().split("\n");
  return Number(free);
}
