/**
 * The rooms of ARCHITECTURE.md, kept by a test: pure rooms ask nobody for time, randomness, sockets or files, and imports go one way.
 *
 * A room that does not exist yet is passed over. Exceptions are named one by one, each with what it may do.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, normalize } from "node:path";
import { describe, expect, test } from "vitest";

/** Pure rooms, and the rooms that each may import from besides itself. */
const PURE_ROOMS: Readonly<Record<string, readonly string[]>> = {
  shared: [],
  "agent/data": ["shared"],
  "agent/dns": ["shared"],
  "agent/path": ["shared"],
  "agent/portmap": ["shared"],
  "agent/overlay": ["shared"],
  "agent/node": ["shared", "agent/path", "agent/data", "agent/overlay"],
  "coordinator/registry": ["shared"],
  "coordinator/signalling": ["shared"],
  "coordinator/stun": ["shared"],
  "coordinator/relay": ["shared"],
};

/** The synchronous primitives of node:crypto: the session's, and the data path's own cipher calls. No other module, nothing else. */
const NODE_CRYPTO = new Set(["shared/session/primitives.ts", "agent/data/aead.ts"]);

/** Shells that live beside the rules which they drive: real sockets and the machine's own addresses. */
const SHELLS = new Set([
  "coordinator/relay/relay_service.ts",
  "coordinator/relay/relay_websocket.ts",
  "coordinator/signalling/signalling_server.ts",
  "coordinator/stun/stun_addresses.ts",
  "coordinator/stun/stun_sockets.ts",
]);

/** Files outside the allowed rooms that a room may import: contracts (only as types) and the coordinator's own token buckets. */
const CONTRACTS: Readonly<Record<string, readonly string[]>> = {
  "agent/path": ["agent/data/plane.ts"],
  "coordinator/registry": ["coordinator/store/store.ts"],
  "coordinator/signalling": [
    "coordinator/store/store.ts",
    "coordinator/stun/stun_server.ts",
    "coordinator/config.ts",
    "coordinator/log.ts",
  ],
};
const COMMON: Readonly<Record<string, readonly string[]>> = {
  "coordinator/registry": ["coordinator/limits.ts"],
  "coordinator/signalling": ["coordinator/limits.ts", "coordinator/registry/"],
  "coordinator/stun": ["coordinator/limits.ts"],
  "coordinator/relay": ["coordinator/limits.ts"],
};

/** Packages that only compute. */
const PURE_PACKAGES = new Set(["dns-packet", "ipaddr.js", "valibot"]);

const AMBIENT =
  /\b(?:Date\.now|new Date\b|performance\.|Math\.random|getRandomValues|randomBytes|randomUUID|randomInt|crypto\.subtle|set(?:Timeout|Interval|Immediate)|queueMicrotask|fetch\(|WebSocket\(|console\.|process\.|Bun\.|Deno\.)|\b(?:async|await)\s/;

for (const [room, allowed] of Object.entries(PURE_ROOMS)) {
  describe.skipIf(!existsSync(room))(room, () => {
    test.each(filesOf(room).filter((path) => !SHELLS.has(path)))("%s is pure", (path) => {
      const code = codeOf(path);
      expect(code).not.toMatch(AMBIENT);
      for (const { target } of importsOf(code)) {
        if (target.startsWith(".")) continue;
        const isNamedException = NODE_CRYPTO.has(path) && target === "node:crypto";
        expect(isNamedException || PURE_PACKAGES.has(target), `imports "${target}"`).toBe(true);
      }
    });

    test.each(filesOf(room).filter((path) => !SHELLS.has(path)))("%s imports one way", (path) => {
      for (const { target, isType } of importsOf(codeOf(path))) {
        if (!target.startsWith(".")) continue;
        const file = normalize(join(path, "..", target));
        const rooms = [room, ...allowed].map((name) => `${name}/`);
        const isAllowed =
          [...rooms, ...(COMMON[room] ?? [])].some((prefix) => file.startsWith(prefix)) ||
          (isType && (CONTRACTS[room] ?? []).includes(file));
        expect(isAllowed, `imports ${file}`).toBe(true);
      }
    });
  });
}

test.each([...filesOf("agent"), ...filesOf("coordinator"), ...filesOf("shared")])(
  "%s stays in its program, and its imports exist",
  (path) => {
    const [program = ""] = path.split("/");
    for (const { target } of importsOf(codeOf(path))) {
      if (!target.startsWith(".")) continue;
      const file = normalize(join(path, "..", target));
      expect(
        [`${program}/`, "shared/", "package.json"].some((prefix) => file.startsWith(prefix)),
        `imports ${file}`,
      ).toBe(true);
      expect(file.endsWith(".ts") || file.endsWith(".json"), `imports ${file} without its ending`).toBe(true);
      expect(existsSync(file), `imports ${file}, which does not exist`).toBe(true);
    }
  },
);

test("only the named files use node:crypto among the pure ones, and they take no randomness from it", () => {
  for (const path of NODE_CRYPTO) {
    const names = /import\s*\{([^}]*)\}\s*from "node:crypto"/.exec(codeOf(path))?.[1] ?? "";
    expect(names.trim(), path).not.toBe("");
    expect(names, path).not.toMatch(/random|generate|scrypt|webcrypto/i);
  }
});

test("the rules themselves catch what they forbid", () => {
  for (const bad of ["const t = Date.now();", "setTimeout(f, 1)", "await send()", "Deno.readFile", "new Date()"]) {
    expect(bad).toMatch(AMBIENT);
  }
  expect("const update = validate(candidate); // Date").not.toMatch(AMBIENT);
  const found = importsOf(
    'import type { A } from "./a.ts";\nimport {\n  b,\n} from "../b.ts";\nexport * from "./c.ts";',
  );
  expect(found).toEqual([
    { target: "./a.ts", isType: true },
    { target: "../b.ts", isType: false },
    { target: "./c.ts", isType: false },
  ]);
});

function filesOf(room: string): string[] {
  if (!existsSync(room)) return [];
  return readdirSync(room, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts"))
    .map((file) => join(room, file))
    .toSorted();
}

/** Without comments, which may say "now" or name a forbidden function. A `//` after a colon or in quotes is a URL. */
function codeOf(path: string): string {
  return readFileSync(path, "utf8").replace(/\/\*[\s\S]*?\*\/|(?<![:"'`])\/\/.*$/gm, "");
}

function importsOf(code: string): { readonly target: string; readonly isType: boolean }[] {
  const statements = code.matchAll(
    /\b(?:import|export)\s+(type\s)?[^;"']*?from\s+"([^"]+)"|\bimport\s*\(?\s*"([^"]+)"/g,
  );
  return [...statements].map(([, type, target, bare]) => ({
    target: target ?? bare ?? "",
    isType: type !== undefined,
  }));
}
