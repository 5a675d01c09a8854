/** The round trip as RFC 9002 §5 estimates it, and the time after which silence is worth a probe (§6.2). */
import { after, type Instant } from "../../shared/time.ts";

/** Before the first sample, where control knows nothing either (RFC 9002 §6.2.2). */
const INITIAL_RTT_MS = 333;
/**
 * RFC 9002 §6.1.2 suggests the granularity of the system's timers, 1 ms. Frames cross two threads at each end, and a garbage collection
 * now and then takes a few milliseconds more.
 */
export const GRANULARITY_MS = 5;
/** The least round trip is that of the present span of so long and of the one before: a route may have become longer. */
const MINIMUM_SPAN_MS = 5000;
/** A sample so near to the least confirms it. */
const SAME_MS = 1;
const SAME_SHARE = 1 / 32;
/** A queue that is there for so long, or a round trip, is one. */
const QUEUE_WINDOW_MS = 50;

export class RoundTrip {
  #smoothedMs: number;
  #variationMs: number;
  #spanMs = Number.POSITIVE_INFINITY;
  #lastSpanMs: number;
  #spanEndsAt: Instant | undefined;
  #minimumAt: Instant | undefined;
  #latestMs: number;
  #hasSample = false;
  /** The least of the present window of time and of the one before. */
  #windowMs = Number.POSITIVE_INFINITY;
  #lastWindowMs = Number.POSITIVE_INFINITY;
  #windowEndsAt: Instant | undefined;

  /** @param expectedMs what control has measured on this path */
  constructor(expectedMs: number | undefined) {
    const initial = Math.max(GRANULARITY_MS, expectedMs ?? INITIAL_RTT_MS);
    this.#smoothedMs = initial;
    this.#latestMs = initial;
    this.#variationMs = initial / 2;
    // Measured before there was much on the way: who comes to a line with a queue would not know of it.
    this.#lastSpanMs = expectedMs === undefined ? Number.POSITIVE_INFINITY : Math.max(expectedMs, 0.1);
  }

  get hasSample(): boolean {
    return this.#hasSample;
  }

  get smoothedMs(): number {
    return this.#smoothedMs;
  }

  get minimumMs(): number {
    const minimumMs = Math.min(this.#spanMs, this.#lastSpanMs);
    return Number.isFinite(minimumMs) ? minimumMs : this.#smoothedMs;
  }

  /** How long ago a sample was the least, or nearly so. */
  minimumAgeMs(now: Instant): number {
    return this.#minimumAt === undefined ? 0 : now - this.#minimumAt;
  }

  get latestMs(): number {
    return this.#latestMs;
  }

  /** How much longer every recent sample took than the least: a queue that stands. One late sample is none (RFC 8289 §3.2). */
  get queueMs(): number {
    const recent = Math.min(this.#windowMs, this.#lastWindowMs);
    return Number.isFinite(recent) ? recent - this.minimumMs : 0;
  }

  /** The longer of the smoothed and the latest, by which losses are judged. */
  get recentMs(): number {
    return Math.max(this.#smoothedMs, this.#latestMs);
  }

  /** RFC 9002 §6.2.1, without the receiver's delay. */
  get probeTimeoutMs(): number {
    return this.#smoothedMs + Math.max(4 * this.#variationMs, GRANULARITY_MS);
  }

  /** @param delayMs how long the receiver kept the ack back */
  add(sampleMs: number, delayMs: number, now: Instant): void {
    this.#addMinimum(sampleMs, now);
    // The delay is the peer's word: it never takes the sample below the least seen (§5.3).
    const adjusted = sampleMs - delayMs >= this.minimumMs ? sampleMs - delayMs : sampleMs;
    this.#latestMs = adjusted;
    if (this.#windowEndsAt === undefined || now >= this.#windowEndsAt) {
      this.#windowEndsAt = after(now, Math.max(QUEUE_WINDOW_MS, this.#smoothedMs));
      this.#lastWindowMs = this.#windowMs;
      this.#windowMs = adjusted;
    } else this.#windowMs = Math.min(this.#windowMs, adjusted);
    if (!this.#hasSample) {
      this.#hasSample = true;
      this.#smoothedMs = adjusted;
      this.#variationMs = adjusted / 2;
      return;
    }
    this.#variationMs = 0.75 * this.#variationMs + 0.25 * Math.abs(this.#smoothedMs - adjusted);
    this.#smoothedMs = 0.875 * this.#smoothedMs + 0.125 * adjusted;
  }

  #addMinimum(sampleMs: number, now: Instant): void {
    if (this.#spanEndsAt === undefined || now >= this.#spanEndsAt) {
      if (this.#spanEndsAt !== undefined) this.#lastSpanMs = this.#spanMs;
      this.#spanMs = sampleMs;
      this.#spanEndsAt = after(now, MINIMUM_SPAN_MS);
    } else this.#spanMs = Math.min(this.#spanMs, sampleMs);
    this.#minimumAt ??= now;
    if (sampleMs <= this.minimumMs + Math.max(SAME_MS, SAME_SHARE * this.minimumMs)) this.#minimumAt = now;
  }
}
