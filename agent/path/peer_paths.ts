/**
 * Which address pair reaches this peer? Probes, proves, selects, watches, and gives up pairs of one peer.
 *
 * Candidates arrive whenever they are learned, so one that shows up late is treated like one that was there from the start. When the
 * coordinator names an instant to fire, all pairs are probed at that instant and then retransmitted early; the peer does the same at the
 * same moment, so first probes cross in flight and open both filters. After a round without success trusted pairs go on being probed
 * slowly for ever: each probe keeps our own filter open for half a minute, so the peer's next one may pass without any timing.
 *
 * Departs from RFC 8445 in four ways, all because there is one component and an authenticated session beneath: pairs are never
 * frozen, checks are sealed probes instead of STUN, an answer may come from another address than the one probed (§7.2.5.2.1), and each
 * side selects for itself, at any time, without nomination.
 */
import { isIPv6, isProbeable, sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { CandidateList } from "../../shared/wire/candidates.ts";
import type { ControlMessage } from "../../shared/wire/control.ts";
import type { Leg, PacketCounts } from "../data/plane.ts";
import { ExtraLegs } from "./extra_legs.ts";
import { keepaliveMs } from "./mapping_lifetime.ts";
import type { Pair, PairOrigin } from "./pair.ts";
import { NETWORK_CHANGED, probingRank, reasonOfDeath, reasonToMove } from "./pair_choice.ts";
import { PairTable } from "./pair_table.ts";
import type { LocalLegs, PathAction, PeerPathsOptions } from "./path_contract.ts";
import { PathWatch, usualAnswerMs } from "./path_watch.ts";
import { PROVING_GAP_MS, Stability } from "./stability.ts";
import { PRIMER_HOPS } from "./primer.ts";
import { Probes } from "./probes.ts";
import { RemoteAddresses } from "./remote_addresses.ts";
import { Rounds } from "./rounds.ts";
import { UntrustedProbes } from "./untrusted_probes.ts";
import type { Volley } from "./volley.ts";

/** First probes of a round, after its start. Dense at first: the peer's filter opens within one path delay of its own first probe. */
const ROUND_MS: readonly number[] = [0, 20, 45, 80, 130, 200, 300, 450, 700, 1000, 1500, 2200, 3000];
/** Once a path works, the other pairs of the round are probed until this age: long enough for a LAN pair to win. */
const SETTLE_MS = 500;
/** Trusted pairs between rounds while the peer is in use and has no direct path: one probe each. Linux keeps an unanswered flow 30 s. */
const BACKGROUND_MS = 4000;
/** Changes come in bursts, one for each address that is learned: they ask for one round together. */
const HURRY_MS = 30;
/** A probe that answers the peer's probes is not repeated sooner. Shorter than the densest step of a round. */
const TRIGGERED_GAP_MS = 15;

export class PeerPaths {
  readonly #options: PeerPathsOptions;
  readonly #actions: PathAction[] = [];
  /** Probes sent to addresses that only the peer vouches for. */
  readonly #untrustedProbes = new UntrustedProbes();
  readonly #pairs = new PairTable(this.#untrustedProbes);
  readonly #extraLegs = new ExtraLegs();
  #legs: LocalLegs = { ipv4: undefined, ipv6: undefined };
  readonly #remote = new RemoteAddresses();
  #selected: Pair | undefined;
  readonly #rounds = new Rounds();
  #isInUse = false;
  #isEnabled = false;
  readonly #watch = new PathWatch();
  readonly #stability = new Stability();
  #isSuspectTold = false;
  #hasRelay = false;
  readonly #probes: Probes;

  constructor(options: PeerPathsOptions) {
    this.#options = options;
    const parts = { untrusted: this.#untrustedProbes, extraLegs: this.#extraLegs, rounds: this.#rounds };
    this.#probes = new Probes(options, parts, (action) => this.#actions.push(action));
  }

  get selected(): Pair | undefined {
    return this.#selected;
  }

  /** No path, or one that has not proven itself since a network changed. */
  get isLooking(): boolean {
    return this.#selected === undefined || this.#watch.isDoubted(this.#selected);
  }

  /** The number of the candidate list that we have of the peer. */
  get remoteGeneration(): number | undefined {
    return this.#remote.generation;
  }

  get round(): number {
    return this.#rounds.newest;
  }

  /** Has at least one whole round ended without a path? */
  get hasFailedRound(): boolean {
    return this.failedRounds > 0;
  }

  /** How many whole rounds have ended without a path, one after the other. */
  get failedRounds(): number {
    return this.#selected === undefined ? this.#rounds.failed : 0;
  }

  pairs(): readonly Pair[] {
    return this.#pairs.values();
  }

  /** The pair that brings the peer's packets, if it is proven to lead back. */
  provenPair(leg: Leg, from: TransportAddress): Pair | undefined {
    return this.pairs().find((pair) => pair.leg === leg && pair.isValid && pair.hears(from));
  }

  setLegs(legs: LocalLegs, now: Instant): void {
    this.#legs = legs;
    this.#pairs.keep((pair) => this.#isOurs(pair.leg));
    this.#makePairs(now);
  }

  /** A sealed list from the peer itself. False, and ignored, when it is older than the one we have: it came by a slower way. */
  setRemote(list: CandidateList, now: Instant): boolean {
    if (!this.#remote.setList(list)) return false;
    const selected = this.#selected;
    const wasNamed = selected !== undefined && selected.origin !== "peer-reflexive";
    if (wasNamed && !this.#remote.isNamed(selected.remote)) this.doubt(now);
    this.#pairs.keep((pair) => {
      const isNamed = this.#remote.isNamed(pair.remote);
      return isNamed || pair.origin === "peer-reflexive" || pair.isValid || pair === this.#selected;
    });
    this.#makePairs(now);
    return true;
  }

  /** Addresses of the peer that the coordinator has seen itself. Alone they are worth nothing: see pair.ts. */
  setAttested(addresses: readonly TransportAddress[], now: Instant): void {
    this.#remote.attested = addresses;
    this.#makePairs(now);
  }

  /** The peer's address that it names itself and the coordinator attests: by consent it may get more than a plain round. */
  get attestedTarget(): TransportAddress | undefined {
    return this.#remote.target((address) => this.#isAllowed(address));
  }

  get hasMappedCandidate(): boolean {
    return this.#remote.hasMapped;
  }

  /** Both agents have agreed to more than a plain round: from here on its sockets and its probes may find this peer. */
  startVolley(volley: Volley): void {
    this.#extraLegs.volley = volley;
  }

  /** Returns the sockets that it has no more use for. */
  endVolley(now: Instant): readonly Leg[] {
    const unused = this.#extraLegs.endVolley(now);
    this.#pairs.keep((pair) => !unused.includes(pair.leg));
    return unused;
  }

  /** Probing is possible: both sides have keys. False stops everything, and forgets what was proven. */
  setEnabled(isEnabled: boolean, now: Instant): void {
    if (this.#isEnabled === isEnabled) return;
    this.#isEnabled = isEnabled;
    if (isEnabled) {
      this.#rounds.start(now);
    } else {
      this.#rounds.stop();
      // The next session brings its own list; the peer's process may be another one then, that counts its lists anew.
      this.#remote.forgetList();
      this.#watch.forget();
      for (const pair of this.#pairs.values()) pair.stopRound();
    }
  }

  setInUse(isInUse: boolean, now: Instant): void {
    if (isInUse && !this.#isInUse && this.#selected === undefined) this.#rounds.requestNow(now);
    this.#isInUse = isInUse;
  }

  /** Is there a relay that carries the traffic while no direct path does? Without one any path is better than none, however often it has died. */
  setRelay(isThere: boolean): void {
    this.#hasRelay = isThere;
  }

  /** Something has changed that may let a round succeed: ask for one soon, unless there is a path. */
  hurry(now: Instant, delayMs = HURRY_MS): void {
    if (this.#isEnabled && this.isLooking) this.#rounds.hurry(after(now, delayMs));
  }

  /**
   * A network has changed, ours or the peer's, and the selected pair may have died with it: it has to prove itself, and when it does not do
   * so within its usual time, another takes over without the patience that a working path deserves.
   */
  doubt(now: Instant): void {
    const selected = this.#selected;
    this.#stability.forget();
    if (!this.#isEnabled || selected === undefined) return;
    this.#watch.doubt(now);
    this.#rounds.hurryNotBefore(after(now, usualAnswerMs(selected)));
    this.#probe(selected, now);
  }

  /** Fire at this instant, together with the peer. */
  schedule(round: number, fireAt: Instant, now: Instant): void {
    if (!this.#isEnabled) return;
    this.#rounds.schedule(round, fireAt);
    for (const pair of fireAt > now ? this.pairs() : []) {
      const isPrimed = pair.isTrusted && !pair.isLocal && !pair.isValid && !isIPv6(pair.remote.ip);
      if (isPrimed && this.#probes.maySend(pair, now)) this.#probe(pair, now, PRIMER_HOPS);
    }
  }

  /** Probe every pair now, without waiting for the peer: after a change that may have broken or opened something. */
  probeAll(now: Instant): void {
    if (!this.#isEnabled) return;
    this.#beginRound(now);
  }

  /** Forgets every pair and proof: the peer has restarted, or is let go. */
  invalidate(reason: string, now: Instant): void {
    for (const pair of this.#pairs.values()) {
      pair.invalidate();
      pair.stopRound();
    }
    this.#pairs.clear();
    this.#select(undefined, reason, now);
    this.#closeSilentLegs(Number.POSITIVE_INFINITY as Instant);
  }

  handleProbe(
    message: ControlMessage & { readonly type: "probe" },
    leg: Leg,
    from: TransportAddress,
    now: Instant,
  ): void {
    this.#extraLegs.noteHeard(leg, now);
    const pair = this.#pairs.get(leg, from) ?? this.#addPeerReflexive(leg, from, now);
    if (pair === undefined) return;
    pair.receivedAt = now;
    if (message.answered) pair.peerConfirmed = true;
    // What an answer of ours has brought there comes back: the peer is where it says, and nobody is aimed at.
    if (message.echo !== undefined && message.echo === pair.challenge) pair.isTrusted = true;
    if (!pair.isTrusted) pair.challenge ??= this.#probes.newTransaction();
    // An authentic peer may still write a stranger's address on its probes: until the address has answered, answers are rationed too.
    if (!pair.isValid && !this.#probes.takeFromBudget(pair, now)) return;
    this.#probes.answer(pair, message.transaction, from);
    // Triggered check (RFC 8445 §7.3.1.4): what reached us is the best guess at what our own probe can reach. One for a whole volley:
    // the peer's probes to each of our mappings arrive here together.
    const isVolley = pair.lastProbeAt !== undefined && now - pair.lastProbeAt < TRIGGERED_GAP_MS;
    if (!pair.isValid && !isVolley && this.#probes.maySend(pair, now)) this.#probe(pair, now);
    if (this.#selected === undefined && !pair.isValid && pair.nextProbeAt === undefined) pair.startRound(now);
  }

  handleProbeAnswer(
    message: ControlMessage & { readonly type: "probe_answer" },
    leg: Leg,
    from: TransportAddress,
    now: Instant,
  ): void {
    if (this.#handleMtuAnswer(message.transaction, now)) return;
    // The transaction names the pair, not the source address: between two NATs that use another port per destination, and let the
    // answer in all the same, what we send to and what we hear from differ. The seal has proven who answered.
    const pair =
      this.pairs().find((candidate) => candidate.leg === leg && candidate.onAnswer(message.transaction, now)) ??
      this.#provenByVolley(message.transaction, leg, from, now);
    if (pair === undefined) return;
    pair.answersFrom = from;
    pair.echo = message.echo;
    // Our router has another address or port for us: until the peer has followed, its reports go where we are no more.
    const hasMoved = pair.seenFrom !== undefined && !sameTransportAddress(pair.seenFrom, message.seenFrom);
    if (hasMoved && pair === this.#selected) this.#watch.onRungChange(now);
    pair.seenFrom = message.seenFrom;
    if (!pair.isLocal) this.#actions.push({ type: "seen", leg, address: message.seenFrom });
    // Should the pair be forgotten one day, it is not held to the probes of this time.
    this.#untrustedProbes.forget(pair.remote);
    if (message.answered) pair.peerConfirmed = true;
    if (pair === this.#selected) {
      this.#watch.onHeard();
      this.#isSuspectTold = false;
    }
    pair.stopRound();
    if (this.#mustProve(pair, now)) {
      pair.nextProbeAt = after(now, PROVING_GAP_MS);
      return;
    }
    this.#consider(pair, now);
    // Tell the peer that this pair is proven from our side, so that both know: one more probe, with `answered` set.
    if (pair.peerConfirmed || pair.hasToldPeer) return;
    pair.hasToldPeer = true;
    this.#probe(pair, now);
  }

  /**
   * Any authentic frame on a pair: the peer is there.
   *
   * @param isProbe its probes say nothing of whether ours arrive; data and answers do, or make it likely
   */
  handleReceived(leg: Leg, from: TransportAddress, isProbe: boolean, now: Instant): void {
    this.#extraLegs.noteHeard(leg, now);
    const selected = this.#selected;
    const isSelected = selected?.leg === leg && selected.hears(from);
    const known = isSelected ? selected : this.#pairs.get(leg, from);
    const pair = known ?? this.#addPeerReflexive(leg, from, now);
    if (pair === undefined) return;
    pair.receivedAt = now;
    // Its router has moved it: proven in time, the new address can take over when the old one turns out to be dead.
    if (known === undefined && this.#isEnabled && selected !== undefined) pair.startRound(now);
    // Only an answer takes back what unanswered probes say: what comes in may be all that still works.
    if (isProbe) return;
    pair.heardAt = now;
    if (isSelected) this.#watch.onHeard();
  }

  /** Data moved on the selected pair, one way or the other: packets that left and came, since the last time. */
  handleTraffic(sent: PacketCounts, received: PacketCounts, now: Instant): void {
    this.#watch.onTraffic(sent.large + received.large > 0, received.small + received.large, now);
    if (sent.small + sent.large > 0) this.#watch.onDataSent(sent, now);
  }

  /** How many of our packets the peer has got so far, as it says. */
  handleDeliveryReport(total: PacketCounts, now: Instant): void {
    this.#watch.onDeliveryReport(total, this.#selected, now);
  }

  /** Traffic has moved from one rung to another. */
  handleRungChange(now: Instant): void {
    this.#watch.onRungChange(now);
  }

  /** Something that wants an answer left on the selected pair. */
  handleSent(now: Instant): void {
    this.#watch.onSent(now);
  }

  handleTimeout(now: Instant): void {
    if (!this.#isEnabled) return;
    const round = this.#rounds.takeDue(now);
    if (round !== undefined) {
      this.#beginRound(now);
      this.#actions.push({ type: "fired", round, at: now });
    }
    for (const pair of this.#pairs.values()) this.#probeIfDue(pair, now);
    this.#searchMtu(now);
    this.#rounds.endIfDue(this.#selected !== undefined, now);
    this.#watchSelected(now);
    this.#requestRoundIfDue(now);
    this.#closeSilentLegs(now);
  }

  deadline(): Instant | undefined {
    if (!this.#isEnabled) return undefined;
    let first = earliest(this.#rounds.deadline(), this.#watchAt(), this.#requestAt());
    for (const pair of this.#pairs.values()) first = earliest(first, pair.nextProbeAt);
    return earliest(first, this.#selected?.mtu.dueAt(this.#isInUse));
  }

  poll(): PathAction | undefined {
    return this.#actions.shift();
  }

  // Candidates and pairs

  #makePairs(now: Instant): void {
    for (const { kind, address } of this.#remote.candidates) {
      const leg = isIPv6(address.ip) ? this.#legs.ipv6 : this.#legs.ipv4;
      if (leg === undefined || !this.#isAllowed(address)) continue;
      const isLocal = this.#options.isDirectlyConnected(address.ip);
      const isAttested = this.#remote.isAttested(address);
      const known = this.#pairs.get(leg, address);
      if (known === undefined) {
        this.#addPair(leg, address, kind, isLocal || isAttested, isLocal, now);
        continue;
      }
      if (known.origin === "peer-reflexive") known.origin = kind;
      if (known.isTrusted || !(isLocal || isAttested)) continue;
      known.isTrusted = true;
      this.#joinRound(known, now);
    }
  }

  #addPeerReflexive(leg: Leg, from: TransportAddress, now: Instant): Pair | undefined {
    if (!this.#isOurs(leg) || !this.#isAllowed(from)) return undefined;
    this.#pairs.expire(this.#selected, now);
    if (!this.#pairs.makeRoom(this.#selected)) return undefined;
    // On a socket of a volley it may be the very address that the peer names itself.
    const isTrusted = this.#remote.isNamed(from) && this.#remote.isAttested(from);
    return this.#addPair(leg, from, "peer-reflexive", isTrusted, this.#options.isDirectlyConnected(from.ip), now);
  }

  #isOurs(leg: Leg): boolean {
    return leg === this.#legs.ipv4 || leg === this.#legs.ipv6 || this.#extraLegs.has(leg);
  }

  /** An answer to a guess: the guess was right. */
  #provenByVolley(transaction: number, leg: Leg, from: TransportAddress, now: Instant): Pair | undefined {
    const sentAt = this.#extraLegs.volley?.sentAt(transaction);
    if (sentAt === undefined) return undefined;
    const pair = this.#pairs.get(leg, from) ?? this.#addPeerReflexive(leg, from, now);
    pair?.onProven(sentAt, now);
    return pair;
  }

  #closeSilentLegs(now: Instant): void {
    const silent = this.#extraLegs.takeSilent(this.#selected?.leg, now);
    this.#pairs.keep((pair) => !silent.includes(pair.leg));
    for (const leg of silent) this.#actions.push({ type: "close_leg", leg });
  }

  #addPair(
    leg: Leg,
    remote: TransportAddress,
    origin: PairOrigin,
    isTrusted: boolean,
    isLocal: boolean,
    now: Instant,
  ): Pair | undefined {
    const pair = this.#pairs.add({ leg, remote, origin, isTrusted, isLocal });
    if (pair !== undefined) this.#joinRound(pair, now);
    return pair;
  }

  /** A candidate that comes late joins the round that is running, with all of its steps: the peer may learn as late. */
  #joinRound(pair: Pair, now: Instant): void {
    if (this.#rounds.isRunning && !pair.isValid) pair.startRound(now);
  }

  #isAllowed(address: TransportAddress): boolean {
    return (
      address.port > 0 && isProbeable(address.ip, this.#options.allowLoopback) && !this.#options.isForbidden(address)
    );
  }

  // Probing

  #beginRound(now: Instant): void {
    this.#pairs.expire(this.#selected, now);
    this.#rounds.begin(now);
    // Likeliest first, since all leave within the same millisecond and a slow router takes them in order.
    const ordered = this.pairs().toSorted((a, b) => probingRank(a) - probingRank(b));
    for (const pair of ordered) {
      // The selected pair has its own watch: a volley without answers yet would look like its death.
      if (pair === this.#selected) {
        if (pair.unanswered === 0) this.#probe(pair, now);
        continue;
      }
      pair.startRound(now);
      this.#probeIfDue(pair, now);
    }
  }

  #probeIfDue(pair: Pair, now: Instant): void {
    if (pair.nextProbeAt === undefined || now < pair.nextProbeAt) return;
    const { roundStep, roundStartedAt } = pair;
    // A path works and the other pairs have had their chance to be better.
    if (!this.isLooking && roundStartedAt !== undefined && now - roundStartedAt > SETTLE_MS) {
      pair.stopRound();
      return;
    }
    if (roundStep !== undefined && roundStartedAt !== undefined) {
      let step = roundStep + 1;
      while (step < ROUND_MS.length && after(roundStartedAt, ROUND_MS[step] ?? 0) <= now) step++;
      const offset = ROUND_MS[step];
      pair.roundStep = offset === undefined ? undefined : step;
      pair.nextProbeAt = offset === undefined ? this.#backgroundAt(pair, now) : after(roundStartedAt, offset);
    } else if (pair.isValid && pair !== this.#selected && this.#mustProve(pair, now)) {
      pair.nextProbeAt = after(now, PROVING_GAP_MS);
    } else {
      pair.nextProbeAt = this.#backgroundAt(pair, now);
    }
    if (this.#probes.maySend(pair, now)) this.#probe(pair, now);
    else if (!pair.mayProbe) pair.stopRound();
  }

  /** Paths to this peer have died lately: one answer is not enough then. */
  #mustProve(pair: Pair, now: Instant): boolean {
    return this.#selected === undefined && this.#hasRelay && pair.answersInRow < this.#stability.answersNeeded(now);
  }

  /** The slow probing that never ends, as long as the peer is in use and has no path. */
  #backgroundAt(pair: Pair, now: Instant): Instant | undefined {
    return this.#selected === undefined && this.#isInUse && pair.isTrusted ? after(now, BACKGROUND_MS) : undefined;
  }

  #probe(pair: Pair, now: Instant, hops?: number): void {
    const isLarge = pair.needsLarge || (pair === this.#selected && this.#watch.wantsLarge(now));
    this.#probes.send(pair, isLarge, now, hops);
  }

  // The size of frames

  #searchMtu(now: Instant): void {
    const pair = this.#selected;
    const dueAt = pair?.mtu.dueAt(this.#isInUse);
    if (pair === undefined || dueAt === undefined || now < dueAt) return;
    if (!this.#probes.sendForSize(pair, now)) this.#actions.push({ type: "mtu_changed" });
  }

  /** Probes of the size are none of whether the pair lives: a lost one must not look like its death, nor an answer like its life. */
  #handleMtuAnswer(transaction: number, now: Instant): boolean {
    const mtu = this.#selected?.mtu;
    const before = mtu?.size;
    if (mtu?.handleAnswer(transaction, now) !== true) return false;
    if (mtu.size !== before) this.#actions.push({ type: "mtu_changed" });
    return true;
  }

  /** Large frames are lost, and those of the base size are not: the path has become narrower, and lives. */
  #shrink(pair: Pair, now: Instant): boolean {
    const { mtu, unansweredSince } = pair;
    const { baseAnsweredAt } = mtu;
    if (mtu.size <= mtu.base || baseAnsweredAt === undefined || unansweredSince === undefined) return false;
    if (baseAnsweredAt < unansweredSince) return false;
    mtu.shrink(now);
    pair.onBaseAnswered(baseAnsweredAt);
    this.#watch.restart();
    this.#actions.push({ type: "mtu_changed" });
    return true;
  }

  #requestAt(): Instant | undefined {
    return this.isLooking && this.#isInUse ? this.#rounds.requestAt() : undefined;
  }

  #requestRoundIfDue(now: Instant): void {
    const at = this.#requestAt();
    if (at === undefined || now < at) return;
    this.#rounds.onRequested(now);
    this.#actions.push({ type: "request_round" });
  }

  // Selection and consent

  /** Takes a freshly proven pair if it is the first, or clearly better. */
  #consider(pair: Pair, now: Instant): void {
    const current = this.#selected;
    if (current === pair) return;
    if (current === undefined) {
      this.#select(pair, "first direct path that answered", now);
      return;
    }
    if (this.#watch.isDoubted(current)) {
      if (!this.#watch.isOverdue(current, now)) return;
      // Given up, not left in good order: nobody waits for what is still on it.
      current.invalidate();
      this.#select(pair, NETWORK_CHANGED, now);
      return;
    }
    const reason = reasonToMove(current, pair);
    if (reason !== undefined) this.#select(pair, reason, now);
  }

  #select(pair: Pair | undefined, reason: string, now: Instant): void {
    if (this.#selected === pair) return;
    this.#selected = pair;
    this.#watch.restart();
    this.#isSuspectTold = false;
    if (pair !== undefined) {
      pair.mtu.start(now);
      this.#rounds.onPath();
    }
    this.#actions.push({ type: "selected", pair, reason });
  }

  #watchAt(): Instant | undefined {
    return earliest(this.#proofAt(), this.#suspectAt());
  }

  /** Told once in each silence. */
  #suspectAt(): Instant | undefined {
    return this.#selected === undefined || this.#isSuspectTold ? undefined : this.#watch.suspectAt(this.#selected);
  }

  #proofAt(): Instant | undefined {
    const selected = this.#selected;
    if (selected === undefined) return undefined;
    const measuredMs = isIPv6(selected.remote.ip) ? undefined : this.#options.keepaliveMs?.();
    return this.#watch.dueAt(selected, this.#isInUse, measuredMs ?? keepaliveMs(undefined));
  }

  /** Others that have worked a while ago, as thoroughly as the selected one. */
  #probeStandbys(selected: Pair, now: Instant): void {
    for (const pair of this.pairs()) {
      if (!pair.isValid || pair === selected) continue;
      pair.needsLarge ||= selected.isProvingLarge;
      this.#probe(pair, now);
    }
  }

  #watchSelected(now: Instant): void {
    const pair = this.#selected;
    const suspectAt = this.#suspectAt();
    if (suspectAt !== undefined && now >= suspectAt) {
      this.#isSuspectTold = true;
      this.#actions.push({ type: "suspect" });
    }
    const at = this.#proofAt();
    if (pair === undefined || at === undefined || now < at) return;
    const verdict = this.#watch.verdict(pair, now);
    if (verdict === "probe") {
      // What may have died with it must not take over one after the other, each for as long as it takes to find out.
      if (pair.unanswered > 0) this.#probeStandbys(pair, now);
      this.#probe(pair, now);
      return;
    }
    const isDoubted = this.#watch.isDoubted(pair);
    if (verdict === "dead" && pair.isProvingLarge && this.#shrink(pair, now)) return;
    const isTooLarge = verdict === "dead" && pair.isProvingLarge && this.#watch.isHeard(pair, now);
    // What died under large packets must be proven by large ones: small ones may have passed all the time.
    if (pair.isProvingLarge && !isDoubted) pair.needsLarge = true;
    const reason = isDoubted ? NETWORK_CHANGED : reasonOfDeath(verdict, isTooLarge);
    if (!isDoubted) this.#stability.onDeath(verdict === "deaf", now);
    const { unansweredSince } = pair;
    pair.invalidate();
    this.#pairs.expire(this.#selected, now);
    // With a relay there is no need to hope: a standby has been proven since then, or has to be first.
    const proven = this.#pairs.best((other) => other.isProvenSince(unansweredSince));
    const next = proven ?? (this.#hasRelay ? undefined : this.#pairs.best());
    this.#select(next, reason, now);
    // What nobody uses opens again when it is used: the peer has perhaps let it go.
    if (!this.#isInUse) return;
    // The peer may not have noticed, and the coordinator may be away: begin at once and alone, and ask for a synchronised round too.
    this.#rounds.onDeath(next === undefined, now);
    if (next === undefined) this.#actions.push({ type: "request_round" });
    this.#beginRound(now);
  }
}
