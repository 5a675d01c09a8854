/** The real OpenSSH client against the SSH endpoint: a registered key gets in and a plain answer, everything else a readable refusal. */
import { execFile, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { fromBase64, toBase64 } from "../../../../shared/bytes.ts";
import { peerIdOf } from "../../../../shared/session/identity.ts";
import { RelayWorld } from "../relay/relay_world.ts";

const hasOpenssh = ((): boolean => {
  try {
    execFileSync("ssh", ["-V"], { stdio: "pipe" });
    execFileSync("sftp", ["-V"], { stdio: "pipe", timeout: 2000 });
    return true;
  } catch (error) {
    // sftp knows no -V; that it complains is enough.
    return (error as { code?: string }).code !== "ENOENT";
  }
})();
if (!hasOpenssh) console.log("Skipped: no OpenSSH client; install openssh-client to run these");

const NO_SHELL =
  "TunnelMesh carries tunnels between agents here; there is no shell. To join a machine, see: tunnelmesh-agent --help";

describe.skipIf(!hasOpenssh)("the OpenSSH client", () => {
  let world: RelayWorld;
  let directory: string;

  beforeEach(async () => {
    world = await RelayWorld.start();
    directory = mkdtempSync(join(tmpdir(), "tunnelmesh-openssh-"));
    makeKey("registered");
    makeKey("stranger");
    world.members.add(peerIdOf(publicKeyOf("registered")));
  });
  afterEach(() => {
    world.close();
    rmSync(directory, { recursive: true, force: true });
  });

  const path = (name: string): string => join(directory, name);

  function makeKey(name: string): void {
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path(name)]);
  }

  /** The last 32 bytes of what the second word of the file holds. */
  const publicKeyOf = (name: string): Uint8Array =>
    (
      fromBase64(
        readFileSync(path(`${name}.pub`), "utf8")
          .split(" ")[1]
          ?.trim() ?? "",
      ) ?? new Uint8Array()
    ).slice(-32);

  const optionsFor = (key: string): string[] => [
    "-F",
    "none",
    "-i",
    path(key),
    ...[
      "IdentitiesOnly=yes",
      "IdentityAgent=none",
      "BatchMode=yes",
      "StrictHostKeyChecking=accept-new",
      `UserKnownHostsFile=${path("known_hosts")}`,
      "ConnectTimeout=5",
    ].flatMap((option) => ["-o", option]),
  ];

  function run(program: string, argv: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
    return new Promise((resolve) => {
      const child = execFile(program, argv, { timeout: 15_000 }, (error, stdout, stderr) =>
        resolve({ code: typeof error?.code === "number" ? error.code : error === null ? 0 : -1, stdout, stderr }),
      );
      child.stdin?.end();
    });
  }

  const ssh = (key: string, ...argv: string[]) =>
    run("ssh", [...optionsFor(key), "-p", String(world.ssh.bound.port), ...argv, "127.0.0.1"]);

  test.each([[["-T"]], [["-tt"]]])("with a registered key and %j reads one line and exit status 1", async (argv) => {
    const { code, stdout, stderr } = await ssh("registered", ...argv);
    expect([code, (stdout + stderr).replaceAll("\r", "")]).toEqual([1, expect.stringContaining(`${NO_SHELL}\n`)]);
  });

  test("gets the same answer to a command, as any user", async () => {
    const argv = [
      ...optionsFor("registered"),
      "-p",
      String(world.ssh.bound.port),
      "tunnelmesh@127.0.0.1",
      "cat /etc/passwd",
    ];
    const { code, stdout, stderr } = await run("ssh", argv);
    expect([code, stdout, stderr]).toEqual([1, "", expect.stringContaining(NO_SHELL)]);
  });

  test.each([
    ["aes256-gcm@openssh.com", "<implicit>"],
    ["aes128-gcm@openssh.com", "<implicit>"],
    ["aes256-ctr", "hmac-sha2-256-etm@openssh.com"],
  ])("may choose %s, with the MAC %s", async (cipher, mac) => {
    const { stderr } = await ssh("registered", "-v", "-c", cipher);
    expect(stderr).toContain(`server->client cipher: ${cipher} MAC: ${mac} compression: none`);
    expect(stderr).toContain(NO_SHELL);
  });

  test.each([
    ["a cipher in CBC mode", ["-c", "aes256-cbc"], "cipher"],
    ["a MAC of what is not yet encrypted", ["-c", "aes256-ctr", "-m", "hmac-sha2-256"], "MAC"],
  ])("gets nowhere with %s", async (_, argv, what) => {
    const { code, stderr } = await ssh("registered", ...argv);
    expect([code, stderr]).toEqual([255, expect.stringContaining(`no matching ${what} found`)]);
  });

  test("sees the host key that agents are told", async () => {
    await ssh("registered");
    const [, , key = ""] = readFileSync(path("known_hosts"), "utf8").trim().split(" ");
    expect(key).toBe(toBase64(world.hostKey.publicBlob));
  });

  test("is refused with another key, with no key, and under another agent's id", async () => {
    expect(await ssh("stranger")).toMatchObject({
      code: 255,
      stderr: expect.stringContaining("Permission denied (publickey)"),
    });
    expect(await ssh("stranger", "-o", "PubkeyAuthentication=no")).toMatchObject({ code: 255 });
    const other = peerIdOf(publicKeyOf("stranger"));
    expect(await ssh("registered", "-l", other)).toMatchObject({
      code: 255,
      stderr: expect.stringContaining("Permission denied"),
    });
  });

  test("is refused sftp", async () => {
    const argv = [...optionsFor("registered"), "-P", String(world.ssh.bound.port), "127.0.0.1"];
    const { code, stderr } = await run("sftp", argv);
    expect([code, stderr]).toEqual([255, expect.stringContaining("subsystem request failed")]);
  });

  test("is refused remote forwarding, and told so", async () => {
    const { code, stderr } = await ssh("registered", "-N", "-R", "0:127.0.0.1:1", "-o", "ExitOnForwardFailure=yes");
    expect([code, stderr]).toEqual([255, expect.stringContaining("remote port forwarding failed")]);
  });

  test("is refused a tunnel to any host, with the reason in words", async () => {
    const { code, stderr } = await ssh("registered", "-W", "127.0.0.1:22");
    expect([code, stderr]).toEqual([
      255,
      expect.stringContaining(
        "administratively prohibited: TunnelMesh carries tunnels between its agents only; it forwards nothing else",
      ),
    ]);
  });

  test("is refused what -L and -D would carry, and stays logged in", async () => {
    const [local, dynamic] = [await freePort(), await freePort()];
    const child = spawn(
      "ssh",
      [
        ...optionsFor("registered"),
        "-vN",
        "-L",
        `${local}:127.0.0.1:22`,
        "-D",
        String(dynamic),
        "-p",
        String(world.ssh.bound.port),
        "127.0.0.1",
      ],
      { stdio: ["ignore", "ignore", "pipe"] },
    );
    let log = "";
    child.stderr.on("data", (chunk: Buffer) => {
      log += chunk.toString();
    });
    try {
      await world.until("the login", () => log.includes("Entering interactive session"));
      for (const [port, hello] of [
        [local, ""],
        [dynamic, "\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x16"],
      ] as const) {
        const before = log.split("administratively prohibited").length;
        await talk(port, hello);
        await world.until("the refusal", () => log.split("administratively prohibited").length > before);
      }
      expect(child.exitCode).toBe(null);
      // A person who looks in is no leg of the agent.
      expect(world.relay.legCount).toBe(0);
    } finally {
      child.kill();
    }
  });
});

async function freePort(): Promise<number> {
  const { createServer } = await import("node:net");
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

/** Connects, says something, and waits for the end. */
async function talk(port: number, hello: string): Promise<void> {
  const { connect } = await import("node:net");
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => socket.write(Buffer.from(hello, "latin1")));
    socket.on("error", () => resolve());
    socket.on("close", () => resolve());
    socket.resume();
  });
}
