/**
 * Completes package-lock.json after `npm install` on a machine whose registry lacks some platforms' binaries.
 *
 * Tools such as bun, deno and oxlint list one optional package per platform. npm leaves those it could not look up out of
 * the lock file, and `npm ci` then refuses the whole file as out of sync. This adds an entry with version, os and cpu for each,
 * so that npm skips it here and fetches it by version on the platform that it is for.
 *
 * Usage: node scripts/complete_lock.mjs
 */
import { readFileSync, writeFileSync } from "node:fs";

const file = new URL("../package-lock.json", import.meta.url);
const lock = JSON.parse(readFileSync(file, "utf8"));
let added = 0;
for (const entry of Object.values(lock.packages)) {
  for (const [name, range] of Object.entries(entry.optionalDependencies ?? {})) {
    const key = `node_modules/${name}`;
    if (lock.packages[key] !== undefined || !/^\d/.test(range)) continue;
    const parts = name.split(/[-/]/);
    const system = [
      "android",
      "darwin",
      "freebsd",
      "linux",
      "netbsd",
      "openbsd",
      "openharmony",
      "sunos",
      "aix",
      "windows",
      "win32",
    ].find((s) => parts.includes(s));
    const musl = parts.includes("musl") || parts.includes("musleabihf");
    const processor = [
      "arm64",
      "aarch64",
      "x64",
      "ia32",
      "arm",
      "ppc64",
      "riscv64",
      "s390x",
      "loong64",
      "mips64el",
    ].find((p) => parts.includes(p));
    lock.packages[key] = {
      version: range,
      ...(processor === undefined ? {} : { cpu: [processor === "aarch64" ? "arm64" : processor] }),
      ...(musl ? { libc: ["musl"] } : {}),
      dev: true,
      optional: true,
      ...(system === undefined ? {} : { os: [system === "windows" ? "win32" : system] }),
    };
    added++;
  }
}
lock.packages = Object.fromEntries(Object.entries(lock.packages).sort(([a], [b]) => (a < b ? -1 : 1)));
writeFileSync(file, `${JSON.stringify(lock, undefined, 2)}\n`);
console.log(`Added ${added} entries`);
