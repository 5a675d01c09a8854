/**
 * When a queue loses frames because it stands, and not because it is full: CoDel (RFC 8289 §5), dropping at the head.
 *
 * A burst may wait: it is gone after a moment. What waits all the time only adds delay to everything behind it, and its TCP must be told by
 * a loss now and then, a little more often for as long as it does not listen. Pure; one for each source.
 */
import { after, type Instant } from "../time.ts";

export interface StandingLimits {
  /** Waiting for less than this is no harm. */
  readonly targetMs: number;
  /** Waiting for longer all the time is, after this. */
  readonly intervalMs: number;
}

export class StandingQueue {
  readonly #limits: StandingLimits;
  /** When frames will have waited too long for a whole interval. */
  #tooLongAt: Instant | undefined;
  /** While it drops: when next, and how often it has. */
  #dropping: { readonly nextAt: Instant; readonly count: number } | undefined;

  constructor(limits: StandingLimits) {
    this.#limits = limits;
  }

  /** Must the frame at the head be dropped, which has waited this long? Asked again for the one behind it. */
  mustDrop(waitedMs: number, now: Instant): boolean {
    const { targetMs, intervalMs } = this.#limits;
    if (waitedMs < targetMs) {
      this.#tooLongAt = undefined;
      this.#dropping = undefined;
      return false;
    }
    this.#tooLongAt ??= after(now, intervalMs);
    const { nextAt = this.#tooLongAt, count = 0 } = this.#dropping ?? {};
    if (now < nextAt) return false;
    this.#dropping = { nextAt: after(nextAt, intervalMs / Math.sqrt(count + 1)), count: count + 1 };
    return true;
  }
}
