import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { MemoryStore } from "../../../../coordinator/store/memory_store.ts";
import { openSqliteStore } from "../../../../coordinator/store/sqlite_store.ts";
import type { KeyRecord, PeerRecord, Store } from "../../../../coordinator/store/store.ts";
import type { PeerId } from "../../../../shared/session/identity.ts";

const cleanups: (() => void)[] = [];
afterEach(() =>
  cleanups
    .splice(0)
    .reverse()
    .forEach((clean) => clean()),
);

describe.each([
  ["memory", (): Store => new MemoryStore()],
  ["SQLite", (): Store => keep(openSqliteStore(directory()))],
] as const)("the %s store", (_name, open) => {
  test("returns what was put, whole", () => {
    const store = open();
    store.setMeta("mesh_ipv4", "100.96.0.0/12");
    store.putKey(key);
    store.putPeer(peer("a"));
    expect(store.meta("mesh_ipv4")).toBe("100.96.0.0/12");
    expect(store.meta("static_key")).toBeUndefined();
    expect(store.key("k")).toEqual(key);
    expect(store.keys()).toEqual([key]);
    expect(store.peer(id("a"))).toEqual(peer("a"));
    expect(store.peer(id("b"))).toBeUndefined();
  });

  test("replaces what has the same id", () => {
    const store = open();
    store.putKey(key);
    store.putKey({ ...key, usedUnixMs: 5, revoked: true });
    store.putPeer(peer("a"));
    store.putPeer({ ...peer("a"), name: "other", lastSeenUnixMs: 9 });
    expect(store.keys()).toEqual([{ ...key, usedUnixMs: 5, revoked: true }]);
    expect(store.peers("approved")).toEqual([{ ...peer("a"), name: "other", lastSeenUnixMs: 9 }]);
    store.removeKey("k");
    expect(store.keys()).toEqual([]);
  });

  test("lists peers by state, in the order of their ids", () => {
    const store = open();
    store.putPeer(peer("b"));
    store.putPeer(peer("a"));
    store.putPeer({ ...peer("c"), state: "pending", code: "ABCDEFGH" });
    expect(store.peers("approved").map((p) => p.id)).toEqual([id("a"), id("b")]);
    expect(store.peers("pending").map((p) => p.code)).toEqual(["ABCDEFGH"]);
    store.removePeer(id("a"));
    expect(store.peers("approved").map((p) => p.id)).toEqual([id("b")]);
  });

  test("refuses two approved peers of one name or address, and keeps the first", () => {
    const store = open();
    store.putPeer(peer("a"));
    for (const field of ["name", "meshIPv4", "meshIPv6"] as const) {
      expect(() => store.putPeer({ ...peer("b"), [field]: peer("a")[field] })).toThrow();
      expect(store.peers("approved")).toEqual([peer("a")]);
    }
    store.putPeer({ ...peer("b"), name: peer("a").name, state: "pending" });
    expect(store.peers("pending").length).toBe(1);
  });

  test("keeps whom a peer refuses, until it says otherwise or is gone", () => {
    const store = open();
    store.putPeer(peer("a"));
    store.setBlocks(id("a"), [id("b"), id("c"), id("b")]);
    expect(store.blocks()).toEqual(new Map([[id("a"), new Set([id("b"), id("c")])]]));
    store.setBlocks(id("a"), [id("c")]);
    expect(store.blocks()).toEqual(new Map([[id("a"), new Set([id("c")])]]));
    store.removePeer(id("a"));
    expect(store.blocks().size).toBe(0);
  });

  test("a transaction that throws leaves nothing behind", () => {
    const store = open();
    store.putPeer(peer("a"));
    const work = () =>
      store.transaction(() => {
        store.putPeer(peer("b"));
        store.removePeer(id("a"));
        throw new Error("no");
      });
    expect(work).toThrow("no");
    expect(store.peers("approved")).toEqual([peer("a")]);
    expect(store.transaction(() => 7)).toBe(7);
  });
});

describe("the SQLite store", () => {
  test("still has everything after it was closed and opened", () => {
    const dir = directory();
    const first = openSqliteStore(dir);
    first.putPeer(peer("a"));
    first.close();
    expect(keep(openSqliteStore(dir)).peers("approved")).toEqual([peer("a")]);
  });

  test("notices what another process wrote, and only that", () => {
    const dir = directory();
    const ours = keep(openSqliteStore(dir));
    const theirs = keep(openSqliteStore(dir));
    const before = ours.version();
    ours.putPeer(peer("a"));
    expect(ours.version()).toBe(before);
    theirs.putPeer(peer("b"));
    expect(ours.version()).not.toBe(before);
    expect(ours.peers("approved").length).toBe(2);
  });

  test("is readable by its owner only, companions included", () => {
    const dir = join(directory(), "new");
    keep(openSqliteStore(dir)).putPeer(peer("a"));
    expect(statSync(dir).mode & 0o777).toBe(0o700);
    for (const file of ["coordinator.db", "coordinator.db-wal"]) {
      expect(statSync(join(dir, file)).mode & 0o777, file).toBe(0o600);
    }
  });

  test("says which file is no database", () => {
    const dir = directory();
    writeFileSync(join(dir, "coordinator.db"), "this is not a database, it is a text of some length".repeat(50));
    expect(() => openSqliteStore(dir)).toThrow(/^Cannot open the database .*coordinator\.db: file is not a database$/);
  });

  test("refuses a database of a newer version", () => {
    const dir = directory();
    openSqliteStore(dir).close();
    const newer = new DatabaseSync(join(dir, "coordinator.db"));
    newer.exec("PRAGMA user_version = 99");
    newer.close();
    expect(() => openSqliteStore(dir)).toThrow("it has schema 99, this version knows only 1; use a newer coordinator");
  });

  test("kill -9 in the middle of writing loses nothing that was confirmed", { timeout: 30_000 }, async () => {
    const dir = directory();
    for (let round = 0; round < 3; round++) {
      const confirmed = await writeUntilKilled(dir, 40);
      const store = openSqliteStore(dir);
      const ids = new Set(store.keys().map((record) => record.id));
      store.close();
      expect(confirmed.length).toBeGreaterThanOrEqual(40);
      expect(confirmed.filter((written) => !ids.has(written))).toEqual([]);
    }
  });
});

const id = (letter: string): PeerId => letter.repeat(26) as PeerId;
const key: KeyRecord = {
  id: "k",
  secretHash: Uint8Array.of(1, 2, 3),
  createdUnixMs: 1_790_000_000_000,
  expiresUnixMs: 1_790_000_000_001,
  reusable: true,
  usedUnixMs: undefined,
  revoked: false,
};
const peer = (letter: string): PeerRecord => ({
  id: id(letter),
  state: "approved",
  name: `name-${letter}`,
  nameIsExplicit: false,
  identity: Uint8Array.of(1, letter.charCodeAt(0)),
  sessionKey: Uint8Array.of(2),
  signature: Uint8Array.of(3),
  meshIPv4: `100.96.0.${letter.charCodeAt(0)}`,
  meshIPv6: `fd00::${letter.charCodeAt(0)}`,
  code: undefined,
  createdUnixMs: 1,
  lastSeenUnixMs: 2,
});

function directory(): string {
  const dir = mkdtempSync(join(tmpdir(), "tunnelmesh-store-"));
  cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

function keep(store: Store): Store {
  cleanups.push(() => store.close());
  return store;
}

/** Runs a child that writes keys and prints each id once it is written; kills it after `count`. Returns what was printed. */
function writeUntilKilled(dir: string, count: number): Promise<string[]> {
  const writer = fileURLToPath(new URL("store_writer.ts", import.meta.url));
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["run", "-A", "--node-modules-dir=manual", writer, dir], {
      env: { ...process.env, DENO_NO_PACKAGE_JSON: "1" },
      stdio: ["ignore", "pipe", "inherit"],
    });
    let output = "";
    child.stdout.on("data", (chunk: Buffer) => {
      output += chunk.toString();
      if (output.split("\n").length > count) child.kill("SIGKILL");
    });
    child.on("error", reject);
    // The last line may be cut: only whole ones are confirmations.
    child.on("close", () => resolve(output.split("\n").slice(0, -1)));
  });
}
