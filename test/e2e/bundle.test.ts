/** The coordinator as a release ships it: bundled into one file, away from the project's folder, started by `deno run`. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";

const ROOT = join(import.meta.dirname, "../..");
const bin = (name: string): string => join(ROOT, "node_modules/.bin", name);

test("the one-file coordinator starts, is healthy, and stops on a signal", async () => {
  const directory = mkdtempSync(join(tmpdir(), "tunnelmesh-bundle-"));
  try {
    const build = Bun.spawnSync([bin("bun"), "scripts/build.ts", "--coordinator", "--outdir", directory], {
      cwd: ROOT,
    });
    expect(build.exitCode, build.stderr.toString()).toBe(0);
    const flags = "--listen http://127.0.0.1:0 --ssh-listen 127.0.0.1:0 --stun-address 127.0.0.1 --log-format json";
    const ports = "--stun-port 0 --stun-alternate-port 0";
    const child = Bun.spawn(
      [
        bin("deno"),
        "run",
        "-A",
        join(directory, "tunnelmesh-coordinator.js"),
        ...flags.split(" "),
        ...ports.split(" "),
      ].concat("--data-dir", join(directory, "data")),
      { cwd: directory, stdin: "ignore", stdout: "ignore", stderr: "pipe" },
    );
    let port = 0;
    let text = "";
    for await (const chunk of child.stderr) {
      text += new TextDecoder().decode(chunk);
      port = Number(/"event":"listening","kind":"http"[^\n]*"port":(\d+)/.exec(text)?.[1] ?? 0);
      if (text.includes('"event":"ready"')) break;
    }
    expect(port, text).toBeGreaterThan(0);
    expect((await fetch(`http://127.0.0.1:${port}/healthz`)).status).toBe(200);
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
