/**
 * Direct paths where plain simultaneous opening cannot make one: plans an attempt (path/punch_plan.ts), gets the peer's consent, runs it
 * (path/volley.ts), and judges how it went.
 *
 * Consent is an offer sent and an offer received, in whatever order: an answer is an offer too, and two offers that cross are answers to
 * each other. Each side keeps to the smaller of the two budgets. Whoever is not willing says so, and both stop.
 *
 * Politeness: one attempt at a time, whoever the peer; longer and longer pauses after failures at one address (path/target_pauses.ts);
 * never more than half of a block of ports that serve one destination each, over all peers (path/port_use.ts); none at all where the
 * chance is small, or where the operator has switched them off.
 */
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { NatReport } from "../../shared/wire/candidates.ts";
import type { ControlMessage, PunchEndReason, PunchOffer, PunchRole } from "../../shared/wire/control.ts";
import { NO_ATTEMPTS } from "../path/explain_no_direct.ts";
import { doubtedLabels } from "../path/label_doubt.ts";
import { nextOf } from "../path/port_allocation.ts";
import { guessPorts } from "../path/port_guess.ts";
import { MAPPING_LIFETIME_MS, PortUse } from "../path/port_use.ts";
import { MAX_PUNCH, MIN_PUNCH_CHANCE, planPunch, type PunchPlan } from "../path/punch_plan.ts";
import { TargetPauses } from "../path/target_pauses.ts";
import { Volley } from "../path/volley.ts";
import type { NodeOptions } from "./contract.ts";
import type { Gathering } from "./gathering.ts";
import { pathRef } from "../data/plane.ts";
import { DATA_LEG_IPV4, LAST_PUNCH_LEG } from "./legs.ts";
import type { Outbox } from "./outbox.ts";
import { isInUse, type Peer, wishOf } from "./peer.ts";
import type { PeerBook } from "./peer_book.ts";

/** An offer goes through the coordinator and back; the peer may ask its own router first. */
const OFFER_TIMEOUT_MS = 4000;
/** A peer that has not answered is asked again after this. */
const UNANSWERED_MS = 10_000;
/** The two sides' pauses end at about the same time. */
const RETRY_TOLERANCE_MS = 2500;
/** What a refusal may ask for at most. */
const MAX_REFUSAL_MS = 60_000;
const BUSY_SECONDS = 2;
/**
 * Of the room that a block has for an attempt, so much must be free, or it waits. Of the 105 to 112 ports that a block of 256 has room for, as its
 * borders have been learned, discovery has just taken 74: what is left finds a block that shares its ports in nine of ten cases.
 */
const LEAST_ROOM = 1 / 4;

const COUNTERPART: Readonly<Record<PunchRole, PunchRole>> = { spread: "guess", guess: "spread", meet: "meet" };

type Stage =
  /** Our router's counter is looked at. */
  | { readonly name: "sampling" }
  | { readonly name: "offered"; readonly at: Instant }
  | { readonly name: "running"; readonly volley: Volley };

interface Attempt {
  readonly peer: Peer;
  readonly id: number;
  readonly plan: PunchPlan;
  /** We have a path already, and the peer, who offered, has none: what reaches us does not all reach it. */
  readonly isForPeer: boolean;
  /** What the peer has offered. */
  theirs: PunchOffer | undefined;
  stage: Stage;
}

export class HardPunching {
  readonly #options: NodeOptions;
  readonly #gathering: Gathering;
  readonly #book: PeerBook;
  readonly #outbox: Outbox;
  readonly #pauses = new TargetPauses();
  readonly #portUse = new PortUse();
  /** Peers that have refused, or did not answer, and until when they are not asked again. */
  readonly #refusedUntil = new WeakMap<Peer, Instant>();
  #current: Attempt | undefined;
  /** The newest number of a volley's sockets; they count down. */
  #lastLeg = LAST_PUNCH_LEG;

  constructor(options: NodeOptions, gathering: Gathering, book: PeerBook, outbox: Outbox) {
    this.#options = options;
    this.#gathering = gathering;
    this.#book = book;
    this.#outbox = outbox;
  }

  /** After every input: begins what is due, carries on what runs. */
  settle(now: Instant): void {
    this.#carryOn(now);
    if (this.#current !== undefined || !this.#options.useDirect || this.#gathering.ipv4 === undefined) return;
    for (const peer of this.#book.awake()) {
      if (!this.#isDue(peer, now)) continue;
      this.#begin(this.#book.touch(peer), undefined, now);
      this.#carryOn(now);
      return;
    }
  }

  handleOffer(peer: Peer, offer: PunchOffer, now: Instant): void {
    const current = this.#current;
    if (current?.peer === peer) {
      if (current.stage.name === "running") return;
      current.theirs = offer;
      if (current.stage.name === "offered") this.#start(current, now);
      return;
    }
    const refusal = this.#refusalOf(peer, offer, now);
    if (refusal === undefined) {
      this.#begin(peer, offer, now);
      return;
    }
    if (refusal.reason === "not attested") peer.punches = { ...peer.punches, refusal: "not attested" };
    this.#sendEnd(peer, offer.attempt, refusal.reason, refusal.seconds);
  }

  /** The peer takes no part, or no longer. */
  handleEnd(peer: Peer, message: ControlMessage & { readonly type: "punch_end" }, now: Instant): void {
    const current = this.#current;
    if (current?.peer !== peer) return;
    this.#finish(current, message.reason === "stopped" ? "stopped" : "refused", now);
    peer.punches = { ...peer.punches, refusal: message.reason };
    const waitMs = Math.min(MAX_REFUSAL_MS, Math.max(1, message.retryAfterSeconds) * 1000);
    this.#refusedUntil.set(peer, after(now, waitMs));
  }

  /** Where our router's counter stands; undefined: it could not be found out. */
  handleSampled(port: number | undefined, now: Instant): void {
    const current = this.#current;
    if (current?.stage.name === "sampling") this.#sendOffer(current, port, now);
  }

  handleTimeout(now: Instant): void {
    const stage = this.#current?.stage;
    if (stage?.name === "running") stage.volley.handleTimeout(now);
  }

  deadline(): Instant | undefined {
    const stage = this.#current?.stage;
    if (stage?.name === "offered") return after(stage.at, OFFER_TIMEOUT_MS);
    return stage?.name === "running" ? earliest(stage.volley.deadline(), stage.volley.endsAt) : undefined;
  }

  #isDue(peer: Peer, now: Instant): boolean {
    if (peer.paths.selected !== undefined || !peer.session.isEstablished || peer.nat === undefined) return false;
    if (peer.trust !== "pinned" || !isInUse(peer, now) || isRelayWished(peer)) return false;
    const refusedUntil = this.#refusedUntil.get(peer);
    if ((refusedUntil !== undefined && now < refusedUntil) || this.#waitMs(peer, now) > 0) return false;
    // A port that a router has mapped for one of the two lets plain opening do.
    const hasMapping = peer.paths.hasMappedCandidate || this.#gathering.isPortMapped;
    if (hasMapping && !peer.paths.hasFailedRound) return false;
    const plan = this.#plan(peer);
    return plan !== undefined && plan.chanceInAll >= MIN_PUNCH_CHANCE && this.#roomWaitMs(plan, now) === 0;
  }

  /** Why we do not agree to the peer's offer, if so. */
  #refusalOf(
    peer: Peer,
    offer: PunchOffer,
    now: Instant,
  ): { readonly reason: PunchEndReason; readonly seconds: number } | undefined {
    const plan = this.#plan(peer, offer.role);
    const isOff = !this.#options.useDirect || this.#options.punchLimits?.packets === 0;
    if (isOff || isRelayWished(peer)) return { reason: "unwilling", seconds: 60 };
    // An answer to what we no longer run, or a path that the peer has not noticed yet.
    if (offer.isAnswer || peer.paths.selected?.peerConfirmed === true) {
      return { reason: "stopped", seconds: BUSY_SECONDS };
    }
    if (plan?.role !== COUNTERPART[offer.role]) return { reason: "unwilling", seconds: BUSY_SECONDS };
    if (this.#current !== undefined) return { reason: "busy", seconds: BUSY_SECONDS };
    const waitMs = Math.max(this.#waitMs(peer, now), this.#roomWaitMs(plan, now));
    if (waitMs > RETRY_TOLERANCE_MS) return { reason: "too soon", seconds: Math.ceil(waitMs / 1000) };
    if (peer.paths.attestedTarget === undefined) return { reason: "not attested", seconds: BUSY_SECONDS };
    return undefined;
  }

  #waitMs(peer: Peer, now: Instant): number {
    const ip = peer.paths.attestedTarget?.ip;
    return ip === undefined ? 0 : this.#pauses.waitMs(ip, now);
  }

  #portsInUse(now: Instant): number {
    const sampled = this.#gathering.portsTaken;
    const isRecent = sampled !== undefined && now < after(sampled.at, MAPPING_LIFETIME_MS);
    return this.#portUse.inUse(now) + (isRecent ? sampled.count : 0);
  }

  /** Until enough of our block is free again. */
  #roomWaitMs(plan: PunchPlan, now: Instant): number {
    const { room } = plan;
    if (room === undefined) return 0;
    const most = Math.ceil(room * (1 - LEAST_ROOM));
    if (this.#portsInUse(now) <= most) return 0;
    const sampled = this.#gathering.portsTaken;
    const sampledMs = sampled === undefined ? 0 : after(sampled.at, MAPPING_LIFETIME_MS) - now;
    return Math.max(1, sampledMs, this.#portUse.waitMs(most, now));
  }

  /** @param theirs the role that the peer offers to take: it may doubt another label than we would */
  #plan(peer: Peer, theirs?: PunchRole): PunchPlan | undefined {
    const { nat: remote, paths, punches, isGuessingOff } = peer;
    if (remote === undefined || isGuessingOff) return undefined;
    const { punchLimits: limits = MAX_PUNCH } = this.#options;
    const local = this.#gathering.natReport();
    const record = { failedRounds: paths.failedRounds, failedAttempts: punches.failed };
    const doubted = doubtedLabels(local, remote, record, this.#options.id < peer.id);
    const { failed } = punches;
    // Each doubt is tried with primers before one is tried without. A router whose own stack has taken our port gives the other one that it
    // found to all that this socket contacts from then on: only the attempt in which that side spreads, from new sockets, can succeed.
    const ofDoubt = { limits, failed: Math.floor(failed / Math.max(1, doubted.length)) };
    const plans = [
      planPunch(local, remote, { limits, failed }) ?? [],
      ...doubted.map((each) => planPunch(each.local, each.remote, ofDoubt) ?? []),
    ].flat();
    return plans.find(({ role }) => theirs === undefined || role === COUNTERPART[theirs]) ?? plans[0];
  }

  #begin(peer: Peer, theirs: PunchOffer | undefined, now: Instant): void {
    const full = this.#plan(peer, theirs?.role);
    if (full === undefined) return;
    // The peer may be a moment ahead with the end of its pause.
    const taken = this.#portsInUse(after(now, RETRY_TOLERANCE_MS));
    const free = Math.max(1, (full.room ?? Infinity) - taken);
    const plan = full.role === "meet" ? { ...full, probes: Math.min(full.probes, free) } : full;
    const attempt: Attempt = {
      peer,
      id: theirs?.attempt ?? this.#randomU32(),
      plan,
      isForPeer: peer.paths.selected !== undefined,
      theirs,
      stage: { name: "sampling" },
    };
    this.#current = attempt;
    peer.isPunching = true;
    // Where nobody aims at our ports, or they do not count, there is nothing to look at.
    const isAimedAt = plan.role !== "guess" && this.#gathering.natReport().allocation === "sequential";
    if (!isAimedAt || !this.#gathering.samplePort(now)) this.#sendOffer(attempt, undefined, now);
  }

  #sendOffer(attempt: Attempt, sampled: number | undefined, now: Instant): void {
    const { peer, plan, id, theirs } = attempt;
    const { ports: known } = this.#gathering.natReport();
    const ports = sampled === undefined || known === undefined ? known : nextOf(sampled, known.stride);
    const { role, sockets, perSecond, peerProbes } = plan;
    const isAnswer = theirs !== undefined;
    const probes = Math.max(plan.probes, peerProbes);
    const ownPackets = role === "meet" ? plan.probes : undefined;
    this.#send(peer, {
      type: "punch_offer",
      attempt: id,
      role,
      isAnswer,
      sockets,
      probes,
      perSecond,
      ports,
      ownPackets,
    });
    attempt.stage = { name: "offered", at: now };
    if (isAnswer) this.#start(attempt, now);
  }

  #start(attempt: Attempt, now: Instant): void {
    const { peer, plan, theirs } = attempt;
    const target = peer.paths.attestedTarget;
    if (theirs === undefined || peer.nat === undefined) return;
    if (target === undefined) {
      this.#sendEnd(peer, attempt.id, "not attested", BUSY_SECONDS);
      this.#finish(attempt, "refused", now);
      return;
    }
    const remote: NatReport = theirs.ports === undefined ? peer.nat : { ...peer.nat, ports: theirs.ports };
    const agreed = {
      ...plan,
      sockets: Math.max(1, Math.min(plan.sockets, theirs.sockets)),
      probes: Math.max(1, Math.min(plan.probes, theirs.probes)),
      peerProbes: Math.min(plan.peerProbes, theirs.ownPackets ?? theirs.probes),
      perSecond: Math.max(1, Math.min(plan.perSecond, theirs.perSecond)),
    };
    this.#lastLeg -= agreed.sockets;
    const volley = new Volley({
      plan: agreed,
      target,
      dataLeg: DATA_LEG_IPV4,
      firstLeg: this.#lastLeg,
      guess: guessPorts(remote, plan.role === "meet" ? theirs.sockets : undefined, () => this.#randomU32() / 2 ** 32),
      firstTransaction: this.#randomU32(),
      now,
    });
    peer.paths.startVolley(volley);
    attempt.stage = { name: "running", volley };
  }

  #carryOn(now: Instant): void {
    const current = this.#current;
    if (current === undefined) return;
    const { peer, stage } = current;
    this.#book.touch(peer);
    if (stage.name === "running") this.#drain(peer, stage.volley);
    const { selected } = peer.paths;
    if (selected !== undefined && (!current.isForPeer || selected.peerConfirmed)) this.#finish(current, "direct", now);
    else if (!peer.session.isEstablished || isRelayWished(peer)) this.#finish(current, "stopped", now);
    else if (stage.name === "running" && now >= stage.volley.endsAt) this.#finish(current, "failed", now);
    else if (stage.name === "offered" && now >= after(stage.at, OFFER_TIMEOUT_MS)) {
      this.#finish(current, "refused", now);
      this.#refusedUntil.set(peer, after(now, UNANSWERED_MS));
    }
  }

  #drain(peer: Peer, volley: Volley): void {
    for (let action = volley.poll(); action !== undefined; action = volley.poll()) {
      if (action.type === "open_leg") {
        this.#outbox.push({ type: "open_leg", leg: action.leg, family: 4 });
      } else {
        const { leg, to, transaction, hops } = action;
        const probe = { type: "probe", transaction, round: peer.paths.round, answered: false } as const;
        this.#outbox.sendControl(peer, pathRef(leg, to, hops), probe);
      }
    }
  }

  #finish(attempt: Attempt, outcome: "direct" | "failed" | "refused" | "stopped", now: Instant): void {
    const { peer, plan, stage } = attempt;
    this.#current = undefined;
    peer.isPunching = false;
    if (outcome === "direct") peer.punches = NO_ATTEMPTS;
    else if (outcome === "failed") peer.punches = { failed: peer.punches.failed + 1, refusal: undefined };
    if (stage.name !== "running") return;
    // Whoever stopped it: its packets have been sent.
    if (outcome === "direct") this.#pauses.opened(stage.volley.target.ip);
    else this.#pauses.failed(stage.volley.target.ip, now, plan.rounds > 1);
    if (plan.role !== "guess") this.#portUse.note(stage.volley.mappings, now);
    for (const leg of peer.paths.endVolley(now)) this.#outbox.push({ type: "close_leg", leg });
    const { volley } = stage;
    this.#outbox.event({
      type: "punched",
      id: peer.id,
      name: peer.entry.name,
      role: plan.role,
      outcome,
      sockets: volley.legs().length,
      packets: volley.packetsSent,
      milliseconds: now - volley.startedAt,
    });
  }

  #sendEnd(peer: Peer, attempt: number, reason: PunchEndReason, retryAfterSeconds: number): void {
    this.#send(peer, { type: "punch_end", attempt, reason, retryAfterSeconds: Math.min(retryAfterSeconds, 0xffff) });
  }

  /** By signalling where possible: it brings the peer's addresses as the coordinator attests them at this moment. */
  #send(peer: Peer, message: ControlMessage): void {
    const bySignalling = this.#outbox.connected && peer.entry.online;
    const way = bySignalling ? this.#outbox.signalRef(peer) : this.#outbox.routeRef(peer);
    if (way !== undefined) this.#outbox.sendControl(peer, way, message);
  }

  #randomU32(): number {
    const [a = 0, b = 0, c = 0, d = 0] = this.#options.environment.random(4);
    return ((a << 24) | (b << 16) | (c << 8) | d) >>> 0;
  }
}

/** The operator has a relay, or waits for one. A wish that was waited for in vain is no reason to do without a direct path. */
function isRelayWished(peer: Peer): boolean {
  const wish = wishOf(peer);
  return (wish === "ssh" || wish === "websocket") && (peer.route?.kind === wish || peer.wishUntil !== undefined);
}
