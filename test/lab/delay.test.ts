/**
 * Time to a direct path, without delay and with a round trip of 50 ms between any two public addresses.
 *
 * It counts from `peer_online`, at whichever agent has it later, to `path_changed` to direct, at whichever has it later; the agents are
 * new each time, so finding out what their routers do runs at the same time. The normal run takes one sample of two pairs and
 * allows three times the target; with LAB_FULL=1 every pair that can be direct gets five, and the medians are held to the targets. Each run
 * prints a table and leaves its figures in .lab-results/time_to_direct.json.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { type MeshAgent, startAgent, startCoordinator } from "./mesh.ts";
import type { Lab, SiteNat } from "./topology.ts";

const IS_FULL = process.env["LAB_FULL"] === "1";
const SAMPLES = IS_FULL ? 5 : 1;
const RESULTS = fileURLToPath(new URL("../../.lab-results", import.meta.url));
/** Median over the pairs of cones, by round trip. */
const TARGET_MS: Readonly<Record<number, number>> = { 0: 300, 50: 500 };

const CONES: readonly SiteNat[] = ["open", "fullcone", "restricted", "portrestricted"];
const CONE_PAIRS = CONES.flatMap((a, index) => CONES.slice(index).map((b): [SiteNat, SiteNat] => [a, b]));
const SYMMETRIC_PAIRS: readonly [SiteNat, SiteNat][] = [
  ["symmetric", "open"],
  ["symmetric", "fullcone"],
  ["symmetric", "restricted"],
];
const PAIRS: readonly [SiteNat, SiteNat][] = IS_FULL
  ? [...CONE_PAIRS, ...SYMMETRIC_PAIRS]
  : [
      ["portrestricted", "portrestricted"],
      ["symmetric", "restricted"],
    ];

interface Series {
  readonly pair: string;
  readonly isConePair: boolean;
  readonly roundTripMs: number;
  readonly directMs: readonly number[];
  readonly skewMs: readonly number[];
}
const series: Series[] = [];

describe.each([0, 50])("time to a direct path at a round trip of %i ms", (roundTripMs) => {
  test.each(PAIRS)("%s x %s", async (a, b) => {
    await withLab({ sites: [{ nat: a }, { nat: b }], roundTripMs }, async (lab) => {
      const coordinator = await startCoordinator(lab);
      const key = await coordinator.createKey({ reusable: true });
      const directMs: number[] = [];
      for (let sample = 1; sample <= SAMPLES; sample += 1) {
        directMs.push(await timeToDirect(lab, sample, coordinator.url, key));
      }
      const skewMs = coordinator.events.all("punch_signalled").map(({ fields }) => Number(fields["skewMs"]));
      series.push({ pair: `${a} x ${b}`, isConePair: a !== "symmetric", roundTripMs, directMs, skewMs });
      expect(median(directMs)).toBeLessThan(3 * (TARGET_MS[roundTripMs] ?? 0));
    });
  });

  test("the median over all pairs of cones is within the target", () => {
    const all = series.filter((one) => one.isConePair && one.roundTripMs === roundTripMs);
    expect(all.length).toBe(PAIRS.filter(([a]) => a !== "symmetric").length);
    const limit = (TARGET_MS[roundTripMs] ?? 0) * (IS_FULL ? 1 : 3);
    expect(median(all.flatMap((one) => one.directMs))).toBeLessThan(limit);
  });
});

afterAll(() => {
  const skews = series.flatMap((one) => one.skewMs);
  const rows = series.map((one) => {
    const [p50, least, most] = [median(one.directMs), Math.min(...one.directMs), Math.max(...one.directMs)];
    return `${one.pair.padEnd(33)} ${`${one.roundTripMs}`.padStart(3)} ms ${[p50, least, most].map((ms) => ms.toFixed(0).padStart(7)).join("")}`;
  });
  const coneRows = [0, 50].map((roundTripMs) => {
    const all = series.filter((one) => one.isConePair && one.roundTripMs === roundTripMs);
    return `cones at ${roundTripMs} ms: p50 ${median(all.flatMap((one) => one.directMs)).toFixed(0)} ms, target ${TARGET_MS[roundTripMs] ?? 0} ms`;
  });
  console.log(
    [
      `pair                         round trip   median  least   most  (time to direct in ms, ${SAMPLES} each)`,
      ...rows,
      ...coneRows,
      `skew of ${skews.length} simultaneous starts: median ${median(skews).toFixed(2)} ms, largest ${Math.max(...skews).toFixed(2)} ms`,
    ].join("\n"),
  );
  mkdirSync(RESULTS, { recursive: true });
  const report = { schema: 1, at: new Date().toISOString(), isFull: IS_FULL, targetMs: TARGET_MS, series };
  writeFileSync(`${RESULTS}/time_to_direct.json`, `${JSON.stringify(report, undefined, 1)}\n`);
});

/** Two agents that nobody has seen before, from their start to their end. */
async function timeToDirect(lab: Lab, sample: number, url: string, key: string): Promise<number> {
  const [one, two] = await Promise.all(
    lab.hosts.map(async (host) => startAgent(lab, host, { name: `${host.role}-${sample}`, url, key })),
  );
  if (one === undefined || two === undefined) throw new Error("Two agents expected");
  const eventsOf = async (agent: MeshAgent, peer: MeshAgent): Promise<{ onlineAt: number; directAt: number }> => {
    const direct = await agent.directEvent(peer.name);
    const online = await agent.events.next("peer_online", { accept: (fields) => fields["peer"] === peer.name });
    return { onlineAt: online.at, directAt: direct.at };
  };
  const [first, second] = await Promise.all([eventsOf(one, two), eventsOf(two, one)]);
  await Promise.all([one.stop(), two.stop()]);
  return Math.max(first.directAt, second.directAt) - Math.max(first.onlineAt, second.onlineAt);
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}
