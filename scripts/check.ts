/** Format, lint with type-aware rules, and types on both the Bun and the Deno side. Usage: npm run check [-- --fix] */
import { run } from "./run.ts";

const fix = process.argv.includes("--fix");

await run("format", ["biome", "format", ...(fix ? ["--write"] : []), "."]);
await run("lint", [
  "oxlint",
  "--type-aware",
  ...(fix ? ["--fix"] : []),
  "agent",
  "coordinator",
  "shared",
  "scripts",
  "test",
]);
await run("types (Bun side)", ["tsc", "-p", "tsconfig.json"]);
// With the installed modules: @types/ssh2 would otherwise bring an older @types/node, which hides Deno's own (node:sqlite).
await run(
  "types (Deno side)",
  ["deno", "check", "--quiet", "--node-modules-dir=manual", "coordinator/main.ts", "coordinator/serve.ts"],
  { DENO_NO_PACKAGE_JSON: "1" },
);
