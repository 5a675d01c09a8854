/**
 * How many bytes may be under way: CUBIC (RFC 9438) with HyStart++ (RFC 9406) in slow start.
 *
 * A reduction that turns out to be unfounded, because everything taken for lost then arrived, is taken back (RFC 9438 §4.9.1). A change of
 * path makes a new controller that starts at the rate of the old one (`startBytes`).
 */
import type { Instant } from "../../shared/time.ts";

/** RFC 9438 §4.1 and §4.6. */
const CUBIC_C = 0.4;
const BETA = 0.7;
const RENO_ALPHA = (3 * (1 - BETA)) / (1 + BETA);
/** RFC 9002 §7.2, in datagrams. */
const INITIAL_WINDOW = 10;
const MINIMUM_WINDOW = 2;
/** More than any path here can hold: 64 MiB are a second at half a gigabit. */
const MAX_WINDOW_BYTES = 64 * 1024 * 1024;
/** RFC 9406 §4.3. */
const HYSTART_MIN_THRESHOLD_MS = 4;
const HYSTART_MAX_THRESHOLD_MS = 16;
const HYSTART_SAMPLES = 8;
const HYSTART_CSS_DIVISOR = 4;
const HYSTART_CSS_ROUNDS = 5;

interface Saved {
  readonly window: number;
  readonly threshold: number;
  readonly maximum: number;
  readonly epochAt: Instant | undefined;
}

export class Cubic {
  readonly #segment: number;
  #window: number;
  #threshold = Number.POSITIVE_INFINITY;
  /** The window before the last reduction, in bytes (W_max). */
  #maximum = 0;
  #epochAt: Instant | undefined;
  /** What Reno would have (W_est). */
  #reno = 0;
  /** Seconds until the curve is back at `#maximum` (K). */
  #inflection = 0;
  #saved: Saved | undefined;

  // HyStart++: the round ends when the frame is acknowledged that was the newest at its beginning.
  #roundEnd = 0;
  #lastMinimumMs = Number.POSITIVE_INFINITY;
  #currentMinimumMs = Number.POSITIVE_INFINITY;
  #samples = 0;
  #cssRounds = 0;
  #cssBaselineMs = Number.POSITIVE_INFINITY;
  #isInCss = false;

  constructor(segmentBytes: number, startBytes = 0) {
    this.#segment = segmentBytes;
    this.#window = Math.min(MAX_WINDOW_BYTES, Math.max(INITIAL_WINDOW * segmentBytes, startBytes));
  }

  get windowBytes(): number {
    return this.#window;
  }

  get isInSlowStart(): boolean {
    return this.#window < this.#threshold;
  }

  /** A new estimate of the round trip in slow start. @param newest the highest number sent so far */
  handleSample(sampleMs: number, acked: number, newest: number): void {
    if (!this.isInSlowStart) return;
    if (acked >= this.#roundEnd) this.#beginRound(newest);
    this.#currentMinimumMs = Math.min(this.#currentMinimumMs, sampleMs);
    if (++this.#samples < HYSTART_SAMPLES) return;
    if (this.#isInCss) {
      if (this.#currentMinimumMs < this.#cssBaselineMs) this.#isInCss = false;
      return;
    }
    if (!Number.isFinite(this.#lastMinimumMs)) return;
    const threshold = Math.min(HYSTART_MAX_THRESHOLD_MS, Math.max(HYSTART_MIN_THRESHOLD_MS, this.#lastMinimumMs / 8));
    if (this.#currentMinimumMs < this.#lastMinimumMs + threshold) return;
    this.#isInCss = true;
    this.#cssBaselineMs = this.#currentMinimumMs;
    this.#cssRounds = 0;
  }

  /** @param isLimited whether the window was what held the sender back; otherwise it proves nothing and stays (RFC 9002 §7.8) */
  handleAcked(bytes: number, smoothedMs: number, isLimited: boolean, now: Instant): void {
    if (!isLimited) return;
    if (this.isInSlowStart) this.#window += this.#isInCss ? bytes / HYSTART_CSS_DIVISOR : bytes;
    else this.#avoidCongestion(bytes, smoothedMs, now);
    this.#window = Math.min(this.#window, MAX_WINDOW_BYTES);
  }

  /** Once per round trip with losses. */
  handleCongestion(): void {
    this.#saved = {
      window: this.#window,
      threshold: this.#threshold,
      maximum: this.#maximum,
      epochAt: this.#epochAt,
    };
    // Fast convergence (RFC 9438 §4.7): a flow that did not get back to where it was gives way to the newcomer.
    this.#maximum = this.#window < this.#maximum ? (this.#window * (1 + BETA)) / 2 : this.#window;
    this.#window = Math.max(this.#window * BETA, MINIMUM_WINDOW * this.#segment);
    this.#threshold = this.#window;
    this.#epochAt = undefined;
  }

  /** Everything that the last reduction was about has arrived after all. */
  undoCongestion(): void {
    const saved = this.#saved;
    if (saved === undefined) return;
    this.#saved = undefined;
    if (saved.window <= this.#window) return;
    this.#window = saved.window;
    this.#threshold = saved.threshold;
    this.#maximum = saved.maximum;
    this.#epochAt = undefined;
  }

  /** Nothing got through for several round trips (RFC 9002 §7.6). */
  handlePersistentCongestion(): void {
    this.#window = MINIMUM_WINDOW * this.#segment;
    this.#epochAt = undefined;
    this.#saved = undefined;
  }

  #avoidCongestion(bytes: number, smoothedMs: number, now: Instant): void {
    if (this.#epochAt === undefined) {
      this.#epochAt = now;
      this.#reno = this.#window;
      if (this.#maximum < this.#window) this.#maximum = this.#window;
      this.#inflection = Math.cbrt((this.#maximum - this.#window) / this.#segment / CUBIC_C);
    }
    const seconds = (now - this.#epochAt) / 1000;
    const target = this.#curve(seconds + smoothedMs / 1000);
    const bounded = Math.min(Math.max(target, this.#window), 1.5 * this.#window);
    this.#reno += (RENO_ALPHA * this.#segment * bytes) / this.#window;
    if (this.#curve(seconds) < this.#reno) this.#window = Math.max(this.#window, this.#reno);
    else this.#window += ((bounded - this.#window) * bytes) / this.#window;
  }

  #curve(seconds: number): number {
    return CUBIC_C * (seconds - this.#inflection) ** 3 * this.#segment + this.#maximum;
  }

  #beginRound(newest: number): void {
    this.#roundEnd = newest;
    this.#lastMinimumMs = this.#currentMinimumMs;
    this.#currentMinimumMs = Number.POSITIVE_INFINITY;
    this.#samples = 0;
    if (!this.#isInCss || ++this.#cssRounds < HYSTART_CSS_ROUNDS) return;
    this.#threshold = this.#window;
    this.#isInCss = false;
  }
}
