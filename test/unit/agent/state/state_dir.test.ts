import { chmodSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import {
  isStateDirInUse,
  lockStateDir,
  ROOT_STATE_DIR,
  socketPathOf,
  stateDirOf,
} from "../../../../agent/state/state_dir.ts";
import { EXIT } from "../../../../agent/state/user_error.ts";
import { scratchDir } from "./scratch.ts";

const HOLDER = new URL("./lock_holder.ts", import.meta.url).pathname;
const children: Bun.Subprocess[] = [];

afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});

describe("where the state lives", () => {
  const user = { uid: 1000, home: "/home/ada", env: {} };
  test.each([
    ["root gets the service directory", undefined, { ...user, uid: 0 }, ROOT_STATE_DIR],
    ["a user gets the XDG default", undefined, user, "/home/ada/.local/state/tunnelmesh"],
    ["XDG_STATE_HOME moves it", undefined, { ...user, env: { XDG_STATE_HOME: "/x" } }, "/x/tunnelmesh"],
    [
      "a relative XDG_STATE_HOME is ignored",
      undefined,
      { ...user, env: { XDG_STATE_HOME: "x" } },
      "/home/ada/.local/state/tunnelmesh",
    ],
    ["a chosen one wins, also for root", "/srv/a", { ...user, uid: 0 }, "/srv/a"],
  ])("%s", (_name, chosen, account, expected) => {
    expect(stateDirOf(chosen, account)).toBe(expected);
  });

  test("the socket is in the state directory unless told, and one too long to bind is refused", () => {
    expect(socketPathOf(undefined, "/s")).toBe("/s/agent.sock");
    expect(socketPathOf("/run/a.sock", "/s")).toBe("/run/a.sock");
    expect(() => socketPathOf(undefined, `/${"long/".repeat(30)}`)).toThrow(/choose a shorter one with --socket/);
  });
});

describe("the lock", () => {
  test("makes the directory for its owner only", () => {
    const dir = join(scratchDir(), "a", "b");
    const lock = lockStateDir(dir);
    expect(statSync(dir).mode & 0o777).toBe(0o700);
    expect(isStateDirInUse(dir)).toBe(true);
    lock.release();
    expect(isStateDirInUse(dir)).toBe(false);
  });

  test("a second agent is refused with code 1 and the pid of the first", async () => {
    const dir = scratchDir();
    const holder = await holdLock(dir);
    expect(() => lockStateDir(dir)).toThrow(
      expect.objectContaining({
        exitCode: EXIT.failed,
        message: expect.stringContaining(`Another agent (pid ${holder.pid}) is already running in ${dir}`),
      }),
    );
  });

  test("is free at once after its owner was killed", async () => {
    const dir = scratchDir();
    const holder = await holdLock(dir);
    expect(isStateDirInUse(dir)).toBe(true);
    holder.kill("SIGKILL");
    await holder.exited;
    lockStateDir(dir).release();
  });

  test("a directory that others may write into is refused", () => {
    const dir = join(scratchDir(), "open");
    mkdirSync(dir);
    chmodSync(dir, 0o777);
    expect(() => lockStateDir(dir)).toThrow(expect.objectContaining({ exitCode: EXIT.badConfiguration }));
    expect(statSync(dir).mode & 0o777).toBe(0o777);
  });

  test("a file in place of the directory is a clear error", () => {
    const file = join(scratchDir(), "file");
    writeFileSync(file, "");
    expect(() => lockStateDir(file)).toThrow(/Cannot use the state directory .*--state-dir/);
  });
});

async function holdLock(dir: string): Promise<Bun.Subprocess<"ignore", "pipe", "inherit">> {
  const holder = Bun.spawn([process.execPath, HOLDER, dir], { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
  children.push(holder);
  await holder.stdout.getReader().read();
  return holder;
}
