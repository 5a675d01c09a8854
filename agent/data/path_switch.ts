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

/** Twice the slowest relay worth switching from; a fence later than that is taken for lost. */
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

  /** @param source names the path that the begin came on. Returns what an unfinished earlier switch still held. */
  begin(id: number, source: string, now: Instant): readonly Uint8Array[] {
    if (this.#earlyFences.delete(id)) return [];
    const released = this.#release();
    this.#hold = { id, source, frames: [], deadline: after(now, MAX_HOLD_MS), bytes: 0 };
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
