/**
 * The indexes of one relay WebSocket (shared/wire/relay.ts): which number stands for which peer, in both directions. Pure.
 *
 * An index keeps its peer when the peer has no leg for a while, so that frames flow again without another `bind`. The agent may bind an
 * index of its own to another peer; ours are never given twice.
 */
import type { PeerId } from "../../shared/session/identity.ts";
import { FIRST_COORDINATOR_INDEX } from "../../shared/wire/relay.ts";
import { MAX_BOUND_PEERS } from "./relay_hub.ts";

export class PeerIndexes {
  readonly #peers = new Map<number, PeerId>();
  /** What we write to the agent: whichever was bound first. */
  readonly #indexes = new Map<PeerId, number>();
  #next = FIRST_COORDINATOR_INDEX;
  #ofAgent = 0;

  /** The agent binds one. False when the index is not its to choose, or it has too many. */
  bind(index: number, peer: PeerId): boolean {
    if (index >= FIRST_COORDINATOR_INDEX) return false;
    const before = this.#peers.get(index);
    if (before === undefined && this.#ofAgent >= MAX_BOUND_PEERS) return false;
    if (before === undefined) this.#ofAgent++;
    else if (before !== peer && this.#indexes.get(before) === index) this.#indexes.delete(before);
    this.#peers.set(index, peer);
    if (!this.#indexes.has(peer)) this.#indexes.set(peer, index);
    return true;
  }

  peerOf(index: number): PeerId | undefined {
    return this.#peers.get(index);
  }

  indexOf(peer: PeerId): number | undefined {
    return this.#indexes.get(peer);
  }

  /** Binds an index of ours; undefined when all have been used. */
  choose(peer: PeerId): number | undefined {
    if (this.#next > 0xffff) return undefined;
    const index = this.#next++;
    this.#peers.set(index, peer);
    this.#indexes.set(peer, index);
    return index;
  }

  /** The binding has ended: its indexes stand for nobody. Returns them. */
  release(peer: PeerId): number[] {
    this.#indexes.delete(peer);
    const released = [...this.#peers].flatMap(([index, of]) => (of === peer ? [index] : []));
    for (const index of released) {
      this.#peers.delete(index);
      if (index < FIRST_COORDINATOR_INDEX) this.#ofAgent--;
    }
    return released;
  }
}
