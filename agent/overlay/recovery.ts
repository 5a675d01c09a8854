/**
 * Which sent frames have arrived, which are lost, how many may be under way: RFC 9002, with one state of round trip and congestion per
 * **path generation**. A change of path begins a new generation.
 *
 * Frames of an older generation are judged among themselves: that newer frames were faster on another path says nothing about them, and
 * their loss says nothing about the new path. A frame that arrives after it was taken for lost widens the tolerance for reordering
 * (as RFC 8985 §6.2 does), and takes back a reduction of the window that was about nothing else.
 */
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { AckRange } from "../../shared/wire/stream.ts";
import { MAX_ACK_DELAY_MS } from "./ack_tracker.ts";
import { Bbr } from "./bbr.ts";
import { DeliveryRate, type SentState } from "./delivery_rate.ts";
import { Pacer } from "./pacer.ts";
import { GRANULARITY_MS, RoundTrip } from "./rtt.ts";

/** RFC 9002 §6.1.1 and §6.1.2. */
const PACKET_THRESHOLD = 3;
const TIME_THRESHOLD = 9 / 8;
const MAX_TIME_THRESHOLD = 2;
const MAX_PACKET_THRESHOLD = 2000;
/** RFC 9002 §7.6.1. */
const PERSISTENT_CONGESTION_PERIODS = 3;
/** The ladder finds another path in a second or two: probes must be there when it has. */
const MAX_PROBE_INTERVAL_MS = 1000;
const PROBES = 2;
/** Frames taken for lost that are remembered, in case they arrive after all. */
const MAX_REMEMBERED_LOST = 4096;
/**
 * Losses without a queue say nothing about congestion: they are those of radio links, and halving the rate does not help. A queue shows in the
 * round trip: by so much, or by a quarter of its least. Above this share of frames something drops on purpose, with no queue to see.
 */
const QUEUE_MS = 8;
const QUEUE_SHARE = 0.25;
const RANDOM_LOSS_SHARE = 0.06;
/** Frames over which the share is taken; the older half fades. */
const LOSS_FRAMES = 400;

const REMEMBER_LOST_PERIODS = 3;

export interface SentFrame<Record> {
  readonly number: number;
  readonly sentAt: Instant;
  readonly bytes: number;
  readonly records: readonly Record[];
  readonly generation: Generation;
  readonly state: SentState;
}

interface Generation {
  readonly rtt: RoundTrip;
  readonly bbr: Bbr;
  readonly delivery: DeliveryRate;
  readonly pacer: Pacer;
  inFlight: number;
  largestAcked: number;
  packetThreshold: number;
  timeThreshold: number;
  /** Losses up to this number belong to the reduction that was made last. */
  reducedUpTo: number;
  /** Of those, the ones that have not arrived after all. */
  lostInReduction: number;
  /** Frames that came to an end lately, and those of them that were lost. */
  ended: number;
  lost: number;
}

export interface RecoveryEvents<Record> {
  handleAcked(record: Record): void;
  /** Send it again; it may still arrive. */
  handleLost(record: Record): void;
}

export class Recovery<Record> {
  readonly #events: RecoveryEvents<Record>;
  /** Frames under way, in the order of their numbers. */
  readonly #sent = new Map<number, SentFrame<Record>>();
  readonly #lost = new Map<number, { readonly frame: SentFrame<Record>; readonly at: Instant }>();
  #current: Generation = createGeneration(undefined, 1280, 0);
  #segmentBytes = 1280;
  #newest = -1;
  /** The peer's last word on what it has: acks say most of it again. */
  #told: readonly AckRange[] = [];
  #lastSentAt: Instant | undefined;
  #probeCount = 0;
  #probesWanted = 0;
  /** Judged lost without any newer ack, when old generations run out of time. */
  #lossAt: Instant | undefined;
  spuriousLosses = 0;
  losses = 0;

  constructor(events: RecoveryEvents<Record>) {
    this.#events = events;
  }

  get isIdle(): boolean {
    return this.#sent.size === 0;
  }

  get windowBytes(): number {
    return this.#current.bbr.windowBytes;
  }

  get inFlightBytes(): number {
    return this.#current.inFlight;
  }

  get smoothedMs(): number {
    return this.#current.rtt.smoothedMs;
  }

  /** Frames that must go out now, window or no window (RFC 9002 §7.5). */
  get probesWanted(): number {
    return this.#probesWanted;
  }

  /** Does the window have room? */
  get hasRoom(): boolean {
    return this.#current.inFlight + this.#segmentBytes <= this.#current.bbr.windowBytes;
  }

  isPaced(now: Instant): boolean {
    return !this.#current.pacer.allows(now);
  }

  pacedUntil(now: Instant): Instant {
    return this.#current.pacer.deadline(now);
  }

  /** Traffic moves to another path. The rate goes on as it was until the new path shows what it can do. */
  handlePath(expectedMs: number | undefined, segmentBytes: number, now: Instant): void {
    const before = this.#current;
    const rate = before.rtt.hasSample ? before.bbr.rate : 0;
    const expected = expectedMs ?? (before.rtt.hasSample ? before.rtt.smoothedMs : undefined);
    this.#segmentBytes = segmentBytes;
    this.#current = createGeneration(expected, segmentBytes, rate);
    this.#probeCount = 0;
    // Whatever was under way may have gone down with the old path: something must bring an answer soon.
    if (this.#sent.size > 0) this.#probe();
    this.#updatePacer(now);
    this.#detectLosses(now);
  }

  /** The path carries larger frames, or only smaller ones. */
  handleSegmentBytes(segmentBytes: number): void {
    this.#segmentBytes = segmentBytes;
  }

  /** A frame has left that wants an ack. */
  handleSent(number: number, bytes: number, records: readonly Record[], now: Instant): void {
    const generation = this.#current;
    const state = generation.delivery.handleSent(generation.inFlight, now);
    this.#sent.set(number, { number, sentAt: now, bytes, records, generation, state });
    this.#newest = number;
    this.#lastSentAt = now;
    generation.inFlight += bytes;
    generation.pacer.spend(bytes);
    if (this.#probesWanted > 0) this.#probesWanted--;
  }

  /** Everything there is has left, and there was room for more. */
  handleNothingToSend(): void {
    this.#current.delivery.handleNothingToSend(this.#current.inFlight);
  }

  handleAck(ranges: readonly AckRange[], delayMs: number, now: Instant): void {
    const { acked, forgiven } = this.#takeAcked(ranges);
    this.#forgiveLosses(forgiven, now);
    const last = acked[0];
    if (last === undefined) return;
    const { generation } = last;
    const hadProbed = this.#probeCount >= 2;
    this.#probeCount = 0;
    this.#probesWanted = 0;
    if (generation === this.#current && last.number === ranges[0]?.high) {
      generation.rtt.add(Math.max(0.01, now - last.sentAt), Math.min(delayMs, MAX_ACK_DELAY_MS), now);
    }
    this.#detectLosses(now, hadProbed);
    this.#updateModel(acked, now);
    this.#updatePacer(now);
    for (const frame of acked) for (const record of frame.records) this.#events.handleAcked(record);
  }

  handleTimeout(now: Instant): void {
    if (this.#lossAt !== undefined && now >= this.#lossAt) {
      this.#detectLosses(now);
      return;
    }
    const probeAt = this.#probeAt();
    if (probeAt === undefined || now < probeAt) return;
    this.#probeCount++;
    this.#lastSentAt = now;
    this.#probe();
  }

  deadline(): Instant | undefined {
    return earliest(this.#lossAt, this.#probeAt());
  }

  /** Sends what has been under way longest once more, without taking it for lost. */
  #probe(): void {
    this.#probesWanted = PROBES;
    let repeated = 0;
    for (const frame of this.#sent.values()) {
      if (repeated++ >= PROBES) break;
      for (const record of frame.records) this.#events.handleLost(record);
    }
  }

  #probeAt(): Instant | undefined {
    if (this.#sent.size === 0 || this.#lastSentAt === undefined || this.#probesWanted > 0) return undefined;
    const { rtt } = this.#current;
    const interval = (rtt.probeTimeoutMs + MAX_ACK_DELAY_MS) * 2 ** Math.min(this.#probeCount, 10);
    return after(this.#lastSentAt, Math.min(interval, Math.max(MAX_PROBE_INTERVAL_MS, rtt.probeTimeoutMs)));
  }

  /** What has arrived, and what has although it was taken for lost; each from the highest down. */
  #takeAcked(ranges: readonly AckRange[]): { acked: SentFrame<Record>[]; forgiven: SentFrame<Record>[] } {
    const acked: SentFrame<Record>[] = [];
    const forgiven: SentFrame<Record>[] = [];
    const oldest = Math.min(firstKey(this.#sent), firstKey(this.#lost));
    for (const { low, high } of freshRanges(ranges, this.#told)) {
      for (let number = Math.min(high, this.#newest); number >= Math.max(low, oldest); number--) {
        const frame = this.#sent.get(number);
        if (frame === undefined) {
          const lost = this.#lost.get(number);
          if (lost !== undefined) forgiven.push(lost.frame);
          continue;
        }
        this.#sent.delete(number);
        frame.generation.inFlight -= frame.bytes;
        countEnd(frame, false);
        frame.generation.largestAcked = Math.max(frame.generation.largestAcked, number);
        acked.push(frame);
      }
    }
    this.#told = ranges;
    return { acked, forgiven };
  }

  #updateModel(acked: readonly SentFrame<Record>[], now: Instant): void {
    const { bbr, delivery, rtt, inFlight } = this.#current;
    let bytes = 0;
    let newest: SentFrame<Record> | undefined;
    for (const frame of acked) {
      if (frame.generation !== this.#current) continue;
      newest ??= frame;
      bytes += frame.bytes;
    }
    if (newest === undefined) return;
    const sample = delivery.handleAcked(bytes, newest.state, newest.sentAt, rtt.minimumMs, now);
    const view = {
      smoothedMs: rtt.smoothedMs,
      minimumMs: rtt.minimumMs,
      minimumAgeMs: rtt.minimumAgeMs(now),
      inFlight,
      hasQueue: hasQueue(rtt),
    };
    bbr.handleAcked(bytes, delivery.delivered, sample, view, now);
  }

  #updatePacer(now: Instant): void {
    this.#current.pacer.update(this.#current.bbr.pacingRate, now);
  }

  /** @param hadProbed whether this follows several probes without an answer */
  #detectLosses(now: Instant, hadProbed = false): void {
    this.#lossAt = undefined;
    const lost: SentFrame<Record>[] = [];
    for (const frame of this.#sent.values()) {
      const { generation } = frame;
      const isOld = generation !== this.#current;
      if (!isOld && frame.number > generation.largestAcked) break;
      const isPassed = frame.number <= generation.largestAcked;
      const patienceMs = isPassed
        ? Math.max(generation.timeThreshold * generation.rtt.recentMs, GRANULARITY_MS)
        : generation.rtt.probeTimeoutMs + MAX_ACK_DELAY_MS;
      const lostAt = after(frame.sentAt, patienceMs);
      if (now >= lostAt || generation.largestAcked - frame.number >= generation.packetThreshold) lost.push(frame);
      else this.#lossAt = earliest(this.#lossAt, lostAt);
    }
    if (lost.length > 0) this.#lose(lost, hadProbed, now);
  }

  #lose(lost: readonly SentFrame<Record>[], hadProbed: boolean, now: Instant): void {
    const current = this.#current;
    const { inFlight } = current;
    let oldest: Instant | undefined;
    let newest: Instant | undefined;
    for (const frame of lost) {
      this.losses++;
      this.#sent.delete(frame.number);
      frame.generation.inFlight -= frame.bytes;
      countEnd(frame, true);
      this.#lost.set(frame.number, { frame, at: now });
      if (frame.generation === current) {
        oldest ??= frame.sentAt;
        newest = frame.sentAt;
        if (frame.number > current.reducedUpTo) this.#judgeLoss(inFlight);
        if (frame.number <= current.reducedUpTo) current.lostInReduction++;
      }
      for (const record of frame.records) this.#events.handleLost(record);
    }
    const periodMs = current.rtt.probeTimeoutMs + MAX_ACK_DELAY_MS;
    if (hadProbed && oldest !== undefined && newest !== undefined) {
      if (newest - oldest > PERSISTENT_CONGESTION_PERIODS * periodMs) current.bbr.handlePersistentCongestion();
    }
    for (const [number, { at }] of this.#lost) {
      if (this.#lost.size <= MAX_REMEMBERED_LOST && now - at < REMEMBER_LOST_PERIODS * periodMs) break;
      this.#lost.delete(number);
    }
    this.#updatePacer(now);
  }

  /** Is the loss of a frame a sign of congestion? */
  #judgeLoss(inFlight: number): void {
    const current = this.#current;
    const isHeavy = isHeavyLoss(current);
    if (!isHeavy && !hasQueue(current.rtt)) return;
    current.bbr.handleCongestion(isHeavy, inFlight);
    current.reducedUpTo = this.#newest;
    current.lostInReduction = 0;
    // What has been lost up to here has had its effect.
    current.ended = 0;
    current.lost = 0;
  }

  /** Frames that have arrived although they were taken for lost. */
  #forgiveLosses(frames: readonly SentFrame<Record>[], now: Instant): void {
    for (const frame of frames) {
      const { number } = frame;
      this.#lost.delete(number);
      this.spuriousLosses++;
      const { generation } = frame;
      for (const record of frame.records) this.#events.handleAcked(record);
      if (generation !== this.#current) continue;
      generation.packetThreshold = Math.min(
        MAX_PACKET_THRESHOLD,
        Math.max(generation.packetThreshold, generation.largestAcked - number + 1),
      );
      generation.timeThreshold = Math.min(MAX_TIME_THRESHOLD, generation.timeThreshold + 0.125);
      if (number <= generation.reducedUpTo && --generation.lostInReduction === 0) {
        generation.bbr.undoCongestion();
        this.#updatePacer(now);
      }
    }
  }
}

/** Frames are sent and, but for those of earlier paths, lost in the order of their numbers. */
const firstKey = (map: ReadonlyMap<number, unknown>): number => map.keys().next().value ?? Number.POSITIVE_INFINITY;

/** What the ranges say beyond those of the last ack; both from the highest down. */
function* freshRanges(ranges: readonly AckRange[], told: readonly AckRange[]): Generator<AckRange> {
  let index = 0;
  for (const { low, high } of ranges) {
    let top = high;
    while (top >= low) {
      while ((told[index]?.low ?? -1) > top) index++;
      const known = told[index];
      if (known === undefined || known.high < low) {
        yield { low, high: top };
        break;
      }
      if (known.high < top) yield { low: known.high + 1, high: top };
      top = known.low - 1;
    }
  }
}

/** Frames that left before the last reduction say nothing about what came of it. */
function countEnd({ number, generation }: SentFrame<unknown>, isLost: boolean): void {
  if (number <= generation.reducedUpTo) return;
  generation.ended++;
  if (isLost) generation.lost++;
  if (generation.ended < LOSS_FRAMES) return;
  generation.ended /= 2;
  generation.lost /= 2;
}

const hasQueue = ({ queueMs, minimumMs }: RoundTrip): boolean => queueMs > Math.max(QUEUE_MS, QUEUE_SHARE * minimumMs);

/** A few frames more, so that the first loss of all is not a share of one. */
const isHeavyLoss = ({ ended, lost }: Generation): boolean => lost > RANDOM_LOSS_SHARE * (ended + LOSS_FRAMES / 4);

function createGeneration(expectedMs: number | undefined, segmentBytes: number, startRate: number): Generation {
  const rtt = new RoundTrip(expectedMs);
  return {
    rtt,
    bbr: new Bbr(segmentBytes, rtt.smoothedMs, startRate),
    delivery: new DeliveryRate(),
    pacer: new Pacer(),
    inFlight: 0,
    largestAcked: -1,
    packetThreshold: PACKET_THRESHOLD,
    timeThreshold: TIME_THRESHOLD,
    reducedUpTo: -1,
    lostInReduction: 0,
    ended: 0,
    lost: 0,
  };
}
