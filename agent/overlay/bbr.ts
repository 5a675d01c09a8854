/**
 * How many bytes may be under way and how fast they leave, from a model of the path: the rate at which its narrowest part delivers and its round
 * trip without a queue. BBR, draft-ietf-ccwg-bbr-06, with what ARCHITECTURE.md says to be different.
 *
 * What is lost does not slow the sender down by itself, as radio links lose at random. Losses while a queue stands give the queue up, no
 * more: what may be under way falls to what the path holds. More losses than a radio link has take more, round trip by round trip.
 */
import { after, type Instant } from "../../shared/time.ts";
import type { RateSample } from "./delivery_rate.ts";
import { BURST_MS, MIN_BURST_BYTES } from "./pacer.ts";

/** §5.3.1 and §5.3.2: the rate doubles each round trip, and then the queue that this has made is let run out. */
const STARTUP_GAIN = 2.77;
const DRAIN_GAIN = 0.5;
/** §5.3.1.2: so much growth in so many round trips, or the path is full. */
const FULL_GROWTH = 1.25;
const FULL_ROUNDS = 3;
/** Pacing, phase by phase: ask for more, let the queue of that run out, then as fast as the path is. */
const PROBE_GAIN = 1.25;
const PROBE_DRAIN_GAIN = 0.75;
const CRUISE_PHASES = 6;
const PHASES = 2 + CRUISE_PHASES;
/** A probe that brought so much more is followed by another at once: the path has room (§5.3.3.6 goes on likewise). */
const PROBE_GROWTH = 1.15;
/** A probe that nothing answers, since the program does not send so much. */
const MAX_PROBE_ROUND_TRIPS = 3;
/** §2.5: a little slower than the estimate, so that no queue grows from its errors. */
const PACING_MARGIN = 0.99;
/** Under way at most, as a multiple of what the path holds: acks come in lumps, and lost frames need a round trip more. */
const WINDOW_GAIN = 2;
/** The same while a queue stands. */
const QUEUE_WINDOW_GAIN = 1.25;
/** The rate is the highest of so many round trips: a little more than a cycle of phases. */
const RATE_ROUNDS = 10;
/** §5.3.4: this often, for so long, there is half as much under way, so that the round trip without a queue is seen. */
const ROUND_TRIP_PROBE_INTERVAL_MS = 5000;
const ROUND_TRIP_PROBE_MS = 200;
const ROUND_TRIP_PROBE_SHARE = 0.5;
/** §2.8. */
const BETA = 0.7;
/** RFC 9002 §7.2, in datagrams; the least is what BBR needs to see a rate (§2.8). */
const INITIAL_WINDOW = 10;
const MINIMUM_WINDOW = 4;
/** More than any path here can hold: 64 MiB are a second at half a gigabit. */
const MAX_WINDOW_BYTES = 64 * 1024 * 1024;

type State = "startup" | "drain" | "probe_rate" | "probe_round_trip";

/** What the path looks like when an ack has come. */
export interface PathView {
  readonly smoothedMs: number;
  /** Of the last five to ten seconds. */
  readonly minimumMs: number;
  /** How long ago it was seen. */
  readonly minimumAgeMs: number;
  readonly hasQueue: boolean;
  readonly inFlight: number;
}

export class Bbr {
  #state: State = "startup";
  readonly #segment: number;
  #window: number;
  /** Where the rate is not measured yet. The rate of another path is no reason to ask this one for thrice as much. */
  readonly #startRate: number;
  readonly #startGain: number;
  /** Round trips, counted by frames: one ends when a frame is acknowledged that left after it began (§5.5.1). */
  #round = 0;
  #roundEndsAt = 0;
  #delivered = 0;
  /** The highest rates lately, each higher than those after it, with their rounds. */
  #rates: { readonly rate: number; readonly round: number }[] = [];
  #latestRate = 0;
  #fullRate = 0;
  #fullRounds = 0;
  #phase = 0;
  /** Round trips since it began. */
  #phaseRounds = 0;
  #rateBeforeProbe = 0;
  /** More under way than this was too much (§5.5.10). */
  #bound = Number.POSITIVE_INFINITY;
  /** Before the last reduction. */
  #before: { readonly bound: number; readonly rate: number; readonly state: State } | undefined;
  #hasCongestionInPhase = false;
  /** The end of the present or the last one. */
  #roundTripProbe: Instant | undefined;
  #minimumMs: number;
  /** Acks in lumps (§5.5.9): the most that came beyond what the rate explains, of the present and the last ten round trips. */
  #lumpFrom: Instant | undefined;
  #lumpBytes = 0;
  #lumps = { present: 0, last: 0, round: 0 };

  /** @param startRate bytes per millisecond, as the sender's last path had; 0: there was none */
  constructor(segmentBytes: number, expectedMs: number, startRate: number) {
    this.#segment = segmentBytes;
    this.#minimumMs = Math.max(expectedMs, 0.1);
    this.#startRate = Math.max(startRate, (INITIAL_WINDOW * segmentBytes) / this.#minimumMs);
    this.#startGain = startRate > 0 ? 1 : STARTUP_GAIN;
    const startWindow = Math.max(INITIAL_WINDOW * segmentBytes, startRate * this.#minimumMs);
    this.#window = Math.min(MAX_WINDOW_BYTES, startWindow);
  }

  get windowBytes(): number {
    const bound = this.#state === "probe_round_trip" ? ROUND_TRIP_PROBE_SHARE * this.#pathBytes : this.#bound;
    return Math.max(MINIMUM_WINDOW * this.#segment, Math.min(this.#window, bound));
  }

  /** Bytes per millisecond that the path is believed to deliver. */
  get rate(): number {
    return this.#rates[0]?.rate ?? this.#startRate;
  }

  get pacingRate(): number {
    return PACING_MARGIN * this.#pacingGain * this.rate;
  }

  /** @param sample undefined where this ack tells no rate */
  handleAcked(bytes: number, delivered: number, sample: RateSample | undefined, path: PathView, now: Instant): void {
    this.#minimumMs = path.minimumMs;
    this.#delivered = delivered;
    const isNewRound = sample !== undefined && sample.deliveredBefore >= this.#roundEndsAt;
    if (isNewRound) {
      this.#round++;
      this.#phaseRounds++;
      this.#roundEndsAt = delivered;
    }
    if (sample !== undefined) this.#addRate(sample);
    this.#countLumps(bytes, now);
    if (this.#state === "startup" && isNewRound && !sample.isProgramLimited) this.#lookForFullRate();
    if (this.#state === "drain" && path.inFlight <= this.#pathBytes) this.#enter("probe_rate", 2);
    if (this.#state === "probe_rate") this.#advancePhase(path.inFlight);
    this.#probeRoundTrip(path, now);
    this.#growWindow(bytes, path.hasQueue);
  }

  /** Once per round trip. @param isHeavy more is lost than links lose at random; otherwise a queue stands */
  handleCongestion(isHeavy: boolean, inFlight: number): void {
    this.#before = { bound: this.#bound, rate: this.rate, state: this.#state };
    // What is under way after many losses is less than the path holds: that is no measure.
    const path = this.#pathBytes + this.#lump;
    const held = Math.min(this.#window, this.#bound, Math.max(inFlight, path));
    this.#bound = isHeavy && this.#state !== "startup" ? BETA * held : Math.max(path, BETA * held);
    this.#bound = Math.max(this.#bound, MINIMUM_WINDOW * this.#segment);
    // §5.5.10.3, for the rate too: that of the last round trip, or a little less than was believed.
    if (isHeavy) this.#believe(Math.max(this.#latestRate, BETA * this.rate));
    this.#hasCongestionInPhase = true;
    if (this.#state === "startup") this.#enter("drain", 0);
  }

  /** Everything that the last reduction was about has arrived after all (§5.5.11). */
  undoCongestion(): void {
    if (this.#before === undefined) return;
    const { bound, rate, state } = this.#before;
    this.#before = undefined;
    this.#bound = Math.max(this.#bound, bound);
    this.#believe(Math.max(this.rate, rate));
    if (state === "startup") this.#searchAnew();
  }

  /** Nothing got through for several round trips (RFC 9002 §7.6): what was known of the path is worth nothing. */
  handlePersistentCongestion(): void {
    this.#rates = [];
    this.#before = undefined;
    this.#bound = Number.POSITIVE_INFINITY;
    this.#window = MINIMUM_WINDOW * this.#segment;
    this.#searchAnew();
  }

  /** What the path holds without a queue (BDP). */
  get #pathBytes(): number {
    return this.rate * this.#minimumMs;
  }

  /** No more than the path holds: who goes on sending while nothing comes back overflows the queue that has stopped. */
  get #lump(): number {
    return Math.min(this.#pathBytes, Math.max(this.#lumps.present, this.#lumps.last));
  }

  get #pacingGain(): number {
    switch (this.#state) {
      case "startup":
        return this.#rates.length === 0 ? this.#startGain : STARTUP_GAIN;
      case "drain":
        return DRAIN_GAIN;
      case "probe_rate":
        if (this.#phase === 0) return PROBE_GAIN;
        return this.#phase === 1 ? PROBE_DRAIN_GAIN : 1;
      default:
        return 1;
    }
  }

  #enter(state: State, phase: number): void {
    this.#state = state;
    this.#phase = phase;
    this.#phaseRounds = 0;
    this.#roundEndsAt = this.#delivered;
    this.#hasCongestionInPhase = false;
  }

  #searchAnew(): void {
    this.#fullRate = 0;
    this.#fullRounds = 0;
    this.#enter("startup", 0);
  }

  #believe(rate: number): void {
    this.#rates = [{ rate, round: this.#round }];
  }

  /** §5.5.3 to §5.5.5: a program's own rate counts only where it is higher. */
  #addRate({ bytesPerMs, isProgramLimited }: RateSample): void {
    if (isProgramLimited && bytesPerMs < this.rate) return;
    this.#latestRate = bytesPerMs;
    while (this.#rates.length > 0 && (this.#rates.at(-1)?.rate ?? 0) <= bytesPerMs) this.#rates.pop();
    this.#rates.push({ rate: bytesPerMs, round: this.#round });
    while (this.#rates.length > 1 && (this.#rates[0]?.round ?? 0) < this.#round - RATE_ROUNDS) this.#rates.shift();
  }

  /** §5.3.1.2. */
  #lookForFullRate(): void {
    if (this.rate >= this.#fullRate * FULL_GROWTH) {
      this.#fullRate = this.rate;
      this.#fullRounds = 0;
    } else if (++this.#fullRounds >= FULL_ROUNDS) this.#state = "drain";
  }

  #advancePhase(inFlight: number): void {
    let isOver = this.#phaseRounds > 0;
    if (this.#phase === 0) {
      const isFull = inFlight >= Math.min(PROBE_GAIN * this.#pathBytes, this.windowBytes - this.#segment);
      isOver &&= isFull || this.#hasCongestionInPhase || this.#phaseRounds >= MAX_PROBE_ROUND_TRIPS;
    } else if (this.#phase === 1) isOver ||= inFlight <= this.#pathBytes;
    if (!isOver) return;
    // A bound that held without new losses while more was asked for may have been too low.
    if (this.#phase === 0 && !this.#hasCongestionInPhase) this.#bound *= PROBE_GAIN;
    const hasGrown = this.#phase === 2 && this.rate > PROBE_GROWTH * this.#rateBeforeProbe;
    this.#enter("probe_rate", hasGrown ? 0 : (this.#phase + 1) % PHASES);
    if (this.#phase === 0) this.#rateBeforeProbe = this.rate;
    if (this.#bound > WINDOW_GAIN * this.#pathBytes) this.#bound = Number.POSITIVE_INFINITY;
  }

  /** §5.3.4. */
  #probeRoundTrip({ minimumAgeMs, smoothedMs }: PathView, now: Instant): void {
    const before = this.#roundTripProbe;
    if (this.#state === "probe_round_trip") {
      if (before === undefined || now >= before) this.#enter("probe_rate", 2);
    } else if (this.#state === "probe_rate") {
      const agoMs = Math.min(minimumAgeMs, before === undefined ? Number.POSITIVE_INFINITY : now - before);
      if (agoMs < ROUND_TRIP_PROBE_INTERVAL_MS) return;
      this.#enter("probe_round_trip", 0);
      this.#roundTripProbe = after(now, Math.max(ROUND_TRIP_PROBE_MS, smoothedMs));
    }
  }

  /** §5.6.4. */
  #growWindow(bytes: number, hasQueue: boolean): void {
    const burst = Math.max(MIN_BURST_BYTES, this.rate * BURST_MS);
    // Three bursts: one here, one on the way, one at the peer (§5.5.8).
    const most = Math.max((hasQueue ? QUEUE_WINDOW_GAIN : WINDOW_GAIN) * this.#pathBytes + this.#lump, 3 * burst);
    if (this.#state !== "startup") this.#window = Math.min(this.#window + bytes, most);
    else if (this.#window < most || this.#delivered < INITIAL_WINDOW * this.#segment) this.#window += bytes;
    this.#window = Math.min(MAX_WINDOW_BYTES, Math.max(this.#window, MINIMUM_WINDOW * this.#segment));
  }

  #countLumps(bytes: number, now: Instant): void {
    this.#lumpFrom ??= now;
    const expected = this.rate * (now - this.#lumpFrom);
    if (this.#lumpBytes <= expected) {
      this.#lumpFrom = now;
      this.#lumpBytes = bytes;
    } else this.#lumpBytes += bytes;
    const extra = this.#lumpBytes - this.rate * (now - this.#lumpFrom);
    if (this.#round - this.#lumps.round >= RATE_ROUNDS) {
      this.#lumps = { present: 0, last: this.#lumps.present, round: this.#round };
    }
    this.#lumps.present = Math.max(this.#lumps.present, Math.min(extra, this.#window));
  }
}
