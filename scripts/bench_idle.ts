/**
 * What a mesh costs that nobody uses: CPU, memory and packets of an agent and of the coordinator with so many members online. Prints a
 * table and judges nothing.
 *
 * Usage: npm run bench:idle -- [--members N,...] [--seconds N] [--json FILE] [--help]
 */
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { type MeshAgent, startAgent, startCoordinator } from "../test/lab/mesh.ts";
import type { LabProcess } from "../test/lab/process.ts";
import { createLab, type Host, type Lab, type Machine } from "../test/lab/topology.ts";
import { cpuSeconds, residentMiB } from "./bench/measure.ts";
import { missingForLab } from "./lab_requirements.ts";
import { run } from "./run.ts";

const HELP = `Usage: npm run bench:idle -- [OPTIONS]

Starts the real coordinator, the compiled agent and a crowd of members that are online and do nothing else, and measures
what being there costs: CPU, memory, packets an hour. Also what joining such a mesh and asking for its status costs.
Needs what "npm run lab" needs.

  --members N,...  sizes of the crowd; default 1,100,1000
  --seconds N      how long is measured; default 30
  --json FILE      write the figures to FILE as well
  --help           this text
`;
const CROWD = fileURLToPath(new URL("bench/crowd.ts", import.meta.url));
/** All members come within seconds; then news of them, and first clock questions, have to be told to all. */
const CROWD_START_MS = 120_000;
const SETTLE_MS = 5_000;
/** An agent opens up to sixteen peers on joining, and lets them go after five minutes: it is measured before it has seen any. */
const STATUS_TRIES = 5;

interface Row {
  readonly members: number;
  readonly program: "agent" | "coordinator";
  readonly cpuPercent: number;
  readonly memoryMiB: number;
  readonly packetsPerHour: number;
  /** Agent only. */
  readonly joinCpuSeconds?: number;
  readonly joinMs?: number;
  readonly statusMs?: number;
}

const { values } = parseArgs({
  options: {
    members: { type: "string", default: "1,100,1000" },
    seconds: { type: "string", default: "30" },
    json: { type: "string" },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(HELP);
  process.exit(0);
}
const obstacle = missingForLab();
if (obstacle !== undefined) {
  console.log(`skipped  bench of idle members: ${obstacle}`);
  process.exit(0);
}
await run("build", ["bun", "scripts/build.ts", "--agent"]);

const seconds = Number(values.seconds);
const rows: Row[] = [];
for (const members of values.members.split(",").map(Number)) rows.push(...(await measure(members)));
print();
if (values.json !== undefined)
  writeFileSync(values.json, `${JSON.stringify({ schema: 1, seconds, rows }, undefined, 1)}\n`);

async function measure(members: number): Promise<readonly Row[]> {
  await using lab = await createLab({ sites: [{ nat: "open" }, { nat: "open" }] });
  const [one, two] = lab.hosts;
  if (one === undefined || two === undefined) throw new Error("The bench needs two hosts");
  const coordinator = await startCoordinator(lab);
  const key = await coordinator.createKey({ reusable: true });
  const first = await startAgent(lab, one, { name: "one", url: coordinator.url, key });
  const crowd = two.spawn([process.execPath, CROWD, coordinator.url, key, `${members}`]);
  await crowd.waitFor("crowd", (line) => (line.text === "ready" ? true : undefined), CROWD_START_MS);
  await Bun.sleep(SETTLE_MS);

  const subjects: readonly (readonly [Row["program"], LabProcess, Machine])[] = [
    ["agent", first.process, one],
    ["coordinator", coordinator.process, lab.coordinator],
  ];
  const before = await Promise.all(subjects.map(async ([, process, machine]) => reading(process, machine)));
  await Bun.sleep(seconds * 1000);
  const after = await Promise.all(subjects.map(async ([, process, machine]) => reading(process, machine)));
  await allSeen(first, members);
  const joining = await measureJoining(lab, one, first, coordinator.url, members);
  return subjects.map(([program, process], index) => ({
    members,
    program,
    cpuPercent: ((after[index]?.cpuSeconds ?? 0) - (before[index]?.cpuSeconds ?? 0)) / (seconds / 100),
    memoryMiB: program === "agent" ? joining.memoryMiB : residentMiB(process),
    packetsPerHour: (((after[index]?.packets ?? 0) - (before[index]?.packets ?? 0)) * 3600) / seconds,
    ...(program === "agent" ? joining.costs : {}),
  }));
}

/** The same machine comes back, and finds all the others. */
async function measureJoining(lab: Lab, host: Host, before: MeshAgent, url: string, members: number) {
  const memoryMiB = residentMiB(before.process);
  await before.stop();
  const again = await startAgent(lab, host, { name: "one", url, stateDir: before.stateDir });
  const joinMs = (await again.events.next("joined")).at - again.process.startedAt;
  await allSeen(again, members);
  const joinCpuSeconds = cpuSeconds([again.process]);
  const times: number[] = [];
  for (let i = 0; i < STATUS_TRIES; i++) {
    const startedAt = performance.now();
    await again.status();
    times.push(performance.now() - startedAt);
  }
  return { memoryMiB, costs: { joinCpuSeconds, joinMs, statusMs: Math.min(...times) } };
}

async function allSeen(agent: MeshAgent, members: number): Promise<void> {
  for (let i = 0; i < 100; i++) {
    const { peers } = await agent.status();
    if (peers.filter(({ online }) => online).length === members) return;
    await Bun.sleep(100);
  }
  throw new Error(`The agent does not see all ${members} members`);
}

async function reading(process: LabProcess, machine: Machine) {
  const link = await machine.execChecked(["cat", "/proc/net/dev"]);
  const fields = /^\s*wan:\s*(.*)$/m.exec(link)?.[1]?.split(/\s+/) ?? [];
  return { cpuSeconds: cpuSeconds([process]), packets: Number(fields[1]) + Number(fields[9]) };
}

function print(): void {
  console.log(`\n${seconds} s of idleness; CPU in percent of one core; packets of both ways, TCP and UDP`);
  const columns = ["members", "program", "CPU, %", "memory, MiB", "packets/h", "join, ms", "join, CPU s", "status, ms"];
  const table = rows.map((row) => [
    `${row.members}`,
    row.program,
    row.cpuPercent.toFixed(2),
    row.memoryMiB.toFixed(0),
    row.packetsPerHour.toFixed(0),
    row.joinMs?.toFixed(0) ?? "-",
    row.joinCpuSeconds?.toFixed(2) ?? "-",
    row.statusMs?.toFixed(0) ?? "-",
  ]);
  for (const row of [columns, ...table]) console.log(row.map((text) => text.padStart(13)).join(""));
}
