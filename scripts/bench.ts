/**
 * How fast the data path is, beside the bare path under it and other userspace tunnels in the same run, and what starting costs. Prints a
 * table and judges nothing: figures of a shared machine are for people to compare.
 *
 * Usage: npm run bench -- [--quick] [--rounds N] [--seconds N] [--only NAME,...] [--loss PERCENT] [--round-trip MS] [--rate MBIT]
 *        [--ipv6] [--congestion NAME] [--json FILE] [--help]
 */
import { readFileSync, writeFileSync } from "node:fs";
import { cpus, release } from "node:os";
import { parseArgs } from "node:util";
import { bothDirect, startPair } from "../test/lab/mesh.ts";
import { createLab, type Host } from "../test/lab/topology.ts";
import { cpuSeconds, flow, median, mixedPackets, residentMiB, roundTrips } from "./bench/measure.ts";
import { type Rival, startRivals } from "./bench/rivals.ts";
import { missingForLab } from "./lab_requirements.ts";
import { run } from "./run.ts";

const HELP = `Usage: npm run bench -- [OPTIONS]

Measures between two hosts made of network namespaces, with the compiled agent and the real coordinator: the bare path,
TunnelMesh direct, by SSH and by WebSocket, and wireguard-go, tinc and nebula where they are installed. They take turns,
round after round, so that a busy moment meets all. TCP by iperf3 with 1 and 8 flows both ways, UDP of 64, 512 and 1400
bytes as fast as it goes, and of two sizes at once at 40 000 packets a second, round trips without load and beside a TCP
flow, CPU seconds per GB, start-up time and memory.
Needs what "npm run lab" needs, and iperf3.

  --quick        one round of one second each, without UDP
  --rounds N     default 3
  --seconds N    length of each flow; default 2
  --only NAMES   of: bare path, direct, ssh, websocket, wireguard-go, tinc, nebula; separated by commas
  --loss PERCENT, --round-trip MS
                 of the network between the hosts; a program stands for it then, that carries less than the tunnels
                 do: what it can carry is the bare path's figure without loss
  --rate MBIT    every line of the network carries so much towards its machine, with a queue of 50 ms before it:
                 what round trips beside a flow take longer than that is a queue of the tunnel
  --ipv6         inside and outside; without the other tunnels
  --congestion NAME
                 of the TCP flows, instead of the kernel's default: cubic, bbr, or another that the kernel has
  --json FILE    write the figures to FILE as well
  --help         this text
`;
const UDP_SIZES = [64, 512, 1400];
/** At 20 000 packets a second each. */
const MIXED_SIZES = [64, 512];
const CONGESTION_CONTROLS = "/proc/sys/net/ipv4/tcp_available_congestion_control";
const IDLE_ROUND_TRIPS = 100;
/** Beside a flow; in so many the slow ones show. */
const LOADED_ROUND_TRIPS = 200;
/** One without an answer takes a second, and those behind it are to have the flow beside them too. */
const LOADED_EXTRA_SECONDS = 6;
/** Where one may take a second. */
const SLOW_ROUND_TRIPS = 30;
const SLOW_FLOW_SECONDS = 12;

interface Figure {
  readonly path: string;
  readonly name: string;
  readonly unit: string;
  readonly values: number[];
}

const options = parse();
const obstacle =
  missingForLab() ?? (Bun.which("iperf3") === null ? "iperf3 not found; install the package" : undefined);
if (obstacle !== undefined) {
  console.log(`skipped  bench: ${obstacle}`);
  process.exit(0);
}
await run("build", ["bun", "scripts/build.ts", "--agent"]);

const figures = new Map<string, Figure>();
const missing = await measurePaths();
const isPlain = options.loss === undefined && options.roundTrip === undefined && options.rate === undefined;
if (options.only === undefined && !options.quick && isPlain && !options.ipv6) await measureStarts();
print();
if (options.json !== undefined) {
  const machine = { cpu: cpus()[0]?.model ?? "unknown", cores: cpus().length, kernel: release() };
  const { rounds, seconds } = options;
  const list = [...figures.values()].map((figure) => ({ ...figure, median: median(figure.values) }));
  const { loss, roundTrip, rate, ipv6, congestion } = options;
  const network = { loss, roundTrip, rate, ipv6, congestion };
  const report = { schema: 2, at: new Date().toISOString(), machine, network, rounds, seconds, missing, figures: list };
  writeFileSync(options.json, `${JSON.stringify(report, undefined, 1)}\n`);
}

async function measurePaths(): Promise<readonly string[]> {
  const { loss, roundTrip, rate, ipv6 } = options;
  await using lab = await createLab({
    sites: [{ nat: "open" }, { nat: "open" }],
    ipv6,
    ...(roundTrip === undefined ? {} : { roundTripMs: roundTrip }),
    ...(loss === undefined ? {} : { lossPercent: loss }),
  });
  const { rivals, missing: absent } = await startRivals(lab, ipv6);
  if (rate !== undefined) await lab.setRate(rate);
  const [one, two] = lab.hosts;
  if (one === undefined || two === undefined) throw new Error("The bench needs two hosts");
  const chosen = rivals.filter(({ name }) => options.only?.includes(name) ?? true);
  for (let round = 1; round <= options.rounds; round += 1) {
    for (const rival of chosen) {
      console.log(`round ${round} of ${options.rounds}: ${rival.name}`);
      await rival.prepare();
      await measure(rival, one, two);
      await rival.verify();
    }
  }
  return absent;
}

async function measure(rival: Rival, one: Host, two: Host): Promise<void> {
  const { name, address, processes } = rival;
  const { seconds, congestion } = options;
  const note = (what: string, unit: string, value: number): void => add(name, what, unit, value);
  note("round trip, idle", "ms", median(await roundTrips(one, two, address, IDLE_ROUND_TRIPS)));

  const before = cpuSeconds(processes);
  const single = await flow(one, two, address, seconds, { congestion });
  if (processes.length > 0) note("CPU seconds per GB", "s", (cpuSeconds(processes) - before) / (single.bytes / 1e9));
  note("TCP, 1 flow", "Mbit/s", single.mbits);
  note("TCP, 1 flow back", "Mbit/s", (await flow(one, two, address, seconds, { reverse: true, congestion })).mbits);
  note("TCP, 8 flows", "Mbit/s", (await flow(one, two, address, seconds, { flows: 8, congestion })).mbits);
  note(
    "TCP, 8 flows back",
    "Mbit/s",
    (await flow(one, two, address, seconds, { flows: 8, reverse: true, congestion })).mbits,
  );

  let isOver = false;
  const isSlow = options.rate !== undefined;
  const flowSeconds = isSlow ? SLOW_FLOW_SECONDS : seconds + (options.quick ? 2 : LOADED_EXTRA_SECONDS);
  const load = flow(one, two, address, flowSeconds, { congestion }).finally(() => {
    isOver = true;
  });
  // A slow line's queue fills slowly.
  await Bun.sleep(isSlow ? 2000 : 300);
  const count = isSlow ? SLOW_ROUND_TRIPS : options.quick ? LOADED_ROUND_TRIPS / 4 : LOADED_ROUND_TRIPS;
  const loaded = await roundTrips(one, two, address, count);
  if (isOver) console.log(`  the flow ended before the round trips beside it: ${name}`);
  await load;
  note("round trip, loaded", "ms", median(loaded));
  note("round trip, loaded, 99th percentile", "ms", percentile(loaded, 0.99));
  note(
    "round trip, loaded, without an answer",
    "%",
    (100 * loaded.filter((value) => !Number.isFinite(value)).length) / count,
  );

  if (options.quick) return;
  for (const size of UDP_SIZES) {
    const { mbits, lost } = await flow(one, two, address, seconds, { udpBytes: size });
    note(`UDP, ${size} bytes, arrived`, "packets/s", (mbits * 1e6) / 8 / size);
    note(`UDP, ${size} bytes, lost`, "%", lost);
    const back = await flow(one, two, address, seconds, { udpBytes: size, reverse: true });
    note(`UDP, ${size} bytes, arrived back`, "packets/s", (back.mbits * 1e6) / 8 / size);
  }
  const mixed = await mixedPackets(one, two, address, seconds, MIXED_SIZES, processes);
  note("UDP, 64 and 512 bytes in turn, arrived", "packets/s", mixed.perSecond);
  if (processes.length > 0) note("UDP, 64 and 512 bytes in turn, CPU a packet", "µs", mixed.microseconds);
}

/** Each start has a lab of its own, so that nothing is warm but the page cache. */
async function measureStarts(): Promise<void> {
  for (let round = 1; round <= options.rounds; round += 1) {
    await using lab = await createLab({ sites: [{ nat: "fullcone" }, { nat: "fullcone" }] });
    const { coordinator, one, two } = await startPair(lab);
    await bothDirect(one, two);
    const ready = (await coordinator.events.next("ready")).at - coordinator.process.startedAt;
    add("coordinator", "start to ready", "ms", ready);
    add("coordinator", "memory, two agents", "MiB", residentMiB(coordinator.process));
    for (const agent of [one, two]) {
      add("agent", "start to joined", "ms", (await agent.events.next("joined")).at - agent.process.startedAt);
      add("agent", "memory, one path", "MiB", residentMiB(agent.process));
    }
  }
}

function add(path: string, name: string, unit: string, value: number): void {
  const key = `${path}|${name}`;
  const figure = figures.get(key) ?? { path, name, unit, values: [] };
  figures.set(key, figure);
  figure.values.push(value);
}

/** One row a figure, one column a path; medians, and least to most below where there are several. */
function print(): void {
  const list = [...figures.values()];
  const cell = (figure: Figure | undefined): string => {
    if (figure === undefined) return "-";
    const [least, most] = [Math.min(...figure.values), Math.max(...figure.values)];
    const spread = figure.values.length > 1 ? ` (${short(least)}-${short(most)})` : "";
    return short(median(figure.values)) + spread;
  };
  for (const group of [["coordinator", "agent"], undefined]) {
    const shown = list.filter(
      ({ path }) => (group ?? ["coordinator", "agent"]).includes(path) === (group !== undefined),
    );
    if (shown.length === 0) continue;
    const paths = [...new Set(shown.map(({ path }) => path))];
    const rows = [...new Set(shown.map(({ name, unit }) => `${name}, ${unit}`))].map((title) => [
      title,
      ...paths.map((path) =>
        cell(shown.find((figure) => figure.path === path && `${figure.name}, ${figure.unit}` === title)),
      ),
    ]);
    const table = [["median (least-most)", ...paths], ...rows];
    const widths = table[0]?.map((_, column) => Math.max(...table.map((row) => row[column]?.length ?? 0))) ?? [];
    console.log("");
    for (const row of table)
      console.log(
        row.map((text, i) => (i === 0 ? text.padEnd(widths[i] ?? 0) : text.padStart(widths[i] ?? 0))).join("  "),
      );
  }
  for (const name of missing) console.log(`missing  ${name}`);
}

function short(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

interface Options {
  readonly json: string | undefined;
  readonly seconds: number;
  readonly rounds: number;
  readonly quick: boolean;
  readonly loss: number | undefined;
  readonly roundTrip: number | undefined;
  readonly rate: number | undefined;
  readonly ipv6: boolean;
  readonly congestion: string | undefined;
  readonly only: readonly string[] | undefined;
}

function parse(): Options {
  try {
    const { values } = parseArgs({
      options: {
        help: { type: "boolean", short: "h", default: false },
        json: { type: "string" },
        quick: { type: "boolean", default: false },
        only: { type: "string" },
        loss: { type: "string" },
        "round-trip": { type: "string" },
        rate: { type: "string" },
        ipv6: { type: "boolean", default: false },
        congestion: { type: "string" },
        rounds: { type: "string" },
        seconds: { type: "string" },
      },
    });
    if (values.help) {
      console.log(HELP);
      process.exit(0);
    }
    const number = (name: string, text: string): number => {
      const value = Number(text);
      if (!Number.isInteger(value) || value < 1 || value > 60) throw new Error(`--${name} takes 1 to 60`);
      return value;
    };
    const measure = (name: "loss" | "round-trip" | "rate", most: number): number | undefined => {
      const text = values[name];
      if (text === undefined) return undefined;
      const value = Number(text);
      if (text === "" || !(value >= 0 && value <= most)) throw new Error(`--${name} takes 0 to ${most}`);
      return value;
    };
    const { quick, ipv6, congestion } = values;
    if (congestion !== undefined) {
      const known = readFileSync(CONGESTION_CONTROLS, "utf8").trim().split(" ");
      if (!known.includes(congestion)) throw new Error(`--congestion takes what this kernel has: ${known.join(", ")}`);
    }
    const [loss, roundTrip, rate] = [measure("loss", 50), measure("round-trip", 2000), measure("rate", 10_000)];
    if (rate !== undefined && (loss !== undefined || roundTrip !== undefined))
      throw new Error("--rate does not go with --loss or --round-trip: they are done by another network");
    return {
      json: values.json,
      seconds: number("seconds", values.seconds ?? (quick ? "1" : "2")),
      rounds: number("rounds", values.rounds ?? (quick ? "1" : "3")),
      quick,
      loss,
      roundTrip,
      rate,
      ipv6,
      congestion,
      only: values.only?.split(",").map((name) => name.trim()),
    };
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : String(error)}\n\n${HELP}`);
    return process.exit(2);
  }
}
