/** The peers of this node, found by id, by slot and by session key; and what a new one is made of. */
import { cidrContains, type TransportAddress } from "../../shared/address.ts";
import { toHex } from "../../shared/bytes.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { PeerSession } from "../../shared/session/peer_session.ts";
import type { PeerEntry } from "../../shared/signal/messages.ts";
import type { Instant } from "../../shared/time.ts";
import { DestinationBudget } from "../path/destination_budget.ts";
import { NO_ATTEMPTS } from "../path/explain_no_direct.ts";
import { PeerPaths } from "../path/peer_paths.ts";
import type { NodeOptions } from "./contract.ts";
import type { Gathering } from "./gathering.ts";
import { nothingTold } from "./news.ts";
import type { Peer } from "./peer.ts";
import { RelayWatch } from "./relay_watch.ts";

export class PeerBook {
  readonly #options: NodeOptions;
  readonly #gathering: Gathering;
  readonly #budget = new DestinationBudget();
  readonly #byId = new Map<PeerId, Peer>();
  readonly #bySlot = new Map<number, Peer>();
  readonly #bySessionKey = new Map<string, Peer>();
  #nextSlot = 1;

  constructor(options: NodeOptions, gathering: Gathering) {
    this.#options = options;
    this.#gathering = gathering;
  }

  values(): IterableIterator<Peer> {
    return this.#byId.values();
  }

  get(id: PeerId): Peer | undefined {
    return this.#byId.get(id);
  }

  bySlot(slot: number): Peer | undefined {
    return this.#bySlot.get(slot);
  }

  bySessionKey(key: Uint8Array): Peer | undefined {
    return this.#bySessionKey.get(toHex(key));
  }

  find(fits: (peer: Peer) => boolean): Peer | undefined {
    for (const peer of this.#byId.values()) if (fits(peer)) return peer;
    return undefined;
  }

  /** A peer that nobody has trusted yet. Its entry's chain has been verified. */
  add(entry: PeerEntry, now: Instant): Peer {
    const { environment, staticKey } = this.#options;
    const slot = this.#nextSlot++;
    const peer: Peer = {
      id: entry.id,
      slot,
      entry,
      session: new PeerSession({
        staticKey,
        remoteStatic: entry.sessionKey,
        environment: {
          random: (bytes) => environment.random(bytes),
          timestamp: () => environment.timestamp(),
          newIndex: () => this.#newIndex(),
        },
        greatestTimestamp: environment.greatestTimestamp(entry.id),
      }),
      paths: new PeerPaths({
        random: (bytes) => environment.random(bytes),
        budget: this.#budget,
        isDirectlyConnected: (ip) => this.#isDirectlyConnected(ip),
        isForbidden: (address) => this.#isForbidden(address),
        allowLoopback: this.#options.allowLoopback,
      }),
      trust: "blocked",
      usedAt: undefined,
      nat: undefined,
      isRootless: false,
      told: nothingTold(),
      selectedAtUnixMs: undefined,
      handshakesSent: 0,
      initiationsHeard: { second: now, count: 0 },
      punches: NO_ATTEMPTS,
      isPunching: false,
      waitingEchoes: [],
      received: { small: 0, large: 0 },
      route: undefined,
      remoteLeg: null,
      wish: "auto",
      remoteWish: "auto",
      relayRttMs: undefined,
      relayWatch: new RelayWatch(),
      relayEchoAt: undefined,
      rxBytes: 0,
      txBytes: 0,
      history: [],
    };
    this.#byId.set(peer.id, peer);
    this.#bySlot.set(slot, peer);
    this.#bySessionKey.set(toHex(entry.sessionKey), peer);
    return peer;
  }

  remove(peer: Peer): void {
    this.#byId.delete(peer.id);
    this.#bySlot.delete(peer.slot);
    this.#bySessionKey.delete(toHex(peer.entry.sessionKey));
  }

  #isDirectlyConnected(ip: string): boolean {
    return this.#gathering.interfaces.some((own) => cidrContains(`${own.ip}/${own.prefixLength}`, ip));
  }

  #isForbidden(address: TransportAddress): boolean {
    return this.#gathering.isOwn(address) || this.#options.isMeshAddress(address.ip);
  }

  #newIndex(): number {
    for (;;) {
      const [a = 0, b = 0, c = 0, d = 0] = this.#options.environment.random(4);
      const index = ((a << 24) | (b << 16) | (c << 8) | d) >>> 0;
      if (this.find((peer) => peer.session.ownsIndex(index)) === undefined) return index;
    }
  }
}
