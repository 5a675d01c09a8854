/**
 * The whole matrix: every unordered pair of NATs, of carriers over homes, of port mapping and of an IPv6 firewall, at routers that drop
 * what nobody asked for and at routers that take it themselves (WAN input open), near and far. Which pairs become direct, and how soon,
 * against what the oracle of the simulation expects of the same pair.
 *
 * A lab per pair serves its four cells; every run has agents that nobody has seen before, and routers that have forgotten everything.
 * The normal run takes a few cells that no other case has; with LAB_FULL=1 each cell gets its number of runs, first one of each, then
 * the next, which are kept in .lab-results/matrix.json (series.ts). Time counts from the moment when both agents know of each other.
 */
import { existsSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import type { Mapping } from "../../shared/wire/candidates.ts";
import type { NatBehavior, PortAllocation } from "../sim/nat.ts";
import { FULL_CONE, PORT_RESTRICTED_CONE, RESTRICTED_CONE } from "../sim/nats.ts";
import { type Expectation, expectationOf } from "../sim/oracle.ts";
import { withLab } from "./lab_case.ts";
import { startCoordinator } from "./mesh.ts";
import { MINIUPNPD, Miniupnpd } from "./miniupnpd.ts";
import type { NatKind } from "./nat_rules.ts";
import { type PairRun, runPair } from "./pair_run.ts";
import { interval, IS_FULL, quantile, Series } from "./series.ts";
import type { Lab, Site, SiteNat, SiteOptions } from "./topology.ts";

/** Runs of each cell in the full run. */
const RUNS = IS_FULL ? 3 : 1;
/** Where a direct path must come: an attempt of 4 s, a pause of 5 s after it has failed, another attempt, and discovery before. */
const DIRECT_MS = 16_000;
/** Where none may come, or only by luck: a round of probes, and the attempt that the two may make. */
const OTHERS_MS = 5500;
/**
 * Of the runs that take an attempt, WAN input open included: there the first attempt of two sides that both guess seldom finds anything, so
 * that all depends on the second.
 */
const ATTEMPTS_SURE = 0.95;
/** As between two home routers: what is meant to die on the way does. */
const HOPS = 6;

type Kind = "open" | "upnp" | "ipv6" | Exclude<NatKind, "udpblocked" | "tcp443only"> | `cgn-${CarrierKind}`;
type CarrierKind = "fullcone" | "symmetric" | "symblock512";

const dependent = (allocation: PortAllocation): NatBehavior => {
  const strict: Mapping = "address-and-port-dependent";
  return { mapping: strict, filtering: strict, allocation, overloads: true };
};
const block = (size: number): NatBehavior => dependent({ kind: "block", first: 40_000, size });

/** What the oracle is told. A home router over a carrier's: the stricter of both in each respect. */
const BEHAVIOR: Readonly<Record<Kind, NatBehavior>> = {
  open: { mapping: "none", filtering: "endpoint-independent" },
  fullcone: FULL_CONE,
  restricted: RESTRICTED_CONE,
  portrestricted: PORT_RESTRICTED_CONE,
  symmetric: dependent("random"),
  symseq: dependent({ kind: "sequential", first: 20_000, stride: 1, traffic: 0 }),
  symblock256: block(256),
  symblock512: block(512),
  symblock1024: block(1024),
  "cgn-fullcone": PORT_RESTRICTED_CONE,
  "cgn-symmetric": dependent("random"),
  "cgn-symblock512": block(512),
  // A symmetric router that maps a port for whoever asks: from everywhere to that port.
  upnp: FULL_CONE,
  // UDP over IPv4 is blocked; over IPv6 both sides are stateful firewalls and nothing is translated.
  ipv6: { mapping: "none", filtering: "address-and-port-dependent" },
};
const hasUpnp = existsSync(MINIUPNPD);
const KINDS = (Object.keys(BEHAVIOR) as Kind[]).filter((kind) => kind !== "upnp" || hasUpnp);
type Pair = readonly [Kind, Kind];
const PAIRS: readonly Pair[] = KINDS.flatMap((a, index) => KINDS.slice(index).map((b): Pair => [a, b]));

interface Condition {
  readonly input: "drop" | "open";
  readonly roundTripMs: number;
  readonly lossPercent: number;
}
const NEAR = { roundTripMs: 0, lossPercent: 0 };
const FAR = { roundTripMs: 50, lossPercent: 1 };
const CONDITIONS: readonly Condition[] = (["drop", "open"] as const).flatMap((input) => [
  { input, ...NEAR },
  { input, ...FAR },
]);
const SAMPLE: readonly (readonly [Kind, Kind, Condition])[] = [
  ["portrestricted", "symseq", { input: "open", ...NEAR }],
  ["symmetric", "upnp", { input: "open", ...FAR }],
  ["symmetric", "ipv6", { input: "drop", ...FAR }],
];

const isCarried = (kind: Kind): boolean => kind.startsWith("cgn-");

/** A site opposite an IPv6 firewall has IPv6 as well, unless a carrier's NAT stands before it. */
function expectation([a, b]: Pair): Expectation {
  if (a !== "ipv6" && b !== "ipv6") return expectationOf(BEHAVIOR[a], BEHAVIOR[b]);
  return isCarried(a) || isCarried(b) ? "none" : expectationOf(BEHAVIOR.ipv6, BEHAVIOR.ipv6);
}

/** Its WAN input makes no difference where neither side translates. */
const hasInput = (pair: Pair): boolean => pair.some((kind) => kind !== "open") && !pair.includes("ipv6");
const conditionsOf = (pair: Pair): readonly Condition[] =>
  CONDITIONS.filter(({ input }) => input === "drop" || hasInput(pair));
const nameOf = (pair: Pair): string => pair.join(" x ");
const keyOf = (pair: Pair, { input, roundTripMs, lossPercent }: Condition): string =>
  `${nameOf(pair)}, input ${input}, ${roundTripMs} ms, ${lossPercent} %`;

const series = new Series<PairRun>("matrix");

if (IS_FULL) {
  // In turn, as vitest.lab.config.ts has it: what is measured is time.
  describe.concurrent.each(Array.from({ length: RUNS }, (_, index) => index + 1))("run %i", (number) => {
    test.each(PAIRS.map((pair) => ({ name: nameOf(pair), pair })))("$name", { timeout: 120_000 }, async ({ pair }) => {
      const isMissing = (condition: Condition): boolean => series.of(keyOf(pair, condition)).length < number;
      await runCells(pair, conditionsOf(pair).filter(isMissing));
    });
  });
} else {
  const cells = SAMPLE.filter(([a, b]) => KINDS.includes(a) && KINDS.includes(b)).map(([a, b, condition]) => ({
    name: keyOf([a, b], condition),
    pair: [a, b] as const,
    condition,
  }));
  test.each(cells)("$name", { timeout: 30_000 }, async ({ pair, condition }) => {
    await runCells(pair, [condition]);
    expect(series.of(keyOf(pair, condition)).map(({ rung }) => rung)).toEqual(["direct"]);
  });
}

test.runIf(IS_FULL)("every cell is as the oracle says (only in the full run)", () => {
  const cells = PAIRS.flatMap((pair) =>
    conditionsOf(pair).map((condition) => ({
      key: keyOf(pair, condition),
      condition,
      expected: expectation(pair),
      runs: series.of(keyOf(pair, condition)),
    })),
  );
  expect(cells.filter(({ runs }) => runs.length < RUNS).map(({ key }) => key)).toEqual([]);
  const contradicted = cells.filter(({ expected, condition, runs }) => isContradicted(expected, condition, runs));
  expect(contradicted.map(({ key, runs }) => `${key}: ${runs.map(({ rung }) => rung).join(", ")}`)).toEqual([]);
  const attempts = cells.filter(({ expected }) => expected === "attempt").flatMap(({ runs }) => runs);
  expect(directOf(attempts).length / attempts.length).toBeGreaterThanOrEqual(ATTEMPTS_SURE);
});

afterAll(() => {
  if (!IS_FULL) return;
  const columns = CONDITIONS.map(({ input, roundTripMs, lossPercent }) =>
    `${input}, ${roundTripMs} ms, ${lossPercent} %`.padEnd(28),
  );
  console.log(
    [
      "direct of runs, median / worst ms, packets per success; or the rung that carries instead; ! where the oracle says otherwise",
      `${"pair".padEnd(34)} oracle  ${columns.join("")}`,
      ...PAIRS.map((pair) => tableLine(pair)),
    ].join("\n"),
  );
  const judged = PAIRS.flatMap((pair) =>
    ["plain", "attempt"].includes(expectation(pair))
      ? conditionsOf(pair).flatMap((condition) => series.of(keyOf(pair, condition)))
      : [],
  );
  const direct = directOf(judged).length;
  console.log(
    `Where the oracle promises a path: ${direct}/${judged.length} direct, ${interval(direct, judged.length)}`,
  );
});

/** One more run of each of these conditions. */
async function runCells(pair: Pair, conditions: readonly Condition[]): Promise<void> {
  if (conditions.length === 0) return;
  const [a, b] = pair;
  const isWithIpv6 = pair.includes("ipv6");
  await withLab({ sites: [siteOf(a, isWithIpv6), siteOf(b, isWithIpv6)], roundTripMs: 0, hops: HOPS }, async (lab) => {
    const coordinator = await startCoordinator(lab);
    const key = await coordinator.createKey({ reusable: true });
    const isPromised = ["plain", "attempt"].includes(expectation(pair));
    for (const [index, condition] of conditions.entries()) {
      const { input, roundTripMs, lossPercent } = condition;
      await lab.setWire({ roundTripMs, lossPercent });
      const daemons = [await prepare(lab, lab.site(1), a, input), await prepare(lab, lab.site(2), b, input)];
      const run = await runPair(lab, {
        sample: `${index}`,
        url: coordinator.url,
        key,
        giveUpMs: isPromised ? DIRECT_MS : OTHERS_MS,
        since: "online",
      });
      series.keep(keyOf(pair, condition), run);
      await Promise.all(daemons.map(async (daemon) => daemon?.stop()));
    }
  });
}

function siteOf(kind: Kind, isWithIpv6: boolean): SiteOptions {
  if (kind === "ipv6") return { nat: "udpblocked", ipv6: true };
  const carrier = carrierOf(kind);
  if (carrier !== undefined) return { nat: "portrestricted", carrier };
  return { nat: natOf(kind), ipv6: isWithIpv6 };
}

function natOf(kind: Kind): SiteNat {
  if (kind === "upnp") return "symmetric";
  if (kind === "ipv6") return "udpblocked";
  return isCarried(kind) ? "portrestricted" : (kind as SiteNat);
}

const carrierOf = (kind: Kind): CarrierKind | undefined =>
  isCarried(kind) ? (kind.slice("cgn-".length) as CarrierKind) : undefined;

/** Routers with this WAN input, the carrier's too, that know nothing; and the daemon that maps ports. */
async function prepare(lab: Lab, site: Site, kind: Kind, input: Condition["input"]): Promise<Miniupnpd | undefined> {
  if (site.router === undefined) return undefined;
  await site.setNat(natOf(kind), { input });
  await site.flushConntrack();
  const carrier = carrierOf(kind);
  if (carrier !== undefined) {
    await site.carrier?.setNat(carrier, { input });
    await site.carrier?.flushConntrack();
  }
  return kind === "upnp" ? Miniupnpd.start(lab, site) : undefined;
}

const directOf = (runs: readonly PairRun[]): readonly PairRun[] => runs.filter(({ rung }) => rung === "direct");

function isContradicted(expected: Expectation, { input }: Condition, runs: readonly PairRun[]): boolean {
  const direct = directOf(runs).length;
  switch (expected) {
    case "plain":
      return direct < runs.length;
    case "attempt":
      // One of several may fail by chance, more of them where only the second attempt counts, which the caps make smaller; how many of all may is judged over all of them.
      return direct < (input === "drop" ? Math.max(1, runs.length - 1) : 1);
    case "none":
      return direct > 0;
    default:
      return false;
  }
}

function tableLine(pair: Pair): string {
  const expected = expectation(pair);
  const cells = CONDITIONS.map((condition) => {
    if (!conditionsOf(pair).includes(condition)) return "as above".padEnd(28);
    const runs = series.of(keyOf(pair, condition));
    if (runs.length === 0) return "-".padEnd(28);
    const direct = directOf(runs);
    const mark = isContradicted(expected, condition, runs) ? "! " : "";
    const rungs = [...new Set(runs.flatMap(({ rung }) => (rung === "direct" ? [] : [rung])))].join(" ");
    if (direct.length === 0) return `${mark}${rungs}`.padEnd(28);
    const times = direct.map(({ ms }) => ms ?? Number.NaN).toSorted((x, y) => x - y);
    const packets = runs.flatMap((run) => run.packets).reduce((sum, count) => sum + count, 0) / direct.length;
    const figures = `${quantile(times, 0.5).toFixed(0)} / ${(times.at(-1) ?? 0).toFixed(0)}, ${packets.toFixed(0)}`;
    return `${mark}${direct.length}/${runs.length} ${figures} ${rungs}`.padEnd(28);
  });
  return `${nameOf(pair).padEnd(34)} ${expected.padEnd(7)} ${cells.join("")}`;
}
