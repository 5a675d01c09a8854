/**
 * The streams of one peer: opening and forgetting them, their records in and out, credit, and whose turn it is.
 *
 * Streams take turns by frames; a frame that one of them does not fill goes on with the next. Credit is per stream and for the session. A
 * stream that its program reads quickly gets a larger window each round trip, but never more than an eighth of what is left of the
 * session's, so that streams nobody reads cannot use all of it up.
 */
import { assertNever } from "../../shared/assert.ts";
import type { Instant } from "../../shared/time.ts";
import {
  DATA_HEADER_BYTES,
  type ResetCode,
  type StreamFrameWriter,
  type StreamRecord,
} from "../../shared/wire/stream.ts";
import type { MuxAction, StreamId } from "./contract.ts";
import {
  MAX_HALF_OPEN,
  MAX_HELD_COST,
  MAX_OPENING,
  MAX_REFUSING,
  MAX_STREAM_GAPS,
  MAX_STREAM_UNSENT_BYTES,
  MAX_STREAM_WINDOW,
  MAX_STREAMS,
  MAX_UNSENT_BYTES,
  MIN_STREAM_UNSENT_BYTES,
  SESSION_WINDOW,
} from "./limits.ts";
import { RangeSet } from "./range_set.ts";
import { CONTROL_NEEDS, NEEDS_ACCEPT, NEEDS_CREDIT, NEEDS_LAST, NEEDS_OPEN, NEEDS_RESET, Stream } from "./stream.ts";

/** What a frame carried for a stream, to be forgotten when it has arrived and said again when it is lost. */
export type SentRecord =
  | {
      readonly type: "data";
      readonly stream: Stream;
      readonly start: number;
      readonly end: number;
      readonly isLast: boolean;
    }
  | { readonly type: "control"; readonly stream: Stream; readonly need: number }
  | { readonly type: "session_credit" };

/** `full`: no memory for this now; unacknowledged, it comes again. `violation`: nothing that an honest peer does. */
export type Verdict = "ok" | "full" | "violation";

type StreamRecordIn = Exclude<StreamRecord, { type: "ack" | "ping" | "datagram" }>;

/** The sizes of the control records (shared/wire/stream.ts). */
const LARGEST_CONTROL_BYTES = 12;
const SESSION_CREDIT_BYTES = 7;
/** A window is doubled when the program has read half of it within this many round trips. */
const FAST_READER_ROUND_TRIPS = 2;
/** Without any measured round trip a fast reader is one that reads half a window in this time. */
const MIN_FAST_READER_MS = 20;

export class StreamTable {
  readonly #emit: (action: MuxAction) => void;
  readonly #streams = new Map<StreamId, Stream>();
  /** Numbers of the peer's streams that have been seen. */
  readonly #seen = new RangeSet();
  #nextOwn = 0;
  #ownCount = 0;
  #halfOpen = 0;
  /** Streams of ours that are asked for and not answered, and those whose turn to be asked for has not come. */
  #opening = 0;
  readonly #toOpen = new Set<Stream>();
  readonly #controls = new Set<Stream>();
  /** Streams with bytes to send, in turn; `#turn` is whose it is. */
  #ready: Stream[] = [];
  #turn = 0;
  /** Streams that wait for the session's credit. */
  readonly #blocked = new Set<Stream>();
  #unsent = 0;
  #heldCost = 0;
  /** The session's credit: what we may send and have sent first, what the peer may and has, what programs have read. */
  #sendLimit = SESSION_WINDOW;
  #sent = 0;
  #receiveLimit = SESSION_WINDOW;
  #received = 0;
  #consumed = 0;
  #needsSessionCredit = false;
  /** What peers may still send or have sent unread: the sum over streams of limit less consumed. */
  #granted = 0;

  constructor(emit: (action: MuxAction) => void) {
    this.#emit = emit;
  }

  get size(): number {
    return this.#streams.size;
  }

  get hasContent(): boolean {
    return this.#needsSessionCredit || this.#controls.size > 0 || this.#turn < this.#ready.length;
  }

  /** Ids that a program here still holds. */
  *liveStreams(): Generator<StreamId> {
    for (const stream of this.#streams.values()) if (!stream.isAbandoned && stream.port !== undefined) yield stream.id;
  }

  // From the program

  open(port: number): StreamId | undefined {
    if (this.#ownCount >= MAX_STREAMS || this.#nextOwn >= 2 ** 31) return undefined;
    const stream = this.#add(this.#nextOwn++ * 2 + 1, port);
    stream.opening = "waiting";
    stream.needs |= NEEDS_OPEN;
    this.#toOpen.add(stream);
    this.#openNext();
    return stream.id;
  }

  accept(id: StreamId): void {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.isOurs || stream.isAccepted) return;
    stream.isAccepted = true;
    this.#halfOpen--;
    this.#need(stream, NEEDS_ACCEPT);
  }

  write(id: StreamId, bytes: Uint8Array): boolean {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.sending !== "open") return true;
    stream.send.append(bytes);
    this.#unsent += bytes.length;
    this.#queue(stream);
    const share = (MAX_UNSENT_BYTES - this.#unsent) / 4;
    const limit = Math.max(MIN_STREAM_UNSENT_BYTES, Math.min(MAX_STREAM_UNSENT_BYTES, share));
    if (stream.send.unsentBytes < limit) return true;
    stream.resumeBelow = limit / 2;
    return false;
  }

  end(id: StreamId): void {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.sending !== "open") return;
    stream.sending = "ending";
    stream.needs |= NEEDS_LAST;
    this.#queue(stream);
  }

  reset(id: StreamId, code: ResetCode): void {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.isAbandoned) return;
    this.#abandon(stream);
    this.#resetSending(stream, code);
    this.#forgetIfOver(stream);
  }

  consumed(id: StreamId, bytes: number, smoothedMs: number, now: Instant): void {
    const stream = this.#streams.get(id);
    // What a reset stream still held was given back at once.
    if (stream === undefined || stream.isAbandoned || bytes === 0) return;
    this.#consume(stream, Math.min(bytes, stream.received - stream.consumed));
    this.#forgetIfOver(stream);
    if (stream.finalSize !== undefined || stream.receiveLimit - stream.consumed >= stream.window / 2) return;
    const fastMs = Math.max(MIN_FAST_READER_MS, FAST_READER_ROUND_TRIPS * smoothedMs);
    if (stream.creditedAt !== undefined && now - stream.creditedAt < fastMs) {
      const share = (SESSION_WINDOW - this.#granted) / 8;
      stream.window = Math.max(stream.window, Math.min(2 * stream.window, MAX_STREAM_WINDOW, share));
    }
    stream.creditedAt = now;
    this.#granted += stream.consumed + stream.window - stream.receiveLimit;
    stream.receiveLimit = stream.consumed + stream.window;
    this.#need(stream, NEEDS_CREDIT);
  }

  // From the peer

  handleRecord(record: StreamRecordIn): Verdict {
    if (record.type === "session_credit") {
      this.#raiseSessionLimit(record.limit);
      return "ok";
    }
    // Odd means opened by this side: to the peer it is the other way round.
    const found = this.#find(record.stream ^ 1);
    if (!(found instanceof Stream)) return found;
    switch (record.type) {
      case "open":
        return this.#handleOpen(found, record.port);
      case "accept":
        if (!found.isOurs) return "violation";
        if (!found.isAccepted && !found.isAbandoned) this.#emit({ type: "accepted", stream: found.id });
        found.isAccepted = true;
        this.#answered(found);
        return "ok";
      case "data":
        return this.#handleData(found, record.offset, record.bytes, record.isLast);
      case "reset":
        return this.#handleReset(found, record.code, record.finalSize);
      case "stream_credit":
        if (record.limit > found.sendLimit) {
          found.sendLimit = record.limit;
          this.#queue(found);
        }
        return "ok";
      default:
        return assertNever(record);
    }
  }

  handleAcked(record: SentRecord): void {
    if (record.type === "session_credit") return;
    const { stream } = record;
    if (record.type === "control") {
      if (record.need === NEEDS_RESET && stream.sending === "resetting") {
        stream.sending = "reset";
        this.#unneed(stream, NEEDS_RESET);
      } else if (record.need !== NEEDS_CREDIT) this.#unneed(stream, record.need);
    } else if (stream.sending === "open" || stream.sending === "ending") {
      stream.send.handleAcked(record.start, record.end);
      if (record.isLast) {
        stream.isLastAcked = true;
        stream.needs &= ~NEEDS_LAST;
      }
      if (stream.isLastAcked && stream.send.isAcked) stream.sending = "done";
    }
    this.#forgetIfOver(stream);
  }

  handleLost(record: SentRecord): void {
    if (record.type === "session_credit") {
      this.#needsSessionCredit = true;
      return;
    }
    const { stream } = record;
    if (!this.#streams.has(stream.id)) return;
    if (record.type === "control") {
      const isMoot =
        (record.need === NEEDS_RESET && stream.sending !== "resetting") ||
        (record.need === NEEDS_ACCEPT && stream.isAbandoned) ||
        (record.need === NEEDS_CREDIT && (stream.finalSize !== undefined || stream.isAbandoned));
      if (!isMoot) this.#need(stream, record.need);
    } else if (stream.sending === "open" || stream.sending === "ending") {
      stream.send.handleLost(record.start, record.end);
      if (record.isLast && !stream.isLastAcked) stream.needs |= NEEDS_LAST;
      this.#queue(stream);
    }
  }

  // Into frames

  writeControl(writer: StreamFrameWriter, records: SentRecord[]): void {
    if (this.#needsSessionCredit && writer.room >= SESSION_CREDIT_BYTES) {
      this.#needsSessionCredit = false;
      this.#receiveLimit = this.#consumed + SESSION_WINDOW;
      writer.sessionCredit(this.#receiveLimit);
      records.push({ type: "session_credit" });
    }
    for (const stream of this.#controls) {
      for (const need of [NEEDS_OPEN, NEEDS_ACCEPT, NEEDS_RESET, NEEDS_CREDIT]) {
        if ((stream.needs & need) === 0) continue;
        if (writer.room < LARGEST_CONTROL_BYTES) return;
        writeNeed(writer, stream, need);
        stream.needs &= ~need;
        records.push({ type: "control", stream, need });
      }
      this.#controls.delete(stream);
    }
  }

  writeData(writer: StreamFrameWriter, records: SentRecord[], minPieceBytes: number): void {
    while (this.#turn < this.#ready.length) {
      const room = writer.room - DATA_HEADER_BYTES;
      if (room < minPieceBytes) return;
      const stream = this.#takeTurn();
      if (stream === undefined) return;
      stream.queue = "none";
      const before = stream.send.sentTo;
      const limit = Math.min(stream.sendLimit, before + this.#sendLimit - this.#sent);
      const piece =
        stream.sending === "open" || stream.sending === "ending" ? stream.send.take(room, limit) : undefined;
      const fresh = stream.send.sentTo - before;
      this.#sent += fresh;
      this.#unsent -= fresh;
      const end = piece?.end ?? stream.send.sentTo;
      const isLast =
        stream.sending === "ending" && !stream.isLastAcked && end === stream.send.end && stream.send.unsentBytes === 0;
      if (piece !== undefined || (isLast && (stream.needs & NEEDS_LAST) !== 0)) {
        const start = piece?.start ?? end;
        const out = writer.data(stream.id, start, end - start, isLast);
        if (piece !== undefined) stream.send.copy(start, end, out);
        if (isLast) stream.needs &= ~NEEDS_LAST;
        records.push({ type: "data", stream, start, end, isLast });
      }
      if (stream.resumeBelow > 0 && stream.send.unsentBytes < stream.resumeBelow) {
        stream.resumeBelow = 0;
        this.#emit({ type: "writable", stream: stream.id });
      }
      this.#queue(stream);
    }
  }

  // Details

  #add(id: StreamId, port: number | undefined): Stream {
    const stream = new Stream(id, port);
    this.#streams.set(id, stream);
    this.#granted += stream.receiveLimit;
    if (stream.isOurs) this.#ownCount++;
    else this.#halfOpen++;
    return stream;
  }

  /** The stream; a new one where the peer may open it; or what to make of the record without. */
  #find(id: StreamId): Stream | Verdict {
    const known = this.#streams.get(id);
    if (known !== undefined) return known;
    const number = id >>> 1;
    if ((id & 1) === 1) return number < this.#nextOwn ? "ok" : "violation";
    if (this.#seen.has(number)) return "ok";
    if (this.#streams.size - this.#ownCount >= MAX_REFUSING) return "full";
    this.#seen.add(number, number + 1);
    if (this.#seen.count > MAX_STREAM_GAPS) return "violation";
    return this.#add(id >>> 0, undefined);
  }

  #handleOpen(stream: Stream, port: number): Verdict {
    if (stream.isOurs) return "violation";
    if (stream.port !== undefined || stream.isAbandoned) return "ok";
    stream.port = port;
    if (this.#streams.size - this.#ownCount > MAX_STREAMS || this.#halfOpen > MAX_HALF_OPEN) {
      this.reset(stream.id, "overloaded");
      return "ok";
    }
    this.#emit({ type: "opened", stream: stream.id, port });
    // What came before the open has waited for somebody to take it.
    for (const bytes of stream.early ?? []) this.#emit({ type: "data", stream: stream.id, bytes });
    stream.early = undefined;
    if (stream.receiving === "ended") this.#emit({ type: "ended", stream: stream.id });
    return "ok";
  }

  #handleData(stream: Stream, offset: number, bytes: Uint8Array, isLast: boolean): Verdict {
    const end = offset + bytes.length;
    if (stream.finalSize !== undefined && (end > stream.finalSize || (isLast && end !== stream.finalSize)))
      return "violation";
    if (isLast && end < stream.received) return "violation";
    if (stream.receiving !== "open") return "ok";
    if (!this.#countReceived(stream, end)) return "violation";
    if (isLast) stream.finalSize = end;
    if (stream.isAbandoned) {
      this.#consume(stream, stream.received - stream.consumed);
      if (stream.finalSize !== undefined && stream.received === stream.finalSize) stream.receiving = "ended";
      this.#forgetIfOver(stream);
      return "ok";
    }
    if (this.#heldCost > MAX_HELD_COST && offset > stream.receive.next) return "full";
    const costBefore = stream.receive.heldCost;
    const ready = stream.receive.handle(offset, bytes);
    this.#heldCost += stream.receive.heldCost - costBefore;
    for (const piece of ready) {
      if (piece.length === 0) continue;
      if (stream.port === undefined) (stream.early ??= []).push(piece.slice());
      else this.#emit({ type: "data", stream: stream.id, bytes: piece });
    }
    if (stream.finalSize !== undefined && stream.receive.next === stream.finalSize) {
      stream.receiving = "ended";
      if (stream.port !== undefined) this.#emit({ type: "ended", stream: stream.id });
      this.#forgetIfOver(stream);
    }
    return "ok";
  }

  #handleReset(stream: Stream, code: ResetCode, finalSize: number): Verdict {
    if (stream.receiving === "reset") return "ok";
    if (finalSize < stream.received || (stream.finalSize !== undefined && finalSize !== stream.finalSize))
      return "violation";
    if (!this.#countReceived(stream, finalSize)) return "violation";
    stream.finalSize = finalSize;
    stream.receiving = "reset";
    if (!stream.isAbandoned) {
      if (stream.port !== undefined) this.#emit({ type: "closed", stream: stream.id, code });
      this.#abandon(stream);
    }
    this.#consume(stream, finalSize - stream.consumed);
    this.#resetSending(stream, "cancelled");
    this.#forgetIfOver(stream);
    return "ok";
  }

  /** False: more than the peer was allowed. */
  #countReceived(stream: Stream, end: number): boolean {
    if (end <= stream.received) return true;
    const fresh = end - stream.received;
    if (end > stream.receiveLimit || this.#received + fresh > this.#receiveLimit) return false;
    stream.received = end;
    this.#received += fresh;
    return true;
  }

  #consume(stream: Stream, bytes: number): void {
    stream.consumed += bytes;
    this.#consumed += bytes;
    this.#granted -= bytes;
    if (this.#receiveLimit - this.#consumed < SESSION_WINDOW / 2) this.#needsSessionCredit = true;
  }

  /** In the order of their numbers, so that the peer sees no gaps. */
  #openNext(): void {
    for (const stream of this.#toOpen) {
      if (this.#opening >= MAX_OPENING) return;
      this.#toOpen.delete(stream);
      if (stream.isAbandoned) {
        stream.opening = "done";
        stream.needs &= ~NEEDS_OPEN;
      } else {
        stream.opening = "asked";
        this.#opening++;
      }
      this.#need(stream, 0);
      this.#queue(stream);
    }
  }

  #answered(stream: Stream): void {
    if (stream.opening !== "asked") return;
    stream.opening = "done";
    this.#opening--;
    this.#openNext();
  }

  /** The program here is done with it: memory goes at once, the count of bytes goes on. */
  #abandon(stream: Stream): void {
    stream.isAbandoned = true;
    this.#answered(stream);
    if (!stream.isOurs && !stream.isAccepted) {
      stream.isAccepted = true;
      this.#halfOpen--;
    }
    this.#heldCost -= stream.receive.heldCost;
    stream.receive.clear();
    stream.early = undefined;
    this.#consume(stream, stream.received - stream.consumed);
    this.#unneed(stream, NEEDS_CREDIT | NEEDS_ACCEPT);
  }

  #resetSending(stream: Stream, code: ResetCode): void {
    if (stream.sending !== "open" && stream.sending !== "ending") return;
    this.#unsent -= stream.send.unsentBytes;
    stream.send.clear();
    stream.sending = "resetting";
    stream.resetCode = code;
    stream.needs &= ~NEEDS_LAST;
    this.#need(stream, NEEDS_RESET);
  }

  #forgetIfOver(stream: Stream): void {
    if (!stream.isOver || !this.#streams.has(stream.id)) return;
    this.#streams.delete(stream.id);
    this.#controls.delete(stream);
    this.#blocked.delete(stream);
    this.#answered(stream);
    this.#granted -= stream.receiveLimit - stream.consumed;
    if (stream.isOurs) this.#ownCount--;
    else if (!stream.isAccepted) this.#halfOpen--;
    if (!stream.isAbandoned) this.#emit({ type: "finished", stream: stream.id });
  }

  #raiseSessionLimit(limit: number): void {
    if (limit <= this.#sendLimit) return;
    this.#sendLimit = limit;
    const blocked = [...this.#blocked];
    this.#blocked.clear();
    for (const stream of blocked) {
      if (stream.queue === "blocked") stream.queue = "none";
      this.#queue(stream);
    }
  }

  #need(stream: Stream, needs: number): void {
    stream.needs |= needs;
    if ((stream.needs & CONTROL_NEEDS) !== 0 && stream.opening !== "waiting") this.#controls.add(stream);
  }

  #unneed(stream: Stream, needs: number): void {
    stream.needs &= ~needs;
    if ((stream.needs & CONTROL_NEEDS) === 0) this.#controls.delete(stream);
  }

  #queue(stream: Stream): void {
    if (stream.queue === "ready" || !stream.wantsToSend) return;
    // Lost bytes need no new credit: they have used theirs.
    const needsCredit = !stream.send.hasLost && stream.send.unsentBytes > 0;
    stream.queue = needsCredit && this.#sent >= this.#sendLimit ? "blocked" : "ready";
    if (stream.queue === "blocked") this.#blocked.add(stream);
    else this.#ready.push(stream);
  }

  #takeTurn(): Stream | undefined {
    const stream = this.#ready[this.#turn++];
    if (this.#turn > 64 && this.#turn * 2 > this.#ready.length) {
      this.#ready = this.#ready.slice(this.#turn);
      this.#turn = 0;
    }
    return stream;
  }
}

function writeNeed(writer: StreamFrameWriter, stream: Stream, need: number): void {
  switch (need) {
    case NEEDS_OPEN:
      writer.open(stream.id, stream.port ?? 0);
      break;
    case NEEDS_ACCEPT:
      writer.accept(stream.id);
      break;
    case NEEDS_RESET:
      writer.reset(stream.id, stream.resetCode, stream.send.sentTo);
      break;
    default:
      writer.streamCredit(stream.id, stream.receiveLimit);
  }
}
