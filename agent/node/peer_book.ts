/**
 * The peers of this node, found by id, by slot and by session key; and what a new one is made of.
 *
 * Most peers of a large mesh are only names: they must cost an input nothing. So the book knows who is *awake* (keys, a path, a deadline, or
 * use of late), and whom the input in hand has *touched*: whoever finds a peer may change it, and the node looks at those alone afterwards.
 */
import { cidrContains, type TransportAddress } from "../../shared/address.ts";
import { toHex } from "../../shared/bytes.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { PeerSession } from "../../shared/session/peer_session.ts";
import type { PeerEntry } from "../../shared/signal/messages.ts";
import { earliest, type Instant } from "../../shared/time.ts";
import { DestinationBudget } from "../path/destination_budget.ts";
import { NO_ATTEMPTS } from "../path/explain_no_direct.ts";
import { PeerPaths } from "../path/peer_paths.ts";
import type { NodeOptions } from "./contract.ts";
import type { Gathering } from "./gathering.ts";
import { nothingTold } from "./news.ts";
import { isIdle, type Peer } from "./peer.ts";
import { RelayWatch } from "./relay_watch.ts";

export class PeerBook {
  readonly #options: NodeOptions;
  readonly #gathering: Gathering;
  readonly #budget = new DestinationBudget();
  readonly #byId = new Map<PeerId, Peer>();
  readonly #bySlot = new Map<number, Peer>();
  readonly #bySessionKey = new Map<string, Peer>();
  /** Each with the earliest of its deadlines, as of when it was last touched. */
  readonly #awake = new Map<Peer, Instant | undefined>();
  readonly #touched = new Set<Peer>();
  #nextSlot = 1;

  constructor(options: NodeOptions, gathering: Gathering) {
    this.#options = options;
    this.#gathering = gathering;
  }

  /** All of them, to be looked at; who changes one touches it. */
  values(): IterableIterator<Peer> {
    return this.#byId.values();
  }

  /** Those with keys, a path, a deadline or use of late; to be looked at. */
  awake(): IterableIterator<Peer> {
    return this.#awake.keys();
  }

  isAnyAwake(fits: (peer: Peer) => boolean): boolean {
    for (const peer of this.#awake.keys()) if (fits(peer)) return true;
    return false;
  }

  get(id: PeerId): Peer | undefined {
    return this.touch(this.#byId.get(id));
  }

  bySlot(slot: number): Peer | undefined {
    return this.touch(this.#bySlot.get(slot));
  }

  bySessionKey(key: Uint8Array): Peer | undefined {
    return this.touch(this.#bySessionKey.get(toHex(key)));
  }

  /** Whose epoch or pending handshake this receiver index names. */
  bySessionIndex(index: number): Peer | undefined {
    for (const peer of this.#allAwake()) if (peer.session.ownsIndex(index)) return this.touch(peer);
    return undefined;
  }

  /** It may be changed in what follows: what that sets in motion is seen to before the input ends. */
  touch(peer: Peer): Peer;
  touch(peer: Peer | undefined): Peer | undefined;
  touch(peer: Peer | undefined): Peer | undefined {
    if (peer !== undefined) this.#touched.add(peer);
    return peer;
  }

  /** Touches those whose deadline has come. */
  touchDue(now: Instant): void {
    for (const [peer, deadline] of this.#awake) if (deadline !== undefined && deadline <= now) this.touch(peer);
  }

  touchAwake(): void {
    for (const peer of this.#awake.keys()) this.touch(peer);
  }

  /** Whom this input has touched so far. Those who are touched meanwhile come last. */
  touched(): IterableIterator<Peer> {
    return this.#touched.values();
  }

  /** The input is over: notes the deadlines of those touched, and lets those sleep that have nothing before them. */
  settle(now: Instant): void {
    for (const peer of this.#touched) {
      const deadline = deadlineOf(peer);
      if (deadline === undefined && isAsleep(peer, now)) this.#awake.delete(peer);
      else if (this.#byId.get(peer.id) === peer) this.#awake.set(peer, deadline);
    }
    this.#touched.clear();
  }

  deadline(): Instant | undefined {
    let first: Instant | undefined;
    for (const deadline of this.#awake.values()) first = earliest(first, deadline);
    return first;
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
        keepaliveMs: () => this.#gathering.tests.keepaliveMs(),
      }),
      trust: "blocked",
      usedAt: undefined,
      nat: undefined,
      isRootless: false,
      isGuessingOff: false,
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
      wishUntil: undefined,
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
    return this.touch(peer);
  }

  remove(peer: Peer): void {
    this.#byId.delete(peer.id);
    this.#bySlot.delete(peer.slot);
    this.#bySessionKey.delete(toHex(peer.entry.sessionKey));
    this.#awake.delete(peer);
    this.#touched.delete(peer);
  }

  /** Also those who have begun a handshake within this very input. */
  *#allAwake(): Generator<Peer> {
    yield* this.#awake.keys();
    yield* this.#touched;
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
      let isTaken = false;
      for (const peer of this.#allAwake()) isTaken ||= peer.session.ownsIndex(index);
      if (!isTaken) return index;
    }
  }
}

/** The earliest of everything that is due for this peer. It changes only when the peer does. */
const deadlineOf = ({ session, paths, told, wishUntil, relayWatch, relayRttMs }: Peer): Instant | undefined =>
  earliest(session.deadline(), paths.deadline(), told.retellAt, wishUntil, relayWatch.dueAt(relayRttMs));

/** Nothing to keep, to renew or to end: only a use, a message or a word of the coordinator changes anything. */
const isAsleep = (peer: Peer, now: Instant): boolean =>
  isIdle(peer, now) &&
  peer.route === undefined &&
  !peer.session.isEstablished &&
  !peer.session.isHandshaking &&
  !peer.isPunching;
