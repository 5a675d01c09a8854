/** Spreads what the window allows over the round trip (RFC 9002 §7.7), in bursts that a timer of a millisecond can keep up with. */
import { after, type Instant } from "../../shared/time.ts";

/** RFC 9002 §7.7: a little faster than the window, so that pacing does not become the limit; in slow start twice, as TCP does. */
const GAIN = 1.25;
const SLOW_START_GAIN = 2;
/** A burst that no queue minds. */
const MIN_BURST_BYTES = 12_800;
/** Timers fire up to so much late: at high rates that much is sent at once. */
const TIMER_MS = 2;

export class Pacer {
  #tokens = MIN_BURST_BYTES;
  #bytesPerMs = 1;
  #filledAt: Instant | undefined;

  update(windowBytes: number, smoothedMs: number, isInSlowStart: boolean, now: Instant): void {
    this.#fill(now);
    this.#bytesPerMs = ((isInSlowStart ? SLOW_START_GAIN : GAIN) * windowBytes) / Math.max(smoothedMs, 0.1);
  }

  allows(now: Instant): boolean {
    this.#fill(now);
    return this.#tokens > 0;
  }

  /** May go below zero by one frame. */
  spend(bytes: number): void {
    this.#tokens -= bytes;
  }

  /** When the next frame may leave. */
  deadline(now: Instant): Instant {
    return this.#tokens > 0 ? now : after(now, (1 - this.#tokens) / this.#bytesPerMs);
  }

  #fill(now: Instant): void {
    if (this.#filledAt !== undefined) {
      const burst = Math.max(MIN_BURST_BYTES, this.#bytesPerMs * TIMER_MS);
      this.#tokens = Math.min(burst, this.#tokens + Math.max(0, now - this.#filledAt) * this.#bytesPerMs);
    }
    this.#filledAt = now;
  }
}
