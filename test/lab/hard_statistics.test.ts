/**
 * How sure and how soon attempts with many packets are, on real kernels: many runs of each pair of NATs, with delay and loss.
 *
 * Time counts from the moment when both agents are online and have measured their own NATs to the later one's `path_changed` to direct.
 * Every run has agents that nobody has seen before, and routers that have forgotten everything. The normal run takes one sample; with
 * LAB_FULL=1 each condition gets its number of runs. Each run is kept at once in .lab-results/hard_punching.json, so that an interrupted
 * series goes on where it stopped; delete the file to begin anew. The table gives Wilson intervals of 95 %.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { type MeshAgent, startAgent, startCoordinator } from "./mesh.ts";
import type { Lab, SiteNat } from "./topology.ts";

const IS_FULL = process.env["LAB_FULL"] === "1";
const RESULTS = fileURLToPath(new URL("../../.lab-results", import.meta.url));
const FILE = `${RESULTS}/hard_punching.json`;
/** Runs in one lab: a case takes at most 20 s. */
const RUNS_PER_CASE = 5;
/** A run without a direct path by then has failed: it is over the time for the one attempt that is judged. */
const GIVE_UP_MS = 4000;
/** PRODUCT.md: port-restricted x symmetric in 148 of 150 runs within 1.5 s, and half of them within 400 ms. */
const SURE = 0.98;
const WITHIN_MS = 1500;
const MEDIAN_MS = 400;
/** Two symmetric routers whose ports are known: 95 % within 3 s. */
const MEETING_SURE = 0.95;
const MEETING_WITHIN_MS = 3000;

interface Condition {
  readonly pair: readonly [SiteNat, SiteNat];
  readonly roundTripMs: number;
  readonly lossPercent: number;
  readonly runs: number;
}

const GUESSING: readonly Condition[] = [0, 50, 80].flatMap((roundTripMs) =>
  [0, 1].map(
    (lossPercent): Condition => ({ pair: ["portrestricted", "symmetric"], roundTripMs, lossPercent, runs: 25 }),
  ),
);
const MEETING: readonly Condition[] = (
  [
    ["symseq", "symseq"],
    ["symblock256", "symblock256"],
    ["symblock512", "symblock512"],
    ["symblock1024", "symblock1024"],
  ] as const
).map((pair) => ({ pair, roundTripMs: 50, lossPercent: 0, runs: 20 }));
const SAMPLE: readonly Condition[] = [
  { pair: ["portrestricted", "symmetric"], roundTripMs: 50, lossPercent: 1, runs: 1 },
];
const CONDITIONS = IS_FULL ? [...GUESSING, ...MEETING] : SAMPLE;

interface Run {
  /** Null: no direct path in time. */
  readonly ms: number | null;
  /** Of each side, in all its attempts. */
  readonly packets: readonly number[];
}
type Series = Record<string, Run[]>;

const keyOf = ({ pair, roundTripMs, lossPercent }: Condition): string =>
  `${pair.join(" x ")}, ${roundTripMs} ms, ${lossPercent} %`;
const series: Series = load();

describe.each(CONDITIONS.map((condition) => ({ name: keyOf(condition), condition })))(
  "$name",
  ({ name, condition }) => {
    const { pair, roundTripMs, lossPercent, runs } = condition;
    const missing = Math.max(0, runs - (series[name]?.length ?? 0));
    const cases = Array.from({ length: Math.ceil(missing / RUNS_PER_CASE) }, (_, index) => index + 1);

    // A full machine makes single runs slow; the numbers are judged over all of them, below.
    test.each(cases)("runs, part %i", { timeout: 60_000 }, async (part) => {
      const [a, b] = pair;
      await withLab({ sites: [{ nat: a }, { nat: b }], roundTripMs, lossPercent }, async (lab) => {
        const coordinator = await startCoordinator(lab);
        const key = await coordinator.createKey({ reusable: true });
        for (let i = 0; i < RUNS_PER_CASE && (series[name]?.length ?? 0) < runs; i += 1) {
          keep(name, await run(lab, `${part}-${i}`, coordinator.url, key));
          await Promise.all(lab.sites.map(async (site) => (isOpen(site.nat) ? undefined : site.flushConntrack())));
        }
      });
    });
  },
);

test("port-restricted x symmetric: as sure and as soon as promised", () => {
  const all = CONDITIONS.filter(({ pair }) => pair[0] === "portrestricted").flatMap((one) => series[keyOf(one)] ?? []);
  expect(all.length).toBeGreaterThan(0);
  if (IS_FULL) {
    expect(shareWithin(all, WITHIN_MS)).toBeGreaterThanOrEqual(SURE);
    expect(median(all)).toBeLessThan(MEDIAN_MS);
  } else expect(median(all)).toBeLessThan(3 * WITHIN_MS);
});

test.runIf(IS_FULL)("counters and blocks: as sure and as soon as promised (only in the full run)", () => {
  for (const condition of MEETING) {
    const all = series[keyOf(condition)] ?? [];
    expect(shareWithin(all, MEETING_WITHIN_MS), keyOf(condition)).toBeGreaterThanOrEqual(MEETING_SURE);
  }
});

afterAll(() => {
  const lines = CONDITIONS.map((condition) => {
    const all = series[keyOf(condition)] ?? [];
    return `${keyOf(condition).padEnd(44)} ${row(all, condition.pair[0] === "portrestricted" ? WITHIN_MS : MEETING_WITHIN_MS)}`;
  });
  const guessing = GUESSING.flatMap((condition) => series[keyOf(condition)] ?? []);
  console.log(
    [
      "pair, round trip, loss                         in time   95 % interval    median    p90    most   packets each (median)",
      ...lines,
      `${"port-restricted x symmetric, all".padEnd(44)} ${row(guessing, WITHIN_MS)}`,
    ].join("\n"),
  );
});

/** Two agents that nobody has seen before, from their start to their end. */
async function run(lab: Lab, sample: string, url: string, key: string): Promise<Run> {
  const [one, two] = await Promise.all(
    lab.hosts.map(async (host) => startAgent(lab, host, { name: `${host.role}-${sample}`, url, key })),
  );
  if (one === undefined || two === undefined) throw new Error("Two agents expected");
  const knownAt = async (agent: MeshAgent, peer: MeshAgent): Promise<number> => {
    const nat = await agent.events.next("nat_detected");
    const online = await agent.events.next("peer_online", { accept: (fields) => fields["peer"] === peer.name });
    return Math.max(nat.at, online.at);
  };
  const known = Math.max(...(await Promise.all([knownAt(one, two), knownAt(two, one)])));
  const timeoutMs = GIVE_UP_MS;
  const direct = await Promise.all([
    one.directEvent(two.name, { timeoutMs }).catch(() => undefined),
    two.directEvent(one.name, { timeoutMs }).catch(() => undefined),
  ]);
  // What the later side has to say about its attempt comes with the path.
  await Promise.all([one.stop(), two.stop()]);
  const packets = [one, two].map((agent) =>
    agent.events.all("punched").reduce((sum, { fields }) => sum + Number(fields["packets"]), 0),
  );
  const [first, second] = direct;
  const ms = first === undefined || second === undefined ? null : Math.max(first.at, second.at) - known;
  return { ms, packets };
}

function load(): Series {
  if (!IS_FULL || !existsSync(FILE)) return {};
  return (JSON.parse(readFileSync(FILE, "utf8")) as { readonly series: Series }).series;
}

function keep(name: string, one: Run): void {
  series[name] = [...(series[name] ?? []), one];
  if (!IS_FULL) return;
  mkdirSync(RESULTS, { recursive: true });
  writeFileSync(FILE, `${JSON.stringify({ schema: 1, at: new Date().toISOString(), series }, undefined, 1)}\n`);
}

const isOpen = (nat: SiteNat): boolean => nat === "open" || nat === "firewalled";
const timesOf = (runs: readonly Run[]): number[] =>
  runs.map(({ ms }) => ms ?? Number.POSITIVE_INFINITY).toSorted((a, b) => a - b);
const quantile = (sorted: readonly number[], share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
const median = (runs: readonly Run[]): number => quantile(timesOf(runs), 0.5);
const shareWithin = (runs: readonly Run[], ms: number): number =>
  timesOf(runs).filter((time) => time <= ms).length / runs.length;

function row(runs: readonly Run[], withinMs: number): string {
  const times = timesOf(runs);
  const inTime = times.filter((time) => time <= withinMs).length;
  const [low, high] = wilson(inTime, runs.length);
  const packets = runs.flatMap((one) => one.packets).toSorted((a, b) => a - b);
  const columns = [quantile(times, 0.5), quantile(times, 0.9), times.at(-1) ?? Number.NaN].map((time) =>
    time.toFixed(0).padStart(8),
  );
  const interval = `${(100 * low).toFixed(1)}-${(100 * high).toFixed(1)} %`;
  return `${`${inTime}/${runs.length}`.padStart(9)} ${interval.padStart(15)} ${columns.join("")} ${quantile(packets, 0.5)}`;
}

/** Wilson's interval for a share, 95 %. */
function wilson(successes: number, runs: number): readonly [number, number] {
  const z = 1.96;
  const share = successes / runs;
  const centre = (share + z ** 2 / (2 * runs)) / (1 + z ** 2 / runs);
  const half = (z / (1 + z ** 2 / runs)) * Math.sqrt((share * (1 - share)) / runs + z ** 2 / (4 * runs ** 2));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}
