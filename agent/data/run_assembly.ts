/**
 * Puts the super-packets of one peer together again (PROTOCOL.md, "Super-packet segments").
 *
 * Pieces are written to their places in one buffer. A run that is whole is delivered at once. One that is not goes, as far as it has come,
 * when the next run begins, when anything else of that peer is delivered, or 2 ms after its first undelivered piece: as one smaller
 * super-packet for each stretch without a hole, so that a lost frame costs what it carried. A piece that is late finds the headers of the
 * last few runs and is delivered on its own.
 *
 * Everything here has been authenticated, but a peer may be hostile: nothing is believed about lengths and places, a peer has one
 * buffer, and headers are taken only if they are plain TCP or UDP from its own address to ours.
 */
import { after, type Instant } from "../../shared/time.ts";
import {
  SEGMENT_HEADER_BYTES,
  SEGMENT_SIZE_BYTES,
  segmentOffset,
  segmentRunId,
  segmentTotal,
} from "../../shared/wire/frame.ts";
import { fitHeaders, MAX_HEADERS_BYTES, PacketHeaders, UDP } from "./packet_headers.ts";

/** How long a piece waits for its run: a run of 64 KB takes this long at 250 Mbit/s, and slower senders make smaller ones. */
const WAIT_MS = 2;
/** Without a segment for so long the buffer is given back. */
const IDLE_MS = 1000;
/** Runs whose headers are remembered for late pieces. */
const REMEMBERED_RUNS = 4;
/** Stretches with holes between them: as many as a run has in frames of 300 bytes of which every other one is lost. */
const MAX_STRETCHES = 256;
const MAX_PACKET_BYTES = 65_535;
/** Smaller segments are more work for our kernel than they are worth; Linux has no MSS below 48, and nobody uses that. */
export const MIN_SEGMENT_BYTES = 64;

export interface RunSink {
  /** May this peer send a packet with these addresses here? */
  isWelcome(bytes: Uint8Array, start: number, end: number): boolean;
  /** @param segmentBytes 0 for a single packet whose checksum is to be completed */
  deliver(bytes: Uint8Array, start: number, end: number, headers: PacketHeaders, segmentBytes: number): void;
}

class Run {
  id = -1;
  total = 0;
  isKnown = false;
  segmentBytes = 0;
  readonly headers = new PacketHeaders();
  readonly template = new Uint8Array(MAX_HEADERS_BYTES);
}

export class RunAssembly {
  readonly #sink: RunSink;
  readonly #buffer = new Uint8Array(MAX_HEADERS_BYTES + MAX_PACKET_BYTES);
  readonly #runs = Array.from({ length: REMEMBERED_RUNS }, () => new Run());
  readonly #parsed = new PacketHeaders();
  readonly #starts = new Int32Array(MAX_STRETCHES);
  readonly #ends = new Int32Array(MAX_STRETCHES);
  #stretches = 0;
  #current = 0;
  #since: Instant | undefined;
  #usedAt: Instant;
  #late: Uint8Array | undefined;

  constructor(sink: RunSink, now: Instant) {
    this.#sink = sink;
    this.#usedAt = now;
  }

  /** When `flush` is due, or the buffer may go. */
  get deadline(): Instant {
    return this.#since === undefined ? after(this.#usedAt, IDLE_MS) : after(this.#since, WAIT_MS);
  }

  isIdle(now: Instant): boolean {
    return this.#stretches === 0 && now >= after(this.#usedAt, IDLE_MS);
  }

  /** Takes the plaintext of one segment frame, type byte included. False when it makes no sense. */
  add(bytes: Uint8Array, start: number, end: number, now: Instant): boolean {
    const body = start + SEGMENT_HEADER_BYTES;
    if (end <= body) return false;
    const id = segmentRunId(bytes, start);
    const offset = segmentOffset(bytes, start);
    const total = segmentTotal(bytes, start);
    if (total === 0 || offset > total) return false;
    this.#usedAt = now;
    const run = this.#find(id) ?? this.#begin(id, total);
    if (run.total !== total) return false;
    const place = this.#splitBody(run, bytes, body, end, offset);
    if (place < 0) return false;
    const length = Math.min(total - offset, end - place);
    const { headers, isKnown } = run;
    // What could not go without headers can now.
    if (isKnown && this.#stretches > 0 && run === this.#runs[this.#current]) this.#since ??= now;
    if (length === 0) return true;
    if (isKnown && headers.bytes + total > MAX_PACKET_BYTES) return false;
    if (run !== this.#runs[this.#current]) return this.#deliverLate(run, bytes, place, length, offset);
    if (this.#stretches === MAX_STRETCHES) this.flush();
    if (!this.#mark(offset, offset + length)) return false;
    this.#since ??= now;
    this.#buffer.set(bytes.subarray(place, place + length), MAX_HEADERS_BYTES + offset);
    if (isKnown && this.#stretches === 1 && this.#starts[0] === 0 && this.#ends[0] === total) this.flush();
    return true;
  }

  /** Delivers what has come and has not been delivered. Without headers it waits for them, and goes with its run. */
  flush(): void {
    const run = this.#runs[this.#current];
    this.#since = undefined;
    if (run === undefined || !run.isKnown) return;
    const count = this.#stretches;
    this.#stretches = 0;
    for (let i = 0; i < count; i++) {
      this.#deliverStretch(run, this.#starts[i] ?? 0, this.#ends[i] ?? 0, i === count - 1);
    }
  }

  #find(id: number): Run | undefined {
    const current = this.#runs[this.#current];
    if (current?.id === id && current.total > 0) return current;
    for (const run of this.#runs) if (run.id === id && run.total > 0) return run;
    return undefined;
  }

  #begin(id: number, total: number): Run {
    this.flush();
    this.#stretches = 0;
    this.#current = (this.#current + 1) % REMEMBERED_RUNS;
    const run = this.#runs[this.#current] ?? new Run();
    run.id = id;
    run.total = total;
    run.isKnown = false;
    return run;
  }

  /** Takes the headers out of the body where there are any. Returns where the payload begins, -1 when the body is refused. */
  #splitBody(run: Run, bytes: Uint8Array, body: number, end: number, offset: number): number {
    if (offset === 0) {
      if (!this.#takeHeaders(run, bytes, body, end)) return -1;
      return body + SEGMENT_SIZE_BYTES + this.#parsed.bytes;
    }
    const rest = body + run.total - offset;
    // The end of the run, and its headers once more.
    if (rest < end && !this.#takeHeaders(run, bytes, rest, end)) return -1;
    return body;
  }

  #takeHeaders(run: Run, bytes: Uint8Array, at: number, end: number): boolean {
    const start = at + SEGMENT_SIZE_BYTES;
    const headers = this.#parsed;
    if (!headers.parse(bytes, start, end)) return false;
    const segmentBytes = u16(bytes, at);
    if (segmentBytes < MIN_SEGMENT_BYTES || headers.bytes + run.total > MAX_PACKET_BYTES) return false;
    if (!this.#sink.isWelcome(bytes, start, end)) return false;
    if (run.isKnown) return headers.bytes === run.headers.bytes;
    run.headers.copyFrom(headers);
    run.segmentBytes = segmentBytes;
    run.template.set(bytes.subarray(start, start + headers.bytes));
    run.isKnown = true;
    return true;
  }

  /** Notes what has come; false when some of it had come before, or there is no room for another stretch. */
  #mark(from: number, to: number): boolean {
    const count = this.#stretches;
    const starts = this.#starts;
    const ends = this.#ends;
    let at = count;
    while (at > 0 && (starts[at - 1] ?? 0) > from) at--;
    if (at > 0 && (ends[at - 1] ?? 0) > from) return false;
    if (at < count && (starts[at] ?? 0) < to) return false;
    const joinsBefore = at > 0 && ends[at - 1] === from;
    const joinsNext = at < count && starts[at] === to;
    if (joinsBefore && joinsNext) {
      ends[at - 1] = ends[at] ?? 0;
      this.#remove(at);
    } else if (joinsBefore) ends[at - 1] = to;
    else if (joinsNext) starts[at] = from;
    else {
      if (count === MAX_STRETCHES) return false;
      starts.copyWithin(at + 1, at, count);
      ends.copyWithin(at + 1, at, count);
      starts[at] = from;
      ends[at] = to;
      this.#stretches++;
    }
    return true;
  }

  #remove(at: number): void {
    this.#starts.copyWithin(at, at + 1, this.#stretches);
    this.#ends.copyWithin(at, at + 1, this.#stretches);
    this.#stretches--;
  }

  /**
   * A stretch of UDP is cut to whole datagrams. The beginning of one at the very end waits for the rest; before a hole it is given up,
   * since the headers of the next stretch may be written over it.
   */
  #deliverStretch(run: Run, from: number, to: number, isLast: boolean): void {
    let start = from;
    let end = to;
    if (run.headers.protocol === UDP) {
      start = Math.ceil(from / run.segmentBytes) * run.segmentBytes;
      if (to < run.total) end = Math.floor(to / run.segmentBytes) * run.segmentBytes;
      if (isLast && end < to && end >= from) this.#mark(end, to);
    }
    if (start < end) this.#deliver(run, this.#buffer, start, end);
  }

  #deliverLate(run: Run, bytes: Uint8Array, place: number, length: number, offset: number): boolean {
    if (!run.isKnown) return false;
    this.#late ??= new Uint8Array(this.#buffer.length);
    this.#late.set(bytes.subarray(place, place + length), MAX_HEADERS_BYTES + offset);
    const isUdp = run.headers.protocol === UDP;
    const size = isUdp ? run.segmentBytes : 1;
    const start = Math.ceil(offset / size) * size;
    const end = offset + length === run.total ? run.total : Math.floor((offset + length) / size) * size;
    if (start < end) this.#deliver(run, this.#late, start, end);
    return true;
  }

  /** The headers are written over what stands before: that has been delivered, or has not come. */
  #deliver(run: Run, buffer: Uint8Array, from: number, to: number): void {
    const { headers, total, segmentBytes, template } = run;
    const start = MAX_HEADERS_BYTES + from - headers.bytes;
    for (let i = 0; i < headers.bytes; i++) buffer[start + i] = template[i] ?? 0;
    fitHeaders(buffer, start, headers, { offset: from, length: to - from, total, segmentBytes });
    const isSingle = to - from <= segmentBytes;
    this.#sink.deliver(buffer, start, MAX_HEADERS_BYTES + to, headers, isSingle ? 0 : segmentBytes);
  }
}

const u16 = (bytes: Uint8Array, at: number): number => ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
