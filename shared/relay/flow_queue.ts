/**
 * What waits for one peer, its flows told apart: each has its share of bytes, one that has little to send goes before those that always
 * have more, and what a full queue loses it takes from the fattest (much as FQ-CoDel, RFC 8290). So a ping neither waits behind a
 * download nor is lost for it. Within a flow the order is always kept. Told the time. Pure.
 *
 * A frame comes with its **lane**: which flow it is of, and which packet of that flow, since a large packet travels as a run of frames, and
 * the receiver has less work with a run that comes in one piece. Whoever cannot tell flows apart leaves it out: then all is one flow.
 *
 * Two kinds of flow are apart. CONTROL goes before everything else: proofs that the path lives, handshakes. A MARK stands for the end or the
 * beginning of a path, and is only worth something in its place: it passes nothing, and nothing passes it.
 */
import type { Instant } from "../time.ts";
import { type StandingLimits, StandingQueue } from "./standing_queue.ts";

/** Flows are told apart by a hash of so many values, so their number is bounded. As in Linux. */
export const FLOWS = 1024;
/** Numbers of flows that are not those of IP packets. */
export const STREAMS = FLOWS;
export const CONTROL = FLOWS + 1;
export const MARK = FLOWS + 2;
/** Packets of a flow are numbered modulo this: those that follow each other differ. */
const PACKETS = 2 ** 16;

/** What a queued frame costs beside its bytes, so that small ones are not free. */
export const FRAME_OVERHEAD_BYTES = 64;
/** What a flow may send at once and still count as one that has little to send: a burst of a few packets, an answer to a question. */
const QUANTUM_BYTES = 8 * 1024;
/** Emptied places at the front of a queue before they are given back. */
const COMPACT_AFTER = 256;
/** A frame of at most so many bytes carries a ping, a keystroke, a question of a resolver, an acknowledgement. */
const SMALL_FRAME_BYTES = 256;
/** So many small frames at the head are spared for a larger one behind them. */
const MAX_SPARED = 64;

export const laneOf = (flow: number, packet: number): number => flow * PACKETS + (packet % PACKETS);
const flowOfLane = (lane: number): number => Math.floor(lane / PACKETS);

export const costOf = (frame: Uint8Array): number => frame.length + FRAME_OVERHEAD_BYTES;

const EMPTY = new Uint8Array(0);

export interface Waiting {
  readonly frame: Uint8Array;
  /** When it came. */
  readonly at: Instant;
  readonly lane: number;
}

class Flow {
  readonly id: number;
  readonly standing: StandingQueue | undefined;
  #frames: Uint8Array[] = [];
  #times: Instant[] = [];
  #lanes: number[] = [];
  /** Frames before this one are gone. */
  #head = 0;
  #lastLane = -1;
  /** With overheads. */
  bytes = 0;
  /** What is left of its turn; negative when its last packet was larger than that. */
  deficit = QUANTUM_BYTES;

  constructor(id: number, limits: StandingLimits | undefined) {
    this.id = id;
    this.standing = limits === undefined ? undefined : new StandingQueue(limits);
  }

  get length(): number {
    return this.#frames.length - this.#head;
  }

  get first(): Uint8Array | undefined {
    return this.#frames[this.#head];
  }

  get firstAt(): Instant | undefined {
    return this.#times[this.#head];
  }

  /** Its next frame goes on with the packet that its last one was of. */
  get isWithinPacket(): boolean {
    return this.#lanes[this.#head] === this.#lastLane;
  }

  push(frame: Uint8Array, at: Instant, lane: number): void {
    this.#frames.push(frame);
    this.#times.push(at);
    this.#lanes.push(lane);
    this.bytes += costOf(frame);
  }

  shift(): Waiting | undefined {
    const [frame, at, lane] = [this.#frames[this.#head], this.#times[this.#head], this.#lanes[this.#head]];
    if (frame === undefined || at === undefined || lane === undefined) return undefined;
    this.#frames[this.#head++] = EMPTY;
    this.#lastLane = lane;
    this.bytes -= costOf(frame);
    if (this.#head >= COMPACT_AFTER && this.#head * 2 >= this.#frames.length) {
      this.#frames = this.#frames.slice(this.#head);
      this.#times = this.#times.slice(this.#head);
      this.#lanes = this.#lanes.slice(this.#head);
      this.#head = 0;
    }
    return { frame, at, lane };
  }

  /** Takes out the oldest frame, but spares a few small ones for a larger one behind them: what they are of may be another flow's. */
  dropOldest(): void {
    const most = Math.min(this.length, MAX_SPARED);
    let spared = 0;
    while (spared < most && (this.#frames[this.#head + spared]?.length ?? 0) <= SMALL_FRAME_BYTES) spared++;
    if (spared > 0 && spared < most) {
      for (const list of [this.#frames, this.#times, this.#lanes]) moveForward(list, this.#head + spared, this.#head);
    }
    this.shift();
  }
}

/** Those between the two places move back by one. */
function moveForward(list: unknown[], from: number, to: number): void {
  const moved = list[from];
  list.copyWithin(to + 1, to, from);
  list[to] = moved;
}

export class FlowQueue {
  readonly #limits: StandingLimits | undefined;
  /** Those that something waits of, or that have had their turn in this round. */
  readonly #flows = new Map<number, Flow>();
  /** Flows that have only begun to send, and those that have had their share; the next one first. */
  readonly #new: Flow[] = [];
  readonly #old: Flow[] = [];
  /** A mark, and what came after it: it waits until what was before the mark has left. */
  #behind: Waiting[] = [];
  #packet = 0;
  #count = 0;
  #bytes = 0;

  /** @param standing given them, a flow that stands loses frames long before the queue is full */
  constructor(standing?: StandingLimits) {
    this.#limits = standing;
  }

  /** With overheads. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Frames. */
  get length(): number {
    return this.#count + this.#behind.length;
  }

  /** Keeps `frame` itself and no copy. Without a lane it is a packet of its own of the one flow that there is. */
  push(frame: Uint8Array, at: Instant, lane: number = laneOf(0, this.#packet++)): void {
    this.#bytes += costOf(frame);
    const isFree = this.#behind.length === 0 && (this.#flows.get(MARK)?.length ?? 0) === 0;
    if (isFree && flowOfLane(lane) !== MARK) this.#admit(frame, at, lane);
    else {
      this.#behind.push({ frame, at, lane });
      this.#advance();
    }
  }

  /** The frame whose turn it is. */
  peek(): Uint8Array | undefined {
    return this.#next()?.first;
  }

  /** Takes it out. */
  shift(): Waiting | undefined {
    const flow = this.#next();
    if (flow === undefined) return undefined;
    const waiting = flow.shift();
    if (waiting !== undefined) {
      flow.deficit -= costOf(waiting.frame);
      this.#forget(waiting.frame);
    }
    return waiting;
  }

  /** The oldest frame of the fattest flow goes. */
  dropOne(): void {
    let fattest: Flow | undefined;
    for (const flow of this.#flows.values()) {
      if (flow.id < CONTROL && flow.bytes > (fattest?.bytes ?? 0)) fattest = flow;
    }
    const at = this.#behind.findIndex(({ lane }) => flowOfLane(lane) < CONTROL);
    const [oldest] = fattest === undefined && at >= 0 ? this.#behind.splice(at, 1) : [];
    if (oldest !== undefined) this.#bytes -= costOf(oldest.frame);
    else this.#dropOf(fattest ?? this.#next());
  }

  /** Drops what came before this; returns how many frames that were. */
  dropBefore(oldest: Instant): number {
    let dropped = 0;
    for (const flow of this.#flows.values()) {
      for (; (flow.firstAt ?? oldest) < oldest; dropped++) this.#forget(flow.shift()?.frame ?? EMPTY);
    }
    return dropped;
  }

  /** Drops what flows that stand have to lose at this moment; returns how many frames that were. */
  dropStanding(now: Instant): number {
    let dropped = 0;
    for (const flow of this.#flows.values()) {
      while (flow.firstAt !== undefined && flow.standing?.mustDrop(now - flow.firstAt, now) === true) {
        this.#forget(flow.shift()?.frame ?? EMPTY);
        dropped++;
      }
    }
    return dropped;
  }

  #dropOf(flow: Flow | undefined): void {
    const before = flow?.bytes ?? 0;
    if (flow === undefined || before === 0) return;
    flow.dropOldest();
    this.#count--;
    this.#bytes -= before - flow.bytes;
    this.#advance();
  }

  #forget(frame: Uint8Array): void {
    this.#count--;
    this.#bytes -= costOf(frame);
    this.#advance();
  }

  #admit(frame: Uint8Array, at: Instant, lane: number): void {
    const id = flowOfLane(lane);
    let flow = this.#flows.get(id);
    if (flow === undefined) {
      flow = new Flow(id, this.#limits);
      this.#flows.set(id, flow);
      this.#new.push(flow);
    }
    flow.push(frame, at, lane);
    this.#count++;
  }

  /** Once everything before a mark has left, the mark does, by itself, and then what is between it and the next one may. */
  #advance(): void {
    while (this.#count === 0 && this.#behind.length > 0) {
      const isMark = ({ lane }: Waiting): boolean => flowOfLane(lane) === MARK;
      const [first] = this.#behind;
      const next = first !== undefined && isMark(first) ? 1 : this.#behind.findIndex(isMark);
      const released = this.#behind.splice(0, next < 0 ? this.#behind.length : next);
      for (const { frame, at, lane } of released) this.#admit(frame, at, lane);
    }
  }

  /** Whose turn it is. One that is empty leaves when its turn comes, so that it does not count as new again within a round. */
  #next(): Flow | undefined {
    const control = this.#flows.get(CONTROL);
    if (control !== undefined && control.length > 0) return control;
    while (true) {
      const list = this.#new.length > 0 ? this.#new : this.#old;
      const flow = list[0];
      if (flow === undefined) return undefined;
      if (flow.length > 0 && (flow.deficit > 0 || flow.isWithinPacket)) return flow;
      list.shift();
      const isOver = flow.length === 0 && (list === this.#old || this.#old.length === 0);
      if (isOver) this.#flows.delete(flow.id);
      else {
        if (flow.deficit <= 0) flow.deficit += QUANTUM_BYTES;
        this.#old.push(flow);
      }
    }
  }
}
