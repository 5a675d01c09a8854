/**
 * The store on disk: `coordinator.db` in the data directory, by node:sqlite.
 *
 * A write-ahead log with synchronous=FULL: what a client was told survives kill -9 and a power cut, and the command line may write
 * while the coordinator runs. The file is 0600, since it holds the coordinator's private key.
 */
import { chmodSync, closeSync, mkdirSync, openSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync, type SQLInputValue, type SQLOutputValue, type StatementSync } from "node:sqlite";
import type { PeerId } from "../../shared/session/identity.ts";
import type { KeyRecord, MetaName, PeerRecord, PeerState, Store } from "./store.ts";

export const DATABASE_FILE = "coordinator.db";
const SCHEMA_VERSION = 1;
/** How long a writer waits for the other process; a write takes milliseconds. */
const BUSY_TIMEOUT_MS = 5000;

const SCHEMA = `
  CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
  CREATE TABLE keys (
    id TEXT PRIMARY KEY, secret_hash BLOB NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL,
    reusable INTEGER NOT NULL, used INTEGER, revoked INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE peers (
    id TEXT PRIMARY KEY, state TEXT NOT NULL CHECK (state IN ('approved', 'pending', 'removed')),
    name TEXT NOT NULL, name_is_explicit INTEGER NOT NULL,
    identity BLOB NOT NULL, session_key BLOB NOT NULL, signature BLOB NOT NULL,
    mesh_ipv4 TEXT NOT NULL, mesh_ipv6 TEXT NOT NULL, code TEXT, created INTEGER NOT NULL, last_seen INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE UNIQUE INDEX peers_name ON peers (name) WHERE state = 'approved';
  CREATE UNIQUE INDEX peers_ipv4 ON peers (mesh_ipv4) WHERE state = 'approved';
  CREATE UNIQUE INDEX peers_ipv6 ON peers (mesh_ipv6) WHERE state = 'approved';
  CREATE TABLE blocks (peer TEXT NOT NULL, blocked TEXT NOT NULL, PRIMARY KEY (peer, blocked)) STRICT, WITHOUT ROWID;
  PRAGMA user_version = ${SCHEMA_VERSION};
`;

type Row = Record<string, SQLOutputValue>;

/** Opens or makes the database. Throws an error that says what is wrong with the directory or the file. */
export function openSqliteStore(dataDir: string): Store {
  const path = join(dataDir, DATABASE_FILE);
  try {
    mkdirSync(dataDir, { recursive: true, mode: 0o700 });
    // Made before SQLite does, so that the file and its two companions are never readable by others.
    closeSync(openSync(path, "a", 0o600));
    chmodSync(path, 0o600);
    return new SqliteStore(path);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new Error(`Cannot open the database ${path}: ${why}`, { cause: error });
  }
}

class SqliteStore implements Store {
  readonly #database: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();

  constructor(path: string) {
    this.#database = new DatabaseSync(path);
    try {
      this.#database.exec(
        `PRAGMA busy_timeout = ${BUSY_TIMEOUT_MS}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;`,
      );
      this.transaction(() => {
        const version = Number(this.#get("PRAGMA user_version")?.["user_version"] ?? 0);
        if (version === 0) this.#database.exec(SCHEMA);
        else if (version !== SCHEMA_VERSION)
          throw new Error(
            `it has schema ${version}, this version knows only ${SCHEMA_VERSION}; use a newer coordinator`,
          );
      });
    } catch (error) {
      this.#database.close();
      throw error;
    }
  }

  meta(name: MetaName): string | undefined {
    const value = this.#get("SELECT value FROM meta WHERE name = ?", name)?.["value"];
    return typeof value === "string" ? value : undefined;
  }

  setMeta(name: MetaName, value: string): void {
    this.#run("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value);
  }

  keys(): KeyRecord[] {
    return this.#all("SELECT * FROM keys ORDER BY created, id").map(keyOfRow);
  }

  key(id: string): KeyRecord | undefined {
    const row = this.#get("SELECT * FROM keys WHERE id = ?", id);
    return row === undefined ? undefined : keyOfRow(row);
  }

  putKey(key: KeyRecord): void {
    this.#run(
      "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)",
      key.id,
      key.secretHash,
      key.createdUnixMs,
      key.expiresUnixMs,
      Number(key.reusable),
      key.usedUnixMs ?? null,
      Number(key.revoked),
    );
  }

  removeKey(id: string): void {
    this.#run("DELETE FROM keys WHERE id = ?", id);
  }

  peers(state: PeerState): PeerRecord[] {
    return this.#all("SELECT * FROM peers WHERE state = ? ORDER BY id", state).map(peerOfRow);
  }

  peer(id: PeerId): PeerRecord | undefined {
    const row = this.#get("SELECT * FROM peers WHERE id = ?", id);
    return row === undefined ? undefined : peerOfRow(row);
  }

  putPeer(peer: PeerRecord): void {
    // Not INSERT OR REPLACE, which would silently delete whoever holds the same name or address.
    this.#run(
      `INSERT INTO peers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
         state = excluded.state, name = excluded.name, name_is_explicit = excluded.name_is_explicit,
         identity = excluded.identity, session_key = excluded.session_key, signature = excluded.signature,
         mesh_ipv4 = excluded.mesh_ipv4, mesh_ipv6 = excluded.mesh_ipv6, code = excluded.code,
         created = excluded.created, last_seen = excluded.last_seen`,
      peer.id,
      peer.state,
      peer.name,
      Number(peer.nameIsExplicit),
      peer.identity,
      peer.sessionKey,
      peer.signature,
      peer.meshIPv4,
      peer.meshIPv6,
      peer.code ?? null,
      peer.createdUnixMs,
      peer.lastSeenUnixMs,
    );
  }

  removePeer(id: PeerId): void {
    this.#run("DELETE FROM peers WHERE id = ?", id);
    this.#run("DELETE FROM blocks WHERE peer = ?", id);
  }

  blocks(): Map<PeerId, Set<PeerId>> {
    const blocks = new Map<PeerId, Set<PeerId>>();
    for (const row of this.#all("SELECT peer, blocked FROM blocks")) {
      const peer = row["peer"] as PeerId;
      let blocked = blocks.get(peer);
      if (blocked === undefined) blocks.set(peer, (blocked = new Set()));
      blocked.add(row["blocked"] as PeerId);
    }
    return blocks;
  }

  setBlocks(peer: PeerId, blocked: readonly PeerId[]): void {
    this.#run("DELETE FROM blocks WHERE peer = ?", peer);
    for (const other of blocked) this.#run("INSERT OR IGNORE INTO blocks VALUES (?, ?)", peer, other);
  }

  transaction<T>(work: () => T): T {
    this.#database.exec("BEGIN IMMEDIATE");
    try {
      const result = work();
      this.#database.exec("COMMIT");
      return result;
    } catch (error) {
      try {
        this.#database.exec("ROLLBACK");
      } catch {
        // SQLite has rolled back by itself already, as it does when the disk is full.
      }
      throw error;
    }
  }

  version(): number {
    return Number(this.#get("PRAGMA data_version")?.["data_version"] ?? 0);
  }

  close(): void {
    this.#statements.clear();
    this.#database.close();
  }

  #prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (statement === undefined) this.#statements.set(sql, (statement = this.#database.prepare(sql)));
    return statement;
  }

  #get(sql: string, ...values: SQLInputValue[]): Row | undefined {
    return this.#prepare(sql).get(...values);
  }

  #all(sql: string, ...values: SQLInputValue[]): Row[] {
    return this.#prepare(sql).all(...values);
  }

  #run(sql: string, ...values: SQLInputValue[]): void {
    this.#prepare(sql).run(...values);
  }
}

const text = (value: SQLOutputValue | undefined): string => (typeof value === "string" ? value : "");
const bytes = (value: SQLOutputValue | undefined): Uint8Array =>
  value instanceof Uint8Array ? Uint8Array.from(value) : new Uint8Array(0);

const keyOfRow = (row: Row): KeyRecord => ({
  id: text(row["id"]),
  secretHash: bytes(row["secret_hash"]),
  createdUnixMs: Number(row["created"]),
  expiresUnixMs: Number(row["expires"]),
  reusable: row["reusable"] === 1,
  usedUnixMs: row["used"] === null ? undefined : Number(row["used"]),
  revoked: row["revoked"] === 1,
});

const peerOfRow = (row: Row): PeerRecord => ({
  id: text(row["id"]) as PeerId,
  state: text(row["state"]) as PeerState,
  name: text(row["name"]),
  nameIsExplicit: row["name_is_explicit"] === 1,
  identity: bytes(row["identity"]),
  sessionKey: bytes(row["session_key"]),
  signature: bytes(row["signature"]),
  meshIPv4: text(row["mesh_ipv4"]),
  meshIPv6: text(row["mesh_ipv6"]),
  code: row["code"] === null ? undefined : text(row["code"]),
  createdUnixMs: Number(row["created"]),
  lastSeenUnixMs: Number(row["last_seen"]),
});
