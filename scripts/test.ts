/**
 * `npm test`: every tier once, inside the runtimes that the code is for, and one closing line for all of them.
 *
 * Each step streams its own report. Vitest also writes its results as JSON, which is where the sums come from. A step that is no test
 * run (check, build, the long simulation) counts as one failure when it fails, and as nothing otherwise.
 *
 * Usage: npm test [-- --all | --help]
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { root, toolEnv } from "./run.ts";

const USAGE = `Usage: npm test [-- --all]

Format, lint and types; unit tests, golden bytes and the short simulation under Bun; the coordinator's and
the shared tests under Deno; the whole product on loopback; one case of each NAT type on kernel NATs.
Under 6 minutes on two cores. The last line says "N passed, N failed"; exit code 1 if anything failed.

  --all      what .ci/run does: the whole lab instead of one case of each type, and the long simulations
  --help     this text`;

/** Far longer than any step takes: a step that hangs must not hang the build. */
const STEP_LIMIT_MS = 10 * 60_000;

interface Step {
  readonly title: string;
  readonly command: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** The command takes these arguments, and writes vitest's JSON report where they say. */
  readonly report?: (file: string) => readonly string[];
}

interface Outcome {
  readonly title: string;
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  readonly seconds: number;
  readonly note: string;
}

const arguments_ = process.argv.slice(2);
if (arguments_.includes("--help") || arguments_.includes("-h")) {
  console.log(USAGE);
  process.exit(0);
}
const unknown = arguments_.find((argument) => argument !== "--all");
if (unknown !== undefined) {
  console.error(`Unknown option ${unknown}\n\n${USAGE}`);
  process.exit(2);
}
const isAll = arguments_.includes("--all");

const VITEST = "node_modules/vitest/vitest.mjs";
const vitestReport = (file: string): readonly string[] => [
  "--reporter=default",
  "--reporter=json",
  `--outputFile.json=${file}`,
  // What passing tests print belongs to whoever runs them alone.
  "--silent=passed-only",
];
const labReport = (file: string): readonly string[] => ["--json", file];

const steps: readonly Step[] = [
  { title: "check", command: ["bun", "scripts/check.ts"] },
  { title: "build", command: ["bun", "scripts/build.ts"] },
  { title: "unit, golden and simulation under Bun", command: ["bun", "--bun", VITEST, "run"], report: vitestReport },
  {
    title: "coordinator and shared under Deno",
    command: ["deno", "run", "-A", "--node-modules-dir=manual", VITEST, "run"],
    // Deno would otherwise look up every development tool of package.json.
    env: { DENO_NO_PACKAGE_JSON: "1" },
    report: vitestReport,
  },
  {
    title: "e2e on loopback",
    command: ["bun", "--bun", VITEST, "run", "-c", "vitest.e2e.config.ts"],
    report: vitestReport,
  },
  {
    title: isAll ? "lab" : "lab, one case of each NAT type",
    command: ["bun", "scripts/lab.ts", ...(isAll ? [] : ["--short"])],
    report: labReport,
  },
  // Always the same worlds, so that a red build is this change's doing; `npm run sim` alone looks at new ones each time.
  ...(isAll
    ? [
        { title: "long simulation", command: ["bun", "scripts/sim.ts", "--from", "1", "--seeds", "600"] },
        {
          title: "long simulation of the ladder",
          command: ["bun", "scripts/sim.ts", "--ladder", "--from", "1", "--seeds", "60"],
        },
        {
          title: "long simulation of the ladder, symmetric NATs too",
          command: ["bun", "scripts/sim.ts", "--ladder", "--symmetric", "--from", "1", "--seeds", "20"],
        },
      ]
    : []),
];

const reports = mkdtempSync(join(tmpdir(), "tunnelmesh-test-"));
process.on("exit", () => rmSync(reports, { recursive: true, force: true }));

const outcomes: Outcome[] = [];
for (const [index, step] of steps.entries()) {
  console.log(`\n=== ${step.title}`);
  outcomes.push(await perform(step, join(reports, `${index}.json`)));
}

console.log("");
const width = Math.max(...outcomes.map(({ title }) => title.length));
for (const { title, passed, failed, skipped, seconds, note } of outcomes) {
  const counts = [
    ...(passed > 0 ? [`${passed} passed`] : []),
    ...(failed > 0 ? [`${failed} failed`] : []),
    ...(skipped > 0 ? [`${skipped} skipped`] : []),
    ...(note === "" ? [] : [note]),
  ];
  const verdict = failed > 0 ? "FAILED" : "ok    ";
  console.log(`${verdict}  ${title.padEnd(width)}  ${seconds.toFixed(1).padStart(6)} s  ${counts.join(", ")}`);
}
const sum = (of: (outcome: Outcome) => number): number => outcomes.reduce((total, outcome) => total + of(outcome), 0);
const failed = sum((outcome) => outcome.failed);
console.log(`\n${sum((outcome) => outcome.passed)} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);

async function perform(step: Step, file: string): Promise<Outcome> {
  const startedAt = performance.now();
  const child = Bun.spawn([...step.command, ...(step.report?.(file) ?? [])], {
    cwd: root,
    env: toolEnv(step.env),
    stdin: "ignore",
    stdout: "inherit",
    stderr: "inherit",
  });
  const timer = setTimeout(() => {
    console.error(`"${step.title}" has taken longer than ${STEP_LIMIT_MS / 60_000} minutes and is ended`);
    child.kill("SIGKILL");
  }, STEP_LIMIT_MS);
  const code = await child.exited;
  clearTimeout(timer);
  const seconds = (performance.now() - startedAt) / 1000;
  const results = step.report === undefined ? undefined : readReport(file);
  if (results === undefined) {
    // The lab says by itself why it was skipped; any other test run without results has crashed.
    const isSkipped = code === 0 && step.report === labReport;
    const isFailed = code !== 0 || (step.report !== undefined && !isSkipped);
    const note = isSkipped ? "skipped, see above" : isFailed ? `exit code ${code}` : "";
    return { title: step.title, passed: 0, failed: isFailed ? 1 : 0, skipped: 0, seconds, note };
  }
  // An error outside of any test, such as a rejection that nobody awaited; or a pattern that no longer fits any.
  const isHollow = results.failed === 0 && (code !== 0 || results.passed === 0);
  return {
    title: step.title,
    ...results,
    failed: isHollow ? 1 : results.failed,
    seconds,
    note: isHollow ? `exit code ${code}` : "",
  };
}

interface VitestReport {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly numPendingTests: number;
  readonly testResults: readonly {
    readonly status: string;
    readonly assertionResults: readonly { readonly status: string }[];
  }[];
}

function readReport(file: string): { passed: number; failed: number; skipped: number } | undefined {
  let report: VitestReport;
  try {
    report = JSON.parse(readFileSync(file, "utf8")) as VitestReport;
  } catch {
    return undefined;
  }
  // A file that could not even be loaded has no tests to count.
  const broken = report.testResults.filter(
    ({ status, assertionResults }) =>
      status === "failed" && !assertionResults.some((assertion) => assertion.status === "failed"),
  );
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken.length,
    skipped: report.numPendingTests,
  };
}
