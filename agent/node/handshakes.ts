/**
 * The handshakes with all peers: begins them, answers them, and carries out what the sessions want.
 *
 * What arrives has been authenticated by nobody yet: mac1, cookies and rates come before any X25519 work (handshake_guard.ts), and a
 * session changes only on what its own handshake has proven.
 */
import { unpackAddress } from "../../shared/address.ts";
import { assertNever } from "../../shared/assert.ts";
import { HandshakeGuard } from "../../shared/session/handshake_guard.ts";
import { openInitiation } from "../../shared/session/peer_session.ts";
import type { Instant } from "../../shared/time.ts";
import type { CandidateList } from "../../shared/wire/candidates.ts";
import { decodeHandshake } from "../../shared/wire/handshake.ts";
import { FIRST_RELAY_LEG, type PathRef } from "../data/plane.ts";
import type { NodeOptions } from "./contract.ts";
import type { Gathering } from "./gathering.ts";
import { RELAY_KINDS } from "./legs.ts";
import type { News } from "./news.ts";
import type { Outbox } from "./outbox.ts";
import { isIdle, isInUse, type Peer } from "./peer.ts";
import type { PeerBook } from "./peer_book.ts";
import type { Traffic } from "./traffic.ts";

/** From one peer through signalling; what UDP brings is limited by the guard. */
const INITIATIONS_PER_SECOND = 5;

export interface HandshakesOptions {
  readonly node: NodeOptions;
  readonly gathering: Gathering;
  readonly book: PeerBook;
  readonly outbox: Outbox;
  readonly traffic: Traffic;
  readonly news: News;
  /** The keys of a peer are gone although it had a path. */
  readonly onEnded: (peer: Peer, now: Instant) => void;
}

export class Handshakes {
  readonly #options: NodeOptions;
  readonly #gathering: Gathering;
  readonly #book: PeerBook;
  readonly #outbox: Outbox;
  readonly #traffic: Traffic;
  readonly #news: News;
  readonly #onEnded: (peer: Peer, now: Instant) => void;
  readonly #guard: HandshakeGuard;

  constructor({ node, gathering, book, outbox, traffic, news, onEnded }: HandshakesOptions) {
    this.#options = node;
    this.#gathering = gathering;
    this.#book = book;
    this.#outbox = outbox;
    this.#traffic = traffic;
    this.#news = news;
    this.#onEnded = onEnded;
    this.#guard = new HandshakeGuard(node.staticKey.publicKey, (bytes) => node.environment.random(bytes));
  }

  initiate(peer: Peer | undefined, now: Instant): void {
    if (peer === undefined || peer.trust !== "pinned" || peer.session.isHandshaking) return;
    if (peer.route === undefined && !(this.#outbox.connected && peer.entry.online)) return;
    peer.handshakesSent = 0;
    // Host candidates only after the peer has authenticated, which it has when there are keys already.
    const list = this.#gathering.candidates(peer.session.isEstablished);
    peer.session.initiate(list, now);
  }

  /**
   * @param expected the peer whose signalling message this was, undefined for UDP
   * @param way where it came from on UDP, and so where the answer goes
   */
  handleHandshake(bytes: Uint8Array, expected: Peer | undefined, way: PathRef | undefined, now: Instant): void {
    const packet = decodeHandshake(bytes);
    if (packet === undefined) return;
    if (packet.type !== "initiation") {
      const peer = expected ?? this.#book.bySessionIndex(packet.receiverIndex);
      if (peer === undefined || peer.trust !== "pinned") return;
      if (packet.type === "cookie") {
        peer.session.handleCookie(packet, now);
        return;
      }
      if (!this.#guard.admit(bytes, undefined, 0, now).admitted) return;
      peer.session.handleResponse(packet, now);
      this.drainSession(peer, way, now);
      return;
    }
    const source = way === undefined || way.leg >= FIRST_RELAY_LEG ? undefined : unpackAddress(way.to).ip;
    const admission = this.#guard.admit(bytes, source, packet.senderIndex, now);
    if (!admission.admitted) {
      if (admission.cookieReply !== undefined && way !== undefined)
        this.#outbox.sendDatagram(way, admission.cookieReply);
      return;
    }
    if (expected !== undefined && !this.#mayInitiate(expected, now)) return;
    const opened = openInitiation(this.#options.staticKey, packet, (n) => this.#options.environment.random(n));
    const peer = opened === undefined ? undefined : this.#book.bySessionKey(opened.remoteStatic);
    // A peer may not begin a session in the name of another, although both are known.
    if (opened === undefined || peer === undefined || peer.trust !== "pinned") return;
    if (expected !== undefined && expected !== peer) return;
    if (!peer.session.respond(opened, this.#gathering.candidates(true), now)) return;
    this.#options.environment.rememberTimestamp(peer.id, peer.session.greatestTimestamp);
    this.drainSession(peer, way, now);
  }

  /** @param way where handshake bytes go: back where the question came from, or undefined to choose */
  drainSession(peer: Peer, way: PathRef | undefined, now: Instant): void {
    for (let action = peer.session.poll(); action !== undefined; action = peer.session.poll()) {
      switch (action.type) {
        case "send_handshake":
          this.#sendHandshake(peer, action.bytes, way);
          break;
        case "install_epoch":
          this.#outbox.plane({ type: "install_epoch", peer: peer.slot, keys: action.keys, active: action.active });
          break;
        case "activate_epoch":
        case "drop_epoch":
          this.#outbox.plane({ type: action.type, peer: peer.slot, localIndex: action.localIndex });
          break;
        case "established":
          this.#onEstablished(peer, action.initiator, action.payload.list, way, now);
          break;
        case "handshake_failed":
          break;
        default:
          assertNever(action);
      }
    }
    if (!peer.session.isEstablished && peer.route !== undefined) this.#onEnded(peer, now);
  }

  #mayInitiate(peer: Peer, now: Instant): boolean {
    const heard = peer.initiationsHeard;
    if (now - heard.second >= 1000) peer.initiationsHeard = { second: now, count: 1 };
    else heard.count++;
    return peer.initiationsHeard.count <= INITIATIONS_PER_SECOND;
  }

  #sendHandshake(peer: Peer, bytes: Uint8Array, way: PathRef | undefined): void {
    peer.handshakesSent++;
    const path = way ?? this.#outbox.routeRef(peer);
    if (path !== undefined) this.#outbox.sendDatagram(path, bytes);
    // A path that is being rekeyed may have died unnoticed: a retry goes through signalling as well.
    if (way === undefined && (path === undefined || peer.handshakesSent > 1)) this.#outbox.signalTo(peer, bytes);
  }

  /** What a peer says of itself; an older list than the one that is known changes nothing. */
  applyList(peer: Peer, list: CandidateList, now: Instant): void {
    if (!peer.paths.setRemote(list, now)) return;
    peer.nat = list.nat;
    peer.isGuessingOff = list.isGuessingOff === true;
    const isRootless = list.isRootless === true;
    if (peer.isRootless === isRootless) return;
    peer.isRootless = isRootless;
    this.#outbox.plane({ type: "set_rootless", peer: peer.slot, isRootless });
  }

  #onEstablished(peer: Peer, initiator: boolean, list: CandidateList, way: PathRef | undefined, now: Instant): void {
    this.applyList(peer, list, now);
    // The peer has opened it for a reason: it is not let go again before that shows.
    if (isIdle(peer, now)) peer.usedAt = now;
    peer.paths.setEnabled(true, now);
    peer.paths.setInUse(isInUse(peer, now), now);
    for (const kind of RELAY_KINDS) this.#traffic.openRelay(peer, kind);
    this.#traffic.updateRoute(peer, "relayed at once", now);
    if (initiator) {
      // The first sealed frame proves to the responder that we have the keys; it carries the candidates that the initiation could not.
      this.#news.tell(peer, now, way);
      this.#news.confirm(peer, way ?? this.#outbox.routeRef(peer) ?? this.#outbox.signalRef(peer));
    } else if (peer.paths.selected === undefined && this.#options.useDirect) {
      // The response is on its way to the initiator; the coordinator's punch follows it there.
      this.#outbox.requestPunch(peer);
    }
  }
}
