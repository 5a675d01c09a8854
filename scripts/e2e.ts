/**
 * Runs the tests of the whole product on loopback: builds the agent, then the real coordinator and real agents through every exit code.
 *
 * Usage: npm run e2e [-- PATTERN...]
 */
import { run } from "./run.ts";

const USAGE = `Usage: npm run e2e -- [PATTERN...]

Builds the agent and runs test/e2e: the real coordinator under Deno and compiled agents on loopback.
Needs no root; the one test that needs it says that it was skipped.

  --help     this text
  PATTERN    only test files whose path contains it`;

const arguments_ = process.argv.slice(2);
if (arguments_.includes("--help") || arguments_.includes("-h")) {
  console.log(USAGE);
  process.exit(0);
}
const unknown = arguments_.find((argument) => argument.startsWith("-"));
if (unknown !== undefined) {
  console.error(`Unknown option ${unknown}\n\n${USAGE}`);
  process.exit(2);
}
await run("build", ["bun", "scripts/build.ts", "--agent"]);
await run("e2e", [
  "bun",
  "--bun",
  "node_modules/vitest/vitest.mjs",
  "run",
  "-c",
  "vitest.e2e.config.ts",
  ...arguments_,
]);
