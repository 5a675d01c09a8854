/**
 * One pair: a local leg and a remote transport address, with what is known about it.
 *
 * A pair is **trusted** when nobody can be aimed by probing it: the remote address lies in a directly connected subnet, or both the
 * peer (sealed) and the coordinator (attested) name it, or it has answered. Any other gets `UNTRUSTED_PROBES` and no more.
 */
import { isIPv6, sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import type { Instant } from "../../shared/time.ts";
import type { CandidateKind } from "../../shared/wire/candidates.ts";
import type { Leg } from "../data/plane.ts";
import { PathMtu } from "./path_mtu.ts";

/** PRODUCT rule "Nobody can be aimed": probes to a candidate that only the peer vouches for. */
export const UNTRUSTED_PROBES = 5;
/** Unanswered probes remembered per pair: an answer to an older one counts for nothing. A round sends 13, on slow paths all unanswered. */
const MAX_OUTSTANDING = 64;
/** A silence of this long ends a row of answers. */
const ROW_GAP_MS = 1000;
/** Smoothing of the round trip as in RFC 6298 §2. */
const RTT_GAIN = 1 / 8;
const RTT_VARIATION_GAIN = 1 / 4;

export type PairOrigin = CandidateKind | "peer-reflexive";

export class Pair {
  readonly leg: Leg;
  readonly remote: TransportAddress;
  readonly packedRemote: Uint8Array;
  origin: PairOrigin;
  isTrusted: boolean;
  /** In a directly connected subnet: a path over the LAN. */
  readonly isLocal: boolean;
  readonly mtu: PathMtu;
  /** Probes to this address so far, and those since it last answered. */
  probesSent: number;
  unanswered = 0;
  /** Answers without a long silence between them. */
  answersInRow = 0;
  /** When the first of the unanswered probes left. */
  unansweredSince: Instant | undefined;
  /** The newest probe was a large one. */
  isProvingLarge = false;
  /** Small packets passed here while large ones did not: only a large probe proves it anew. */
  needsLarge = false;
  /** Position in the schedule of the current round; undefined when no round is running. */
  roundStep: number | undefined;
  roundStartedAt: Instant | undefined;
  nextProbeAt: Instant | undefined;
  lastProbeAt: Instant | undefined;
  /** Newest authentic answer to a probe of ours: proves both directions. */
  answeredAt: Instant | undefined;
  /** When the newest probe left that was answered: up to then the pair is known to have worked. */
  provenAt: Instant | undefined;
  /** Where the answer came from: another port than `remote` when both NATs use one per destination. */
  answersFrom: TransportAddress | undefined;
  /** Where the peer sees us, by its newest answer. */
  seenFrom: TransportAddress | undefined;
  /** Newest authentic frame of any kind. */
  receivedAt: Instant | undefined;
  /** Newest authentic frame that was no probe. */
  heardAt: Instant | undefined;
  rttMs: number | undefined;
  /** How far samples are from it, smoothed. */
  rttVariationMs = 0;
  /** What our answers on this pair ask to be repeated, while nobody vouches for its address; and what the peer's ask of us. */
  challenge: number | undefined;
  echo: number | undefined;
  /** The peer has said that it got an answer of ours on this pair. */
  peerConfirmed = false;
  /** We have said so too, with a probe of its own: once, since each probe brings an answer. */
  hasToldPeer = false;
  readonly #outstanding = new Map<number, Instant>();

  constructor(options: {
    readonly leg: Leg;
    readonly remote: TransportAddress;
    readonly packedRemote: Uint8Array;
    readonly origin: PairOrigin;
    readonly isTrusted: boolean;
    readonly isLocal: boolean;
    /** Probes that this address has already had. */
    readonly probesSent: number;
  }) {
    this.probesSent = options.probesSent;
    this.leg = options.leg;
    this.remote = options.remote;
    this.packedRemote = options.packedRemote;
    this.origin = options.origin;
    this.isTrusted = options.isTrusted;
    this.isLocal = options.isLocal;
    this.mtu = new PathMtu(isIPv6(options.remote.ip) ? 6 : 4, options.isLocal);
  }

  /** Proven in both directions and not given up. */
  get isValid(): boolean {
    return this.answeredAt !== undefined;
  }

  /** Is this where the peer's packets on this pair come from? */
  hears(from: TransportAddress): boolean {
    return (
      sameTransportAddress(from, this.remote) ||
      (this.answersFrom !== undefined && sameTransportAddress(from, this.answersFrom))
    );
  }

  /**
   * Do the peer's packets come from where ours go? If not, ours go through a mapping that the peer opened towards somebody else, and
   * that nothing of its own towards us keeps open.
   */
  get isStraight(): boolean {
    return this.answersFrom === undefined || sameTransportAddress(this.answersFrom, this.remote);
  }

  /** Has a probe been answered that was sent no sooner? */
  isProvenSince(at: Instant | undefined): boolean {
    return at !== undefined && this.provenAt !== undefined && this.provenAt >= at;
  }

  get mayProbe(): boolean {
    return this.isTrusted || this.isValid || this.probesSent < UNTRUSTED_PROBES;
  }

  onProbeSent(transaction: number, now: Instant): void {
    this.probesSent++;
    if (this.unanswered++ === 0) this.unansweredSince = now;
    this.lastProbeAt = now;
    this.#outstanding.set(transaction, now);
    if (this.#outstanding.size <= MAX_OUTSTANDING) return;
    const oldest = this.#outstanding.keys().next();
    if (!oldest.done) this.#outstanding.delete(oldest.value);
  }

  /** False when the answer is to none of our probes. */
  onAnswer(transaction: number, now: Instant): boolean {
    const sentAt = this.#outstanding.get(transaction);
    if (sentAt === undefined) return false;
    this.#outstanding.delete(transaction);
    this.onProven(sentAt, now);
    return true;
  }

  /** An answer to a probe that was sent then. */
  onProven(sentAt: Instant, now: Instant): void {
    const sample = now - sentAt;
    if (this.rttMs === undefined) {
      this.rttMs = sample;
      this.rttVariationMs = sample / 2;
    } else {
      this.rttVariationMs += RTT_VARIATION_GAIN * (Math.abs(sample - this.rttMs) - this.rttVariationMs);
      this.rttMs += RTT_GAIN * (sample - this.rttMs);
    }
    const isInRow = this.answeredAt !== undefined && now - this.answeredAt < ROW_GAP_MS;
    this.answeredAt = now;
    this.provenAt = Math.max(this.provenAt ?? sentAt, sentAt) as Instant;
    this.receivedAt = now;
    this.isTrusted = true;
    this.unanswered = 0;
    this.answersInRow = isInRow ? this.answersInRow + 1 : 1;
    this.needsLarge = false;
  }

  /** Large probes went unanswered, one of the base size did not: the pair was proven then. */
  onBaseAnswered(at: Instant): void {
    this.answeredAt = at;
    this.unanswered = 0;
    this.unansweredSince = undefined;
    this.#outstanding.clear();
  }

  /** Probes are due from here on, at the steps of a round. */
  startRound(at: Instant): void {
    this.roundStep = 0;
    this.roundStartedAt = at;
    this.nextProbeAt = at;
  }

  stopRound(): void {
    this.roundStep = undefined;
    this.roundStartedAt = undefined;
    this.nextProbeAt = undefined;
  }

  /** Forgets that this pair ever worked: it died, or the network changed. */
  invalidate(): void {
    this.answeredAt = undefined;
    this.provenAt = undefined;
    this.answersInRow = 0;
    this.peerConfirmed = false;
    this.hasToldPeer = false;
    this.rttMs = undefined;
    this.unanswered = 0;
    this.mtu.reset();
    this.#outstanding.clear();
  }
}
