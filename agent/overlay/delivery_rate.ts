/**
 * How fast the path delivers: draft-ietf-ccwg-bbr-06 §4.1. Each frame remembers how much had been delivered when it left; when it is
 * acknowledged, what has been delivered since, over the time it took, is a sample of the rate.
 *
 * The time is the longer of sending and acknowledging, so that neither a burst of frames nor one of acks looks like a fast path.
 */
import type { Instant } from "../../shared/time.ts";

/** What a frame remembers of the moment it left. */
export interface SentState {
  readonly delivered: number;
  readonly deliveredAt: Instant;
  readonly firstSentAt: Instant;
  /** The program had nothing more to send, so the rate is the program's and not the path's. */
  readonly isProgramLimited: boolean;
}

export interface RateSample {
  readonly bytesPerMs: number;
  readonly isProgramLimited: boolean;
  /** Delivered when the newest acknowledged frame left: by this round trips are told apart (§5.5.1). */
  readonly deliveredBefore: number;
}

export class DeliveryRate {
  #delivered = 0;
  #deliveredAt: Instant | undefined;
  #firstSentAt: Instant | undefined;
  /** Samples of frames that left before so much was delivered are the program's. */
  #programLimitedUntil = 0;

  /** Bytes that have arrived. */
  get delivered(): number {
    return this.#delivered;
  }

  handleSent(inFlight: number, now: Instant): SentState {
    if (inFlight === 0 || this.#firstSentAt === undefined || this.#deliveredAt === undefined) {
      this.#firstSentAt = now;
      this.#deliveredAt = now;
    }
    return {
      delivered: this.#delivered,
      deliveredAt: this.#deliveredAt,
      firstSentAt: this.#firstSentAt,
      isProgramLimited: this.#programLimitedUntil > this.#delivered,
    };
  }

  /** There is room to send, and nothing to be sent. */
  handleNothingToSend(inFlight: number): void {
    this.#programLimitedUntil = this.#delivered + Math.max(1, inFlight);
  }

  /** @param newest the one of the acknowledged frames that left last. Undefined: this took less than a round trip, and tells nothing (§4.1.2.3). */
  handleAcked(
    bytes: number,
    newest: SentState,
    newestSentAt: Instant,
    minimumMs: number,
    now: Instant,
  ): RateSample | undefined {
    this.#delivered += bytes;
    this.#deliveredAt = now;
    this.#firstSentAt = newestSentAt;
    const tookMs = Math.max(newestSentAt - newest.firstSentAt, now - newest.deliveredAt);
    if (tookMs < minimumMs || tookMs <= 0) return undefined;
    return {
      bytesPerMs: (this.#delivered - newest.delivered) / tookMs,
      isProgramLimited: newest.isProgramLimited,
      deliveredBefore: newest.delivered,
    };
  }
}
