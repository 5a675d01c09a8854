/**
 * Random worlds from seeds, judged by the oracle (test/sim/random_world.ts): `npm run sim -- [options]`.
 *
 *   --seeds N     so many worlds                          --seed S     only this one, with its story
 *   --seconds T   as many as fit into T seconds (20)      --from S     the first seed (default: from the clock, so each run is new)
 *   --pairings    instead of random worlds, all 81 pairings of mapping and filtering in turn, at 50 ms round trip
 *   --ladder      worlds with relays, judged by the rung (test/sim/ladder_world.ts)
 *   --symmetric   with --ladder: symmetric NATs too
 *
 * A failing seed is printed and the exit code is 1. Keep it: add it to test/sim/regressions.test.ts together with the fix.
 */
import { parseArgs } from "node:util";
import { ALL_PAIRINGS } from "../test/sim/oracle.ts";
import { runLadderWorld } from "../test/sim/ladder_world.ts";
import { runPairing, runRandomWorld, type Verdict } from "../test/sim/random_world.ts";

const { values } = parseArgs({
  options: {
    seeds: { type: "string" },
    seed: { type: "string" },
    from: { type: "string" },
    seconds: { type: "string", default: "20" },
    pairings: { type: "boolean", default: false },
    ladder: { type: "boolean", default: false },
    symmetric: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(
    "Usage: npm run sim -- [--pairings | --ladder [--symmetric]] [--seeds N | --seconds T] [--from S] | --seed S",
  );
  process.exit(0);
}

const only = values.seed === undefined ? undefined : wholeNumber("--seed", values.seed);
const first = only ?? (values.from === undefined ? Date.now() % 2 ** 31 : wholeNumber("--from", values.from));
const wanted = only === undefined ? (values.seeds === undefined ? Infinity : wholeNumber("--seeds", values.seeds)) : 1;
const limitMs = wanted === Infinity ? wholeNumber("--seconds", values.seconds) * 1000 : Infinity;

const startedAt = performance.now();
const elapsedMs = (): number => performance.now() - startedAt;
const failed: number[] = [];
let worlds = 0;
let pairs = 0;
let virtualMs = 0;
while (worlds < wanted && elapsedMs() < limitMs) {
  const verdict = judge(first + worlds);
  worlds++;
  pairs += verdict.pairs;
  virtualMs += verdict.virtualMs;
  if (verdict.failures.length > 0) failed.push(verdict.seed);
  if (verdict.failures.length > 0 || only !== undefined) tell(verdict);
}
const seconds = elapsedMs() / 1000;
console.log(
  `${worlds} worlds from seed ${first}: ${pairs} pairings, ${(virtualMs / 3_600_000).toFixed(1)} h of virtual time in ${seconds.toFixed(1)} s, ` +
    `${Math.round(pairs / seconds)} pairings/s, ${failed.length} failed`,
);
if (failed.length > 0) {
  console.log(`Failing seeds: ${failed.slice(0, 20).join(" ")}`);
  process.exit(1);
}

/** A world that throws has failed too. */
function judge(seed: number): Verdict {
  try {
    if (values.ladder) return runLadderWorld(seed, values.symmetric);
    const pairing = ALL_PAIRINGS[seed % ALL_PAIRINGS.length];
    return values.pairings && pairing !== undefined ? runPairing(seed, pairing) : runRandomWorld(seed);
  } catch (error) {
    const failure = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { seed, story: [], failures: [failure], pairs: 0, virtualMs: 0 };
  }
}

function tell({ seed, story, failures }: Verdict): void {
  console.log(`seed ${seed}: ${failures.length === 0 ? "as it should be" : "FAILED"}`);
  for (const line of story) console.log(`    ${line}`);
  for (const failure of failures) console.log(`  * ${failure}`);
}

function wholeNumber(flag: string, text: string): number {
  if (!/^\d{1,12}$/.test(text)) {
    console.error(`${flag} takes a whole number, not "${text}"`);
    process.exit(2);
  }
  return Number(text);
}
