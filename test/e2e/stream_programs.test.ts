/**
 * Programs that know nothing of the mesh, between two machines without a network device: OpenSSH and scp through `nc`, a browser through the SOCKS port,
 * iperf3 through a forward. Each is skipped, and its name says so, where the program is not installed.
 */
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { run, runChecked } from "../lab/process.ts";
import { type Agent, AGENT, type Coordinator, Stage } from "./programs.ts";

const stage = new Stage();
let coordinator: Coordinator;
let nas: Agent;
let laptop: Agent;
let web: ReturnType<typeof Bun.serve>;
let sshPort = 0;
let iperfPort = 0;

beforeAll(async () => {
  web = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    routes: {
      "/": () =>
        new Response(
          `<body><p id=out>waiting</p><script>fetch("/data").then((r) => r.text()).then((t) => { document.getElementById("out").textContent = "got " + t.length; });</script>`,
          { headers: { "content-type": "text/html" } },
        ),
      "/data": () => new Response("x".repeat(1_000_000)),
    },
  });
  [sshPort, iperfPort] = [await freePort(), await freePort()];
  coordinator = await stage.coordinator();
  const exposed = [web.port, sshPort, iperfPort].join(",");
  nas = stage.agent([coordinator.url, "--name", "nas", "--key", coordinator.joinKey, "--expose", exposed]);
  await nas.joined();
  laptop = await stage.member(coordinator, "laptop");
  expect((await laptop.command("wait", "--for", "direct=nas", "--timeout", "10")).code).toBe(0);
});
afterAll(async () => {
  await stage.end();
  await web.stop(true);
});

describe.skipIf(!isInstalled("/usr/sbin/sshd", "ssh", "scp"))(named("OpenSSH", "/usr/sbin/sshd", "ssh", "scp"), () => {
  const directory = stage.directory("ssh");
  const options: string[] = [];

  beforeAll(async () => {
    for (const name of ["host", "user"]) {
      await runChecked(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", join(directory, name)]);
    }
    // Where sshd, as root, puts its unprivileged half.
    if (process.getuid?.() === 0) mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
    const config = `
      ListenAddress 127.0.0.1:${sshPort}
      HostKey ${directory}/host
      AuthorizedKeysFile ${directory}/user.pub
      PidFile none
      StrictModes no
      UsePAM no
      Subsystem sftp internal-sftp`;
    writeFileSync(join(directory, "config"), config);
    const sshd = stage.spawn("sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", join(directory, "config")]);
    await sshd.waitFor("sshd", ({ text }) => (text.includes("Server listening") ? text : undefined), 5000);
    const proxy = `${AGENT} nc %h %p --state-dir ${laptop.stateDir}`;
    options.push("-o", `ProxyCommand=${proxy}`, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null");
    options.push("-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-i", join(directory, "user"));
  });

  test("runs a command on the peer, with input and output, and its exit code", async () => {
    const output = await run(["ssh", ...options, "-p", String(sshPort), "nas", "tr a-z A-Z; exit 7"], {
      input: "hello",
    });
    expect(output).toEqual({ code: 7, stdout: "HELLO", stderr: "" });
  });

  test("copies files there and back with scp", async () => {
    const bytes = randomBytes(8_000_000);
    const [source, there, back] = ["source", "there", "back"].map((name) => join(directory, name));
    writeFileSync(source ?? "", bytes);
    const scp = ["scp", "-q", ...options, "-P", String(sshPort)];
    await runChecked([...scp, source ?? "", `nas.mesh:${there}`]);
    await runChecked([...scp, `nas.mesh:${there}`, back ?? ""]);
    expect(hashOf(readFileSync(back ?? ""))).toBe(hashOf(bytes));
  });
});

const CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];

describe.skipIf(!isInstalled("chromium"))(named("a browser", "chromium"), () => {
  // Its first start on a machine reads a lot of disk and makes a cache of fonts: that is not what is tried here.
  beforeAll(async () => {
    const profile = `--user-data-dir=${stage.directory("warm")}`;
    await run([...CHROMIUM, profile, "--dump-dom", "about:blank"], { timeoutMs: 58_000 });
  }, 60_000);

  test("shows a page of the peer, script and all, through the SOCKS port", async () => {
    const socks = await socksPort();
    const profile = stage.directory("profile");
    const options = [
      `--user-data-dir=${profile}`,
      `--proxy-server=socks5://127.0.0.1:${socks}`,
      "--virtual-time-budget=5000",
    ];
    const { stdout } = await run([...CHROMIUM, ...options, "--dump-dom", `http://nas.mesh:${web.port}/`], {
      timeoutMs: 18_000,
    });
    expect(stdout).toContain("got 1000000");
  });
});

describe.skipIf(!isInstalled("iperf3"))(named("iperf3", "iperf3"), () => {
  test.each([
    ["up", []],
    ["down", ["--reverse"]],
    ["5 streams", ["--parallel", "5"]],
  ] as const)("through a forward, %s", async (_, options) => {
    const server = stage.spawn("iperf3", [
      "iperf3",
      "--server",
      "--one-off",
      "--port",
      String(iperfPort),
      "--forceflush",
    ]);
    await server.waitFor("iperf3", ({ text }) => (text.includes("Server listening") ? text : undefined), 5000);
    const forward = stage.spawn("forward", [AGENT, "forward", "0", `nas:${iperfPort}`, "--state-dir", laptop.stateDir]);
    const port = await forward.waitFor("the port", ({ text }) => /127\.0\.0\.1:(\d+)/.exec(text)?.[1], 5000);
    const client = ["iperf3", "--client", "127.0.0.1", "--port", port, "--time", "1", "--json", ...options];
    const result = JSON.parse(await runChecked(client)) as { end: { sum_received: { bits_per_second: number } } };
    // What it reaches is for the benchmark; here it has to arrive.
    expect(result.end.sum_received.bits_per_second).toBeGreaterThan(1e6);
    await forward.stop();
    await server.stop();
  });
});

async function socksPort(): Promise<string> {
  const socks = stage.spawn("socks", [AGENT, "socks", "0", "--state-dir", laptop.stateDir]);
  return socks.waitFor("the port", ({ text }) => /127\.0\.0\.1:(\d+)/.exec(text)?.[1], 5000);
}

function isInstalled(...programs: string[]): boolean {
  return programs.every((program) => Bun.which(program) !== null);
}

function named(what: string, ...programs: string[]): string {
  const missing = programs.filter((program) => !isInstalled(program));
  return missing.length === 0 ? what : `${what} (skipped: ${missing.join(", ")} not installed)`;
}

const hashOf = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** A port that was free a moment ago. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === "object" && address !== null ? address.port : 0;
}
