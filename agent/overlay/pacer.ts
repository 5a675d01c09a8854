/** Spreads what leaves over the round trip (RFC 9002 §7.7), in bursts that a timer of a millisecond can keep up with. */
import { after, type Instant } from "../../shared/time.ts";

/** A burst that no queue minds. */
export const MIN_BURST_BYTES = 12_800;
/** Timers fire up to so much late: at high rates that much is sent at once. */
export const BURST_MS = 2;

export class Pacer {
  #tokens = MIN_BURST_BYTES;
  #bytesPerMs = 1;
  #filledAt: Instant | undefined;

  update(bytesPerMs: number, now: Instant): void {
    this.#fill(now);
    this.#bytesPerMs = bytesPerMs;
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
      const burst = Math.max(MIN_BURST_BYTES, this.#bytesPerMs * BURST_MS);
      this.#tokens = Math.min(burst, this.#tokens + Math.max(0, now - this.#filledAt) * this.#bytesPerMs);
    }
    this.#filledAt = now;
  }
}
