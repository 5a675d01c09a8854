/**
 * Entry point of the coordinator and the only file that names Deno.
 *
 * Before anything else is loaded it asks whether everything that is needed is permitted, and says what is missing otherwise: a
 * prompt without a terminal, or a stack trace out of a dependency, helps nobody.
 */
import { missingPermissions } from "./permissions.ts";

/** What we use of Deno, so that this file type-checks on both sides. */
interface DenoApi {
  readonly args: readonly string[];
  readonly permissions: { querySync(query: object): { readonly state: string } };
  exit(code: number): never;
}
const deno = (globalThis as unknown as { readonly Deno: DenoApi }).Deno;

const EXIT_FAILED = 1;
const EXIT_BAD_CONFIG = 78;

const scriptPath = new URL(import.meta.url).pathname;
const script = scriptPath.endsWith("coordinator/main.ts")
  ? "coordinator/main.ts"
  : (scriptPath.split("/").at(-1) ?? "");

const missing = missingPermissions(
  (query) => deno.permissions.querySync(query).state === "granted",
  [script, ...deno.args].join(" "),
);
if (missing !== undefined) {
  console.error(missing);
  deno.exit(EXIT_BAD_CONFIG);
}

try {
  const { start } = await import("./serve.ts");
  const code = await start(deno.args);
  deno.exit(code);
} catch (error) {
  const text = error instanceof Error ? error.message : String(error);
  // Deno's words when an npm package is neither in its cache nor to be had.
  const isMissingDependency =
    /Failed loading|npm package|registry|error sending request|not found in (the )?npm|--cached-only|Could not find/i.test(
      text,
    );
  console.error(
    isMissingDependency
      ? `Cannot load the coordinator's dependencies: ${text.split("\n")[0] ?? ""}\nRun "npm ci" once, or start it once with network access`
      : `Cannot start the coordinator: ${error instanceof Error ? (error.stack ?? text) : text}`,
  );
  deno.exit(EXIT_FAILED);
}
