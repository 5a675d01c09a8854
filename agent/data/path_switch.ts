/**
 * Keeps the order of packets while a peer moves from one path to another on purpose (PROTOCOL.md, "Switching paths").
 *
 * The sender marks the end of the old path with a **fence** and the beginning of the new one with a **begin**. A receiver that hears
 * the begin first knows that older frames are still on their way along the slower old path: it holds what the new path brings until
 * the fence has come, or until waiting would hurt more than a reordered packet.
 *
 * Nothing is lost or sent twice by this; a lost begin only costs the order, a lost fence only the wait.
 */
import type { ReplayWindow } from "../../shared/session/replay_window.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { Leg } from "./plane.ts";

/** Twice the round trip of the slowest relay worth switching from, whatever the sender asks for; a fence later than that is taken for lost. */
const MAX_HOLD_MS = 400;
/** At a gigabit, 400 ms are more than this: then order is given up before memory. */
const MAX_HELD_BYTES = 16 * 1024 * 1024;
/** As a source: no frame has it. */
export const ORDERED_BY_COUNTER = "";
/** Moves that follow each other faster than their old paths end; an operator, or a path that comes and goes, makes two or three. */
const MAX_HOLDS = 4;
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
  isFenced: boolean;
}

export class PathSwitch {
  /** The oldest first: what a later switch holds is newer than all that an earlier one does. */
  #holds: Hold[] = [];
  #bytes = 0;
  readonly #earlyFences = new Set<number>();
  /** Switches whose frames were given out of order because the fence did not come in time, or there were too many. */
  lateFences = 0;

  get deadline(): Instant | undefined {
    let first: Instant | undefined;
    for (const { deadline } of this.#holds) first = earliest(first, deadline);
    return first;
  }

  /**
   * Returns what may go now.
   *
   * @param source names the path that the begin came on; ORDERED_BY_COUNTER if CounterOrder holds the frames
   * @param holdMs what the sender asks for: twice the round trip of its old path; 0 for the most there is
   */
  begin(id: number, source: string, holdMs: number, now: Instant): readonly Uint8Array[] {
    const isFenced = this.#earlyFences.delete(id);
    if (isFenced && this.#holds.length === 0) return [];
    const released = this.#holds.length < MAX_HOLDS ? [] : this.#giveUp(MAX_HOLDS);
    const waitMs = holdMs === 0 ? MAX_HOLD_MS : Math.min(holdMs, MAX_HOLD_MS);
    this.#holds.push({ id, source, frames: [], deadline: after(now, waitMs), isFenced });
    return [...released, ...this.#settle()];
  }

  /** An old path has brought everything. Returns the held frames in the order of their counters, unless an older switch still waits. */
  fence(id: number): readonly Uint8Array[] {
    const hold = this.#holds.find((candidate) => candidate.id === id);
    if (hold !== undefined) {
      hold.isFenced = true;
      return this.#settle();
    }
    this.#earlyFences.add(id);
    const oldest = this.#earlyFences.values().next();
    if (this.#earlyFences.size > MAX_EARLY_FENCES && !oldest.done) this.#earlyFences.delete(oldest.value);
    return [];
  }

  /** Must this frame wait? Then it is kept (a copy). */
  holds(source: string, counter: number, plaintext: Uint8Array): boolean {
    const hold = this.#holds.findLast((candidate) => candidate.source === source);
    if (hold === undefined) return false;
    hold.frames.push({ counter, plaintext: plaintext.slice() });
    this.#bytes += plaintext.length;
    return true;
  }

  /** What must go now, fence or no fence: the wait is over, or the frames are too many. */
  overdue(now: Instant): readonly Uint8Array[] {
    const count =
      this.#bytes > MAX_HELD_BYTES
        ? this.#holds.length
        : this.#holds.findLastIndex(({ deadline }) => now >= deadline) + 1;
    return count === 0 ? [] : [...this.#giveUp(count), ...this.#settle()];
  }

  #giveUp(count: number): readonly Uint8Array[] {
    this.lateFences += this.#holds.slice(0, count).filter(({ isFenced }) => !isFenced).length;
    return this.#release(count);
  }

  #settle(): readonly Uint8Array[] {
    const waiting = this.#holds.findIndex(({ isFenced }) => !isFenced);
    return this.#release(waiting < 0 ? this.#holds.length : waiting);
  }

  #release(count: number): readonly Uint8Array[] {
    const frames = this.#holds
      .slice(0, count)
      .flatMap((hold) => hold.frames.toSorted((a, b) => a.counter - b.counter).map(({ plaintext }) => plaintext));
    this.#holds = this.#holds.slice(count);
    this.#bytes -= frames.reduce((sum, { length }) => sum + length, 0);
    return frames;
  }
}

/** How long a change of our own relay connection may take to show. */
export const ORDER_MS = 1500;

/**
 * Puts frames in the order of their counters for a while: when our own receiving leg changes from one relay connection to another, the
 * sender does not know the moment and cannot mark it.
 *
 * A leg keeps the order of what it carries, so a frame that is missing from it is lost, and waiting for it would cost a TCP inside far more
 * than the frame. Older frames can come late in two cases only, and only those frames are waited for: data has begun to come by another
 * leg, until the leg before has brought the rest, or the sender has begun another path (`begin` without its fence). In all other moments a
 * frame passes as it is. One counter spans all paths, and the replay window knows which have come. What may overtake each other on one leg
 * has an order each (flow_order.ts).
 */
export class CounterOrder {
  readonly #window: Pick<ReplayWindow, "mayAccept">;
  #until: Instant | undefined;
  /** What is below has come, or is not waited for. */
  #next = 0;
  /** Follows the newest data, which came by this leg. */
  #newest = 0;
  #leg: Leg = 0;
  /** The leg before, while it may bring more; undefined when there are several of them. */
  #oldLeg: Leg | undefined;
  /** Counters of the first frame of the newest leg, and of the begin of a path whose fence has not come. */
  #legBegan = 0;
  #pathBegan = 0;
  /** The next frame is the first: its leg is not another one than before. */
  #isAfterPause = false;
  #held: Held[] = [];
  #heldBytes = 0;
  #waitUntil: Instant | undefined;
  /** Changes after which something was waited for in vain. */
  gapsGivenUp = 0;

  constructor(window: Pick<ReplayWindow, "mayAccept">) {
    this.#window = window;
  }

  get isActive(): boolean {
    return this.#until !== undefined;
  }

  get isHolding(): boolean {
    return this.#held.length > 0;
  }

  get deadline(): Instant | undefined {
    return this.#waitUntil ?? this.#until;
  }

  /**
   * Begins, or goes on.
   *
   * @param isAfterPause nothing has come lately: perhaps there was an outage, and what is missing before the next frame is not waited for
   */
  start(now: Instant, isAfterPause = false): void {
    if (this.#until === undefined) this.#endWait();
    this.#until = after(now, ORDER_MS);
    this.#isAfterPause = isAfterPause;
  }

  /**
   * A frame of data has come, and is in the replay window; or the mark of a switch, without a plaintext (`start` is `end`). Undefined: it
   * goes on as it is, and nothing before it. Otherwise what may go now, in order; what may not is kept (a copy).
   */
  accept(
    counter: number,
    leg: Leg,
    bytes: Uint8Array,
    start: number,
    end: number,
    now: Instant,
  ): readonly Uint8Array[] | undefined {
    this.#noteLeg(counter, leg);
    if (this.#until === undefined) return undefined;
    this.#advance();
    if (this.#held.length === 0 && counter < this.#next) return undefined;
    if (start < end) {
      this.#held.push({ counter, plaintext: bytes.slice(start, end) });
      this.#heldBytes += end - start;
      this.#waitUntil ??= after(now, MAX_HOLD_MS);
    }
    return this.#heldBytes > MAX_HELD_BYTES ? this.#giveUp() : this.#release();
  }

  /** A frame of another kind has come, by whatever leg: it may have been what was missing. */
  handleOther(): readonly Uint8Array[] {
    if (this.#held.length === 0) return [];
    this.#advance();
    return this.#release();
  }

  /** The sender has begun a new path by this frame, which is not accepted yet: what it sent before is perhaps still coming. */
  awaitFence(begin: number): void {
    if (this.#until !== undefined) this.#pathBegan = Math.max(this.#pathBegan, begin);
  }

  /** The fence has come, or is given up. */
  handleFence(): readonly Uint8Array[] {
    this.#pathBegan = 0;
    return this.handleOther();
  }

  /** What has waited long enough: the missing frame is lost. */
  overdue(now: Instant): readonly Uint8Array[] {
    const released = this.#waitUntil !== undefined && now >= this.#waitUntil ? this.#giveUp() : [];
    if (this.#until !== undefined && now >= this.#until && this.#held.length === 0) this.#until = undefined;
    return released;
  }

  #isWaiting(): boolean {
    return this.#next < Math.max(this.#legBegan, this.#pathBegan);
  }

  #noteLeg(counter: number, leg: Leg): void {
    if (counter >= this.#newest) {
      this.#newest = counter + 1;
      if (leg === this.#leg || this.#until === undefined || this.#isAfterPause) {
        this.#isAfterPause = false;
        this.#leg = leg;
        return;
      }
      this.#oldLeg = this.#isWaiting() ? undefined : this.#leg;
      this.#leg = leg;
      this.#legBegan = counter;
    } else if (leg === this.#oldLeg && counter > this.#next && this.#pathBegan === 0) {
      // It keeps the order, so what is missing before this is lost.
      this.#next = Math.min(counter, this.#legBegan);
    }
  }

  #advance(): void {
    while (this.#isWaiting() && !this.#window.mayAccept(this.#next)) this.#next++;
    if (!this.#isWaiting()) this.#endWait();
  }

  /** Nothing older comes any more. */
  #endWait(): void {
    this.#oldLeg = undefined;
    this.#legBegan = 0;
    this.#pathBegan = 0;
    this.#next = Math.max(this.#next, this.#newest);
  }

  /** Everything below `next`. */
  #release(): readonly Uint8Array[] {
    const ready = this.#held.filter(({ counter }) => counter < this.#next).toSorted((a, b) => a.counter - b.counter);
    if (ready.length === 0) return [];
    this.#held = this.#held.filter(({ counter }) => counter >= this.#next);
    this.#heldBytes = this.#held.reduce((sum, { plaintext }) => sum + plaintext.length, 0);
    if (this.#held.length === 0) this.#waitUntil = undefined;
    return ready.map(({ plaintext }) => plaintext);
  }

  #giveUp(): readonly Uint8Array[] {
    this.gapsGivenUp++;
    this.#endWait();
    return this.#release();
  }
}
