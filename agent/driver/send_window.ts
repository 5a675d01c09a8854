/**
 * How much of what a relay connection sends may be under way, so that little waits in the kernel: there nothing can be overtaken or dropped, and
 * a ping waits behind a download, a quiet peer behind a loud one. On an uplink of 10 Mbit/s the kernel alone would hold seconds.
 *
 * Now and then a **mark** follows what was sent: something that the coordinator answers at once. Its answer says that everything before it
 * has arrived, and when. The window grows while nothing waits on the way, and shrinks to what the line carried as soon as several marks after
 * each other have waited too long, much as LEDBAT (RFC 6817). What does not fit waits in the queue, which is fair. Told the time; asks nobody.
 */
import { after, type Instant } from "../../shared/time.ts";

/**
 * What may wait on the way, beside what is travelling: as long as the way takes, within these bounds. Where answers come in a millisecond they
 * are not late by fifty for any other reason than a queue; where they take long, they are late by some of that without one.
 */
const LEAST_TARGET_MS = 15;
const MOST_TARGET_MS = 50;
/** 26 ms at 10 Mbit/s. */
const MIN_WINDOW_BYTES = 32 * 1024;
/** With so little under way it is not our doing when it takes long: the smallest window, and what may be a frame more than it. */
const LITTLE_BYTES = MIN_WINDOW_BYTES + 16 * 1024;
const FIRST_WINDOW_BYTES = 128 * 1024;
/** A gigabit with a round trip of 70 ms. */
const MAX_WINDOW_BYTES = 8 * 1024 * 1024;
/** A mark after so much, or after an eighth of the window where that is more: at a gigabit, some two hundred a second. */
const MARK_BYTES = 16 * 1024;
const MARKS_PER_WINDOW = 8;
/** So many marks after each other have waited too long where a queue stands; a busy moment, or a lost packet, holds up fewer. */
const STANDING_MARKS = 3;
/** The shortest round trip is believed for so long, as in BBR: the way may have become longer. */
const BELIEVE_MS = 10_000;

interface Mark {
  readonly at: Instant;
  /** Bytes sent so far, and those of them that were known to have arrived, and since when. */
  readonly sent: number;
  readonly arrived: number;
  readonly arrivedAt: Instant;
}

export class SendWindow {
  #bytes = FIRST_WINDOW_BYTES;
  #sent = 0;
  #arrived = 0;
  #arrivedAt: Instant | undefined;
  #markedSent = 0;
  readonly #marks: Mark[] = [];
  /** How long the newest marks have waited. */
  #waits: number[] = [];
  #shortest: { readonly roundTripMs: number; readonly at: Instant } | undefined;

  /** Bytes that may be sent now. */
  room(now: Instant): number {
    return this.#window(now) - (this.#sent - this.#arrived);
  }

  /** True: a mark has to follow, and `onMarked` be called. */
  onSent(bytes: number, now: Instant): boolean {
    if (this.#sent === this.#arrived) this.#arrivedAt = now;
    this.#sent += bytes;
    const unmarked = this.#sent - this.#markedSent;
    return unmarked >= Math.max(MARK_BYTES, this.#window(now) / MARKS_PER_WINDOW) || this.room(now) <= 0;
  }

  /** Full, with no mark under way whose answer would make room: one is needed. */
  isStuck(now: Instant): boolean {
    return this.#marks.length === 0 && this.#sent > this.#arrived && this.room(now) <= 0;
  }

  /** Something has left that is answered at once. */
  onMarked(now: Instant): void {
    this.#markedSent = this.#sent;
    this.#marks.push({ at: now, sent: this.#sent, arrived: this.#arrived, arrivedAt: this.#arrivedAt ?? now });
  }

  /** The oldest mark has been answered. */
  onAnswered(now: Instant): void {
    const mark = this.#marks.shift();
    if (mark === undefined) return;
    const news = mark.sent - this.#arrived;
    this.#arrived = mark.sent;
    this.#arrivedAt = now;
    const roundTripMs = now - mark.at;
    const underWay = mark.sent - mark.arrived;
    this.#measure(roundTripMs, underWay, now);
    const usualMs = this.#shortest?.roundTripMs ?? roundTripMs;
    const targetMs = Math.min(Math.max(usualMs, LEAST_TARGET_MS), MOST_TARGET_MS);
    const waitedMs = roundTripMs - usualMs;
    this.#waits = [...this.#waits.slice(1 - STANDING_MARKS), waitedMs];
    const isStanding = this.#waits.length === STANDING_MARKS && Math.min(...this.#waits) > targetMs;
    if (isStanding && underWay > LITTLE_BYTES) {
      const perMs = underWay / Math.max(1, now - mark.arrivedAt);
      this.#bytes = Math.max(MIN_WINDOW_BYTES, Math.min(this.#bytes, Math.ceil(perMs * (usualMs + targetMs))));
    } else if (waitedMs < targetMs / 2 && underWay >= this.#bytes / 2) {
      this.#bytes = Math.min(MAX_WINDOW_BYTES, this.#bytes + news);
    }
  }

  #measure(roundTripMs: number, underWay: number, now: Instant): void {
    const isShortest = this.#shortest === undefined || roundTripMs <= this.#shortest.roundTripMs;
    const isClean = underWay <= LITTLE_BYTES && (this.#isOld(now) || this.#bytes <= MIN_WINDOW_BYTES);
    if (isShortest || isClean) this.#shortest = { roundTripMs, at: now };
  }

  /** While the shortest round trip has to be measured anew, little may be under way. */
  #window(now: Instant): number {
    return this.#isOld(now) ? MIN_WINDOW_BYTES : this.#bytes;
  }

  #isOld(now: Instant): boolean {
    return this.#shortest !== undefined && now > after(this.#shortest.at, BELIEVE_MS);
  }
}
