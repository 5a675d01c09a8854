/**
 * Figures of the real programs on real NATs: how fast they start, what memory they take, how much and how quickly a direct path carries
 * beside the bare path under it. Prints a table and judges nothing: times on a shared machine are for people to compare.
 *
 * Usage: npm run bench -- [--json FILE] [--seconds N] [--help]
 */
import { readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { bothDirect, type MeshAgent, startPair } from "../test/lab/mesh.ts";
import type { LabProcess } from "../test/lab/process.ts";
import { createLab, type Host, type Lab } from "../test/lab/topology.ts";
import { missingForLab } from "./lab_requirements.ts";
import { run } from "./run.ts";

const HELP = `Usage: npm run bench -- [OPTIONS]

Measures, with the compiled agent and the real coordinator between two full-cone NATs made of network namespaces:
start-up time and memory (median of 5 starts), round trip without load, and one TCP flow by iperf3 through the TUN beside
the same flow on the bare path. Needs what "npm run lab" needs, and iperf3 for the flow.

  --json FILE    write the figures to FILE as well
  --seconds N    length of each of the 3 flows per path; default 3
  --help         this text
`;
const STARTS = 5;
const FLOWS = 3;
const PINGS = 30;
const FLOW_PORT = "5201";
const ECHO_PORT = "5202";
const TRAFFIC = fileURLToPath(new URL("../test/lab/traffic.ts", import.meta.url));

interface Figure {
  readonly name: string;
  readonly unit: string;
  readonly median: number;
  readonly values: readonly number[];
}

const options = parse();
const obstacle = missingForLab();
if (obstacle !== undefined) {
  console.log(`skipped  bench: ${obstacle}`);
  process.exit(0);
}
await run("build", ["bun", "scripts/build.ts", "--agent"]);

const figures = [...(await startFigures()), ...(await pathFigures())];
const width = Math.max(...figures.map(({ name }) => name.length));
console.log(`\n${"".padEnd(width)}     median      least       most`);
for (const { name, unit, median: middle, values } of figures) {
  const columns = [middle, Math.min(...values), Math.max(...values)].map((value) => value.toFixed(2).padStart(11));
  console.log(`${name.padEnd(width)}${columns.join("")}  ${unit}`);
}
if (options.json !== undefined) {
  const [cpu] = cpus();
  const machine = { cpu: cpu?.model ?? "unknown", cores: cpus().length };
  const report = { schema: 1, at: new Date().toISOString(), machine, figures };
  writeFileSync(options.json, `${JSON.stringify(report, undefined, 1)}\n`);
}

/** Each start has a lab of its own, so that nothing is warm but the page cache. */
async function startFigures(): Promise<Figure[]> {
  const coordinatorMs: number[] = [];
  const coordinatorMiB: number[] = [];
  const agentMs: number[] = [];
  const agentMiB: number[] = [];
  for (let start = 0; start < STARTS; start += 1) {
    await using lab = await createLab({ sites: [{ nat: "fullcone" }, { nat: "fullcone" }] });
    const { coordinator, one, two } = await startPair(lab);
    await bothDirect(one, two);
    coordinatorMs.push((await coordinator.events.next("ready")).at - coordinator.process.startedAt);
    coordinatorMiB.push(residentMiB(coordinator.process));
    for (const agent of [one, two]) {
      agentMs.push((await agent.events.next("joined")).at - agent.process.startedAt);
      agentMiB.push(residentMiB(agent.process));
    }
  }
  return [
    figure("coordinator: start to ready", "ms", coordinatorMs),
    figure("coordinator: memory, two agents joined", "MiB", coordinatorMiB),
    figure("agent: start to joined, two at once", "ms", agentMs),
    figure("agent: memory, one direct path", "MiB", agentMiB),
  ];
}

/** Bare and tunnelled take turns, so that a busy moment of the machine meets both. */
async function pathFigures(): Promise<Figure[]> {
  await using lab = await createLab({ sites: [{ nat: "fullcone" }, { nat: "fullcone" }] });
  const { one, two } = await startPair(lab);
  await bothDirect(one, two);
  const bare = await openBarePath(lab, two.host);
  const figures = [
    figure("round trip without load: bare path", "ms", await bareRoundTrips(one.host, two.host, bare)),
    figure("round trip without load: direct path", "ms", await roundTrips(one, two)),
  ];
  if (Bun.which("iperf3") === null) {
    console.log("skipped  TCP flows: iperf3 not found; install the package iperf3");
    return figures;
  }
  const { meshIPv4 } = (await two.status()).self;
  const flows = { bare: [] as number[], direct: [] as number[] };
  for (let flow = 0; flow < FLOWS; flow += 1) {
    flows.bare.push(await mbits(one.host, two.host, two.host.address, bare));
    flows.direct.push(await mbits(one.host, two.host, meshIPv4, meshIPv4));
  }
  const { path } = await one.peer(two.name);
  if (path?.kind !== "direct") throw new Error("The path did not stay direct, so the figures mean nothing");
  return [
    ...figures,
    figure("one TCP flow: bare path", "Mbit/s", flows.bare),
    figure("one TCP flow: direct path", "Mbit/s", flows.direct),
    figure("memory of the sending agent after that", "MiB", [residentMiB(one.process)]),
    figure("memory of the receiving agent after that", "MiB", [residentMiB(two.process)]),
  ];
}

/** A port forward, so that the same two hosts reach each other through both routers without the product. Returns the public address. */
async function openBarePath(lab: Lab, host: Host): Promise<string> {
  const ports = `{ ${FLOW_PORT}, ${ECHO_PORT} }`;
  const rule = `add rule ip nat pre iifname "wan" meta l4proto { tcp, udp } th dport ${ports} dnat ip to ${host.address}`;
  await lab.site(host.site.index).router?.execChecked(["nft", "-f", "-"], { input: `${rule}\n` });
  return host.site.publicAddress;
}

async function bareRoundTrips(from: Host, to: Host, address: string): Promise<number[]> {
  const server = to.spawn([process.execPath, TRAFFIC, "serve", to.address, ECHO_PORT]);
  await server.waitFor("ready", (line) => (line.text === "ready" ? true : undefined), 5_000);
  const output = await from.execChecked([process.execPath, TRAFFIC, "rtt", address, ECHO_PORT, `${PINGS}`]);
  await server.stop();
  return (JSON.parse(output) as (number | null)[]).filter((value) => value !== null);
}

async function roundTrips(from: MeshAgent, to: MeshAgent): Promise<number[]> {
  const lines = await from.startPing(to.name, { count: PINGS, intervalSeconds: 0.1 }).end();
  return lines.flatMap((line) => ("lost" in line ? [] : [line.rttMs]));
}

async function mbits(from: Host, to: Host, listenAt: string, connectTo: string): Promise<number> {
  const server = to.spawn(["iperf3", "-s", "-1", "-B", listenAt, "-p", FLOW_PORT, "--forceflush"]);
  await server.waitFor("listening", (line) => (line.text.includes("listening") ? true : undefined), 5_000);
  const client = ["iperf3", "-c", connectTo, "-p", FLOW_PORT, "-t", `${options.seconds}`, "-J"];
  const output = await from.execChecked(client, { timeoutMs: (options.seconds + 10) * 1_000 });
  await server.stop();
  const result = JSON.parse(output) as { end: { sum_received: { bits_per_second: number } } };
  return result.end.sum_received.bits_per_second / 1e6;
}

/** Resident set size, /proc/<pid>/status. */
function residentMiB(program: LabProcess): number {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${program.pid}/status`, "utf8"))?.[1];
  return Number(kib) / 1024;
}

function figure(name: string, unit: string, values: readonly number[]): Figure {
  const sorted = values.toSorted((a, b) => a - b);
  return { name, unit, median: sorted[Math.floor(sorted.length / 2)] ?? Number.NaN, values };
}

function parse(): { readonly json: string | undefined; readonly seconds: number } {
  try {
    const { values } = parseArgs({
      options: {
        help: { type: "boolean", short: "h", default: false },
        json: { type: "string" },
        seconds: { type: "string", default: "3" },
      },
    });
    if (values.help) {
      console.log(HELP);
      process.exit(0);
    }
    const seconds = Number(values.seconds);
    if (!Number.isInteger(seconds) || seconds < 1 || seconds > 60) throw new Error("--seconds takes 1 to 60");
    return { json: values.json, seconds };
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : String(error)}\n\n${HELP}`);
    return process.exit(2);
  }
}
