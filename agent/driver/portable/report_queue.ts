/**
 * Reports on their way out of an engine: collected over one turn and handed on as one batch, because a message between threads costs
 * more than a packet.
 *
 * The bytes in a plane's report are borrowed (agent/data/plane.ts), so they are copied here. That also keeps a few bytes of a large
 * buffer from taking the whole buffer with them through structured cloning.
 *
 * What the reader has not handled yet is bounded: a flood that the reader cannot keep up with is dropped here and counted, like
 * datagrams at a full socket. Strangers' datagrams are given up long before the frames of peers; reports that happen once are never.
 */
import type { Report } from "../engine.ts";

/** Unread bytes beyond which a report of this type is dropped; types that are not named always pass. */
const LIMIT_BYTES: Partial<Record<Report["type"], number>> = {
  datagram: 1024 * 1024,
  send_failed: 1024 * 1024,
  relay_frames: 4 * 1024 * 1024,
  control: 4 * 1024 * 1024,
  stream_frames: 4 * 1024 * 1024,
};
/** What a report costs beside its bytes, roughly. */
const OVERHEAD_BYTES = 128;

export class ReportQueue {
  /** Reports dropped because the reader was too far behind. */
  dropped = 0;
  readonly #deliver: (reports: readonly Report[]) => void;
  readonly #batchesRead: () => number;
  #waiting: Report[] = [];
  #waitingBytes = 0;
  /** Bytes of each delivered batch that is unread, oldest first; their sum; and how many batches were read before. */
  readonly #unread: number[] = [];
  #unreadBytes = 0;
  #read = 0;

  /** `batchesRead` tells how many batches the reader has handled since the start, modulo 2^32. */
  constructor(deliver: (reports: readonly Report[]) => void, batchesRead: () => number) {
    this.#deliver = deliver;
    this.#batchesRead = batchesRead;
  }

  get isEmpty(): boolean {
    return this.#waiting.length === 0;
  }

  push(report: Report): void {
    if (this.#unreadBytes + this.#waitingBytes > (LIMIT_BYTES[report.type] ?? Number.POSITIVE_INFINITY)) {
      this.dropped++;
      return;
    }
    this.#waiting.push(owned(report));
    this.#waitingBytes += OVERHEAD_BYTES + payloadBytes(report);
  }

  flush(): void {
    this.#settle();
    if (this.#waiting.length === 0) return;
    const batch = this.#waiting;
    this.#unread.push(this.#waitingBytes);
    this.#unreadBytes += this.#waitingBytes;
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#deliver(batch);
  }

  #settle(): void {
    const read = this.#batchesRead() >>> 0;
    for (let news = (read - this.#read) >>> 0; news > 0 && this.#unread.length > 0; news--) {
      this.#unreadBytes -= this.#unread.shift() ?? 0;
    }
    this.#read = read;
  }
}

function payloadBytes(report: Report): number {
  switch (report.type) {
    case "datagram":
      return report.bytes.length;
    case "control":
      return report.body.length;
    case "stream_frames":
      return report.batch.length;
    case "relay_frames":
      return report.frames.reduce((sum, frame) => sum + OVERHEAD_BYTES + frame.length, 0);
    default:
      return 0;
  }
}

function owned(report: Report): Report {
  switch (report.type) {
    case "datagram":
      return { ...report, from: report.from.slice(), bytes: report.bytes.slice() };
    case "control":
      return { ...report, from: report.from.slice(), body: report.body.slice() };
    case "activity":
      return { ...report, from: report.from.slice() };
    case "send_failed":
      return { ...report, to: report.to.slice() };
    case "relay_frames":
      return { ...report, to: report.to.slice(), frames: report.frames.map((frame) => frame.slice()) };
    default:
      return report;
  }
}
