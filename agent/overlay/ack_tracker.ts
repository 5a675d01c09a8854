/** Which frames have come, and when to say so (RFC 9000 §13.2). */
import { after, type Instant } from "../../shared/time.ts";
import type { AckRange } from "../../shared/wire/stream.ts";
import { RangeSet } from "./range_set.ts";

/** The longest an ack waits for company. */
export const MAX_ACK_DELAY_MS = 10;
/** This many frames are answered at once. */
const FRAMES_PER_ACK = 2;
/** Ranges remembered, so that a late frame is known from a repeated one. A lost frame leaves a gap for good. */
const MAX_RANGES = 256;
/** Ranges told in one ack: what is older was told before. */
const TOLD_RANGES = 32;

export class AckTracker {
  readonly #received = new RangeSet();
  #largestAt: Instant | undefined;
  /** Frames below are taken for repeated ones. */
  #floor = 0;
  #unanswered = 0;
  #isUrgent = false;
  #dueAt: Instant | undefined;

  /** Is anything new to be told? */
  get isWanted(): boolean {
    return this.#unanswered > 0;
  }

  isDue(now: Instant): boolean {
    return this.isWanted && (this.#isUrgent || this.#unanswered >= FRAMES_PER_ACK || now >= (this.#dueAt ?? now));
  }

  get deadline(): Instant | undefined {
    return this.#unanswered === 0 ? undefined : this.#dueAt;
  }

  /** Has this frame come before, or is it so old that this is not known any more? */
  isKnown(number: number): boolean {
    return number < this.#floor || this.#received.has(number);
  }

  handle(number: number, wantsAck: boolean, now: Instant): void {
    const { end } = this.#received;
    const isInOrder = number === end;
    if (number >= end) this.#largestAt = now;
    this.#received.add(number, number + 1);
    while (this.#received.count > MAX_RANGES) {
      this.#floor = this.#received.firstEnd;
      this.#received.removeFirstRange();
    }
    if (!wantsAck) return;
    this.#unanswered++;
    // A gap may be a loss: the sender should know at once.
    if (!isInOrder) this.#isUrgent = true;
    this.#dueAt ??= after(now, MAX_ACK_DELAY_MS);
  }

  /** A frame came again, so its ack was lost: it is told once more. */
  handleRepeated(now: Instant): void {
    this.#unanswered++;
    this.#dueAt ??= after(now, MAX_ACK_DELAY_MS);
  }

  /** Everything received, from the highest down, with how long ago the highest came. */
  ranges(): AckRange[] {
    const ranges: AckRange[] = [];
    for (let i = this.#received.count - 1; i >= 0 && ranges.length < TOLD_RANGES; i--) {
      const range = this.#received.rangeAt(i);
      if (range !== undefined) ranges.push({ low: range.start, high: range.end - 1 });
    }
    return ranges;
  }

  delayMs(now: Instant): number {
    return this.#largestAt === undefined ? 0 : now - this.#largestAt;
  }

  onSent(): void {
    this.#unanswered = 0;
    this.#isUrgent = false;
    this.#dueAt = undefined;
  }
}
