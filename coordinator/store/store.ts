/**
 * What the coordinator keeps across restarts, behind one interface: join keys, peers, blocks, and a few facts about itself.
 *
 * Synchronous, as SQLite is, so that a rule of registry/ can read and write within one transaction. A method may throw when the disk
 * is full or the file is broken; whoever handles input from the network catches that, refuses the one client and logs it.
 */
import type { PeerId } from "../../shared/session/identity.ts";

export interface KeyRecord {
  readonly id: string;
  /** SHA-256 of the secret: the database lets nobody in. */
  readonly secretHash: Uint8Array;
  readonly createdUnixMs: number;
  readonly expiresUnixMs: number;
  readonly reusable: boolean;
  /** When it last let somebody in. */
  readonly usedUnixMs: number | undefined;
  readonly revoked: boolean;
}

/**
 * `pending` waits for an operator and has a code, but neither a reserved name nor addresses; `removed` is remembered so that a
 * machine that was thrown out is told so instead of asking again.
 */
export type PeerState = "approved" | "pending" | "removed";

export interface PeerRecord {
  readonly id: PeerId;
  readonly state: PeerState;
  /** Unique among approved peers. */
  readonly name: string;
  readonly nameIsExplicit: boolean;
  readonly identity: Uint8Array;
  readonly sessionKey: Uint8Array;
  readonly signature: Uint8Array;
  /** Unique among approved peers, empty for others. */
  readonly meshIPv4: string;
  readonly meshIPv6: string;
  /** What the operator types to approve a pending peer. */
  readonly code: string | undefined;
  readonly createdUnixMs: number;
  readonly lastSeenUnixMs: number;
}

/** `static_key`: private X25519 scalar in base64. `ssh_host_key`: Ed25519 seed in base64. `mesh_ipv4`, `mesh_ipv6`: CIDR. `first_key`: set once the first key was made. */
export type MetaName = "static_key" | "mesh_ipv4" | "mesh_ipv6" | "first_key" | "ssh_host_key";

export interface Store {
  meta(name: MetaName): string | undefined;
  setMeta(name: MetaName, value: string): void;

  keys(): KeyRecord[];
  key(id: string): KeyRecord | undefined;
  putKey(key: KeyRecord): void;
  removeKey(id: string): void;

  peers(state: PeerState): PeerRecord[];
  peer(id: PeerId): PeerRecord | undefined;
  /** Throws when an approved peer's name or address is another one's. */
  putPeer(peer: PeerRecord): void;
  removePeer(id: PeerId): void;

  /** Whom each peer refuses. */
  blocks(): Map<PeerId, Set<PeerId>>;
  setBlocks(peer: PeerId, blocked: readonly PeerId[]): void;

  /** Runs `work` as a whole or, when it throws, not at all. Not reentrant. */
  transaction<T>(work: () => T): T;
  /** Changes when another process has written. */
  version(): number;
  close(): void;
}
