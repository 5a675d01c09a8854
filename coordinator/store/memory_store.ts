/** The store without a disk: for the simulator and for tests. */
import type { PeerId } from "../../shared/session/identity.ts";
import type { KeyRecord, MetaName, PeerRecord, PeerState, Store } from "./store.ts";

interface Tables {
  readonly meta: Map<MetaName, string>;
  readonly keys: Map<string, KeyRecord>;
  readonly peers: Map<PeerId, PeerRecord>;
  readonly blocks: Map<PeerId, Set<PeerId>>;
}

export class MemoryStore implements Store {
  #tables: Tables = { meta: new Map(), keys: new Map(), peers: new Map(), blocks: new Map() };

  meta(name: MetaName): string | undefined {
    return this.#tables.meta.get(name);
  }

  setMeta(name: MetaName, value: string): void {
    this.#tables.meta.set(name, value);
  }

  keys(): KeyRecord[] {
    return [...this.#tables.keys.values()].sort((a, b) => a.createdUnixMs - b.createdUnixMs || (a.id < b.id ? -1 : 1));
  }

  key(id: string): KeyRecord | undefined {
    return this.#tables.keys.get(id);
  }

  putKey(key: KeyRecord): void {
    this.#tables.keys.set(key.id, key);
  }

  removeKey(id: string): void {
    this.#tables.keys.delete(id);
  }

  peers(state: PeerState): PeerRecord[] {
    return [...this.#tables.peers.values()]
      .filter((peer) => peer.state === state)
      .sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  peer(id: PeerId): PeerRecord | undefined {
    return this.#tables.peers.get(id);
  }

  putPeer(peer: PeerRecord): void {
    for (const other of this.#tables.peers.values()) {
      if (peer.state !== "approved" || other.state !== "approved" || other.id === peer.id) continue;
      for (const field of ["name", "meshIPv4", "meshIPv6"] as const) {
        if (other[field] === peer[field]) throw new Error(`Two approved peers have the ${field} "${peer[field]}"`);
      }
    }
    this.#tables.peers.set(peer.id, peer);
  }

  removePeer(id: PeerId): void {
    this.#tables.peers.delete(id);
    this.setBlocks(id, []);
  }

  blocks(): Map<PeerId, Set<PeerId>> {
    return new Map([...this.#tables.blocks].map(([peer, blocked]) => [peer, new Set(blocked)]));
  }

  setBlocks(peer: PeerId, blocked: readonly PeerId[]): void {
    if (blocked.length === 0) this.#tables.blocks.delete(peer);
    else this.#tables.blocks.set(peer, new Set(blocked));
  }

  transaction<T>(work: () => T): T {
    const { meta, keys, peers } = this.#tables;
    const before: Tables = { meta: new Map(meta), keys: new Map(keys), peers: new Map(peers), blocks: this.blocks() };
    try {
      return work();
    } catch (error) {
      this.#tables = before;
      throw error;
    }
  }

  version(): number {
    return 0;
  }

  close(): void {}
}
