/**
 * Two stream machines in virtual time with a network between them: delay, jitter, loss, duplication, a bottleneck with a queue, black
 * holes, hosts that are busy with something else. Each end has a simple program that writes and reads as the test says; what arrives is
 * compared byte by byte. Two pairs may share a line.
 */
import { batchEntries, BatchWriter } from "../../../../shared/batch.ts";
import type { CloseCode, MuxAction, StreamId, StreamPath } from "../../../../agent/overlay/contract.ts";
import { StreamMux } from "../../../../agent/overlay/stream_mux.ts";
import { VirtualClock } from "../../../sim/clock.ts";
import { SeededRandom } from "../../../sim/random.ts";

export interface Conditions {
  /** One way. */
  delayMs: number;
  jitterMs: number;
  lossPercent: number;
  duplicatePercent: number;
  /** Bytes per millisecond; 0: no limit. */
  rate: number;
  /** Bytes that may wait for the bottleneck. */
  queueBytes: number;
  isDown: boolean;
  /** Every so often, on the average, a host does nothing for up to so long; 0: never. */
  stallEveryMs: number;
  stallMs: number;
}

export const PERFECT: Conditions = {
  delayMs: 10,
  jitterMs: 0,
  lossPercent: 0,
  duplicatePercent: 0,
  rate: 0,
  queueBytes: 256 * 1024,
  isDown: false,
  stallEveryMs: 0,
  stallMs: 0,
};

/** The bottlenecks of both directions, and how long frames have waited for the one that leads to the right. */
export class Line {
  readonly clock = new VirtualClock();
  readonly #freeAt = { there: 0, back: 0 };
  #waitsMs: number[] = [];

  /** How long this many bytes wait and take; undefined: there is no room for them. */
  pass(direction: "there" | "back", bytes: number, rate: number, queueBytes: number): number | undefined {
    const freeAt = Math.max(this.clock.now, this.#freeAt[direction]);
    const waitMs = freeAt - this.clock.now;
    if (waitMs * rate > queueBytes) return undefined;
    this.#freeAt[direction] = freeAt + bytes / rate;
    if (direction === "there") this.#waitsMs.push(waitMs);
    return waitMs + bytes / rate;
  }

  /** Of what passed since the last call, so many percent waited no longer than this. */
  takeWaitMs(...percents: readonly number[]): number[] {
    const sorted = this.#waitsMs.toSorted((a, b) => a - b);
    this.#waitsMs = [];
    return percents.map((percent) => sorted[Math.floor((sorted.length * percent) / 100)] ?? 0);
  }
}

/** Bytes of one stream that arrived, checked against what its sender is known to write. */
export interface Arrival {
  bytes: number;
  ended: boolean;
  closed: CloseCode | undefined;
  finished: boolean;
  accepted: boolean;
  port: number;
  /** Stops reading: what comes is kept unread. */
  isStalled: boolean;
  unread: number;
}

/** The byte at this offset of every stream to this port. */
export const byteAt = (port: number, offset: number): number => (offset * 31 + (offset >>> 8) * 7 + port) & 0xff;

export function bytesOf(port: number, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = byteAt(port, offset + i);
  return bytes;
}

interface Writer {
  readonly stream: StreamId;
  readonly port: number;
  readonly total: number;
  written: number;
}

export class End {
  readonly mux: StreamMux;
  readonly arrivals = new Map<StreamId, Arrival>();
  readonly datagrams: { readonly flow: StreamId; readonly port: number; readonly bytes: Uint8Array }[] = [];
  readonly problems: string[] = [];
  readonly #pair: Pair;
  readonly #writers = new Map<StreamId, Writer>();
  /** What to do with the peer's streams. */
  onOpened: (stream: StreamId, port: number) => void = (stream) => this.run((now) => this.mux.accept(stream, now));
  #isRunning = false;
  #wakeAt = Number.POSITIVE_INFINITY;
  framesSent = 0;
  bytesSent = 0;
  /** The host is busy until then. */
  stalledUntil = 0;

  constructor(pair: Pair) {
    this.#pair = pair;
    this.mux = new StreamMux(() => pair.random.between(1, 2 ** 32 - 1), pair.clock.now);
  }

  /** One input, every action, one timer. */
  run(input: (now: Pair["clock"]["now"]) => void): void {
    input(this.#pair.clock.now);
    if (this.#isRunning) return;
    this.#isRunning = true;
    for (let action = this.mux.poll(); action !== undefined; action = this.mux.poll()) this.#perform(action);
    this.#isRunning = false;
    this.#arm();
  }

  /** Opens a stream and writes so many bytes to it, as fast as it takes them, then ends it. */
  sendTo(port: number, total: number): StreamId {
    let stream: StreamId | undefined;
    this.run((now) => {
      stream = this.mux.open(port, now);
    });
    if (stream === undefined) throw new Error("Too many streams");
    this.arrival(stream, port);
    this.writeAll(stream, port, total);
    return stream;
  }

  writeAll(stream: StreamId, port: number, total: number): void {
    this.#writers.set(stream, { stream, port, total, written: 0 });
    this.run((now) => this.#pump(stream, now));
  }

  read(stream: StreamId, bytes: number): void {
    const arrival = this.arrivals.get(stream);
    if (arrival === undefined) return;
    arrival.unread -= bytes;
    this.run((now) => this.mux.consumed(stream, bytes, now));
  }

  arrival(stream: StreamId, port: number): Arrival {
    const arrival: Arrival = {
      bytes: 0,
      ended: false,
      closed: undefined,
      finished: false,
      accepted: false,
      port,
      isStalled: false,
      unread: 0,
    };
    this.arrivals.set(stream, arrival);
    return arrival;
  }

  get total(): number {
    let total = 0;
    for (const { bytes } of this.arrivals.values()) total += bytes;
    return total;
  }

  #pump(stream: StreamId, now: Pair["clock"]["now"]): void {
    const writer = this.#writers.get(stream);
    if (writer === undefined) return;
    while (writer.written < writer.total) {
      const length = Math.min(65_536, writer.total - writer.written);
      const hasRoom = this.mux.write(stream, bytesOf(writer.port, writer.written, length), now);
      writer.written += length;
      if (!hasRoom) return;
    }
    this.#writers.delete(stream);
    this.mux.end(stream, now);
  }

  #perform(action: MuxAction): void {
    const now = this.#pair.clock.now;
    switch (action.type) {
      case "transmit":
        for (const frame of batchEntries(action.batch)) {
          this.framesSent++;
          this.bytesSent += frame.length;
          this.#pair.carry(this, frame.slice());
        }
        break;
      case "opened":
        this.arrival(action.stream, action.port);
        this.onOpened(action.stream, action.port);
        break;
      case "data":
        this.#receive(action.stream, action.bytes);
        break;
      case "writable":
        this.#pump(action.stream, now);
        break;
      case "datagram":
        this.datagrams.push({ flow: action.flow, port: action.port, bytes: action.bytes.slice() });
        break;
      case "accepted":
        this.#mark(action.stream, (arrival) => {
          arrival.accepted = true;
        });
        break;
      case "ended":
        this.#mark(action.stream, (arrival) => {
          if (arrival.ended) this.problems.push(`stream ${action.stream} ended twice`);
          arrival.ended = true;
        });
        break;
      case "finished":
        this.#mark(action.stream, (arrival) => {
          arrival.finished = true;
        });
        break;
      case "closed":
        this.#mark(action.stream, (arrival) => {
          arrival.closed = action.code;
        });
        break;
    }
  }

  #receive(stream: StreamId, bytes: Uint8Array): void {
    const arrival = this.arrivals.get(stream);
    if (arrival === undefined || arrival.ended || arrival.closed !== undefined) {
      this.problems.push(`bytes for stream ${stream}, which is over or unknown`);
      return;
    }
    for (let i = 0; i < bytes.length; i++) {
      if (bytes[i] !== byteAt(arrival.port, arrival.bytes + i)) {
        this.problems.push(`stream ${stream} has a wrong byte at ${arrival.bytes + i}`);
        break;
      }
    }
    arrival.bytes += bytes.length;
    if (arrival.isStalled) arrival.unread += bytes.length;
    else this.mux.consumed(stream, bytes.length, this.#pair.clock.now);
  }

  #mark(stream: StreamId, change: (arrival: Arrival) => void): void {
    const arrival = this.arrivals.get(stream);
    if (arrival === undefined) this.problems.push(`news of stream ${stream}, which nobody opened`);
    else change(arrival);
  }

  #arm(): void {
    const deadline = this.mux.deadline();
    if (deadline === undefined || (deadline >= this.#wakeAt && this.#wakeAt > this.#pair.clock.now)) return;
    this.#wakeAt = deadline;
    // A real timer of a millisecond.
    const delay = Math.max(0.01, Math.ceil(deadline - this.#pair.clock.now));
    this.#pair.clock.after(Math.max(delay, this.stalledUntil - this.#pair.clock.now), () => {
      if (this.#wakeAt !== deadline) return;
      this.#wakeAt = Number.POSITIVE_INFINITY;
      this.run((now) => this.mux.handleTimeout(now));
    });
  }
}

export class Pair {
  readonly line: Line;
  readonly clock: VirtualClock;
  readonly random: SeededRandom;
  readonly conditions: Conditions;
  readonly left: End;
  right: End;
  dropped = 0;

  constructor(seed: number, conditions: Partial<Conditions> = {}, line: Line = new Line()) {
    this.line = line;
    this.clock = line.clock;
    this.random = new SeededRandom(seed);
    this.conditions = { ...PERFECT, ...conditions };
    this.left = new End(this);
    this.right = new End(this);
    this.setPath();
    if (this.conditions.stallEveryMs > 0) this.#stallSometimes();
  }

  /** Gives both ends this path, or a change of it. */
  setPath(path: Partial<StreamPath> = {}): void {
    const given = { rttMs: 2 * this.conditions.delayMs, frameBytes: 1280, ...path };
    for (const end of [this.left, this.right]) end.run((now) => end.mux.handlePath(given, now));
  }

  dropPath(): void {
    for (const end of [this.left, this.right]) end.run((now) => end.mux.handlePath(undefined, now));
  }

  /** The right agent restarts: a new machine, which knows nothing. */
  restartRight(): void {
    this.right = new End(this);
    this.right.run((now) => this.right.mux.handlePath({ rttMs: 2 * this.conditions.delayMs, frameBytes: 1280 }, now));
  }

  carry(from: End, frame: Uint8Array): void {
    const { random, conditions } = this;
    const copies = random.chance(conditions.duplicatePercent) ? 2 : 1;
    for (let copy = 0; copy < copies; copy++) {
      if (conditions.isDown || random.chance(conditions.lossPercent)) {
        this.dropped++;
        continue;
      }
      let waitMs = 0;
      if (conditions.rate > 0) {
        const direction = from === this.left ? "there" : "back";
        const passMs = this.line.pass(direction, frame.length, conditions.rate, conditions.queueBytes);
        if (passMs === undefined) {
          this.dropped++;
          continue;
        }
        waitMs = passMs;
      }
      const delayMs = waitMs + conditions.delayMs + random.next() * conditions.jitterMs;
      this.clock.after(delayMs, () => this.#arrive(from === this.left ? this.right : this.left, frame));
    }
  }

  #arrive(to: End, frame: Uint8Array): void {
    const stalledMs = to.stalledUntil - this.clock.now;
    if (stalledMs > 0) {
      this.clock.after(stalledMs, () => this.#arrive(to, frame));
      return;
    }
    const batch = new BatchWriter(frame.length + 2);
    batch.push(frame);
    to.run((now) => to.mux.handleFrames(batch.take(), now));
  }

  #stallSometimes(): void {
    const { stallEveryMs, stallMs } = this.conditions;
    this.clock.after(2 * this.random.next() * stallEveryMs, () => {
      const end = this.random.chance(50) ? this.left : this.right;
      end.stalledUntil = this.clock.now + this.random.next() * stallMs;
      this.#stallSometimes();
    });
  }

  /** Runs until `done`, or for so long. Returns the virtual time it took. */
  run(limitMs: number, done: () => boolean = () => false): number {
    const startedAt = this.clock.now;
    this.clock.runUntil(startedAt + limitMs, done);
    return this.clock.now - startedAt;
  }

  get problems(): readonly string[] {
    return [...this.left.problems, ...this.right.problems];
  }
}
