/** What is measured on a path: TCP and UDP by iperf3, round trips with and without load beside it, and the CPU time that bytes cost. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { LabProcess } from "../../test/lab/process.ts";
import type { Host } from "../../test/lab/topology.ts";

const FLOW_PORT = 5201;
/** And those after it. */
const MIXED_PORT = 5211;
/** Packets of each size a second. */
const MIXED_RATE = 20_000;
const ECHO_PORT = "5202";
const TRAFFIC = fileURLToPath(new URL("../../test/lab/traffic.ts", import.meta.url));
const START_MS = 5_000;
/** sysconf(_SC_CLK_TCK), fixed on Linux for all that userspace sees. */
const TICKS_PER_SECOND = 100;

export interface FlowResult {
  readonly mbits: number;
  readonly bytes: number;
  /** UDP only: percent. */
  readonly lost: number;
}

interface FlowOptions {
  readonly flows?: number;
  readonly reverse?: boolean;
  /** UDP of this size instead of TCP, and at this rate; 0: as fast as it goes. */
  readonly udpBytes?: number;
  readonly packetsPerSecond?: number;
  readonly port?: number;
  /** Of TCP: which congestion control; default the kernel's. */
  readonly congestion?: string | undefined;
}

/** One run of iperf3 from one host to the other (`reverse`: back). Rates are what arrived. */
export async function flow(
  from: Host,
  to: Host,
  address: string,
  seconds: number,
  options: FlowOptions,
): Promise<FlowResult> {
  const { udpBytes, packetsPerSecond = 0, flows = 1, reverse = false, port = FLOW_PORT, congestion } = options;
  const server = to.spawn(["iperf3", "-s", "-1", "-B", address, "-p", `${port}`, "--forceflush"]);
  await server.waitFor("listening", (line) => (line.text.includes("listening") ? true : undefined), START_MS);
  const rate = packetsPerSecond * 8 * (udpBytes ?? 0);
  const client = ["iperf3", "-c", address, "-p", `${port}`, "-t", `${seconds}`, "-J", "-P", `${flows}`];
  const output = await from.execChecked(
    [
      ...client,
      ...(reverse ? ["-R"] : []),
      ...(congestion === undefined ? [] : ["-C", congestion]),
      ...(udpBytes === undefined ? [] : ["-u", "-b", `${rate}`, "-l", `${udpBytes}`]),
    ],
    { timeoutMs: (seconds + 15) * 1_000 },
  );
  await server.stop();
  const { end } = JSON.parse(output) as { end: IperfEnd };
  const used = end.sender_tcp_congestion;
  if (congestion !== undefined && used !== congestion) throw new Error(`iperf3 used ${used}, not ${congestion}`);
  const got = udpBytes === undefined ? end.sum_received : (end.sum_received ?? end.sum);
  const lost = end.sum_received?.lost_percent ?? end.sum?.lost_percent ?? 0;
  return { mbits: (got?.bits_per_second ?? Number.NaN) / 1e6, bytes: got?.bytes ?? 0, lost };
}

/** UDP of several sizes at once, which no batch of equal frames holds: the CPU time of these programs for each packet that arrived, in µs. */
export async function mixedPackets(
  from: Host,
  to: Host,
  address: string,
  seconds: number,
  sizes: readonly number[],
  processes: readonly LabProcess[],
): Promise<{ readonly microseconds: number; readonly perSecond: number }> {
  const before = cpuSeconds(processes);
  const flows = sizes.map(async (udpBytes, i) => {
    const options = { udpBytes, packetsPerSecond: MIXED_RATE, port: MIXED_PORT + i };
    const { mbits } = await flow(from, to, address, seconds, options);
    return (mbits * 1e6) / 8 / udpBytes;
  });
  const perSecond = (await Promise.all(flows)).reduce((sum, each) => sum + each, 0);
  return { perSecond, microseconds: ((cpuSeconds(processes) - before) * 1e6) / (perSecond * seconds) };
}

interface IperfSum {
  readonly bits_per_second: number;
  readonly bytes: number;
  readonly lost_percent?: number;
}
interface IperfEnd {
  readonly sender_tcp_congestion?: string;
  readonly sum_received?: IperfSum;
  readonly sum?: IperfSum;
}

/** Round trips of small datagrams, one at a time, through the kernels of both hosts; a lost one counts as infinite. */
export async function roundTrips(from: Host, to: Host, address: string, count: number): Promise<number[]> {
  const server = to.spawn([process.execPath, TRAFFIC, "serve", address, ECHO_PORT]);
  await server.waitFor("ready", (line) => (line.text === "ready" ? true : undefined), START_MS);
  const output = await from.execChecked([process.execPath, TRAFFIC, "rtt", address, ECHO_PORT, `${count}`], {
    timeoutMs: count * 1_000 + START_MS,
  });
  await server.stop();
  return (JSON.parse(output) as (number | null)[]).map((value) => value ?? Number.POSITIVE_INFINITY);
}

/** Seconds of CPU that these programs have used, all threads, proc(5). */
export function cpuSeconds(processes: readonly LabProcess[]): number {
  let ticks = 0;
  for (const { pid } of processes) {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    ticks += Number(fields[11]) + Number(fields[12]);
  }
  return ticks / TICKS_PER_SECOND;
}

/** Resident set size in MiB. */
export function residentMiB({ pid }: LabProcess): number {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return Number(kib) / 1024;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) / 2)] ?? Number.NaN;
}
