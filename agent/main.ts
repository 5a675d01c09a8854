/**
 * The agent's entry point: argv, environment and signals in, exit code out. The only file that ends the process.
 */
import { runCommandLine } from "./cli/execute.ts";
import { processHost } from "./cli/host.ts";
import { systemCode } from "./state/user_error.ts";

const SIGNALS = { SIGINT: 2, SIGTERM: 15 } as const;
/** Commands that a signal ends in an orderly way, with an exit code of their own. The others die as if they had no handler. */
const GRACEFUL = new Set(["up", "ping", "bench", "status", "forward", "socks"]);

const LOG_FLUSH_MS = 500;

const argv = process.argv.slice(2);
const stop = new AbortController();
for (const [name, number] of Object.entries(SIGNALS)) {
  process.on(name, () => {
    // A second signal means: at once. What is left behind, the next start cleans up.
    if (stop.signal.aborted || !GRACEFUL.has(argv[0] ?? "")) process.exit(128 + number);
    stop.abort(name);
  });
}
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error) => {
    // The reader has gone (`status --watch | head`): no fault for a command. An agent goes on without its log.
    if (systemCode(error) === "EPIPE" && argv[0] !== "up") process.exit(0);
  });
}

const exitCode = await runCommandLine(argv, processHost(), stop.signal);
// Output to a pipe may still be on its way: a status of a large mesh is more than a pipe holds. An agent that stops does not wait for ever
// for whoever should read its log.
const written = [process.stdout, process.stderr].map(
  async (stream) => new Promise<void>((resolve) => stream.end(() => resolve())),
);
await Promise.race([
  Promise.all(written),
  ...(argv[0] === "up" ? [new Promise((resolve) => setTimeout(resolve, LOG_FLUSH_MS))] : []),
]);
process.exit(exitCode);
