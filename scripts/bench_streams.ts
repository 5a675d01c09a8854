/**
 * Figures of rootless streams on real NATs: one and ten connections through a forward on each rung, beside plain TCP of the kernel and `ssh -L`
 * over the same wire in the same run, at 0, 1 and 3 percent loss. Prints a table and judges nothing.
 *
 * Usage: bun scripts/bench_streams.ts [--round-trip MS] [--seconds N] [--json FILE] [--help]
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { bothDirect, startAgent, startCoordinator } from "../test/lab/mesh.ts";
import { runChecked } from "../test/lab/process.ts";
import { createLab, type Host, type Lab, type Machine } from "../test/lab/topology.ts";
import { missingForLab } from "./lab_requirements.ts";
import { run } from "./run.ts";

const HELP = `Usage: bun scripts/bench_streams.ts [OPTIONS]

Measures what TCP connections carry between two rootless machines behind two NATs made of network namespaces, by iperf3
through "tunnelmesh-agent forward", beside plain TCP and "ssh -L" over a wire with the same delay and loss.

  --round-trip MS  between any two public addresses; default 40
  --seconds N      length of each measurement; default 4
  --json FILE      write the figures to FILE as well
  --help           this text
`;
const LOSSES = [0, 1, 3];
const PORT = 5201;
const FORWARDED = 5301;

const { values } = parseArgs({
  options: {
    "round-trip": { type: "string", default: "40" },
    seconds: { type: "string", default: "4" },
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
await run("build", ["bun", "scripts/build.ts", "--agent"]);

const figures: {
  readonly way: string;
  readonly lossPercent: number;
  readonly streams: number;
  readonly mbit: number;
}[] = [];
for (const lossPercent of LOSSES) await measureAll(lossPercent);

const ways = [...new Set(figures.map(({ way }) => way))];
const kernel = readFileSync("/proc/sys/net/ipv4/tcp_congestion_control", "utf8").trim();
console.log(`\nMbit/s at ${values["round-trip"]} ms; 1 and 10 connections; the kernel's TCP uses ${kernel}`);
console.log(`${"".padEnd(12)}${LOSSES.map((loss) => `${loss} % loss`.padStart(16)).join("")}`);
for (const way of ways) {
  const cells = LOSSES.map((loss) => {
    const [one, ten] = [1, 10].map((n) =>
      figures.find((f) => f.way === way && f.lossPercent === loss && f.streams === n)?.mbit.toFixed(1),
    );
    return `${one ?? "-"} / ${ten ?? "-"}`.padStart(16);
  });
  console.log(`${way.padEnd(12)}${cells.join("")}`);
}
if (values.json !== undefined) {
  const report = { schema: 1, at: new Date().toISOString(), roundTripMs: Number(values["round-trip"]), figures };
  writeFileSync(values.json, `${JSON.stringify(report, undefined, 1)}\n`);
}

async function measureAll(lossPercent: number): Promise<void> {
  const sites = [{ nat: "portrestricted" }, { nat: "fullcone" }] as const;
  await using lab = await createLab({ sites: [...sites], roundTripMs: Number(values["round-trip"]), lossPercent });
  const [one, two] = lab.hosts;
  if (one === undefined || two === undefined) throw new Error("This lab has not two hosts");
  const add = async (way: string, from: Host, to: Machine | Host, address: string, port: number): Promise<void> => {
    for (const streams of [1, 10]) {
      const mbit = await throughput(from, to, address, port, streams);
      figures.push({ way, lossPercent, streams, mbit });
      console.log(`${lossPercent} % loss  ${way}, ${streams}: ${mbit.toFixed(1)} Mbit/s`);
    }
  };
  // The coordinator's machine stands in for a peer that could be reached without any mesh: as far away, and over the same wire.
  await add("plain TCP", one, lab.coordinator, lab.coordinator.address, PORT);
  await startSshForward(lab, one);
  await add("ssh -L", one, lab.coordinator, "127.0.0.1", FORWARDED + 1);

  const coordinator = await startCoordinator(lab);
  const key = await coordinator.createKey({ reusable: true });
  const start = (host: Host, extra: readonly string[]) =>
    startAgent(lab, host, { name: host.role, url: coordinator.url, key, extra: ["--tun", "off", ...extra] });
  const [laptop, nas] = await Promise.all([
    start(one, ["--forward", `${FORWARDED}:${two.role}:${PORT}`]),
    start(two, ["--expose", `${PORT}`]),
  ]);
  await bothDirect(laptop, nas);
  for (const rung of ["direct", "ssh", "websocket"]) {
    const { code, stderr } = await laptop.command(["path", nas.name, rung]);
    if (code !== 0) throw new Error(stderr);
    await add(rung, one, two, "127.0.0.1", FORWARDED);
  }
}

/** What the receiver has got, in Mbit/s. */
async function throughput(
  from: Host,
  to: Machine | Host,
  address: string,
  port: number,
  streams: number,
): Promise<number> {
  const server = to.spawn(["iperf3", "--server", "--one-off", "--port", `${PORT}`, "--forceflush"]);
  await server.waitFor("iperf3", ({ text }) => (text.includes("Server listening") ? true : undefined), 5000);
  const command = ["iperf3", "--client", address, "--port", `${port}`, "--parallel", `${streams}`, "--json"];
  const output = await from.exec([...command, "--time", values.seconds, "--omit", "1"], {
    timeoutMs: Number(values.seconds) * 1000 + 20_000,
  });
  await server.stop();
  const result = JSON.parse(output.stdout) as { end?: { sum_received?: { bits_per_second: number } } };
  return (result.end?.sum_received?.bits_per_second ?? Number.NaN) / 1e6;
}

/** OpenSSH's own forward, between the same machines as plain TCP. */
async function startSshForward(lab: Lab, host: Host): Promise<void> {
  const directory = lab.directory("ssh");
  for (const name of ["host", "user"]) {
    await runChecked(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", join(directory, name)]);
  }
  mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
  const config = ["ListenAddress 0.0.0.0:22", `HostKey ${directory}/host`, `AuthorizedKeysFile ${directory}/user.pub`];
  writeFileSync(join(directory, "config"), [...config, "PidFile none", "StrictModes no", "UsePAM no", ""].join("\n"));
  const sshd = lab.coordinator.spawn(["/usr/sbin/sshd", "-D", "-e", "-f", join(directory, "config")]);
  await sshd.waitFor("sshd", ({ text }) => (text.includes("Server listening") ? true : undefined), 5000);
  const options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=VERBOSE"];
  const forward = `${FORWARDED + 1}:127.0.0.1:${PORT}`;
  const command = ["ssh", "-N", "-i", join(directory, "user"), "-L", forward, lab.coordinator.address];
  const ssh = host.spawn([...command, ...options.flatMap((option) => ["-o", option])]);
  await ssh.waitFor("ssh", ({ text }) => (text.startsWith("Authenticated to") ? true : undefined), 10_000);
}
