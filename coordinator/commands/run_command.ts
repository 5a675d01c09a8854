/**
 * `key` and `peer`: they work on the database itself, whether or not a coordinator is running. A running one notices within a second
 * (serve.ts polls the database's version).
 */
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { assertNever } from "../../shared/assert.ts";
import { type Command, EXIT_FAILED } from "../config.ts";
import { approve, remove } from "../registry/admission.ts";
import { type CoordinatorIdentity, loadIdentity } from "../registry/coordinator_identity.ts";
import { JOIN_KEY_RANDOM_BYTES, newJoinKey } from "../registry/join_key.ts";
import { DATABASE_FILE, openSqliteStore } from "../store/sqlite_store.ts";
import type { KeyRecord, Store } from "../store/store.ts";
import { formatTable } from "./table.ts";

/** Keys that can let nobody in any more are forgotten after this long. */
const FORGET_KEYS_MS = 30 * 24 * 3_600_000;

const EXIT_UNKNOWN_PEER = 5;

export interface CommandOutput {
  /** For stdout. */
  readonly text?: string;
  /** For stderr. */
  readonly error?: string;
  readonly exitCode: number;
}

export function runCommand(command: Command, nowUnixMs: number): CommandOutput {
  // Creating a key before the first start is fine; asking about a mesh that is not there is most likely a wrong directory.
  if (command.type !== "key_create" && !existsSync(join(command.dataDir, DATABASE_FILE))) {
    return failed(`No coordinator has run in ${command.dataDir}; give the right one with --data-dir`);
  }
  const store = openSqliteStore(command.dataDir);
  try {
    const random = (length: number): Uint8Array => new Uint8Array(randomBytes(length));
    const identity = loadIdentity(store, { meshIPv4: undefined, meshIPv6: undefined }, random);
    return perform(command, store, identity, nowUnixMs, random);
  } finally {
    store.close();
  }
}

function perform(
  command: Command,
  store: Store,
  identity: CoordinatorIdentity,
  nowUnixMs: number,
  random: (length: number) => Uint8Array,
): CommandOutput {
  switch (command.type) {
    case "key_create": {
      const { reusable, lifetimeMs } = command;
      const { record, text } = newJoinKey({
        random: random(JOIN_KEY_RANDOM_BYTES),
        fingerprint: identity.fingerprint,
        nowUnixMs,
        lifetimeMs,
        reusable,
      });
      store.transaction(() => {
        for (const key of store.keys()) {
          if (stateOf(key, nowUnixMs) !== "valid" && key.expiresUnixMs + FORGET_KEYS_MS < nowUnixMs)
            store.removeKey(key.id);
        }
        store.putKey(record);
      });
      if (command.json) return json({ id: record.id, key: text, expiresAt: iso(record.expiresUnixMs), reusable });
      return done(`${text}\n${reusable ? "Reusable" : "For one machine"}, valid until ${iso(record.expiresUnixMs)}`);
    }
    case "key_list": {
      const keys = store.keys();
      if (command.json) {
        return json({
          keys: keys.map((key) => ({
            id: key.id,
            state: stateOf(key, nowUnixMs),
            reusable: key.reusable,
            createdAt: iso(key.createdUnixMs),
            expiresAt: iso(key.expiresUnixMs),
            usedAt: key.usedUnixMs === undefined ? null : iso(key.usedUnixMs),
          })),
        });
      }
      const rows = keys.map((key) => [
        key.id,
        stateOf(key, nowUnixMs),
        key.reusable ? "yes" : "no",
        iso(key.expiresUnixMs),
      ]);
      return done(rows.length === 0 ? "No keys" : formatTable(["ID", "STATE", "REUSABLE", "EXPIRES"], rows));
    }
    case "key_revoke": {
      // People paste the whole key as readily as its id.
      const id = /^tmk_([a-z2-7]+)_/.exec(command.id)?.[1] ?? command.id;
      const key = store.key(id);
      if (key === undefined) return failed(`No key has the id "${id}"; see "key list"`);
      store.putKey({ ...key, revoked: true });
      return command.json ? json({ id, revoked: true }) : done(`Revoked ${id}; machines that joined with it stay`);
    }
    case "peer_list": {
      const peers = [...store.peers("approved"), ...store.peers("pending")];
      if (command.json) {
        return json({
          peers: peers.map((peer) => ({
            id: peer.id,
            name: peer.name,
            state: peer.state,
            code: peer.code ?? null,
            meshIPv4: peer.meshIPv4 === "" ? null : peer.meshIPv4,
            meshIPv6: peer.meshIPv6 === "" ? null : peer.meshIPv6,
            lastSeenAt: iso(peer.lastSeenUnixMs),
          })),
        });
      }
      const rows = peers.map((peer) => [
        peer.name,
        peer.state === "pending" ? `waits for approval, code ${peer.code ?? ""}` : "member",
        peer.meshIPv4,
        peer.meshIPv6,
        iso(peer.lastSeenUnixMs),
      ]);
      return done(rows.length === 0 ? "No peers" : formatTable(["NAME", "STATE", "IPV4", "IPV6", "LAST SEEN"], rows));
    }
    case "peer_approve": {
      const result = approve(store, identity, command.codeOrName);
      if (result === "unknown") {
        return failed(
          `Nobody with the code or name "${command.codeOrName}" waits for approval; see "peer list"`,
          EXIT_UNKNOWN_PEER,
        );
      }
      if (result === "ambiguous") return failed(`Several machines named "${command.codeOrName}" wait; give the code`);
      if (result.type !== "admitted") return failed(result.type === "refused" ? result.message : "Still pending");
      const { id, name, meshIPv4, meshIPv6 } = result.peer;
      return command.json ? json({ id, name, meshIPv4, meshIPv6 }) : done(`Approved "${name}" (${meshIPv4})`);
    }
    case "peer_remove":
      if (!remove(store, command.name)) {
        return failed(`No peer is named "${command.name}"; see "peer list"`, EXIT_UNKNOWN_PEER);
      }
      return command.json ? json({ name: command.name, removed: true }) : done(`Removed "${command.name}"`);
    default:
      return assertNever(command);
  }
}

function stateOf(key: KeyRecord, nowUnixMs: number): "valid" | "used" | "revoked" | "expired" {
  if (key.revoked) return "revoked";
  if (!key.reusable && key.usedUnixMs !== undefined) return "used";
  return nowUnixMs >= key.expiresUnixMs ? "expired" : "valid";
}

const iso = (unixMs: number): string => new Date(unixMs).toISOString();
const json = (value: object): CommandOutput => done(JSON.stringify({ schema: 1, ...value }));
const done = (text: string): CommandOutput => ({ text, exitCode: 0 });
const failed = (error: string, exitCode = EXIT_FAILED): CommandOutput => ({ error, exitCode });
