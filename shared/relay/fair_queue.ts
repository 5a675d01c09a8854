/**
 * What waits for one connection of a relay: a queue per peer, served in turn, bounded. At the coordinator the peers are the sources of what
 * goes down to an agent, at an agent the destinations of what goes up; both are called sources here. An agent knows the flows of what it
 * has sealed and tells them apart (flow_queue.ts), the coordinator does not.
 *
 * An inner TCP must see loss and not seconds of delay, so a full queue loses the oldest frame of its fattest flow. Sources get equal shares
 * of bytes (deficit round robin, Shreedhar and Varghese 1995), whatever the size of their frames. Pure.
 */
import type { PeerId } from "../session/identity.ts";
import type { Instant } from "../time.ts";
import { costOf, FlowQueue } from "./flow_queue.ts";
import type { StandingLimits } from "./standing_queue.ts";

export { FRAME_OVERHEAD_BYTES } from "./flow_queue.ts";

export interface FairQueueLimits {
  /** For each source, with overheads. */
  readonly maxSourceBytes: number;
  /** For all sources. */
  readonly maxBytes: number;
  /** Given one, a queue that stands loses frames long before it is full. */
  readonly standing?: StandingLimits;
}

/** What one source sends in its turn: several frames, so that they stay together in one write. */
const QUANTUM_BYTES = 8 * 1024;

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
  readonly flows: FlowQueue;
  /** What is left of its turn; negative when its last frame was larger than that. */
  deficit: number;
}

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

  /** Keeps `frame` itself and no copy; its lane is that of flow_queue.ts. Returns how many frames were dropped for it. */
  push(source: PeerId, frame: Uint8Array, at: Instant, lane?: number): number {
    let queue = this.#sources.get(source);
    if (queue === undefined) {
      queue = { source, flows: new FlowQueue(this.#limits.standing), deficit: 0 };
      this.#sources.set(source, queue);
      this.#turns.push(queue);
    }
    queue.flows.push(frame, at, lane);
    this.#bytes += costOf(frame);
    let dropped = 0;
    for (; queue.flows.bytes > this.#limits.maxSourceBytes; dropped++) this.#dropOne(queue);
    for (; this.#bytes > this.#limits.maxBytes; dropped++) this.#dropOne(this.#greedy());
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
        const frame = queue.flows.peek();
        if (frame === undefined) break;
        if (taken.length > 0 && frame.length + perFrame > room) return taken;
        room -= frame.length + perFrame;
        queue.deficit -= costOf(frame);
        taken.push({ from: queue.source, frame });
        const before = queue.flows.bytes;
        queue.flows.shift();
        this.#settle(queue, before);
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
    this.#bytes -= queue.flows.bytes;
    this.#forget(queue);
    return queue.flows.length;
  }

  /** Sources that have something waiting. */
  sources(): PeerId[] {
    return [...this.#sources.keys()];
  }

  /** Drops what a queue that stands has to lose at this moment; returns how many frames that were. Asked before `take`. */
  dropStanding(now: Instant): number {
    return this.#limits.standing === undefined ? 0 : this.#dropFromAll((flows) => flows.dropStanding(now));
  }

  /** Drops what came before this; returns how many frames that were. */
  dropBefore(oldest: Instant): number {
    return this.#dropFromAll((flows) => flows.dropBefore(oldest));
  }

  /** Moves what waits of one source to the end of another queue; returns how many frames that one dropped. */
  moveTo(other: FairQueue, source: PeerId): number {
    const queue = this.#sources.get(source);
    if (queue === undefined) return 0;
    this.clear(source);
    let dropped = 0;
    for (let next = queue.flows.shift(); next !== undefined; next = queue.flows.shift()) {
      dropped += other.push(source, next.frame, next.at, next.lane);
    }
    return dropped;
  }

  /** One that has at least its share of the whole; there always is one. */
  #greedy(): SourceQueue {
    const share = this.#bytes / this.#turns.length;
    const greedy = this.#turns.find(({ flows }) => flows.bytes >= share) ?? this.#turns[0];
    if (greedy === undefined) throw new Error("A queue without frames is over its limit");
    return greedy;
  }

  #dropOne(queue: SourceQueue): void {
    const before = queue.flows.bytes;
    queue.flows.dropOne();
    this.#settle(queue, before);
  }

  #dropFromAll(drop: (flows: FlowQueue) => number): number {
    let dropped = 0;
    for (const queue of this.#turns.slice()) {
      const before = queue.flows.bytes;
      dropped += drop(queue.flows);
      this.#settle(queue, before);
    }
    return dropped;
  }

  /** After frames have left a source's queue: one that is empty leaves the turns. */
  #settle(queue: SourceQueue, bytesBefore: number): void {
    this.#bytes -= bytesBefore - queue.flows.bytes;
    if (queue.flows.length === 0) this.#forget(queue);
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
