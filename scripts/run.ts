/** Runs one of the project's pinned tools from node_modules/.bin and ends the script with its exit code when it fails. */
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));

/** Environment in which the pinned tools come first. */
export const toolEnv = (extra: Record<string, string> = {}): Record<string, string | undefined> => ({
  ...process.env,
  PATH: join(root, "node_modules", ".bin") + delimiter + (process.env["PATH"] ?? ""),
  ...extra,
});

export async function run(title: string, command: string[], extra: Record<string, string> = {}): Promise<void> {
  const startedAt = performance.now();
  const child = Bun.spawn(command, {
    cwd: root,
    env: toolEnv(extra),
    stdin: "ignore",
    stdout: "inherit",
    stderr: "inherit",
  });
  const code = await child.exited;
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  console.log(`${code === 0 ? "ok" : "FAILED"}  ${title} (${seconds} s)`);
  if (code !== 0) process.exit(code);
}
