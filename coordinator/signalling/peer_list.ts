/**
 * The list of peers that every agent is told: who is in the mesh, who of them is online, and which changes are not yet told.
 *
 * Changes are gathered, so that a thousand agents that come back at once cost a few messages each. Pure: the hub sends what this says.
 */
import type { PeerId } from "../../shared/session/identity.ts";
import { type CoordinatorMessage, MAX_PEERS_PER_MESSAGE, type PeerEntry } from "../../shared/signal/messages.ts";
import { after, type Instant } from "../../shared/time.ts";
import type { PeerRecord } from "../store/store.ts";

/** How long changes are gathered. */
const PEERS_INTERVAL_MS = 100;

type PeersMessage = Extract<CoordinatorMessage, { type: "peers" }>;

export class PeerList {
  readonly #isOnline: (id: PeerId) => boolean;
  /** The `instance` of each peer's last hello. */
  readonly #instances = new Map<PeerId, number>();
  #peers: Map<PeerId, PeerRecord>;
  #changed = new Set<PeerId>();
  #dueAt: Instant | undefined;
  #sentAt: Instant | undefined;

  constructor(approved: readonly PeerRecord[], isOnline: (id: PeerId) => boolean) {
    this.#isOnline = isOnline;
    this.#peers = new Map(approved.map((peer) => [peer.id, peer]));
  }

  get(id: PeerId): PeerRecord | undefined {
    return this.#peers.get(id);
  }

  has(id: PeerId): boolean {
    return this.#peers.has(id);
  }

  /** When changes are to be told; undefined while there are none. */
  get dueAt(): Instant | undefined {
    return this.#dueAt;
  }

  /** A peer has come in, or come back. */
  put(peer: PeerRecord, instance: number, now: Instant): void {
    this.#instances.set(peer.id, instance);
    this.#peers.set(peer.id, peer);
    this.change(peer.id, now);
  }

  /** Another process has approved, removed or renamed somebody. Returns who is gone. */
  replace(approved: readonly PeerRecord[], now: Instant): PeerRecord[] {
    const before = this.#peers;
    this.#peers = new Map(approved.map((peer) => [peer.id, peer]));
    const gone = [...before.values()].filter(({ id }) => !this.#peers.has(id));
    for (const { id } of gone) {
      this.#changed.delete(id);
      this.#instances.delete(id);
    }
    for (const peer of approved) {
      const known = before.get(peer.id);
      if (known === undefined || known.name !== peer.name || known.meshIPv4 !== peer.meshIPv4)
        this.change(peer.id, now);
    }
    return gone;
  }

  change(id: PeerId, now: Instant): void {
    this.#changed.add(id);
    if (this.#dueAt !== undefined) return;
    const next = this.#sentAt === undefined ? now : after(this.#sentAt, PEERS_INTERVAL_MS);
    this.#dueAt = next > now ? next : now;
  }

  /** The entry of a peer whose last change the others have not been told. */
  untold(id: PeerId): PeerEntry | undefined {
    const peer = this.#changed.has(id) ? this.#peers.get(id) : undefined;
    return peer === undefined ? undefined : this.#entry(peer);
  }

  /** All that changed since it was last asked, in parts that fit a message. */
  takeChanged(now: Instant): PeerEntry[][] {
    this.#dueAt = undefined;
    this.#sentAt = now;
    const changed = [...this.#changed].flatMap((id) => this.#peers.get(id) ?? []);
    this.#changed = new Set();
    return inParts(changed.map((peer) => this.#entry(peer)));
  }

  /** The whole list for a newcomer. */
  messagesFor(newcomer: PeerId): PeersMessage[] {
    const others = [...this.#peers.values()].filter(({ id }) => id !== newcomer).map((peer) => this.#entry(peer));
    const parts = others.length === 0 ? [[]] : inParts(others);
    return parts.map((peers, index) => ({ type: "peers", reset: index === 0, peers }));
  }

  #entry(peer: PeerRecord): PeerEntry {
    return {
      id: peer.id,
      name: peer.name,
      identity: peer.identity,
      sessionKey: peer.sessionKey,
      signature: peer.signature,
      meshIPv4: peer.meshIPv4,
      meshIPv6: peer.meshIPv6,
      online: this.#isOnline(peer.id),
      instance: this.#instances.get(peer.id) ?? 0,
    };
  }
}

function inParts(entries: readonly PeerEntry[]): PeerEntry[][] {
  const parts: PeerEntry[][] = [];
  for (let at = 0; at < entries.length; at += MAX_PEERS_PER_MESSAGE)
    parts.push(entries.slice(at, at + MAX_PEERS_PER_MESSAGE));
  return parts;
}
