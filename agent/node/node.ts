/**
 * The agent as one machine: signalling messages, data path reports, commands and time go in; signalling messages, data path
 * commands and events come out. The driver gives it a real world, the simulator a virtual one.
 *
 * It owns the peers: for each a session (shared/session), paths (agent/path) and the rules when to open and let go. Handshakes and sealed
 * control frames travel through signalling until a direct path exists, and along the path from then on, so that a live direct path
 * does not need the coordinator.
 */
import { assertNever } from "../../shared/assert.ts";
import { cidrContains, ipBytes, isIPv6, type TransportAddress, unpackAddress } from "../../shared/address.ts";
import { equalBytes, toHex } from "../../shared/bytes.ts";
import { HandshakeGuard } from "../../shared/session/handshake_guard.ts";
import { type PeerId, verifyIdentityChain } from "../../shared/session/identity.ts";
import { openInitiation, PeerSession } from "../../shared/session/peer_session.ts";
import type { CoordinatorMessage, PeerEntry, RelayLeg } from "../../shared/signal/messages.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import { decodeControl, encodeControl, type ControlMessage, type RungWish } from "../../shared/wire/control.ts";
import { datagramKind } from "../../shared/wire/demux.ts";
import { decodeHandshake } from "../../shared/wire/handshake.ts";
import { FIRST_RELAY_LEG, type Leg, type PathRef, type PlaneReport } from "../data/plane.ts";
import { DestinationBudget } from "../path/destination_budget.ts";
import { natLabel } from "../path/nat_behavior.ts";
import { PeerPaths } from "../path/peer_paths.ts";
import type { NodeAction, NodeEvent, NodeOptions, PeerView } from "./contract.ts";
import { Gathering, type InterfaceAddress } from "./gathering.ts";
import { chooseRoute, isSameRoute } from "./ladder.ts";
import { IDLE_MS, isIdle, isInUse, type Peer, remember, whySentence, wishOf } from "./peer.ts";

/** The leg of sealed frames that travel as signalling messages. `to` is the peer's slot in four bytes. */
export const SIGNAL_LEG: Leg = FIRST_RELAY_LEG;
/** The legs of the relay connections. `to` is the peer's slot here too. */
export const RELAY_LEGS: Readonly<Record<RelayLeg, Leg>> = { websocket: FIRST_RELAY_LEG + 1, ssh: FIRST_RELAY_LEG + 2 };
const RELAY_KINDS: readonly RelayLeg[] = ["ssh", "websocket"];
/** Data legs: the two UDP sockets that carry everything. */
export const DATA_LEG_IPV4: Leg = 1;
export const DATA_LEG_IPV6: Leg = 2;

/** UDP payload that fits a path of 1500 bytes, less 8 UDP and 20 or 40 IP. Path MTU discovery comes with the fast data path. */
const MTU_IPV4 = 1472;
const MTU_IPV6 = 1452;
/** A relay's transport is a byte stream: any frame that its length field can say will do. */
const MTU_RELAY = 65_000;
/** The round trip of a relayed path in use is measured this often. */
const RELAY_ECHO_MS = 5000;
/** The sequence number of our own echoes, which no ping uses. */
const OWN_ECHO = 0;
/** Peers opened at once on joining. */
const OPEN_ON_JOIN = 16;
/** How long joining waits for our own addresses before handshakes go out without them. */
const GATHERING_PATIENCE_MS = 600;
/** Housekeeping: use, idleness, rekeying. */
const TICK_MS = 1000;
const INITIATIONS_PER_SECOND = 5;
const MAX_WAITING_ECHOES = 16;

export class Node {
  readonly #options: NodeOptions;
  readonly #actions: NodeAction[] = [];
  readonly #peers = new Map<PeerId, Peer>();
  readonly #bySlot = new Map<number, Peer>();
  readonly #bySessionKey = new Map<string, Peer>();
  readonly #budget = new DestinationBudget();
  readonly #guard: HandshakeGuard;
  readonly #gathering: Gathering;
  #nextSlot = 1;
  #connected = false;
  readonly #relays: Record<RelayLeg, boolean> = { ssh: false, websocket: false };
  /** Peers to open once our own addresses are known. */
  #toOpen: { readonly ids: readonly PeerId[]; readonly at: Instant } | undefined;
  #isFirstList = false;
  #tickAt: Instant | undefined;
  #legs: { readonly ipv4: Leg | undefined; readonly ipv6: Leg | undefined } = { ipv4: undefined, ipv6: undefined };

  constructor(options: NodeOptions) {
    this.#options = options;
    this.#guard = new HandshakeGuard(options.staticKey.publicKey, (bytes) => options.environment.random(bytes));
    this.#gathering = new Gathering((bytes) => options.environment.random(bytes));
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

  /** Addresses of the usable interfaces: at start, and whenever they have changed. */
  handleInterfaces(addresses: readonly InterfaceAddress[], now: Instant): void {
    const before = JSON.stringify(this.#gathering.interfaces);
    if (before === JSON.stringify(addresses)) return;
    const isFirst = before === "[]";
    this.#gathering.setInterfaces(addresses, now);
    // Old paths may be dead and new ones possible: ask all of them at once.
    if (!isFirst) for (const peer of this.#peers.values()) peer.paths.probeAll(now);
    this.#settle(now);
  }

  handleSignalState(connected: boolean, now: Instant): void {
    this.#connected = connected;
    this.#gathering.setConnected(connected);
    if (!connected) {
      this.#toOpen = undefined;
    }
    this.#settle(now);
  }

  /** A relay connection is open, or gone. */
  handleRelayState(kind: RelayLeg, isUp: boolean, now: Instant): void {
    if (this.#relays[kind] === isUp) return;
    this.#relays[kind] = isUp;
    for (const peer of this.#peers.values()) {
      if (isUp && peer.session.isEstablished) this.#openRelay(peer, kind);
      this.#updateRoute(peer, isUp ? `the ${kind} relay is there` : `the ${kind} relay was lost`, now);
    }
    this.#settle(now);
  }

  /** Where frames of this peer that came in on a relay belong: the `from` for the data path. Undefined: nobody we listen to. */
  relaySource(id: PeerId): Uint8Array | undefined {
    const peer = this.#peers.get(id);
    return peer === undefined || peer.trust !== "pinned" ? undefined : packedSlot(peer.slot);
  }

  handleSignal(message: CoordinatorMessage, now: Instant): void {
    switch (message.type) {
      case "welcome":
        this.#isFirstList = true;
        this.#actions.push({
          type: "plane",
          command: { type: "set_self", addresses: [ipBytes(message.meshIPv4), ipBytes(message.meshIPv6)] },
        });
        this.#gathering.setCredentials(
          { servers: message.stun, account: { username: message.stunUsername, secret: message.stunSecret } },
          now,
        );
        break;
      case "peers":
        this.#handlePeers(message.reset, message.peers, now);
        break;
      case "peer_removed":
        this.#removePeer(message.id, now);
        break;
      case "from_peer": {
        const peer = this.#peers.get(message.from);
        if (peer === undefined || peer.trust !== "pinned") break;
        peer.paths.setAttested(message.attested);
        this.#handlePeerBody(peer, message.body, now);
        break;
      }
      case "punch": {
        const peer = this.#peers.get(message.peer);
        if (peer === undefined || peer.trust !== "pinned") break;
        peer.paths.setAttested(message.attested);
        // The peer wants a path for a session that we no longer have.
        if (!peer.session.isEstablished) this.#initiate(peer, now);
        peer.paths.schedule(message.round, message.fireAt as Instant);
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
        const peer = this.#peers.get(message.peer);
        if (peer === undefined) break;
        peer.remoteLeg = message.leg;
        this.#updateRoute(peer, message.leg === null ? "the peer has lost its relays" : "relayed at once", now);
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
        this.#handleDatagram(report.leg, report.from, report.bytes, now);
        break;
      case "control":
        this.#handleControl(report, now);
        break;
      case "epoch_confirmed": {
        const peer = this.#bySlot.get(report.peer);
        peer?.session.handleEpochConfirmed(report.localIndex, now);
        break;
      }
      case "wanted":
        this.#use(this.#bySlot.get(report.peer), now);
        break;
      case "activity":
        this.#handleActivity(report, now);
        break;
      case "epoch_exhausted":
        this.#initiate(this.#bySlot.get(report.peer), now);
        break;
      case "relay_frames": {
        const peer = this.#bySlot.get(slotOf(report.to));
        if (peer === undefined) break;
        const kind = RELAY_KINDS.find((candidate) => RELAY_LEGS[candidate] === report.leg);
        if (kind !== undefined) this.#actions.push({ type: "relay_send", kind, peer: peer.id, frames: report.frames });
        else for (const body of report.frames) this.#signal({ type: "to_peer", to: peer.id, body });
        break;
      }
      case "send_failed":
        break;
      case "counters":
        for (const counters of report.peers) {
          const peer = this.#bySlot.get(counters.peer);
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
    const peer = this.#peers.get(id);
    if (peer === undefined || peer.trust !== "pinned") return false;
    this.#use(peer, now);
    if (peer.route === undefined) {
      peer.waitingEchoes = [...peer.waitingEchoes.slice(1 - MAX_WAITING_ECHOES), sequence];
    } else {
      this.#sendEcho(peer, sequence, now);
    }
    this.#settle(now);
    return true;
  }

  /** The operator's choice for this peer. The peer is told, since a path has two ends. */
  choosePath(id: PeerId, wish: RungWish, now: Instant): void {
    const peer = this.#peers.get(id);
    if (peer === undefined || peer.trust !== "pinned") return;
    peer.wish = wish;
    this.#use(peer, now);
    if (peer.session.isEstablished) this.#tellWish(peer);
    this.#applyWish(peer, "chosen by the operator", now);
    this.#settle(now);
  }

  /** Marks a peer as used and opens it. */
  use(id: PeerId, now: Instant): void {
    this.#use(this.#peers.get(id), now);
    this.#settle(now);
  }

  /** The trust store has changed: look at every peer again. */
  handleTrustChange(now: Instant): void {
    for (const peer of this.#peers.values()) this.#applyTrust(peer, now);
    const blocked = [...this.#peers.values()].filter((peer) => peer.trust === "blocked").map((peer) => peer.id);
    if (this.#connected) this.#signal({ type: "block", peers: blocked });
    this.#settle(now);
  }

  /** The agent stops: tell the peers, so that they need not find out. */
  close(now: Instant): void {
    for (const peer of this.#peers.values()) {
      const path = this.#routeRef(peer);
      if (path !== undefined) this.#sendControl(peer, path, { type: "close", reason: "stopping" });
    }
    if (this.#connected) this.#signal({ type: "leave" });
    this.#drainAll(now);
  }

  handleTimeout(now: Instant): void {
    this.#gathering.handleTimeout(now);
    for (const peer of this.#peers.values()) {
      peer.session.handleTimeout(now);
      peer.paths.handleTimeout(now);
    }
    if (this.#tickAt === undefined || now >= this.#tickAt) {
      this.#tickAt = after(now, TICK_MS);
      this.#tick(now);
    }
    this.#settle(now);
  }

  deadline(): Instant | undefined {
    let first = earliest(this.#gathering.deadline(), this.#tickAt, this.#toOpen?.at);
    for (const peer of this.#peers.values()) first = earliest(first, peer.session.deadline(), peer.paths.deadline());
    return first;
  }

  poll(): NodeAction | undefined {
    return this.#actions.shift();
  }

  // Views

  peers(now: Instant): readonly PeerView[] {
    return [...this.#peers.values()].map((peer) => this.#view(peer, now));
  }

  peerByName(name: string): PeerId | undefined {
    for (const peer of this.#peers.values()) if (peer.entry.name === name) return peer.id;
    return undefined;
  }

  #view(peer: Peer, now: Instant): PeerView {
    const nat = this.#gathering.natReport();
    const why = whySentence(peer, { nat, connected: this.#connected, useDirect: this.#options.useDirect, now });
    return {
      id: peer.id,
      entry: peer.entry,
      trust: peer.trust,
      route: peer.route,
      rttMs: peer.route?.kind === "direct" ? peer.route.pair.rttMs : peer.relayRttMs,
      selectedAtUnixMs: peer.selectedAtUnixMs,
      nat: peer.nat,
      inUse: isInUse(peer, now),
      why,
      rxBytes: peer.rxBytes,
      txBytes: peer.txBytes,
      history: peer.history,
    };
  }

  // Peers

  #handlePeers(reset: boolean, entries: readonly PeerEntry[], now: Instant): void {
    if (reset) {
      // Peers that neither this list nor its followers name are gone. The list is complete when the next kind of message comes;
      // until then nobody is removed, and a direct path that works is never touched by a list.
      for (const peer of this.#peers.values()) peer.entry = { ...peer.entry, online: false };
    }
    for (const entry of entries) this.#handleEntry(entry, now);
    if (this.#isFirstList) {
      this.#isFirstList = false;
      this.handleTrustChange(now);
      const ids = [...this.#peers.values()].filter((peer) => peer.entry.online).map((peer) => peer.id);
      this.#toOpen = { ids: ids.slice(0, OPEN_ON_JOIN), at: after(now, GATHERING_PATIENCE_MS) };
    }
  }

  #handleEntry(entry: PeerEntry, now: Instant): void {
    // The coordinator is never trusted for a key: the chain must prove the id by itself.
    if (entry.id === this.#options.id || verifyIdentityChain(entry) !== entry.id) return;
    const known = this.#peers.get(entry.id);
    if (known === undefined) {
      this.#addPeer(entry, now);
      return;
    }
    const before = known.entry;
    if (!equalBytes(before.sessionKey, entry.sessionKey)) {
      this.#removePeer(entry.id, now);
      this.#addPeer(entry, now);
      return;
    }
    // A coordinator that has restarted does not know the instance until the peer is back: that is no news about the peer.
    const instance = entry.instance === 0 ? before.instance : entry.instance;
    known.entry = { ...entry, instance };
    this.#applyTrust(known, now);
    if (before.instance !== instance && before.instance !== 0) {
      // It has restarted and has lost its keys: what it would not understand is not sent.
      this.#letGo(known, "the peer has restarted", now);
    }
    if (entry.online && !before.online) {
      this.#event({ type: "peer_online", id: entry.id, name: entry.name });
      if (isInUse(known, now)) {
        if (known.session.isEstablished) this.#renew(known, now);
        else this.#initiate(known, now);
      }
    }
    if (!entry.online && before.online) this.#event({ type: "peer_offline", id: entry.id, name: entry.name });
  }

  #addPeer(entry: PeerEntry, now: Instant): void {
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
      toldGeneration: 0,
      selectedAtUnixMs: undefined,
      handshakesSent: 0,
      initiationsHeard: { second: now, count: 0 },
      waitingEchoes: [],
      route: undefined,
      remoteLeg: null,
      wish: "auto",
      remoteWish: "auto",
      relayRttMs: undefined,
      relayEchoAt: undefined,
      rxBytes: 0,
      txBytes: 0,
      history: [],
    };
    this.#peers.set(peer.id, peer);
    this.#bySlot.set(slot, peer);
    this.#bySessionKey.set(toHex(entry.sessionKey), peer);
    peer.paths.setLegs(this.#legs);
    this.#applyTrust(peer, now);
    if (entry.online) this.#event({ type: "peer_online", id: entry.id, name: entry.name });
  }

  /** What the trust store says of this name and id, and what follows for routes and keys. */
  #applyTrust(peer: Peer, now: Instant): void {
    const verdict = this.#options.trust.check(peer.entry.name, peer.id);
    const trust = verdict === "new" ? "pinned" : verdict;
    if (verdict === "new") this.#options.trust.pin(peer.entry.name, peer.id);
    if (trust === peer.trust && trust !== "pinned") return;
    const wasPinned = peer.trust === "pinned";
    peer.trust = trust;
    if (trust === "pinned") {
      const addresses = [ipBytes(peer.entry.meshIPv4), ipBytes(peer.entry.meshIPv6)];
      this.#actions.push({ type: "plane", command: { type: "set_peer", peer: peer.slot, addresses } });
      if (!wasPinned)
        this.#event({ type: "route_added", id: peer.id, meshIPv4: peer.entry.meshIPv4, meshIPv6: peer.entry.meshIPv6 });
      return;
    }
    if (trust === "changed") this.#event({ type: "key_changed", id: peer.id, name: peer.entry.name });
    this.#shut(peer, now);
  }

  /** Forgets keys and paths of a peer that has stopped, restarted, is refused or idle. Its next use begins anew. */
  #letGo(peer: Peer, reason: string, now: Instant): void {
    const hadSession = peer.session.isEstablished;
    peer.session.reset();
    peer.paths.setEnabled(false, now);
    peer.paths.invalidate(reason);
    this.#drainPaths(peer, now);
    for (const kind of RELAY_KINDS) {
      if (hadSession && this.#relays[kind]) this.#actions.push({ type: "relay_close", kind, peer: peer.id });
    }
    peer.remoteLeg = null;
    this.#updateRoute(peer, reason, now);
    // Last, since it would give the end of the session as the reason.
    this.#drainSession(peer, undefined, now);
  }

  /** Ends everything with a peer: keys, paths, routes. */
  #shut(peer: Peer, now: Instant): void {
    this.#letGo(peer, "the peer is refused", now);
    this.#actions.push({ type: "plane", command: { type: "remove_peer", peer: peer.slot } });
    this.#event({ type: "route_removed", id: peer.id, meshIPv4: peer.entry.meshIPv4, meshIPv6: peer.entry.meshIPv6 });
  }

  #removePeer(id: PeerId, now: Instant): void {
    const peer = this.#peers.get(id);
    if (peer === undefined) return;
    this.#shut(peer, now);
    this.#peers.delete(id);
    this.#bySlot.delete(peer.slot);
    this.#bySessionKey.delete(toHex(peer.entry.sessionKey));
  }

  #use(peer: Peer | undefined, now: Instant): void {
    if (peer === undefined || peer.trust !== "pinned") return;
    peer.usedAt = now;
    peer.paths.setInUse(true, now);
    if (!peer.session.isEstablished && !peer.session.isHandshaking) this.#initiate(peer, now);
    this.#gathering.retryIfBlocked(now);
  }

  /** Opens a peer after joining, or after the coordinator was away. */
  #open(peer: Peer | undefined, now: Instant): void {
    this.#use(peer, now);
    if (peer?.session.isEstablished === true) this.#renew(peer, now);
  }

  /** We or the peer were cut off from the coordinator: what was said meanwhile may not have arrived. */
  #renew(peer: Peer, now: Instant): void {
    if (peer.paths.selected !== undefined) return;
    this.#tellCandidates(peer, this.#signalRef(peer));
    peer.paths.hurry(now);
  }

  #tick(now: Instant): void {
    const { generation } = this.#gathering.candidates(true);
    // A firewall may open at any moment: for a peer in use that must not take five seconds to show.
    if ([...this.#peers.values()].some((peer) => isInUse(peer, now))) this.#gathering.retryIfBlocked(now);
    for (const peer of this.#peers.values()) {
      const inUse = isInUse(peer, now);
      peer.paths.setInUse(inUse, now);
      // What changed while the handshake was under way, or while the peer was idle.
      if (inUse && peer.session.isEstablished && peer.toldGeneration !== generation) {
        this.#tellCandidates(peer, this.#routeRef(peer) ?? this.#signalRef(peer));
      }
      if ((inUse || peer.route !== undefined) && peer.session.isRekeyDue(now)) this.#initiate(peer, now);
      if (inUse && !peer.session.isEstablished && !peer.session.isHandshaking) this.#initiate(peer, now);
      if (peer.usedAt !== undefined && now - peer.usedAt >= IDLE_MS && peer.route !== undefined) {
        const path = this.#routeRef(peer);
        if (path !== undefined) this.#sendControl(peer, path, { type: "close", reason: "idle" });
        this.#letGo(peer, "idle", now);
      }
      this.#measureRelay(peer, inUse, now);
    }
  }

  // Handshakes

  #initiate(peer: Peer | undefined, now: Instant): void {
    if (peer === undefined || peer.trust !== "pinned" || peer.session.isHandshaking) return;
    if (peer.route === undefined && !(this.#connected && peer.entry.online)) return;
    peer.handshakesSent = 0;
    // Host candidates only after the peer has authenticated, which it has when there are keys already.
    const list = this.#gathering.candidates(peer.session.isEstablished);
    peer.session.initiate(list, now);
  }

  #handlePeerBody(peer: Peer, body: Uint8Array, now: Instant): void {
    switch (datagramKind(body)) {
      case "handshake":
        this.#handleHandshake(body, peer, undefined, now);
        break;
      case "sealed":
        this.#actions.push({
          type: "plane",
          command: { type: "receive_frames", leg: SIGNAL_LEG, from: packedSlot(peer.slot), frames: [body] },
        });
        break;
      case "stun":
      case "unknown":
        break;
    }
  }

  /**
   * @param expected the peer whose signalling message this was, undefined for UDP
   * @param way where it came from on UDP, and so where the answer goes
   */
  #handleHandshake(bytes: Uint8Array, expected: Peer | undefined, way: PathRef | undefined, now: Instant): void {
    const packet = decodeHandshake(bytes);
    if (packet === undefined) return;
    if (packet.type !== "initiation") {
      const peer = expected ?? [...this.#peers.values()].find((other) => other.session.ownsIndex(packet.receiverIndex));
      if (peer === undefined || peer.trust !== "pinned") return;
      if (packet.type === "cookie") {
        peer.session.handleCookie(packet, now);
        return;
      }
      if (!this.#guard.admit(bytes, undefined, 0, now).admitted) return;
      peer.session.handleResponse(packet, now);
      this.#drainSession(peer, way, now);
      return;
    }
    const source = way === undefined || way.leg >= FIRST_RELAY_LEG ? undefined : unpackAddress(way.to).ip;
    const admission = this.#guard.admit(bytes, source, packet.senderIndex, now);
    if (!admission.admitted) {
      if (admission.cookieReply !== undefined && way !== undefined) this.#sendDatagram(way, admission.cookieReply);
      return;
    }
    if (expected !== undefined && !this.#mayInitiate(expected, now)) return;
    const opened = openInitiation(this.#options.staticKey, packet, (n) => this.#options.environment.random(n));
    const peer = opened === undefined ? undefined : this.#bySessionKey.get(toHex(opened.remoteStatic));
    // A peer may not begin a session in the name of another, although both are known.
    if (opened === undefined || peer === undefined || peer.trust !== "pinned") return;
    if (expected !== undefined && expected !== peer) return;
    if (!peer.session.respond(opened, this.#gathering.candidates(true), now)) return;
    peer.toldGeneration = this.#gathering.candidates(true).generation;
    this.#options.environment.rememberTimestamp(peer.id, peer.session.greatestTimestamp);
    this.#drainSession(peer, way, now);
  }

  #mayInitiate(peer: Peer, now: Instant): boolean {
    const heard = peer.initiationsHeard;
    if (now - heard.second >= 1000) peer.initiationsHeard = { second: now, count: 1 };
    else heard.count++;
    return peer.initiationsHeard.count <= INITIATIONS_PER_SECOND;
  }

  /** @param way where handshake bytes go: back where the question came from, or undefined to choose */
  #drainSession(peer: Peer, way: PathRef | undefined, now: Instant): void {
    for (let action = peer.session.poll(); action !== undefined; action = peer.session.poll()) {
      switch (action.type) {
        case "send_handshake":
          this.#sendHandshake(peer, action.bytes, way);
          break;
        case "install_epoch":
          this.#actions.push({
            type: "plane",
            command: { type: "install_epoch", peer: peer.slot, keys: action.keys, active: action.active },
          });
          break;
        case "activate_epoch":
        case "drop_epoch":
          this.#actions.push({
            type: "plane",
            command: { type: action.type, peer: peer.slot, localIndex: action.localIndex },
          });
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
    if (!peer.session.isEstablished && peer.route !== undefined) {
      peer.paths.invalidate("the session has ended");
      peer.paths.setEnabled(false, now);
      this.#drainPaths(peer, now);
      this.#updateRoute(peer, "the session has ended", now);
    }
  }

  #sendHandshake(peer: Peer, bytes: Uint8Array, way: PathRef | undefined): void {
    peer.handshakesSent++;
    const path = way ?? this.#routeRef(peer);
    if (path !== undefined) this.#sendDatagram(path, bytes);
    // A path that is being rekeyed may have died unnoticed: a retry goes through signalling as well.
    if (way === undefined && (path === undefined || peer.handshakesSent > 1)) this.#signalTo(peer, bytes);
  }

  #onEstablished(
    peer: Peer,
    initiator: boolean,
    list: Parameters<PeerPaths["setRemote"]>[0],
    way: PathRef | undefined,
    now: Instant,
  ): void {
    if (peer.paths.setRemote(list)) peer.nat = list.nat;
    // The peer has opened it for a reason: it is not let go again before that shows.
    if (isIdle(peer, now)) peer.usedAt = now;
    peer.paths.setEnabled(true, now);
    peer.paths.setInUse(isInUse(peer, now), now);
    for (const kind of RELAY_KINDS) this.#openRelay(peer, kind);
    if (peer.wish !== "auto") this.#tellWish(peer);
    this.#updateRoute(peer, "relayed at once", now);
    if (initiator) {
      // The first sealed frame proves to the responder that we have the keys; it carries the candidates that the initiation could not.
      this.#tellCandidates(peer, way ?? this.#routeRef(peer) ?? this.#signalRef(peer));
    } else if (peer.paths.selected === undefined && this.#options.useDirect) {
      // The response is on its way to the initiator; the coordinator's punch follows it there.
      this.#requestPunch(peer);
    }
  }

  #requestPunch(peer: Peer): void {
    if (!this.#connected || !peer.entry.online) return;
    this.#signal({ type: "punch_request", peer: peer.id, round: peer.paths.round + 1 });
  }

  // Frames and datagrams

  #handleDatagram(leg: Leg, from: Uint8Array, bytes: Uint8Array, now: Instant): void {
    const kind = datagramKind(bytes);
    if (kind === "stun") this.#gathering.handleStun(bytes, now);
    else if (kind === "handshake") {
      // On a relay the coordinator vouches for the sender, and `from` is the sender's slot.
      const sender = leg >= FIRST_RELAY_LEG ? this.#bySlot.get(slotOf(from)) : undefined;
      if (leg < FIRST_RELAY_LEG || sender !== undefined) this.#handleHandshake(bytes, sender, { leg, to: from }, now);
    }
  }

  #handleControl(report: PlaneReport & { readonly type: "control" }, now: Instant): void {
    const peer = this.#bySlot.get(report.peer);
    const message = decodeControl(report.body);
    if (peer === undefined || message === undefined || peer.trust !== "pinned") return;
    const isUdp = report.leg < FIRST_RELAY_LEG;
    const from = isUdp ? unpackAddress(report.from) : undefined;
    if (from !== undefined) peer.paths.handleReceived(report.leg, from, report.at);
    switch (message.type) {
      case "probe":
        if (from !== undefined) peer.paths.handleProbe(message, report.leg, from, report.at);
        break;
      case "probe_answer":
        if (from !== undefined) peer.paths.handleProbeAnswer(message, report.leg, from, report.at);
        break;
      case "echo":
        peer.usedAt = now;
        peer.paths.setInUse(true, now);
        this.#sendControl(peer, { leg: report.leg, to: report.from }, { ...message, type: "echo_answer" });
        break;
      case "echo_answer": {
        const roundTripMs = report.at - message.time / 1000;
        if (message.sequence === OWN_ECHO) {
          peer.relayRttMs = roundTripMs;
          break;
        }
        const path = isUdp ? "direct" : (peer.route?.kind ?? "websocket");
        this.#event({ type: "echo_answer", id: peer.id, sequence: message.sequence, roundTripMs, path });
        break;
      }
      case "candidates":
        if (peer.paths.setRemote(message.list)) peer.nat = message.list.nat;
        break;
      case "wish":
        peer.remoteWish = message.rung;
        this.#applyWish(peer, "chosen by the peer's operator", now);
        break;
      case "close":
        this.#letGo(
          peer,
          message.reason === "stopping" ? "the peer has stopped" : `the peer closed: ${message.reason}`,
          now,
        );
        break;
      default:
        assertNever(message);
    }
  }

  #handleActivity(report: PlaneReport & { readonly type: "activity" }, now: Instant): void {
    const peer = this.#bySlot.get(report.peer);
    if (peer === undefined) return;
    peer.usedAt = now;
    peer.paths.setInUse(true, now);
    if (report.received > 0 && report.leg < FIRST_RELAY_LEG) {
      peer.paths.handleReceived(report.leg, unpackAddress(report.from), report.at);
    }
    if (report.sent > 0) peer.paths.handleSent(report.at);
  }

  #sendEcho(peer: Peer, sequence: number, now: Instant): void {
    const path = this.#routeRef(peer);
    if (path === undefined) return;
    this.#sendControl(peer, path, { type: "echo", sequence, time: Math.floor(now * 1000) });
    // It wants an answer as data does, so silence makes the path suspect as soon.
    peer.paths.handleSent(now);
  }

  #openRelay(peer: Peer, kind: RelayLeg): void {
    if (!this.#relays[kind] || (kind === "ssh" && wishOf(peer) === "websocket")) return;
    this.#actions.push({ type: "relay_open", kind, peer: peer.id });
  }

  #tellWish(peer: Peer): void {
    this.#sendControl(peer, this.#routeRef(peer) ?? this.#signalRef(peer), { type: "wish", rung: peer.wish });
  }

  /** Without a channel of its own on the SSH connection this peer's frames come in by the WebSocket. */
  #applyWish(peer: Peer, reason: string, now: Instant): void {
    if (this.#relays.ssh && peer.session.isEstablished) {
      const type = wishOf(peer) === "websocket" ? "relay_close" : "relay_open";
      this.#actions.push({ type, kind: "ssh", peer: peer.id });
      // What the peer sends will come by another of our connections soon, and only we can know.
      this.#actions.push({ type: "plane", command: { type: "keep_order", peer: peer.slot } });
    }
    this.#updateRoute(peer, reason, now);
  }

  #tellCandidates(peer: Peer, path: PathRef): void {
    const list = this.#gathering.candidates(true);
    peer.toldGeneration = list.generation;
    this.#sendControl(peer, path, { type: "candidates", list });
  }

  #sendControl(peer: Peer, path: PathRef, message: ControlMessage): void {
    const body = encodeControl(message);
    this.#actions.push({ type: "plane", command: { type: "send_control", peer: peer.slot, path, body } });
  }

  #sendDatagram(path: PathRef, bytes: Uint8Array): void {
    this.#actions.push({ type: "plane", command: { type: "send_datagram", path, bytes } });
  }

  #signalTo(peer: Peer, body: Uint8Array): void {
    if (this.#connected && peer.entry.online) this.#signal({ type: "to_peer", to: peer.id, body });
  }

  #signal(message: Extract<NodeAction, { type: "signal" }>["message"]): void {
    this.#actions.push({ type: "signal", message });
  }

  #event(event: NodeEvent): void {
    this.#actions.push({ type: "event", event });
  }

  #routeRef(peer: Peer): PathRef | undefined {
    const { route } = peer;
    if (route === undefined) return undefined;
    if (route.kind === "direct") return { leg: route.pair.leg, to: route.pair.packedRemote };
    return { leg: RELAY_LEGS[route.legs.local], to: packedSlot(peer.slot) };
  }

  #signalRef(peer: Peer): PathRef {
    return { leg: SIGNAL_LEG, to: packedSlot(peer.slot) };
  }

  // After every input

  /** Lets what one input has set in motion run its course: gathering, openings, sessions, paths. */
  #settle(now: Instant): void {
    this.#tickAt ??= after(now, TICK_MS);
    this.#drainGathering(now);
    if (this.#toOpen !== undefined && (this.#gathering.isReady || now >= this.#toOpen.at)) {
      const { ids } = this.#toOpen;
      this.#toOpen = undefined;
      for (const id of ids) this.#open(this.#peers.get(id), now);
    }
    this.#drainAll(now);
  }

  #drainAll(now: Instant): void {
    for (const peer of this.#peers.values()) {
      this.#drainSession(peer, undefined, now);
      this.#drainPaths(peer, now);
    }
  }

  #drainGathering(now: Instant): void {
    for (let action = this.#gathering.poll(); action !== undefined; action = this.#gathering.poll()) {
      switch (action.type) {
        case "send":
          this.#sendDatagram({ leg: action.leg, to: action.to }, action.bytes);
          break;
        case "open_leg":
        case "close_leg":
          this.#actions.push(action);
          break;
        case "changed":
          for (const peer of this.#peers.values()) {
            if (!peer.session.isEstablished || isIdle(peer, now)) continue;
            peer.paths.hurry(now);
            this.#tellCandidates(peer, this.#routeRef(peer) ?? this.#signalRef(peer));
          }
          break;
        case "nat_detected":
          this.#event({
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
          this.#sendControl(peer, { leg: action.leg, to: action.to }, action.message);
          break;
        case "selected":
          this.#updateRoute(peer, action.reason, now);
          break;
        case "request_round":
          this.#requestPunch(peer);
          // The round is of little use if the peer aims at a mapping that our router has forgotten.
          this.#gathering.checkMapping(now);
          this.#drainGathering(now);
          break;
        case "fired":
          this.#signal({ type: "punch_fired", peer: peer.id, round: action.round, firedAt: action.at });
          break;
        default:
          assertNever(action);
      }
    }
  }

  /** Looks at the ladder again, after anything that may have changed it. `reason` is told if it has. */
  #updateRoute(peer: Peer, reason: string, now: Instant): void {
    const before = peer.route;
    // An old path that has died brings nothing more: then there is no end to wait for.
    const isPlanned =
      before !== undefined &&
      (before.kind === "direct" ? before.pair.isValid : this.#relays[before.legs.local] && peer.remoteLeg !== null);
    const rungs = { pair: peer.paths.selected, relays: this.#relays, remoteLeg: peer.remoteLeg, wish: wishOf(peer) };
    const route = peer.session.isEstablished ? chooseRoute(rungs) : undefined;
    if (isSameRoute(before, route)) return;
    peer.route = route;
    peer.relayRttMs = undefined;
    peer.relayEchoAt = undefined;
    const path = this.#routeRef(peer);
    const mtu =
      route === undefined
        ? 0
        : route.kind !== "direct"
          ? MTU_RELAY
          : isIPv6(route.pair.remote.ip)
            ? MTU_IPV6
            : MTU_IPV4;
    this.#actions.push({ type: "plane", command: { type: "select_path", peer: peer.slot, path, mtu, isPlanned } });
    const from = before?.kind ?? null;
    const to = route?.kind ?? null;
    const atUnixMs = this.#options.environment.wallClockUnixMs();
    peer.selectedAtUnixMs = route === undefined ? undefined : atUnixMs;
    if (from !== to) remember(peer, { atUnixMs, from, to, reason });
    const pair = route?.kind === "direct" ? route.pair : undefined;
    this.#event({
      type: "path_changed",
      id: peer.id,
      name: peer.entry.name,
      from,
      to,
      reason,
      remote: pair?.remote,
      rttMs: pair?.rttMs,
    });
    if (route === undefined) return;
    const echoes = peer.waitingEchoes;
    peer.waitingEchoes = [];
    for (const sequence of echoes) this.#sendEcho(peer, sequence, now);
  }

  /** A direct path measures itself by its probes; a relayed one by an echo now and then. */
  #measureRelay(peer: Peer, inUse: boolean, now: Instant): void {
    const isRelayed = peer.route !== undefined && peer.route.kind !== "direct";
    if (!isRelayed || !inUse || (peer.relayEchoAt !== undefined && now < peer.relayEchoAt)) return;
    peer.relayEchoAt = after(now, RELAY_ECHO_MS);
    this.#sendEcho(peer, OWN_ECHO, now);
  }

  // Rules about addresses

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
      if (![...this.#peers.values()].some((peer) => peer.session.ownsIndex(index))) return index;
    }
  }
}

/** The `to` of the signalling leg: a peer's slot. */
const packedSlot = (slot: number): Uint8Array => {
  const packed = new Uint8Array(18);
  new DataView(packed.buffer).setUint32(0, slot);
  return packed;
};
const slotOf = (packed: Uint8Array): number => new DataView(packed.buffer, packed.byteOffset).getUint32(0);
