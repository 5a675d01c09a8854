/**
 * Figures of rootless streams on real kernels, beside what a user would take instead: plain TCP and `ssh -L`, to the same machine over the same wire
 * in the same run. Throughput of one and ten connections at 0, 1 and 3 percent loss, the first byte, memory of idle streams. Judges nothing.
 *
 * Usage: npm run bench:streams -- [--rounds N] [--seconds N] [--round-trip MS] [--loss LIST] [--only PART] [--json FILE] [--help]
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { bothDirect, type MeshAgent, startAgent, startCoordinator } from "../test/lab/mesh.ts";
import { runChecked } from "../test/lab/process.ts";
import { createLab, type Host, type Lab } from "../test/lab/topology.ts";
import { median, residentMiB } from "./bench/measure.ts";
import { missingForLab } from "./lab_requirements.ts";
import { run } from "./run.ts";

const HELP = `Usage: npm run bench:streams -- [OPTIONS]

Measures what TCP connections carry between two rootless machines made of network namespaces, through "tunnelmesh-agent
forward" on each rung, beside plain TCP and "ssh -L" to the same machine over the same wire. Needs what the lab needs,
iperf3, and OpenSSH's client and server. Every figure is the median of the rounds, with the lowest and the highest.

  --rounds N       measurements of each figure, every other round in the opposite order; default 3
  --seconds N      length of each measurement of throughput, after one more to get going; default 4
  --round-trip MS  between the two machines; default 40
  --loss LIST      percent, default 0,1,3
  --only PART      throughput, first-byte or memory
  --json FILE      write every sample to FILE as well
  --help           this text
`;
const TRAFFIC = fileURLToPath(new URL("../test/lab/traffic.ts", import.meta.url));
const IPERF_PORT = 5201;
const GREETING_PORT = 5203;
/** Where the forwards of the agent and of ssh listen, for the same port of the other machine. */
const forwardedBy = { agent: (port: number) => port + 100, ssh: (port: number) => port + 200 };
const FIRST_BYTES = 15;
const IDLE_STREAMS = 1000;
/** Until the collector has looked at what opening the connections took. */
const SETTLE_MS = 4000;

/** The second machine has no router, so that plain TCP and ssh can reach it at all. */
const SITES = { sites: [{ nat: "portrestricted" as const }, { nat: "open" as const }] };

interface Way {
  readonly name: string;
  readonly address: string;
  readonly port: (port: number) => number;
  /** Moves the agents' path, where the way is one of ours. */
  readonly rung?: string;
}

interface Sample {
  readonly figure: string;
  readonly way: string;
  readonly lossPercent: number;
  readonly value: number;
}

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "3" },
    seconds: { type: "string", default: "4" },
    "round-trip": { type: "string", default: "40" },
    loss: { type: "string", default: "0,1,3" },
    only: { type: "string" },
    json: { type: "string" },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(HELP);
  process.exit(0);
}
const obstacle = missingForLab() ?? ["iperf3", "ssh", "/usr/sbin/sshd"].find((program) => Bun.which(program) === null);
if (obstacle !== undefined) {
  console.log(`skipped  bench of streams: ${obstacle}`);
  process.exit(0);
}
const isWanted = (part: string): boolean => values.only === undefined || values.only === part;
const losses = values.loss.split(",").map(Number);
const rounds = Number(values.rounds);
await run("build", ["bun", "scripts/build.ts", "--agent"]);

const samples: Sample[] = [];
if (isWanted("throughput") || isWanted("first-byte")) for (const lossPercent of losses) await measureWays(lossPercent);
if (isWanted("memory")) await measureMemory();

const kernel = readFileSync("/proc/sys/net/ipv4/tcp_congestion_control", "utf8").trim();
console.log(
  `\n${rounds} rounds at ${values["round-trip"]} ms; median (lowest to highest); the kernel's TCP uses ${kernel}`,
);
for (const figure of new Set(samples.map((sample) => sample.figure))) printTable(figure);
if (values.json !== undefined) {
  const report = { schema: 2, at: new Date().toISOString(), roundTripMs: Number(values["round-trip"]), samples };
  writeFileSync(values.json, `${JSON.stringify(report, undefined, 1)}\n`);
}

function printTable(figure: string): void {
  const own = samples.filter((sample) => sample.figure === figure);
  const columns = [...new Set(own.map(({ lossPercent }) => lossPercent))];
  console.log(`\n${figure.padEnd(36)}${columns.map((loss) => `${loss} % loss`.padStart(22)).join("")}`);
  for (const way of new Set(own.map((sample) => sample.way))) {
    const cells = columns.map((loss) => {
      const found = own.filter((sample) => sample.way === way && sample.lossPercent === loss).map(({ value }) => value);
      const [least, most] = [Math.min(...found), Math.max(...found)].map((value) => value.toFixed(1));
      return `${median(found).toFixed(1)} (${least} to ${most})`.padStart(22);
    });
    console.log(`${`  ${way}`.padEnd(36)}${cells.join("")}`);
  }
}

async function measureWays(lossPercent: number): Promise<void> {
  await using lab = await createLab({ ...SITES, roundTripMs: Number(values["round-trip"]), lossPercent });
  const { laptop, nas } = await startPair(lab, [IPERF_PORT, GREETING_PORT]);
  await startSshForwards(lab, laptop.host, nas.host, [IPERF_PORT, GREETING_PORT]);
  const itself = (port: number): number => port;
  const ways: Way[] = [
    { name: "plain TCP", address: nas.host.address, port: itself },
    { name: "ssh -L", address: "127.0.0.1", port: forwardedBy.ssh },
    ...["direct", "ssh", "websocket"].map((rung) => ({
      name: `forward, ${rung}`,
      address: "127.0.0.1",
      port: forwardedBy.agent,
      rung,
    })),
  ];
  const greeter = nas.host.spawn([process.execPath, TRAFFIC, "greet", "0.0.0.0", `${GREETING_PORT}`]);
  await greeter.waitFor("greeter", ({ text }) => text === "ready" || undefined, 5000);
  const add = (figure: string, way: string, value: number): void => {
    samples.push({ figure, way, lossPercent, value });
    console.log(`${lossPercent} % loss  ${figure}  ${way}: ${value.toFixed(1)}`);
  };
  for (let round = 0; round < rounds; round++) {
    for (const way of round % 2 === 0 ? ways : ways.toReversed()) {
      if (way.rung !== undefined) await choose(laptop, nas, way.rung);
      if (isWanted("first-byte")) {
        const times = await firstBytes(laptop.host, way);
        add("milliseconds to the first byte", way.name, median(times));
      }
      if (!isWanted("throughput")) continue;
      for (const streams of [1, 10]) {
        const mbit = await throughput(laptop.host, nas.host, way, streams);
        add(`Mbit/s, ${streams} ${streams === 1 ? "connection" : "connections"}`, way.name, mbit);
      }
    }
  }
}

/** What each agent's memory grows by for every thousand connections that are open and silent. */
async function measureMemory(): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    await using lab = await createLab({ ...SITES });
    const { laptop, nas } = await startPair(lab, [GREETING_PORT]);
    const greeter = nas.host.spawn([process.execPath, TRAFFIC, "greet", "127.0.0.1", `${GREETING_PORT}`]);
    await greeter.waitFor("greeter", ({ text }) => text === "ready" || undefined, 5000);
    const resident = async (): Promise<number[]> => {
      await Bun.sleep(SETTLE_MS);
      return [laptop, nas].map((agent) => residentMiB(agent.process));
    };
    let before = await resident();
    for (const thousand of ["first", "second"]) {
      const port = `${forwardedBy.agent(GREETING_PORT)}`;
      const holder = laptop.host.spawn([process.execPath, TRAFFIC, "hold", "127.0.0.1", port, `${IDLE_STREAMS}`]);
      await holder.waitFor("connections", ({ text }) => text === "ready" || undefined, 20_000);
      const after = await resident();
      for (const [index, way] of ["the agent that forwards", "the agent that exposes"].entries()) {
        const value = (after[index] ?? 0) - (before[index] ?? 0);
        samples.push({ figure: `MiB for the ${thousand} ${IDLE_STREAMS} idle streams`, way, lossPercent: 0, value });
        console.log(`memory  ${way}, ${thousand} thousand: ${value.toFixed(1)} MiB`);
      }
      before = after;
    }
  }
}

async function startPair(lab: Lab, ports: readonly number[]): Promise<{ laptop: MeshAgent; nas: MeshAgent }> {
  const [one, two] = lab.hosts;
  if (one === undefined || two === undefined) throw new Error("This lab has not two hosts");
  const coordinator = await startCoordinator(lab);
  const key = await coordinator.createKey({ reusable: true });
  const start = (host: Host, extra: readonly string[]) =>
    startAgent(lab, host, { name: host.role, url: coordinator.url, key, extra: ["--tun", "off", ...extra] });
  const forwards = ports.map((port) => `${forwardedBy.agent(port)}:${two.role}:${port}`);
  const [laptop, nas] = await Promise.all([
    start(one, ["--forward", forwards.join(",")]),
    start(two, ["--expose", ports.join(",")]),
  ]);
  await bothDirect(laptop, nas);
  return { laptop, nas };
}

async function choose(laptop: MeshAgent, nas: MeshAgent, rung: string): Promise<void> {
  const { code, stderr } = await laptop.command(["path", nas.name, rung]);
  if (code !== 0) throw new Error(stderr);
  const deadline = performance.now() + 10_000;
  while ((await laptop.peer(nas.name)).path?.kind !== rung || (await nas.peer(laptop.name)).path?.kind !== rung) {
    if (performance.now() > deadline) throw new Error(`The path is not ${rung} after 10 seconds`);
    await Bun.sleep(50);
  }
}

async function firstBytes(from: Host, way: Way): Promise<number[]> {
  const command = [TRAFFIC, "first-byte", way.address, `${way.port(GREETING_PORT)}`, `${FIRST_BYTES}`];
  const output = await from.execChecked([process.execPath, ...command], { timeoutMs: 60_000 });
  return JSON.parse(output) as number[];
}

/** What the receiver has got, in Mbit/s. */
async function throughput(from: Host, to: Host, way: Way, streams: number): Promise<number> {
  const server = to.spawn(["iperf3", "--server", "--one-off", "--port", `${IPERF_PORT}`, "--forceflush"]);
  await server.waitFor("iperf3", ({ text }) => (text.includes("Server listening") ? true : undefined), 5000);
  const target = ["--client", way.address, "--port", `${way.port(IPERF_PORT)}`, "--parallel", `${streams}`];
  const output = await from.exec(["iperf3", ...target, "--json", "--time", values.seconds, "--omit", "1"], {
    timeoutMs: Number(values.seconds) * 1000 + 20_000,
  });
  await server.stop();
  const result = JSON.parse(output.stdout) as { end?: { sum_received?: { bits_per_second: number } } };
  return (result.end?.sum_received?.bits_per_second ?? Number.NaN) / 1e6;
}

/** OpenSSH's own forwards, between the same machines. */
async function startSshForwards(lab: Lab, from: Host, to: Host, ports: readonly number[]): Promise<void> {
  const directory = lab.directory("ssh");
  for (const name of ["host", "user"]) {
    await runChecked(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", join(directory, name)]);
  }
  mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
  const config = ["ListenAddress 0.0.0.0:22", `HostKey ${directory}/host`, `AuthorizedKeysFile ${directory}/user.pub`];
  writeFileSync(join(directory, "config"), [...config, "PidFile none", "StrictModes no", "UsePAM no", ""].join("\n"));
  const sshd = to.spawn(["/usr/sbin/sshd", "-D", "-e", "-f", join(directory, "config")]);
  await sshd.waitFor("sshd", ({ text }) => (text.includes("Server listening") ? true : undefined), 5000);
  const options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=VERBOSE"];
  const forwards = ports.flatMap((port) => ["-L", `${forwardedBy.ssh(port)}:127.0.0.1:${port}`]);
  const command = ["ssh", "-N", "-i", join(directory, "user"), ...forwards, to.address];
  const ssh = from.spawn([...command, ...options.flatMap((option) => ["-o", option])]);
  await ssh.waitFor("ssh", ({ text }) => (text.startsWith("Authenticated to") ? true : undefined), 10_000);
}
