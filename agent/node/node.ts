/**
 * The agent as one machine: signalling messages, data path reports, commands and time go in; signalling messages, data path
 * commands and events come out. The driver gives it a real world, the simulator a virtual one.
 *
 * It owns the peers: for each a session (shared/session), paths (agent/path) and the rules when to open and let go. Handshakes and sealed
 * control frames travel through signalling until a direct path exists, and along the path from then on, so that a live direct path
 * does not need the coordinator.
 */
import { ipBytes, type TransportAddress } from "../../shared/address.ts";
import { assertNever } from "../../shared/assert.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import type { CoordinatorMessage, PeerEntry, RelayLeg } from "../../shared/signal/messages.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { NatReport } from "../../shared/wire/candidates.ts";
import type { RungWish } from "../../shared/wire/control.ts";
import { type Leg, type PeerSlot, type PlaneReport, pathRef } from "../data/plane.ts";
import { NO_ATTEMPTS } from "../path/explain_no_direct.ts";
import { natLabel } from "../path/nat_behavior.ts";
import { MAX_PUNCH } from "../path/punch_plan.ts";
import type { NodeAction, NodeOptions, PeerView } from "./contract.ts";
import { Gathering, type InterfaceAddress } from "./gathering.ts";
import { Handshakes } from "./handshakes.ts";
import { HardPunching } from "./hard_punching.ts";
import { DATA_LEG_IPV4, DATA_LEG_IPV6, packedSlot, RELAY_KINDS, RELAY_LEGS, slotOf } from "./legs.ts";
import { Membership } from "./membership.ts";
import { News } from "./news.ts";
import { Outbox } from "./outbox.ts";
import { IDLE_MS, isIdle, isInUse, markUsed, type Peer, wishOf } from "./peer.ts";
import { PeerBook } from "./peer_book.ts";
import { PeerInbox } from "./peer_inbox.ts";
import { Traffic } from "./traffic.ts";
import { viewOf } from "./peer_view.ts";

/** Peers opened at once on joining. */
const OPEN_ON_JOIN = 16;
/** How long joining waits for our own addresses before handshakes go out without them. */
const GATHERING_PATIENCE_MS = 600;
/** Housekeeping: use, idleness, rekeying. */
const TICK_MS = 1000;
const MAX_WAITING_ECHOES = 16;
/** Where the driver has nothing more precise to say. */
const NO_SSH = "this machine does not reach the coordinator's SSH port; allowing it would bring SSH";

export class Node {
  readonly #options: NodeOptions;
  readonly #gathering: Gathering;
  readonly #book: PeerBook;
  readonly #outbox: Outbox;
  readonly #traffic: Traffic;
  readonly #news: News;
  readonly #handshakes: Handshakes;
  readonly #hardPunching: HardPunching;
  readonly #membership: Membership;
  readonly #inbox: PeerInbox;
  /** Peers to open once our own addresses are known. */
  #toOpen: { readonly ids: readonly PeerId[]; readonly at: Instant } | undefined;
  #isFirstList = false;
  #tickAt: Instant | undefined;
  #legs: { readonly ipv4: Leg | undefined; readonly ipv6: Leg | undefined } = { ipv4: undefined, ipv6: undefined };

  constructor(options: NodeOptions) {
    this.#options = options;
    const isGuessingOff = options.punchLimits?.packets === 0;
    const random = (bytes: number): Uint8Array => options.environment.random(bytes);
    const gathering = new Gathering(random, options.isPortChosen, isGuessingOff);
    const outbox = new Outbox();
    const news = new News(outbox, gathering);
    const book = new PeerBook(options, gathering);
    const traffic = new Traffic(outbox, () => options.environment.wallClockUnixMs());
    const onEnded = (peer: Peer, now: Instant): void => this.#onSessionEnded(peer, now);
    this.#gathering = gathering;
    this.#outbox = outbox;
    this.#book = book;
    this.#traffic = traffic;
    this.#news = news;
    this.#hardPunching = new HardPunching(options, gathering, book, outbox);
    this.#handshakes = new Handshakes({ node: options, gathering, book, outbox, traffic, news, onEnded });
    this.#inbox = new PeerInbox({
      gathering,
      book,
      outbox,
      traffic,
      news,
      handshakes: this.#handshakes,
      hardPunching: this.#hardPunching,
      letGo: (peer, reason, now) => this.#letGo(peer, reason, now),
    });
    this.#membership = new Membership({
      node: options,
      book,
      outbox,
      legs: () => this.#legs,
      letGo: (peer, reason, now) => this.#letGo(peer, reason, now),
      onOnline: (peer, now) => this.#onOnline(peer, now),
    });
  }

  get gathering(): Gathering {
    return this.#gathering;
  }

  // Inputs

  /** The data sockets are open (or there is none for this family). */
  handleDataLegs(ipv4Port: number | undefined, ipv6Port: number | undefined, now: Instant): void {
    this.#gathering.setDataLeg(4, ipv4Port === undefined ? undefined : DATA_LEG_IPV4, ipv4Port ?? 0);
    this.#gathering.setDataLeg(6, ipv6Port === undefined ? undefined : DATA_LEG_IPV6, ipv6Port ?? 0);
    this.#legs = {
      ipv4: ipv4Port === undefined || !this.#options.useDirect ? undefined : DATA_LEG_IPV4,
      ipv6: ipv6Port === undefined || !this.#options.useDirect ? undefined : DATA_LEG_IPV6,
    };
    this.#gathering.restart(now);
    this.#settle(now);
  }

  /**
   * Addresses of the usable interfaces: at start, and whenever they have changed.
   *
   * @param hasMoved packets leave by another of them, though the addresses may be the same
   */
  handleInterfaces(addresses: readonly InterfaceAddress[], now: Instant, hasMoved = false): void {
    const before = JSON.stringify(this.#gathering.interfaces);
    if (!hasMoved && before === JSON.stringify(addresses)) return;
    const isFirst = before === "[]";
    this.#gathering.setInterfaces(addresses, now);
    // Old paths may be dead and new ones possible: ask all of them at once.
    if (!isFirst) {
      this.#book.touchAwake();
      for (const peer of this.#book.awake()) {
        peer.punches = NO_ATTEMPTS;
        peer.paths.doubt(now);
        peer.paths.probeAll(now);
      }
    }
    this.#settle(now);
  }

  /** The transport address that the gateway forwards to our data socket, or none any more; it may say that it has no address to map at. */
  handlePortMapping(external: TransportAddress | undefined, now: Instant, hasNoAddress = false): void {
    this.#gathering.setPortMapping(external, hasNoAddress);
    this.#settle(now);
  }

  /** This machine has no network device, or has one now. */
  handleRootless(isRootless: boolean, now: Instant): void {
    this.#gathering.setRootless(isRootless);
    this.#settle(now);
  }

  handleSignalState(connected: boolean, now: Instant): void {
    this.#outbox.connected = connected;
    this.#gathering.setConnected(connected);
    if (!connected) {
      this.#toOpen = undefined;
    }
    this.#settle(now);
  }

  /** A relay connection is open, or gone. */
  handleRelayState(kind: RelayLeg, isUp: boolean, now: Instant): void {
    if (this.#outbox.relays[kind] === isUp) return;
    this.#outbox.relays[kind] = isUp;
    this.#book.touchAwake();
    for (const peer of this.#book.awake()) {
      if (peer.session.isEstablished) this.#traffic[isUp ? "openRelay" : "closeRelay"](peer, kind);
      this.#traffic.updateRoute(peer, isUp ? `the ${kind} relay is there` : `the ${kind} relay was lost`, now);
    }
    this.#settle(now);
  }

  /** Would a peer in use get a path, or a better one, by this connection of ours? */
  wantsRelay(kind: RelayLeg, now: Instant): boolean {
    return this.#book.isAnyAwake((peer) => {
      const { route } = peer;
      if (!isInUse(peer, now)) return false;
      if (wishOf(peer) === kind && !this.#outbox.relays[kind]) return true;
      if (route?.kind === "direct") return false;
      return route === undefined || (kind === "ssh" && route.legs.local === "websocket");
    });
  }

  /** Where frames of this peer that came in on a relay belong: the `from` for the data path. Undefined: nobody we listen to. */
  relaySource(id: PeerId): Uint8Array | undefined {
    const peer = this.#book.get(id);
    return peer === undefined || peer.trust !== "pinned" ? undefined : packedSlot(peer.slot);
  }

  handleSignal(message: CoordinatorMessage, now: Instant): void {
    switch (message.type) {
      case "welcome":
        this.#isFirstList = true;
        this.#outbox.plane({ type: "set_self", addresses: [ipBytes(message.meshIPv4), ipBytes(message.meshIPv6)] });
        this.#gathering.setCredentials(
          { servers: message.stun, account: { username: message.stunUsername, secret: message.stunSecret } },
          now,
        );
        break;
      case "peers":
        this.#handlePeers(message.reset, message.peers, now);
        break;
      case "peer_removed":
        this.#membership.remove(message.id, now);
        break;
      case "from_peer": {
        const peer = this.#book.get(message.from);
        if (peer === undefined || peer.trust !== "pinned") break;
        peer.paths.setAttested(message.attested, now);
        this.#inbox.handleRelayedBySignalling(peer, message.body, now);
        break;
      }
      case "punch": {
        const peer = this.#book.get(message.peer);
        if (peer === undefined || peer.trust !== "pinned") break;
        peer.paths.setAttested(message.attested, now);
        // The peer wants a path for a session that we no longer have.
        if (!peer.session.isEstablished) this.#handshakes.initiate(peer, now);
        peer.paths.schedule(message.round, message.fireAt as Instant, now);
        break;
      }
      // The driver answers clock requests itself, since they are about its clock; the others are for it as well.
      case "clock_request":
      case "observed":
      case "pending":
      case "refused":
      case "relay_token":
      case "pong":
        break;
      case "peer_leg": {
        const peer = this.#book.get(message.peer);
        if (peer === undefined) break;
        peer.remoteLeg = message.leg;
        this.#traffic.updateRoute(peer, message.leg === null ? "the peer has lost its relays" : "relayed at once", now);
        break;
      }
      default:
        assertNever(message);
    }
    this.#settle(now);
  }

  handleReport(report: PlaneReport, now: Instant): void {
    switch (report.type) {
      case "datagram":
        this.#inbox.handleDatagram(report.leg, report.from, report.bytes, now);
        break;
      case "control":
        this.#inbox.handleControl(report, now);
        break;
      case "epoch_confirmed": {
        const peer = this.#book.bySlot(report.peer);
        peer?.session.handleEpochConfirmed(report.localIndex, now);
        break;
      }
      case "wanted":
        this.#use(this.#book.bySlot(report.peer), now);
        break;
      case "activity":
        this.#inbox.handleActivity(report, now);
        break;
      case "epoch_exhausted":
        this.#handshakes.initiate(this.#book.bySlot(report.peer), now);
        break;
      case "relay_frames": {
        const peer = this.#book.bySlot(slotOf(report.to));
        if (peer === undefined) break;
        const kind = RELAY_KINDS.find((candidate) => RELAY_LEGS[candidate] === report.leg);
        const { frames, lanes } = report;
        if (kind !== undefined) this.#outbox.push({ type: "relay_send", kind, peer: peer.id, frames, lanes });
        else for (const body of frames) this.#outbox.signal({ type: "to_peer", to: peer.id, body });
        break;
      }
      case "send_failed":
      // For the streams; the driver hands them on.
      case "stream_frames":
      case "turned":
        break;
      case "counters":
        for (const counters of report.peers) {
          const peer = this.#book.bySlot(counters.peer);
          if (peer === undefined) continue;
          peer.rxBytes = counters.rxBytes;
          peer.txBytes = counters.txBytes;
        }
        break;
      default:
        assertNever(report);
    }
    this.#settle(now);
  }

  /** Sends an echo along the selected path, or as soon as there is one. False for a peer that cannot be reached by anything. */
  echo(id: PeerId, sequence: number, now: Instant): boolean {
    const peer = this.#book.get(id);
    if (peer === undefined || peer.trust !== "pinned") return false;
    this.#use(peer, now);
    if (peer.route === undefined) {
      peer.waitingEchoes = [...peer.waitingEchoes.slice(1 - MAX_WAITING_ECHOES), sequence];
    } else {
      this.#traffic.sendEcho(peer, sequence, now);
    }
    this.#settle(now);
    return true;
  }

  /** The operator's choice for this peer. The peer is told, since a path has two ends. */
  choosePath(id: PeerId, wish: RungWish, now: Instant): void {
    const peer = this.#book.get(id);
    if (peer === undefined || peer.trust !== "pinned") return;
    peer.wish = wish;
    this.#use(peer, now);
    this.#news.tell(peer, now);
    this.#traffic.applyWish(peer, "chosen by the operator", now);
    this.#settle(now);
  }

  /** Marks a peer as used and opens it. */
  use(id: PeerId, now: Instant): void {
    this.#use(this.#book.get(id), now);
    this.#settle(now);
  }

  /** The trust store has changed: look at every peer again. */
  handleTrustChange(now: Instant): void {
    for (const peer of this.#book.values()) this.#membership.applyTrust(this.#book.touch(peer), now);
    const blocked = [...this.#book.values()].filter((peer) => peer.trust === "blocked").map((peer) => peer.id);
    if (this.#outbox.connected) this.#outbox.signal({ type: "block", peers: blocked });
    this.#settle(now);
  }

  /** The agent stops: tell the peers, so that they need not find out. */
  close(now: Instant): void {
    for (const peer of this.#book.awake()) {
      const path = this.#outbox.routeRef(peer);
      if (path !== undefined) this.#outbox.sendControl(peer, path, { type: "close", reason: "stopping" });
    }
    if (this.#outbox.connected) this.#outbox.signal({ type: "leave" });
    this.#drainTouched(now);
  }

  handleTimeout(now: Instant): void {
    this.#gathering.handleTimeout(now);
    this.#hardPunching.handleTimeout(now);
    const isTick = this.#tickAt === undefined || now >= this.#tickAt;
    if (isTick) this.#book.touchAwake();
    else this.#book.touchDue(now);
    for (const peer of this.#book.touched()) {
      peer.session.handleTimeout(now);
      peer.paths.handleTimeout(now);
      this.#news.handleTimeout(peer, now);
      this.#traffic.handleTimeout(peer, now);
      const askAt = peer.relayWatch.dueAt(peer.relayRttMs);
      if (askAt === undefined || now < askAt) continue;
      peer.relayWatch.onAsked(now);
      this.#outbox.event({ type: "path_suspect", id: peer.id });
    }
    if (isTick) {
      this.#tickAt = after(now, TICK_MS);
      this.#tick(now);
    }
    this.#settle(now);
  }

  deadline(): Instant | undefined {
    const own = earliest(this.#gathering.deadline(), this.#hardPunching.deadline(), this.#tickAt, this.#toOpen?.at);
    return earliest(own, this.#book.deadline());
  }

  poll(): NodeAction | undefined {
    return this.#outbox.poll();
  }

  // Views

  /** Whose slot of the data path this is; undefined for one whom we do not listen to. */
  peerOfSlot(slot: PeerSlot): PeerId | undefined {
    const peer = this.#book.bySlot(slot);
    return peer?.trust === "pinned" ? peer.id : undefined;
  }

  slotOf(id: PeerId): PeerSlot | undefined {
    return this.#book.get(id)?.slot;
  }

  peers(now: Instant): readonly PeerView[] {
    const nat = this.#gathering.natReport();
    return [...this.#book.values()].map((peer) => this.#view(peer, nat, now));
  }

  peer(id: PeerId, now: Instant): PeerView | undefined {
    const peer = this.#book.get(id);
    return peer === undefined ? undefined : this.#view(peer, this.#gathering.natReport(), now);
  }

  /** Those whose names may be given out. */
  members(): readonly PeerEntry[] {
    return [...this.#book.values()].flatMap(({ entry, trust }) => (trust === "pinned" ? [entry] : []));
  }

  /** Grows when `members` would say something else. */
  get membersRevision(): number {
    return this.#membership.revision;
  }

  peerByName(name: string): PeerId | undefined {
    for (const peer of this.#book.values()) if (peer.entry.name === name) return peer.id;
    return undefined;
  }

  #view(peer: Peer, nat: NatReport, now: Instant): PeerView {
    const { connected } = this.#outbox;
    const { useDirect, whyNoSsh = () => NO_SSH, punchLimits = MAX_PUNCH } = this.#options;
    const publicAddresses = this.#gathering.ipv4?.publicAddresses ?? [];
    return viewOf(peer, { nat, publicAddresses, connected, useDirect, punchLimits, whyNoSsh, now });
  }

  // Peers

  #handlePeers(reset: boolean, entries: readonly PeerEntry[], now: Instant): void {
    if (reset) {
      // Peers that neither this list nor its followers name are gone. The list is complete when the next kind of message comes;
      // until then nobody is removed, and a direct path that works is never touched by a list.
      for (const peer of this.#book.values()) peer.entry = { ...peer.entry, online: false };
    }
    for (const entry of entries) this.#membership.handleEntry(entry, now);
    if (this.#isFirstList) {
      this.#isFirstList = false;
      this.handleTrustChange(now);
      const ids = [...this.#book.values()].filter((peer) => peer.entry.online).map((peer) => peer.id);
      this.#toOpen = { ids: ids.slice(0, OPEN_ON_JOIN), at: after(now, GATHERING_PATIENCE_MS) };
    }
  }

  /** A peer is online again. */
  #onOnline(peer: Peer, now: Instant): void {
    if (!isInUse(peer, now)) return;
    if (peer.session.isEstablished) this.#renew(peer, now);
    else this.#handshakes.initiate(peer, now);
  }

  /** Forgets keys and paths of a peer that has stopped, restarted, is refused or idle. Its next use begins anew. */
  #letGo(peer: Peer, reason: string, now: Instant): void {
    const hadSession = peer.session.isEstablished;
    peer.session.reset();
    this.#news.forget(peer);
    peer.paths.setEnabled(false, now);
    peer.paths.invalidate(reason, now);
    this.#drainPaths(peer, now);
    for (const kind of RELAY_KINDS) {
      if (hadSession && this.#outbox.relays[kind]) this.#outbox.push({ type: "relay_close", kind, peer: peer.id });
    }
    peer.remoteLeg = null;
    this.#traffic.updateRoute(peer, reason, now);
    // Last, since it would give the end of the session as the reason.
    this.#handshakes.drainSession(peer, undefined, now);
  }

  #onSessionEnded(peer: Peer, now: Instant): void {
    peer.paths.invalidate("the session has ended", now);
    peer.paths.setEnabled(false, now);
    this.#news.forget(peer);
    this.#drainPaths(peer, now);
    this.#traffic.updateRoute(peer, "the session has ended", now);
  }

  #use(peer: Peer | undefined, now: Instant): void {
    if (peer === undefined || peer.trust !== "pinned") return;
    markUsed(peer, now);
    if (!peer.session.isEstablished && !peer.session.isHandshaking) this.#handshakes.initiate(peer, now);
    this.#gathering.retryIfBlocked(now);
  }

  /** Opens a peer after joining, or after the coordinator was away. */
  #open(peer: Peer | undefined, now: Instant): void {
    this.#use(peer, now);
    if (peer?.session.isEstablished === true) this.#renew(peer, now);
  }

  /** We or the peer were cut off from the coordinator: what was said meanwhile may not have arrived. */
  #renew(peer: Peer, now: Instant): void {
    if (!peer.paths.isLooking) return;
    this.#news.tell(peer, now, this.#outbox.signalRef(peer));
    peer.paths.hurry(now, 0);
  }

  #tick(now: Instant): void {
    // A firewall may open at any moment: for a peer in use that must not take five seconds to show.
    if (this.#book.isAnyAwake((peer) => isInUse(peer, now))) this.#gathering.retryIfBlocked(now);
    for (const peer of this.#book.awake()) {
      const inUse = isInUse(peer, now);
      peer.paths.setInUse(inUse, now);
      // What changed while the handshake was under way, or while the peer was idle.
      if (inUse) this.#news.review(peer, now);
      if ((inUse || peer.route !== undefined) && peer.session.isRekeyDue(now)) this.#handshakes.initiate(peer, now);
      if (inUse && !peer.session.isEstablished && !peer.session.isHandshaking) this.#handshakes.initiate(peer, now);
      if (peer.usedAt !== undefined && now - peer.usedAt >= IDLE_MS && peer.route !== undefined) {
        const path = this.#outbox.routeRef(peer);
        if (path !== undefined) this.#outbox.sendControl(peer, path, { type: "close", reason: "idle" });
        this.#letGo(peer, "idle", now);
      }
      this.#traffic.measureRelay(peer, inUse, now);
    }
  }

  // After every input

  /** Lets what one input has set in motion run its course: gathering, openings, sessions, paths. */
  #settle(now: Instant): void {
    this.#tickAt ??= after(now, TICK_MS);
    this.#drainGathering(now);
    if (this.#toOpen !== undefined && (this.#gathering.isReady || now >= this.#toOpen.at)) {
      const { ids } = this.#toOpen;
      this.#toOpen = undefined;
      for (const id of ids) this.#open(this.#book.get(id), now);
    }
    this.#drainTouched(now);
    this.#hardPunching.settle(now);
    this.#drainGathering(now);
    this.#drainTouched(now);
    this.#book.settle(now);
  }

  #drainTouched(now: Instant): void {
    for (const peer of this.#book.touched()) {
      this.#handshakes.drainSession(peer, undefined, now);
      this.#drainPaths(peer, now);
    }
  }

  #drainGathering(now: Instant): void {
    for (let action = this.#gathering.poll(); action !== undefined; action = this.#gathering.poll()) {
      switch (action.type) {
        case "send":
          this.#outbox.sendDatagram({ leg: action.leg, to: action.to }, action.bytes);
          break;
        case "open_leg":
        case "close_leg":
          this.#outbox.push(action);
          break;
        case "changed":
          for (const peer of this.#book.awake()) {
            if (!peer.session.isEstablished || isIdle(peer, now)) continue;
            this.#book.touch(peer);
            peer.paths.hurry(now);
            this.#news.tell(peer, now);
          }
          break;
        case "sampled":
          this.#hardPunching.handleSampled(action.port, now);
          break;
        case "nat_detected":
          this.#outbox.event({
            type: "nat_detected",
            label: natLabel(this.#gathering.natReport()),
            nat: this.#gathering.natReport(),
            publicAddress: action.result.publicAddresses[0],
          });
          break;
        default:
          assertNever(action);
      }
    }
  }

  #drainPaths(peer: Peer, now: Instant): void {
    for (let action = peer.paths.poll(); action !== undefined; action = peer.paths.poll()) {
      switch (action.type) {
        case "send":
          this.#outbox.sendControl(
            peer,
            pathRef(action.leg, action.to, action.hops),
            action.message,
            action.frameBytes,
          );
          break;
        case "selected":
          // It died in silence, while nothing but our keepalives held it open.
          if (action.pair === undefined && peer.session.isEstablished && !isInUse(peer, now)) {
            this.#gathering.tests.doubtLifetime();
          }
          this.#traffic.updateRoute(peer, action.reason, now);
          break;
        case "mtu_changed":
          this.#traffic.updateMtu(peer);
          break;
        case "close_leg":
          this.#outbox.push(action);
          break;
        case "request_round":
          this.#outbox.requestPunch(peer);
          // The round is of little use if the peer aims at a mapping that our router has forgotten.
          this.#gathering.checkMapping(now);
          this.#drainGathering(now);
          break;
        case "suspect":
          this.#outbox.event({ type: "path_suspect", id: peer.id });
          break;
        case "seen":
          if (action.leg === DATA_LEG_IPV4) this.#gathering.noteSeen(peer.id, action.address, now);
          break;
        case "fired":
          this.#outbox.signal({ type: "punch_fired", peer: peer.id, round: action.round, firedAt: action.at });
          break;
        default:
          assertNever(action);
      }
    }
  }
}
