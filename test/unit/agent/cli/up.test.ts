import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { AgentConfig } from "../../../../agent/cli/config.ts";
import { runCommandLine } from "../../../../agent/cli/execute.ts";
import { defaultName, type RunAgent } from "../../../../agent/cli/up.ts";
import { lockStateDir } from "../../../../agent/state/state_dir.ts";
import { StateFile } from "../../../../agent/state/state_file.ts";
import { EXIT, UserError } from "../../../../agent/state/user_error.ts";
import { scratchDir } from "../state/scratch.ts";
import { FakeHost } from "./fake_host.ts";

const FINGERPRINT = "abcdefghijklmnopqrstuvwxyz";
const KEY = `tmk_kid_secretsecret_${FINGERPRINT}`;
/** Any file that is neither. */
const OTHER_FILE = join(import.meta.dirname, "fake_host.ts");
const URL_TEXT = "http://c.example:8080";

let stateDir: string;
let host: FakeHost;
let config: AgentConfig | undefined;
let mask: number;

beforeEach(() => {
  stateDir = join(scratchDir(), "s");
  host = new FakeHost();
  config = undefined;
  mask = process.umask();
});
afterEach(() => void process.umask(mask));

describe("what the agent is given", () => {
  test("at the first start with a key: the key's fingerprint must be proved, the name is a default", async () => {
    expect(await up([URL_TEXT, "--key", KEY])).toBe(EXIT.ok);
    expect(config).toMatchObject({
      coordinatorUrl: URL_TEXT,
      coordinatorFingerprint: FINGERPRINT,
      joinKey: { id: "kid", text: KEY, fingerprint: FINGERPRINT },
      name: { text: "ada-s-laptop", explicit: false },
      tun: "auto",
      direct: true,
      portMapping: true,
      punchLimits: { sockets: 384, packets: 4000, perSecond: 2000 },
      forwards: [],
      socks: [],
      expose: [],
      socketPath: join(stateDir, "agent.sock"),
      state: { dir: stateDir },
    });
    expect(readdirSync(stateDir)).toEqual(expect.arrayContaining(["identity", "session_key", "handshake_clock.json"]));
    lockStateDir(stateDir).release();
  });

  test("caps of guessing ports can be lowered, by flag or environment", async () => {
    host.env = { TUNNELMESH_PUNCH_RATE: "100" };
    expect(await up([URL_TEXT, "--punch-sockets", "16", "--punch-packets", "0"])).toBe(EXIT.ok);
    expect(config?.punchLimits).toEqual({ sockets: 16, packets: 0, perSecond: 100 });
  });

  test("without a key: no fingerprint is expected yet", async () => {
    expect(await up([URL_TEXT, "--name", "nas"])).toBe(EXIT.ok);
    expect(config).toMatchObject({
      coordinatorFingerprint: undefined,
      joinKey: undefined,
      name: { text: "nas", explicit: true },
    });
  });

  test("once joined, neither URL nor key is needed, and the given name is kept", async () => {
    rememberJoin();
    expect(await up([])).toBe(EXIT.ok);
    expect(config).toMatchObject({
      coordinatorUrl: URL_TEXT,
      coordinatorFingerprint: FINGERPRINT,
      name: { text: "nas-2", explicit: false },
    });
  });

  test("key and certificates come from files too, the timeout in milliseconds", async () => {
    const key = join(scratchDir(), "key");
    writeFileSync(key, `${KEY}\n`);
    const certificates = join(scratchDir(), "ca.pem");
    writeFileSync(certificates, "-----BEGIN CERTIFICATE-----\n");
    host.env = { TUNNELMESH_KEY_FILE: key };
    expect(await up([URL_TEXT, "--ca-file", certificates, "--timeout", "1.5"])).toBe(EXIT.ok);
    expect(config).toMatchObject({
      joinKey: { text: KEY },
      timeoutMs: 1500,
      caCertificates: "-----BEGIN CERTIFICATE-----\n",
    });
  });
});

describe("what is refused before anything starts", () => {
  test("a directory in use: code 1, with the pid of its agent", async () => {
    const lock = lockStateDir(stateDir);
    expect(await up([URL_TEXT])).toBe(EXIT.failed);
    expect(host.stderr).toContain(`Another agent (pid ${process.pid}) is already running in ${stateDir}`);
    lock.release();
    expect(await up([URL_TEXT])).toBe(EXIT.ok);
  });

  test("a key of another coordinator than the one that was joined: code 4", async () => {
    rememberJoin();
    expect(await up([URL_TEXT, "--key", `tmk_kid_secretsecret_${"z".repeat(26)}`])).toBe(EXIT.keyRefused);
    expect(host.stderr).toMatch(/its fingerprint is zzzz-.*but .* has joined abcd-/);
    expect(host.stderr).not.toContain("secretsecret");
  });

  test("no URL for a directory that has joined nothing: code 2", async () => {
    expect(await up([])).toBe(EXIT.usage);
    expect(host.stderr).toContain('run "tunnelmesh-agent up URL --key KEY"');
  });

  test.each([
    ["a missing key file", ["--key-file", "/nonexistent/key"], EXIT.badConfiguration, "does not exist"],
    ["a missing certificate file", ["--ca-file", "/nonexistent/ca"], EXIT.badConfiguration, "does not exist"],
    ["a certificate file without one", ["--ca-file", OTHER_FILE], EXIT.badConfiguration, "no certificate"],
    ["a key file without a key", ["--key-file", OTHER_FILE], EXIT.keyRefused, "malformed"],
    ["a socket path too long", ["--socket", `/${"x".repeat(120)}`], EXIT.badConfiguration, "--socket"],
  ])("%s", async (_name, flags, code, message) => {
    expect(await up([URL_TEXT, ...flags])).toBe(code);
    expect(host.stderr).toContain(message);
    expect(config).toBeUndefined();
  });

  test("a broken state file: code 78, and nothing in the directory is touched", async () => {
    expect(await up([URL_TEXT])).toBe(EXIT.ok);
    writeFileSync(join(stateDir, "state.json"), "{");
    const before = readdirSync(stateDir);
    expect(await up([URL_TEXT])).toBe(EXIT.badConfiguration);
    expect(host.stderr).toContain("state.json is broken");
    expect(readdirSync(stateDir)).toEqual(before);
  });
});

describe("the end", () => {
  test("the agent's exit code is the program's, and its error one line", async () => {
    expect(await up([URL_TEXT], () => Promise.resolve(7))).toBe(7);
    const refused = new UserError(EXIT.keyRefused, "The join key has expired");
    expect(await up([URL_TEXT], () => Promise.reject(refused))).toBe(EXIT.keyRefused);
    expect(host.stderr).toBe("The join key has expired\n");
    lockStateDir(stateDir).release();
  });

  test("with --log-format json errors are JSON lines too, also those of the command line itself", async () => {
    const refused = new UserError(EXIT.keyRefused, "The join key has expired");
    await up([URL_TEXT, "--log-format", "json"], () => Promise.reject(refused));
    await up(["ftp://x", "--log-format=json"]);
    const lines = host.stderr
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as unknown);
    expect(lines).toEqual([
      expect.objectContaining({ level: "error", message: "The join key has expired", exitCode: EXIT.keyRefused }),
      expect.objectContaining({ level: "error", exitCode: EXIT.badConfiguration }),
    ]);
  });

  test("a fault of our own is told as one, without a stack or a key", async () => {
    expect(await up([URL_TEXT], () => Promise.reject(new Error(`boom ${KEY}`)))).toBe(EXIT.failed);
    expect(host.stderr).toBe("tunnelmesh-agent failed because of a fault of its own: boom tmk_(hidden)\n");
  });
});

test.each([
  ["nas.lan", "nas"],
  ["Ada's MacBook", "ada-s-macbook"],
  ["___", "machine"],
  [`${"a".repeat(62)}-b`, "a".repeat(62)],
])("the host %s is called %s", (from, name) => {
  expect(defaultName(from)).toBe(name);
});

function up(argv: string[], runAgent?: RunAgent): Promise<number> {
  const remember: RunAgent = (given) => {
    config = given;
    return Promise.resolve(EXIT.ok);
  };
  const signal = new AbortController().signal;
  return runCommandLine(["up", ...argv, "--state-dir", stateDir], host, signal, { runAgent: runAgent ?? remember });
}

function rememberJoin(): void {
  lockStateDir(stateDir).release();
  new StateFile(stateDir).update({
    name: "nas-2",
    coordinator: { url: URL_TEXT, fingerprint: FINGERPRINT, listeners: [URL_TEXT] },
  });
}
