/**
 * What waits for one connection of a relay: a queue per peer, served in turn, bounded, the oldest dropped first. At the coordinator the peers
 * are the sources of what goes down to an agent, at an agent the destinations of what goes up; both are called sources here.
 *
 * An inner TCP must see loss and not seconds of delay, so a full queue loses its oldest frame. Sources get equal shares of bytes
 * (deficit round robin, Shreedhar and Varghese 1995), whatever the size of their frames. Pure.
 */
import type { PeerId } from "../session/identity.ts";
import type { Instant } from "../time.ts";
import { type StandingLimits, StandingQueue } from "./standing_queue.ts";

export interface FairQueueLimits {
  /** For each source, with overheads. */
  readonly maxSourceBytes: number;
  /** For all sources. */
  readonly maxBytes: number;
  /** Given one, a queue that stands loses frames long before it is full. */
  readonly standing?: StandingLimits;
}

/** What a queued frame costs beside its bytes, so that small ones are not free. */
export const FRAME_OVERHEAD_BYTES = 64;
/** What one source sends in its turn: several frames, so that they stay together in one write. */
const QUANTUM_BYTES = 8 * 1024;
/** Emptied places at the front of a queue before they are given back. */
const COMPACT_AFTER = 256;

export interface TakenFrame {
  readonly from: PeerId;
  readonly frame: Uint8Array;
}

/** What has been taken, for each source by itself, in its order: what goes into one write each. */
export function bySource(taken: readonly TakenFrame[]): Map<PeerId, Uint8Array[]> {
  const frames = new Map<PeerId, Uint8Array[]>();
  for (const { from, frame } of taken) {
    const list = frames.get(from);
    if (list === undefined) frames.set(from, [frame]);
    else list.push(frame);
  }
  return frames;
}

interface SourceQueue {
  readonly source: PeerId;
  frames: Uint8Array[];
  /** When each of them came. */
  times: Instant[];
  /** Frames before this one are gone. */
  head: number;
  /** With overheads. */
  bytes: number;
  /** What is left of its turn; negative when its last frame was larger than that. */
  deficit: number;
  readonly standing: StandingQueue | undefined;
}

const EMPTY = new Uint8Array(0);
const costOf = (frame: Uint8Array): number => frame.length + FRAME_OVERHEAD_BYTES;

export class FairQueue {
  readonly #sources = new Map<PeerId, SourceQueue>();
  /** Sources with frames, the next one first. */
  #turns: SourceQueue[] = [];
  #bytes = 0;
  readonly #limits: FairQueueLimits;

  constructor(limits: FairQueueLimits) {
    this.#limits = limits;
  }

  /** With overheads. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Keeps `frame` itself and no copy. Returns how many frames were dropped for it. */
  push(source: PeerId, frame: Uint8Array, at: Instant): number {
    let queue = this.#sources.get(source);
    if (queue === undefined) {
      const { standing: limits } = this.#limits;
      const standing = limits === undefined ? undefined : new StandingQueue(limits);
      queue = { source, frames: [], times: [], head: 0, bytes: 0, deficit: 0, standing };
      this.#sources.set(source, queue);
      this.#turns.push(queue);
    }
    queue.frames.push(frame);
    queue.times.push(at);
    queue.bytes += costOf(frame);
    this.#bytes += costOf(frame);
    let dropped = 0;
    for (; queue.bytes > this.#limits.maxSourceBytes; dropped++) this.#shift(queue);
    for (; this.#bytes > this.#limits.maxBytes; dropped++) this.#shift(this.#greedy());
    return dropped;
  }

  /**
   * The next frames: as many as `maximumBytes` hold with `perFrame` more for each, but at least one if there is any.
   *
   * @param isReady false for a source whose frames cannot be sent at this moment
   */
  take(maximumBytes: number, perFrame: number, isReady: (source: PeerId) => boolean = () => true): TakenFrame[] {
    const taken: TakenFrame[] = [];
    let room = maximumBytes;
    for (let idle = 0; idle < this.#turns.length; ) {
      const queue = this.#turns[0];
      if (queue === undefined) break;
      if (!isReady(queue.source)) {
        this.#rotate();
        idle++;
        continue;
      }
      idle = 0;
      if (queue.deficit <= 0) queue.deficit += QUANTUM_BYTES;
      while (queue.deficit > 0) {
        const frame = queue.frames[queue.head];
        if (frame === undefined) break;
        if (taken.length > 0 && frame.length + perFrame > room) return taken;
        room -= frame.length + perFrame;
        queue.deficit -= costOf(frame);
        taken.push({ from: queue.source, frame });
        this.#shift(queue);
      }
      // One that is empty has left the turns by itself.
      if (this.#turns[0] === queue) this.#rotate();
    }
    return taken;
  }

  /** Drops everything of a source; returns how many frames that were. */
  clear(source: PeerId): number {
    const queue = this.#sources.get(source);
    if (queue === undefined) return 0;
    this.#bytes -= queue.bytes;
    this.#forget(queue);
    return queue.frames.length - queue.head;
  }

  /** Sources that have something waiting. */
  sources(): PeerId[] {
    return [...this.#sources.keys()];
  }

  /** Drops what a queue that stands has to lose at this moment; returns how many frames that were. Asked before `take`. */
  dropStanding(now: Instant): number {
    let dropped = 0;
    for (const queue of this.#turns.slice()) {
      const age = (): number => now - (queue.times[queue.head] ?? now);
      for (; queue.head < queue.frames.length && queue.standing?.mustDrop(age(), now) === true; dropped++) {
        this.#shift(queue);
      }
    }
    return dropped;
  }

  /** Drops what came before this; returns how many frames that were. */
  dropBefore(oldest: Instant): number {
    let dropped = 0;
    for (const queue of this.#turns.slice()) {
      for (; queue.head < queue.frames.length && (queue.times[queue.head] ?? oldest) < oldest; dropped++) {
        this.#shift(queue);
      }
    }
    return dropped;
  }

  /** Moves what waits of one source to the end of another queue; returns how many frames that one dropped. */
  moveTo(other: FairQueue, source: PeerId): number {
    const queue = this.#sources.get(source);
    if (queue === undefined) return 0;
    this.clear(source);
    let dropped = 0;
    for (let i = queue.head; i < queue.frames.length; i++) {
      const [frame, at] = [queue.frames[i], queue.times[i]];
      if (frame !== undefined && at !== undefined) dropped += other.push(source, frame, at);
    }
    return dropped;
  }

  /** One that has at least its share of the whole; there always is one. */
  #greedy(): SourceQueue {
    const share = this.#bytes / this.#turns.length;
    const greedy = this.#turns.find((queue) => queue.bytes >= share) ?? this.#turns[0];
    if (greedy === undefined) throw new Error("A queue without frames is over its limit");
    return greedy;
  }

  #shift(queue: SourceQueue): void {
    const frame = queue.frames[queue.head];
    if (frame === undefined) return;
    queue.frames[queue.head++] = EMPTY;
    queue.bytes -= costOf(frame);
    this.#bytes -= costOf(frame);
    if (queue.head === queue.frames.length) this.#forget(queue);
    else if (queue.head >= COMPACT_AFTER && queue.head * 2 >= queue.frames.length) {
      queue.frames = queue.frames.slice(queue.head);
      queue.times = queue.times.slice(queue.head);
      queue.head = 0;
    }
  }

  #forget(queue: SourceQueue): void {
    this.#sources.delete(queue.source);
    if (this.#turns[0] === queue) this.#turns.shift();
    else this.#turns = this.#turns.filter((other) => other !== queue);
  }

  #rotate(): void {
    const first = this.#turns.shift();
    if (first !== undefined) this.#turns.push(first);
  }
}
