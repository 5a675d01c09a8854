/**
 * Builds what a release ships: the agent as one executable, the coordinator as one file for `deno run`.
 *
 * Usage: npm run build [-- --help | --agent | --coordinator | --outdir DIR]
 */
import { chmodSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { root, run } from "./run.ts";

const HELP = `Usage: npm run build [-- OPTIONS]

  --agent          only the agent: tunnelmesh-agent
  --coordinator    only the coordinator: tunnelmesh-coordinator.js
  --outdir DIR     default: dist
`;

const { values } = parseArgs({
  options: {
    help: { type: "boolean", default: false },
    agent: { type: "boolean", default: false },
    coordinator: { type: "boolean", default: false },
    outdir: { type: "string", default: join(root, "dist") },
  },
});
if (values.help) {
  console.log(HELP);
  process.exit(0);
}
const isAll = values.agent === values.coordinator;
mkdirSync(values.outdir, { recursive: true });
if (isAll || values.agent) await buildAgent(join(values.outdir, "tunnelmesh-agent"));
if (isAll || values.coordinator) await buildCoordinator(join(values.outdir, "tunnelmesh-coordinator.js"));

/**
 * Without the two `--no-compile-autoload-...` the executable would run the `preload` scripts of a bunfig.toml, and take the .env, of whatever
 * directory it is started in: for an agent that runs as root, somebody else's code.
 */
async function buildAgent(outfile: string): Promise<void> {
  // Built beside it and renamed, since an executable that is running cannot be overwritten.
  const fresh = `${outfile}.new`;
  await run("build the agent", [
    "bun",
    "build",
    "--compile",
    "--no-compile-autoload-bunfig",
    "--no-compile-autoload-dotenv",
    // Parsed at build time: a command answers in 15 ms instead of 55. Needs the format to be named, since it has top-level await.
    "--bytecode",
    "--format=esm",
    "--minify-syntax",
    "--minify-whitespace",
    // ws and ssh2 probe for these optional native helpers, and we ship no native code.
    "--external=cpu-features",
    "--external=*.node",
    "--external=bufferutil",
    "--external=utf-8-validate",
    "agent/main.ts",
    // `new Worker` finds only entry points in a compiled executable.
    "agent/driver/data_worker.ts",
    "--outfile",
    fresh,
  ]);
  renameSync(fresh, outfile);
  report(outfile);
}

/** Everything but `node:` modules goes into the file. Deno runs it as it runs coordinator/main.ts, with the same permissions. */
async function buildCoordinator(outfile: string): Promise<void> {
  const fresh = `${outfile}.new.js`;
  await run("bundle the coordinator", [
    "bun",
    "build",
    "--target=node",
    "--format=esm",
    "--minify-syntax",
    "--minify-whitespace",
    // Optional native helpers of ssh2 and ws, which are never there.
    "--external=cpu-features",
    "--external=*.node",
    "--external=bufferutil",
    "--external=utf-8-validate",
    "coordinator/main.ts",
    "--outfile",
    fresh,
  ]);
  const licence =
    "// TunnelMesh coordinator. AGPL-3.0-only. Started without permissions, it prints the exact command.\n";
  writeFileSync(fresh, licence + readFileSync(fresh, "utf8"));
  chmodSync(fresh, 0o644);
  renameSync(fresh, outfile);
  report(outfile);
}

function report(path: string): void {
  const { size } = statSync(path);
  const text = size > 1_000_000 ? `${(size / 1_000_000).toFixed(1)} MB` : `${(size / 1000).toFixed(0)} kB`;
  console.log(`    ${path}  ${text}`);
}
