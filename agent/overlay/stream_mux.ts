/**
 * The reliable streams and unreliable datagrams between this agent and one peer, as one machine: programs' bytes, the peer's frames, paths and
 * time go in; frames and bytes for programs come out (contract.ts).
 *
 * It decides what each frame carries: acks, what the peer has to be told, datagrams, then streams in turn, lost bytes first. What is lost
 * and how much may be under way is for recovery.ts; what may be opened or reached, for whoever drives it.
 *
 * Both ends live in **instances**: a number that is new whenever the streams begin anew, so that an agent which has restarted is noticed by
 * the first frame that comes or goes, and its old streams end at both ends.
 */
import { BatchWriter, batchEntries } from "../../shared/batch.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import {
  DATAGRAM_HEADER_BYTES,
  decodeStreamFrame,
  type ResetCode,
  STREAM_HEADER_BYTES,
  type StreamFrame,
  StreamFrameWriter,
} from "../../shared/wire/stream.ts";
import { AckTracker } from "./ack_tracker.ts";
import type { CloseCode, MuxAction, StreamId, StreamPath } from "./contract.ts";
import { MAX_QUEUED_DATAGRAM_BYTES } from "./limits.ts";
import { Recovery } from "./recovery.ts";
import { type SentRecord, StreamTable } from "./stream_table.ts";

/** Frames handed over at once: few enough that acks are never far behind, many enough that a hand-over costs little. */
const MAX_BATCH_FRAMES = 48;
const LARGEST_FRAME_BYTES = 16_384;
/** An ack with all its ranges, and some data. */
const SMALLEST_FRAME_BYTES = 512;
/** Smaller pieces of data than this wait for the next frame, unless they are all there is. */
const MIN_PIECE_BYTES = 64;
/** A peer with open streams is asked for a sign of life after this much silence. */
const KEEPALIVE_MS = 5000;
/** Nothing from the peer for this long, although it was asked for a sign of life: its streams are given up. */
export const SILENCE_MS = 30_000;
const SILENCE_TICK_MS = 1000;
/** What one step may count: as long as we keep quiet ourselves, and no more, since a machine that slept has not been waiting all the while. */
const MAX_SILENCE_STEP_MS = KEEPALIVE_MS;
/** Answers to frames for an earlier instance of ours. */
const STRAY_ANSWER_INTERVAL_MS = 200;
/** Earlier instances of the peer, whose late frames are no news. */
const MAX_FORMER_REMOTES = 8;

interface QueuedDatagram {
  readonly flow: StreamId;
  readonly port: number;
  readonly bytes: Uint8Array;
}

export class StreamMux {
  readonly #newInstance: () => number;
  readonly #actions: MuxAction[] = [];
  readonly #writer = new StreamFrameWriter(LARGEST_FRAME_BYTES);
  readonly #batch = new BatchWriter(LARGEST_FRAME_BYTES);
  #instance: number;
  #remote = 0;
  #formerRemotes: number[] = [];
  #now: Instant;
  #path: StreamPath | undefined;
  #nextNumber = 0;
  #acks = new AckTracker();
  #table: StreamTable;
  #recovery: Recovery<SentRecord>;
  #datagrams: QueuedDatagram[] = [];
  #datagramBytes = 0;
  #wantsPing = false;
  #heardAt: Instant;
  #silentMs = 0;
  #tickedAt: Instant;
  #strayAnswerAt: Instant | undefined;
  /** Frames that made no sense. */
  malformed = 0;

  /** @param newInstance a random number from 1 to 2^32 - 1 */
  constructor(newInstance: () => number, now: Instant) {
    this.#newInstance = newInstance;
    this.#instance = newInstance();
    this.#now = now;
    this.#heardAt = now;
    this.#tickedAt = now;
    this.#table = this.#newTable();
    this.#recovery = this.#newRecovery();
  }

  /** Streams that are open or not yet forgotten. */
  get streamCount(): number {
    return this.#table.size;
  }

  get stats() {
    const { windowBytes, inFlightBytes, smoothedMs, losses, spuriousLosses } = this.#recovery;
    return { windowBytes, inFlightBytes, smoothedMs, losses, spuriousLosses, frames: this.#nextNumber };
  }

  // Inputs

  handleFrames(batch: Uint8Array, now: Instant): void {
    this.#now = now;
    for (const bytes of batchEntries(batch)) {
      const frame = decodeStreamFrame(bytes);
      if (frame === undefined) this.malformed++;
      else this.#handleFrame(frame);
    }
  }

  /** The way to the peer has changed; undefined: there is none at this moment. */
  handlePath(path: StreamPath | undefined, now: Instant): void {
    this.#now = now;
    this.#tick();
    this.#path = path === undefined ? undefined : { ...path, frameBytes: bounded(path.frameBytes) };
    if (this.#path !== undefined) this.#recovery.handlePath(this.#path.rttMs, this.#path.frameBytes, now);
  }

  /** The same way, but frames on it may be larger, or must be smaller. */
  handleFrameBytes(frameBytes: number, now: Instant): void {
    if (this.#path === undefined) return;
    this.#now = now;
    this.#path = { ...this.#path, frameBytes: bounded(frameBytes) };
    this.#recovery.handleSegmentBytes(this.#path.frameBytes);
  }

  handleTimeout(now: Instant): void {
    this.#now = now;
    this.#tick();
    if (this.#path !== undefined) this.#recovery.handleTimeout(now);
    if (this.#table.size > 0 && this.#recovery.isIdle && now - this.#heardAt >= KEEPALIVE_MS) this.#wantsPing = true;
  }

  /** Opens a stream to a port of the peer; bytes may be written at once. Undefined: there are too many. */
  open(port: number, now: Instant): StreamId | undefined {
    this.#begin(now);
    return this.#table.open(port);
  }

  /** The program behind the port has taken the stream. */
  accept(stream: StreamId, now: Instant): void {
    this.#now = now;
    this.#table.accept(stream);
  }

  /** Takes all bytes. False: pause until `writable`. */
  write(stream: StreamId, bytes: Uint8Array, now: Instant): boolean {
    this.#begin(now);
    return this.#table.write(stream, bytes);
  }

  /** Nothing more will be written. */
  end(stream: StreamId, now: Instant): void {
    this.#begin(now);
    this.#table.end(stream);
  }

  /** Gives the stream up in both directions; nothing more is said about it here. */
  reset(stream: StreamId, code: ResetCode, now: Instant): void {
    this.#begin(now);
    this.#table.reset(stream, code);
  }

  /** The program has taken that many of the bytes it was given. */
  consumed(stream: StreamId, bytes: number, now: Instant): void {
    this.#now = now;
    this.#table.consumed(stream, bytes, this.#recovery.smoothedMs, now);
  }

  /** An unreliable datagram to a port of the peer, or back along a flow that the peer began. */
  sendDatagram(flow: StreamId, port: number, bytes: Uint8Array, now: Instant): void {
    this.#now = now;
    this.#datagrams.push({ flow, port, bytes: bytes.slice() });
    this.#datagramBytes += bytes.length;
    while (this.#datagramBytes > MAX_QUEUED_DATAGRAM_BYTES)
      this.#datagramBytes -= this.#datagrams.shift()?.bytes.length ?? 0;
  }

  /** Ends every stream here: the peer is gone, or refused. */
  abandon(code: CloseCode, now: Instant): void {
    this.#now = now;
    this.#beginAnew(code);
  }

  // Outputs

  poll(): MuxAction | undefined {
    const action = this.#actions.shift();
    if (action !== undefined) return action;
    const batch = this.#assemble();
    return batch === undefined ? undefined : { type: "transmit", batch };
  }

  deadline(): Instant | undefined {
    let first: Instant | undefined;
    if (this.#path !== undefined) {
      first = earliest(this.#acks.deadline, this.#recovery.deadline());
      if (this.#hasContent && this.#recovery.hasRoom) first = earliest(first, this.#recovery.pacedUntil(this.#now));
    }
    if (this.#table.size === 0) return first;
    const stepMs = Math.min(SILENCE_TICK_MS, SILENCE_MS - this.#silentMs);
    const nextTick = this.#isWaiting ? after(this.#tickedAt, stepMs) : after(this.#heardAt, KEEPALIVE_MS);
    return earliest(first, nextTick);
  }

  // Frames in

  #handleFrame(frame: StreamFrame): void {
    if (frame.to !== 0 && frame.to !== this.#instance) {
      this.#answerStray(frame.from);
      return;
    }
    if (frame.from !== this.#remote && !this.#adopt(frame.from)) return;
    this.#heardAt = this.#now;
    this.#tickedAt = this.#now;
    this.#silentMs = 0;
    if (this.#acks.isKnown(frame.number)) {
      // Sent again because our ack was lost: say it again.
      this.#acks.handleRepeated(this.#now);
      return;
    }
    let wantsAck = false;
    for (const record of frame.records) {
      if (record.type === "ack") {
        if ((record.ranges[0]?.high ?? 0) < this.#nextNumber) {
          this.#recovery.handleAck(record.ranges, record.delayMs, this.#now);
        }
        continue;
      }
      wantsAck = true;
      if (record.type === "datagram") {
        this.#actions.push({ ...record, flow: record.flow ^ 1 });
      } else if (record.type !== "ping") {
        const verdict = this.#table.handleRecord(record);
        if (verdict === "full") return;
        if (verdict === "violation") {
          this.#refuseRemote();
          this.#beginAnew("broken");
          return;
        }
      }
    }
    this.#acks.handle(frame.number, wantsAck, this.#now);
  }

  /** A frame of an instance that we did not know. False: it is not to be heard. */
  #adopt(remote: number): boolean {
    if (this.#formerRemotes.includes(remote)) return false;
    if (this.#remote !== 0) {
      this.#refuseRemote();
      this.#beginAnew("restarted");
    }
    this.#remote = remote;
    return true;
  }

  /** Late frames of this instance would look like a restart. */
  #refuseRemote(): void {
    this.#formerRemotes = [...this.#formerRemotes.slice(1 - MAX_FORMER_REMOTES), this.#remote];
  }

  /** The peer believes in an earlier instance of ours: any frame of this one tells it otherwise. */
  #answerStray(remote: number): void {
    if (this.#formerRemotes.includes(remote)) return;
    if (this.#strayAnswerAt !== undefined && this.#now - this.#strayAnswerAt < STRAY_ANSWER_INTERVAL_MS) return;
    this.#strayAnswerAt = this.#now;
    this.#writer.begin(this.#instance, remote, this.#nextNumber++, STREAM_HEADER_BYTES + 1);
    this.#writer.ping();
    this.#batch.push(this.#writer.bytes);
    this.#actions.push({ type: "transmit", batch: this.#batch.take() });
  }

  #beginAnew(code: CloseCode): void {
    for (const stream of this.#table.liveStreams()) this.#actions.push({ type: "closed", stream, code });
    this.#remote = 0;
    this.#instance = this.#newInstance();
    this.#nextNumber = 0;
    this.#acks = new AckTracker();
    this.#table = this.#newTable();
    this.#recovery = this.#newRecovery();
    this.#datagrams = [];
    this.#datagramBytes = 0;
    this.#wantsPing = false;
    this.#silentMs = 0;
    if (this.#path !== undefined) this.#recovery.handlePath(this.#path.rttMs, this.#path.frameBytes, this.#now);
  }

  #newTable(): StreamTable {
    return new StreamTable((action) => this.#actions.push(action));
  }

  #newRecovery(): Recovery<SentRecord> {
    return new Recovery({
      handleAcked: (record) => this.#table.handleAcked(record),
      handleLost: (record) => this.#table.handleLost(record),
    });
  }

  // Frames out

  get #hasContent(): boolean {
    return this.#wantsPing || this.#datagrams.length > 0 || this.#table.hasContent;
  }

  #assemble(): Uint8Array | undefined {
    if (this.#path === undefined) return undefined;
    for (let count = 0; count < MAX_BATCH_FRAMES; count++) {
      const isProbe = this.#recovery.probesWanted > 0;
      const maySend = isProbe || (this.#recovery.hasRoom && !this.#recovery.isPaced(this.#now));
      const hasContent = this.#hasContent;
      if (maySend && !hasContent) this.#recovery.handleNothingToSend();
      if (!this.#acks.isDue(this.#now) && !isProbe && !(maySend && hasContent)) break;
      this.#writeFrame(this.#path.frameBytes, maySend && hasContent, isProbe);
    }
    return this.#batch.length === 0 ? undefined : this.#batch.take();
  }

  #writeFrame(limit: number, withContent: boolean, isProbe: boolean): void {
    const writer = this.#writer;
    const number = this.#nextNumber++;
    writer.begin(this.#instance, this.#remote, number, limit);
    if (this.#acks.isWanted && writer.ack(this.#acks.ranges(), this.#acks.delayMs(this.#now))) this.#acks.onSent();
    const records: SentRecord[] = [];
    const before = writer.room;
    if (withContent) this.#writeContent(records);
    const isEmpty = writer.room === before;
    if (isProbe && isEmpty) writer.ping();
    if (writer.isEmpty) {
      this.#nextNumber = number;
      return;
    }
    if (!isEmpty || isProbe) this.#recovery.handleSent(number, writer.bytes.length, records, this.#now);
    this.#batch.push(writer.bytes);
  }

  #writeContent(records: SentRecord[]): void {
    const writer = this.#writer;
    if (this.#wantsPing && writer.room > 0) {
      this.#wantsPing = false;
      writer.ping();
    }
    this.#table.writeControl(writer, records);
    this.#writeDatagrams();
    this.#table.writeData(writer, records, MIN_PIECE_BYTES);
  }

  #writeDatagrams(): void {
    for (let next = this.#datagrams[0]; next !== undefined; next = this.#datagrams[0]) {
      const size = DATAGRAM_HEADER_BYTES + next.bytes.length;
      if (size > this.#writer.room) {
        // One that fits no frame at all would wait for ever: it is dropped.
        if (size <= (this.#path?.frameBytes ?? 0) - STREAM_HEADER_BYTES) return;
      } else this.#writer.datagram(next.flow, next.port, next.bytes);
      this.#datagrams.shift();
      this.#datagramBytes -= next.bytes.length;
    }
  }

  // Silence

  /** Is something asked of the peer, or would be if there were a path? */
  get #isWaiting(): boolean {
    return !this.#recovery.isIdle || this.#path === undefined;
  }

  /** The first thing after a quiet time: silence is counted from here. */
  #begin(now: Instant): void {
    if (this.#table.size === 0 && this.#recovery.isIdle) {
      this.#heardAt = now;
      this.#tickedAt = now;
      this.#silentMs = 0;
    }
    this.#now = now;
  }

  #tick(): void {
    const elapsedMs = Math.min(this.#now - this.#tickedAt, MAX_SILENCE_STEP_MS);
    this.#tickedAt = this.#now;
    if (this.#table.size === 0) return;
    this.#silentMs += elapsedMs;
    if (this.#silentMs >= SILENCE_MS) this.#beginAnew("silent");
  }
}

const bounded = (frameBytes: number): number =>
  Math.max(SMALLEST_FRAME_BYTES, Math.min(frameBytes, LARGEST_FRAME_BYTES));
