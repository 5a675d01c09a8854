/**
 * Plain OpenSSH as a client: `ssh -J homelab@coordinator homelab`, with the real ssh, scp and sshd. The coordinator hands on the client's proof, the
 * agent judges it; the inner connection is the client's and the server's own.
 */
import { randomBytes } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type CommandOutput, run } from "../lab/process.ts";
import { type Agent, type Coordinator, Stage } from "./programs.ts";

const SSHD = "/usr/sbin/sshd";
const missing = !existsSync(SSHD)
  ? "openssh-server is not installed"
  : Bun.which("ssh") === null
    ? "openssh-client is not installed"
    : undefined;
// Bun calls it "unknown" where there is no login.
const USER = Bun.spawnSync(["id", "-un"]).stdout.toString().trim();

const stage = new Stage();
let directory: string;
let coordinator: Coordinator;
let homelab: Agent;
let sshdPort: number;
const path = (name: string): string => join(directory, name);

describe.skipIf(missing !== undefined)(`ssh -J${missing === undefined ? "" : ` (skipped: ${missing})`}`, () => {
  beforeAll(async () => {
    directory = stage.directory("ssh");
    for (const [name, type] of [
      ["owner", "ed25519"],
      ["rsa", "rsa"],
      ["ecdsa", "ecdsa"],
      ["stranger", "ed25519"],
      ["host", "ed25519"],
    ] as const) {
      await checked(["ssh-keygen", "-q", "-t", type, "-N", "", "-C", name, "-f", path(name)]);
    }
    sshdPort = await freePort();
    startSshd();
    coordinator = await stage.coordinator();
    const extra = ["--key", coordinator.joinKey, "--allow-jump", `${sshdPort}`];
    homelab = stage.agent([coordinator.url, "--name", "homelab", ...extra]);
    await homelab.joined();
    await stage.member(coordinator, "closed");
    for (const name of ["owner", "rsa", "ecdsa"]) {
      expect((await homelab.command("jump-key", "add", path(`${name}.pub`))).code).toBe(0);
    }
  });
  afterAll(() => stage.end());

  test("works as soon as the agent's SSH connection to the coordinator is there", async () => {
    await expect.poll(async () => (await ssh("owner", ["true"])).code, { timeout: 8000, interval: 200 }).toBe(0);
  });

  test.each(["owner", "rsa", "ecdsa"])("the %s key reaches the server behind the agent", async (key) => {
    const { code, stdout, stderr } = await ssh(key, ["echo", "hello from", "$(id -un)"]);
    expect([code, stdout, stderr]).toEqual([0, `hello from ${USER}\n`, expect.any(String)]);
  });

  test("scp both ways, byte for byte", async () => {
    const data = randomBytes(3_000_000);
    writeFileSync(path("sent"), data);
    const target = `${USER}@homelab:${path("received")}`;
    expect((await run(["scp", ...optionsFor("owner"), path("sent"), target], { timeoutMs: 15_000 })).code).toBe(0);
    expect(readFileSync(path("received")).equals(data)).toBe(true);
    expect((await run(["scp", ...optionsFor("owner"), target, path("back")], { timeoutMs: 15_000 })).code).toBe(0);
    expect(readFileSync(path("back")).equals(data)).toBe(true);
  });

  test("port forwarding through it", async () => {
    const web = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("behind the agent") });
    const local = await freePort();
    const forward = ["-N", "-L", `${local}:127.0.0.1:${web.port}`];
    const child = stage.spawn("ssh", ["ssh", ...optionsFor("owner"), ...forward, `${USER}@homelab`]);
    await expect
      .poll(() => fetch(`http://127.0.0.1:${local}/`).then((r) => r.text(), String), { timeout: 8000, interval: 100 })
      .toBe("behind the agent");
    await child.stop();
    await web.stop(true);
  });

  test("a key that the agent does not know does not even log in, and one that was removed no longer does", async () => {
    expect(await ssh("stranger", ["true"])).toMatchObject({
      code: 255,
      stderr: expect.stringContaining("Permission denied (publickey)"),
    });
    expect((await homelab.command("jump-key", "remove", "rsa")).code).toBe(0);
    expect((await ssh("rsa", ["true"])).stderr).toContain("Permission denied (publickey)");
    const { stdout } = await homelab.command("jump-key", "list");
    expect(stdout).toMatch(/^SHA256:\S+ owner \(ssh-ed25519\)\nSHA256:\S+ ecdsa \(ecdsa-sha2-nistp256\)\n$/);
  });

  test("other ports and other machines are refused, with the reason", async () => {
    const other = await tunnel("homelab", `homelab:${sshdPort + 1}`);
    expect(other.stderr).toContain(`"homelab" refuses: port ${sshdPort + 1} is not open to jumps`);
    const elsewhere = await tunnel("homelab", "closed:22");
    expect(elsewhere.stderr).toContain('This login is for "homelab" only; to reach "closed", run: ssh -J closed@');
    const outside = await tunnel("homelab", "127.0.0.1:22");
    expect(outside.stderr).toContain('This login is for "homelab" only');
    // An agent that admits no jumps, and one that nobody knows, look the same.
    for (const name of ["closed", "nobody"]) {
      expect((await tunnel(name, `${name}:22`)).stderr).toContain("Permission denied (publickey)");
    }
  });

  test("nobody gets a shell of the coordinator", async () => {
    const shell = await run(["ssh", ...optionsFor("owner"), "jump", "id"], { timeoutMs: 10_000 });
    expect([shell.code, shell.stdout]).toEqual([1, ""]);
    expect(shell.stderr).toContain("there is no shell");
  });

  test("each login of a client is remembered, so that no coordinator can use it twice", () => {
    const used = readFileSync(join(homelab.stateDir, "jump_sessions"), "utf8").trim().split("\n");
    expect(new Set(used).size).toBe(used.length);
    expect(used.length).toBeGreaterThan(3);
  });
});

/** Options with a configuration in which "homelab" is reached by way of "jump". */
function optionsFor(key: string, user = "homelab"): string[] {
  const common = [
    `IdentityFile ${path(key)}`,
    "IdentitiesOnly yes",
    "IdentityAgent none",
    "BatchMode yes",
    "StrictHostKeyChecking accept-new",
    `UserKnownHostsFile ${path("known_hosts")}`,
    "ConnectTimeout 5",
  ];
  const jump = ["HostName 127.0.0.1", `Port ${coordinator.port("ssh")}`, `User ${user}`];
  const lines = ["Host jump", ...jump, "Host homelab", `Port ${sshdPort}`, "ProxyJump jump", "Host *", ...common];
  const file = path(`config-${key}-${user}`);
  writeFileSync(file, `${lines.join("\n")}\n`);
  return ["-F", file];
}

const ssh = (key: string, command: readonly string[]): Promise<CommandOutput> =>
  run(["ssh", ...optionsFor(key), `${USER}@homelab`, ...command], { timeoutMs: 12_000 });

/** What `-J` does beneath: a channel of the outer connection to that place. */
const tunnel = (user: string, target: string): Promise<CommandOutput> =>
  run(["ssh", ...optionsFor("owner", user), "-W", target, "jump"], { timeoutMs: 12_000 });

/** A server for this user alone, on loopback. */
function startSshd(): void {
  const authorized = ["owner", "rsa", "ecdsa"].map((name) => readFileSync(path(`${name}.pub`), "utf8")).join("");
  writeFileSync(path("authorized_keys"), authorized, { mode: 0o600 });
  // Root's sshd wants it for its unprivileged half.
  if (process.getuid?.() === 0) mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
  chmodSync(directory, 0o700);
  const lines = [
    `Port ${sshdPort}`,
    "ListenAddress 127.0.0.1",
    `HostKey ${path("host")}`,
    `AuthorizedKeysFile ${path("authorized_keys")}`,
    `PidFile ${path("sshd.pid")}`,
    "StrictModes no",
    "UsePAM no",
    "PermitRootLogin yes",
    "Subsystem sftp internal-sftp",
  ];
  writeFileSync(path("sshd_config"), `${lines.join("\n")}\n`);
  stage.spawn("sshd", [SSHD, "-D", "-e", "-f", path("sshd_config")]);
}

async function checked(command: readonly string[]): Promise<void> {
  const { code, stderr } = await run(command);
  if (code !== 0) throw new Error(stderr);
}

const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer();
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
