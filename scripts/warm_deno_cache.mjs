/**
 * Runs after `npm ci`: puts the coordinator's few dependencies into Deno's own cache, so that `deno run -P coordinator/main.ts`
 * then starts without a network. Deno would otherwise fetch them at its first start. A failure is told, not fatal.
 *
 * DENO_NO_PACKAGE_JSON keeps Deno from looking up every development tool of package.json as well.
 */
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const result = spawnSync("deno", ["cache", "--quiet", "coordinator/main.ts", "coordinator/serve.ts"], {
  cwd: root,
  env: { ...process.env, DENO_NO_PACKAGE_JSON: "1" },
  encoding: "utf8",
  shell: process.platform === "win32",
});
if (result.status !== 0)
  console.warn(
    `Cannot fill Deno's cache; the coordinator will fetch its dependencies at first start\n${result.stderr}`,
  );
