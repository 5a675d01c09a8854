/**
 * Who is a peer, as the coordinator says, and whether we trust the key behind its name: what follows for routes, keys and events.
 *
 * The coordinator is believed about names, addresses and presence. It is never believed about a key: the chain must prove the id by
 * itself, and the first id seen for a name is pinned (trust store).
 */
import { ipBytes } from "../../shared/address.ts";
import { equalBytes } from "../../shared/bytes.ts";
import { type PeerId, verifyIdentityChain } from "../../shared/session/identity.ts";
import type { PeerEntry } from "../../shared/signal/messages.ts";
import type { Instant } from "../../shared/time.ts";
import type { LocalLegs } from "../path/path_contract.ts";
import type { NodeOptions } from "./contract.ts";
import type { Outbox } from "./outbox.ts";
import type { Peer } from "./peer.ts";
import type { PeerBook } from "./peer_book.ts";

export interface MembershipOptions {
  readonly node: NodeOptions;
  readonly book: PeerBook;
  readonly outbox: Outbox;
  /** The data sockets that a new peer's paths may use. */
  readonly legs: () => LocalLegs;
  /** Forgets keys and paths of a peer; its next use begins anew. */
  readonly letGo: (peer: Peer, reason: string, now: Instant) => void;
  readonly onOnline: (peer: Peer, now: Instant) => void;
}

export class Membership {
  readonly #node: NodeOptions;
  readonly #book: PeerBook;
  readonly #outbox: Outbox;
  readonly #legs: () => LocalLegs;
  readonly #letGo: MembershipOptions["letGo"];
  readonly #onOnline: MembershipOptions["onOnline"];

  /** Grows with every change of who is a peer to be named: name, addresses, trust. */
  revision = 0;

  constructor({ node, book, outbox, legs, letGo, onOnline }: MembershipOptions) {
    this.#node = node;
    this.#book = book;
    this.#outbox = outbox;
    this.#legs = legs;
    this.#letGo = letGo;
    this.#onOnline = onOnline;
  }

  /** What the coordinator says of a peer, old or new. */
  handleEntry(entry: PeerEntry, now: Instant): void {
    if (entry.id === this.#node.id) return;
    const known = this.#book.get(entry.id);
    // The coordinator is never trusted for a key: the chain must prove the id by itself, once.
    const isProven = known !== undefined && isSameChain(known.entry, entry);
    if (!isProven && verifyIdentityChain(entry) !== entry.id) return;
    if (known === undefined) {
      this.#addPeer(entry, now);
      return;
    }
    const before = known.entry;
    if (!equalBytes(before.sessionKey, entry.sessionKey)) {
      this.remove(entry.id, now);
      this.#addPeer(entry, now);
      return;
    }
    // A coordinator that has restarted does not know the instance until the peer is back: that is no news about the peer.
    const instance = entry.instance === 0 ? before.instance : entry.instance;
    known.entry = { ...entry, instance };
    if (before.name !== entry.name) this.revision++;
    this.applyTrust(known, now, before);
    if (before.instance !== instance && before.instance !== 0) {
      // It has restarted and has lost its keys: what it would not understand is not sent.
      this.#letGo(known, "the peer has restarted", now);
    }
    if (entry.online && !before.online) {
      this.#outbox.event({ type: "peer_online", id: entry.id, name: entry.name });
      this.#onOnline(known, now);
    }
    if (!entry.online && before.online) this.#outbox.event({ type: "peer_offline", id: entry.id, name: entry.name });
  }

  #addPeer(entry: PeerEntry, now: Instant): void {
    const peer = this.#book.add(entry, now);
    peer.paths.setLegs(this.#legs(), now);
    this.applyTrust(peer, now);
    if (entry.online) this.#outbox.event({ type: "peer_online", id: entry.id, name: entry.name });
  }

  /**
   * What the trust store says of this name and id, and what follows for routes and keys.
   *
   * @param before the entry that the data path has been told
   */
  applyTrust(peer: Peer, now: Instant, before = peer.entry): void {
    const verdict = this.#node.trust.check(peer.entry.name, peer.id);
    const trust = verdict === "new" ? "pinned" : verdict;
    if (verdict === "new") this.#node.trust.pin(peer.entry.name, peer.id);
    if (trust === peer.trust && trust !== "pinned") return;
    const wasPinned = peer.trust === "pinned";
    peer.trust = trust;
    if (trust === "pinned") {
      const { meshIPv4, meshIPv6 } = peer.entry;
      // A mesh of hundreds has news of somebody all the time, and most of it is that he comes or goes.
      if (wasPinned && before.meshIPv4 === meshIPv4 && before.meshIPv6 === meshIPv6) return;
      this.revision++;
      this.#outbox.plane({ type: "set_peer", peer: peer.slot, addresses: [ipBytes(meshIPv4), ipBytes(meshIPv6)] });
      if (!wasPinned)
        this.#outbox.event({
          type: "route_added",
          id: peer.id,
          meshIPv4,
          meshIPv6,
        });
      return;
    }
    this.revision++;
    if (trust === "changed") this.#outbox.event({ type: "key_changed", id: peer.id, name: peer.entry.name });
    // What it would send from here on could not be opened.
    const path = this.#outbox.routeRef(peer);
    if (path !== undefined) this.#outbox.sendControl(peer, path, { type: "close", reason: "blocked" });
    this.#shut(peer, now);
  }

  /** Ends everything with a peer: keys, paths, routes. */
  #shut(peer: Peer, now: Instant): void {
    this.#letGo(peer, "the peer is refused", now);
    this.#outbox.plane({ type: "remove_peer", peer: peer.slot });
    this.#outbox.event({
      type: "route_removed",
      id: peer.id,
      meshIPv4: peer.entry.meshIPv4,
      meshIPv6: peer.entry.meshIPv6,
    });
  }

  /** It is no member any more. */
  remove(id: PeerId, now: Instant): void {
    const peer = this.#book.get(id);
    if (peer === undefined) return;
    this.#shut(peer, now);
    this.#book.remove(peer);
    this.revision++;
  }
}

const isSameChain = (a: PeerEntry, b: PeerEntry): boolean =>
  equalBytes(a.identity, b.identity) && equalBytes(a.sessionKey, b.sessionKey) && equalBytes(a.signature, b.signature);
