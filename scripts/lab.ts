/** Runs the tests on real NATs in network namespaces. Usage: npm run lab -- [--full | --short] [--json FILE] [PATTERN...] */
import { parseArgs } from "node:util";
import { labNamespaces, removeStaleLabs } from "../test/lab/namespace.ts";
import { missingForLab } from "./lab_requirements.ts";
import { root, run, toolEnv } from "./run.ts";

const USAGE = `Usage: npm run lab -- [--full | --short] [--json FILE] [PATTERN...]

Builds small internets out of network namespaces and nftables rules and runs the real programs behind
real kernel NATs. Needs Linux, root, iproute2, nftables, conntrack and /dev/net/tun; without them it says
so and counts as skipped (exit code 0).

  --full     every repetition and every figure, not one case of each kind (sets LAB_FULL=1)
  --short    one case of each NAT type and rung, as npm test does
  --json F   write vitest's JSON report to the file F as well
  --help     this text
  PATTERN    only test files whose path contains it`;

const arguments_ = process.argv.slice(2);
if (arguments_.includes("--help") || arguments_.includes("-h")) {
  console.log(USAGE);
  process.exit(0);
}
/** Together they have every NAT type at least once, each with another partner, and every rung. */
const SHORT =
  "^(open x tcp443only is connected|pairs of NATs (open x restricted|fullcone x portrestricted|symmetric x restricted|udpblocked x fullcone|that take many packets (portrestricted x symmetric|symblock256 x symblock256)))";
const { values, positionals: patterns } = parse();

const obstacle = missingForLab();
if (obstacle !== undefined) {
  console.log(`skipped  lab tests: ${obstacle}`);
  process.exit(0);
}

await run("build", ["bun", "scripts/build.ts", "--agent"]);
const child = Bun.spawn(
  [
    "bun",
    "--bun",
    "node_modules/vitest/vitest.mjs",
    "run",
    "-c",
    "vitest.lab.config.ts",
    ...(values.short
      ? ["test/lab/direct.test.ts", "test/lab/hard.test.ts", "test/lab/ladder.test.ts", "-t", SHORT]
      : []),
    ...(values.json === undefined ? [] : ["--reporter=default", "--reporter=json", `--outputFile.json=${values.json}`]),
    ...patterns,
  ],
  {
    cwd: root,
    env: toolEnv(values.full ? { LAB_FULL: "1" } : {}),
    stdin: "ignore",
    stdout: "inherit",
    stderr: "inherit",
  },
);
// On Ctrl-C the tests end first, by the same signal from the terminal; what they leave is swept below.
process.on("SIGINT", () => undefined);
process.on("SIGTERM", () => child.kill("SIGTERM"));
const code = await child.exited;
await removeStaleLabs();
const remaining = labNamespaces().length;
if (remaining > 0) console.log(`${remaining} network namespaces of other running labs remain`);
process.exit(code);

function parse() {
  try {
    return parseArgs({
      args: arguments_,
      options: {
        full: { type: "boolean", default: false },
        short: { type: "boolean", default: false },
        json: { type: "string" },
      },
      allowPositionals: true,
    });
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : String(error)}\n\n${USAGE}`);
    return process.exit(2);
  }
}
