/**
 * Keeps the order of packets while a peer moves from one path to another on purpose (PROTOCOL.md, "Switching paths").
 *
 * The sender marks the end of the old path with a **fence** and the beginning of the new one with a **begin**. A receiver that hears
 * the begin first knows that older frames are still on their way along the slower old path: it holds what the new path brings until
 * the fence has come, or until waiting would hurt more than a reordered packet.
 *
 * Nothing is lost or sent twice by this; a lost begin only costs the order, a lost fence only the wait.
 */
import { after, type Instant } from "../../shared/time.ts";

/** Twice the round trip of the slowest relay worth switching from, whatever the sender asks for; a fence later than that is taken for lost. */
const MAX_HOLD_MS = 400;
/** At a gigabit, 400 ms are more than this: then order is given up before memory. */
const MAX_HELD_BYTES = 16 * 1024 * 1024;
/** Fences that came before their begin: the old path was the faster one. */
const MAX_EARLY_FENCES = 8;

interface Held {
  readonly counter: number;
  readonly plaintext: Uint8Array;
}

interface Hold {
  readonly id: number;
  readonly source: string;
  readonly frames: Held[];
  readonly deadline: Instant;
  bytes: number;
}

export class PathSwitch {
  #hold: Hold | undefined;
  readonly #earlyFences = new Set<number>();
  /** Frames given out of order because the fence did not come in time, or there were too many. */
  lateFences = 0;

  get deadline(): Instant | undefined {
    return this.#hold?.deadline;
  }

  /**
   * Returns what an unfinished earlier switch still held.
   *
   * @param source names the path that the begin came on
   * @param holdMs what the sender asks for: twice the round trip of its old path; 0 for the most there is
   */
  begin(id: number, source: string, holdMs: number, now: Instant): readonly Uint8Array[] {
    if (this.#earlyFences.delete(id)) return [];
    const released = this.#release();
    const waitMs = holdMs === 0 ? MAX_HOLD_MS : Math.min(holdMs, MAX_HOLD_MS);
    this.#hold = { id, source, frames: [], deadline: after(now, waitMs), bytes: 0 };
    return released;
  }

  /** The old path has brought everything. Returns the held frames in the order of their counters. */
  fence(id: number): readonly Uint8Array[] {
    if (this.#hold?.id === id) return this.#release();
    this.#earlyFences.add(id);
    const oldest = this.#earlyFences.values().next();
    if (this.#earlyFences.size > MAX_EARLY_FENCES && !oldest.done) this.#earlyFences.delete(oldest.value);
    return [];
  }

  /** Must this frame wait? Then it is kept (a copy). */
  holds(source: string, counter: number, plaintext: Uint8Array): boolean {
    const hold = this.#hold;
    if (hold === undefined || hold.source !== source) return false;
    hold.frames.push({ counter, plaintext: plaintext.slice() });
    hold.bytes += plaintext.length;
    return true;
  }

  /** What must go now, fence or no fence: the wait is over, or the frames are too many. */
  overdue(now: Instant): readonly Uint8Array[] {
    const hold = this.#hold;
    if (hold === undefined || (now < hold.deadline && hold.bytes <= MAX_HELD_BYTES)) return [];
    this.lateFences++;
    return this.#release();
  }

  #release(): readonly Uint8Array[] {
    const frames = this.#hold?.frames ?? [];
    this.#hold = undefined;
    return frames.toSorted((a, b) => a.counter - b.counter).map(({ plaintext }) => plaintext);
  }
}

/** How long a change of our own relay connection may take to show, and how long a missing frame is waited for. */
const ORDER_MS = 1500;

/**
 * Puts frames in the order of their counters for a while: when our own receiving leg changes from one relay connection to another, the
 * sender does not know the moment and cannot mark it. One counter spans all paths, so what is missing is known.
 */
export class CounterOrder {
  #until: Instant | undefined;
  #next = 0;
  #seen = new Set<number>();
  #held: Held[] = [];
  #heldBytes = 0;
  /** Missing frames that were waited for in vain, a row of them counting once. */
  gapsGivenUp = 0;
  #waitUntil: Instant | undefined;

  get isActive(): boolean {
    return this.#until !== undefined;
  }

  get deadline(): Instant | undefined {
    return this.#waitUntil ?? this.#until;
  }

  /** Begins, or goes on. @param next the counter that follows everything received so far */
  start(next: number, now: Instant): void {
    if (this.#until === undefined) this.#next = next;
    this.#until = after(now, ORDER_MS);
  }

  /**
   * A frame of any kind with this counter has come; `plaintext` when it is data, which is then ours to give out. Returns what may go
   * now, in order.
   */
  accept(counter: number, plaintext: Uint8Array | undefined, now: Instant): readonly Uint8Array[] {
    if (counter < this.#next) return plaintext === undefined ? [] : [plaintext];
    this.#seen.add(counter);
    if (plaintext !== undefined) {
      this.#held.push({ counter, plaintext: plaintext.slice() });
      this.#heldBytes += plaintext.length;
    }
    while (this.#seen.delete(this.#next)) this.#next++;
    const released = this.#release();
    this.#waitUntil = this.#held.length === 0 ? undefined : (this.#waitUntil ?? after(now, MAX_HOLD_MS));
    return this.#heldBytes > MAX_HELD_BYTES ? [...released, ...this.#giveUp()] : released;
  }

  /** What has waited long enough: the missing frame is lost. */
  overdue(now: Instant): readonly Uint8Array[] {
    const released = this.#waitUntil !== undefined && now >= this.#waitUntil ? this.#giveUp() : [];
    if (this.#until !== undefined && now >= this.#until && this.#held.length === 0) {
      this.#until = undefined;
      this.#seen.clear();
    }
    return released;
  }

  /** Everything below `next`. */
  #release(): readonly Uint8Array[] {
    const ready = this.#held.filter(({ counter }) => counter < this.#next).toSorted((a, b) => a.counter - b.counter);
    if (ready.length === 0) return [];
    this.#held = this.#held.filter(({ counter }) => counter >= this.#next);
    this.#heldBytes = this.#held.reduce((sum, { plaintext }) => sum + plaintext.length, 0);
    if (this.#held.length > 0) this.#waitUntil = undefined;
    return ready.map(({ plaintext }) => plaintext);
  }

  #giveUp(): readonly Uint8Array[] {
    this.gapsGivenUp++;
    this.#next = Math.max(this.#next, ...this.#held.map(({ counter }) => counter + 1));
    for (const counter of this.#seen) if (counter < this.#next) this.#seen.delete(counter);
    const released = this.#release();
    this.#waitUntil = undefined;
    return released;
  }
}
