/** A directory of its own for each test, removed afterwards. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach } from "vitest";

const made: string[] = [];

afterEach(() => {
  for (const path of made.splice(0)) rmSync(path, { recursive: true, force: true });
});

export function scratchDir(): string {
  // Short, since a unix socket path may have only 107 bytes.
  const path = mkdtempSync(join(tmpdir(), "tm-"));
  made.push(path);
  return path;
}
