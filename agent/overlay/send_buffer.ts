/**
 * The sending half of a stream: bytes from the program, kept until the peer has acknowledged them, and which of them leave next.
 *
 * Bytes lie in blocks of equal size, so that any offset is found at once.
 */
import { RangeSet } from "./range_set.ts";

const BLOCK_BYTES = 16 * 1024;

export class SendBuffer {
  #blocks: Uint8Array[] = [];
  /** The offset at which the first block begins. */
  #blocksFrom = 0;
  /** Everything below has been acknowledged. */
  #ackedTo = 0;
  /** Everything from here on has never been sent. */
  #sentTo = 0;
  #end = 0;
  #acked: RangeSet | undefined;
  #lost: RangeSet | undefined;

  get end(): number {
    return this.#end;
  }

  get sentTo(): number {
    return this.#sentTo;
  }

  get unsentBytes(): number {
    return this.#end - this.#sentTo;
  }

  get hasLost(): boolean {
    return this.#lost?.isEmpty === false;
  }

  get isAcked(): boolean {
    return this.#ackedTo === this.#end;
  }

  append(bytes: Uint8Array): void {
    for (let taken = 0; taken < bytes.length; ) {
      const at = (this.#end - this.#blocksFrom) % BLOCK_BYTES;
      const index = (this.#end - this.#blocksFrom - at) / BLOCK_BYTES;
      const block = (this.#blocks[index] ??= new Uint8Array(BLOCK_BYTES));
      const part = bytes.subarray(taken, taken + BLOCK_BYTES - at);
      block.set(part, at);
      taken += part.length;
      this.#end += part.length;
    }
  }

  /** The next bytes to send: lost ones first, then new ones up to `limit`. They count as sent from here on. */
  take(length: number, limit: number): { readonly start: number; readonly end: number } | undefined {
    if (length <= 0) return undefined;
    const lost = this.#lost?.takeFirst(length);
    if (lost !== undefined) return lost;
    const start = this.#sentTo;
    const end = Math.min(start + length, this.#end, limit);
    if (end <= start) return undefined;
    this.#sentTo = end;
    return { start, end };
  }

  copy(start: number, end: number, out: Uint8Array): void {
    for (let offset = start; offset < end; ) {
      const at = (offset - this.#blocksFrom) % BLOCK_BYTES;
      const index = (offset - this.#blocksFrom - at) / BLOCK_BYTES;
      const part = this.#blocks[index]?.subarray(at, Math.min(BLOCK_BYTES, at + end - offset));
      if (part === undefined) throw new RangeError(`Bytes ${start} to ${end} of a stream are not there any more`);
      out.set(part, offset - start);
      offset += part.length;
    }
  }

  handleAcked(start: number, end: number): void {
    this.#lost?.remove(start, end);
    if (start > this.#ackedTo) {
      this.#acked ??= new RangeSet();
      this.#acked.add(start, end);
      return;
    }
    this.#ackedTo = Math.max(this.#ackedTo, end);
    while (this.#acked?.isEmpty === false && (this.#acked.first ?? 0) <= this.#ackedTo) {
      this.#ackedTo = Math.max(this.#ackedTo, this.#acked.firstEnd);
      this.#acked.removeFirstRange();
    }
    this.#release();
  }

  handleLost(start: number, end: number): void {
    const from = Math.max(start, this.#ackedTo);
    if (from >= end) return;
    this.#lost ??= new RangeSet();
    this.#lost.add(from, end);
    for (let i = 0; i < (this.#acked?.count ?? 0); i++) {
      const range = this.#acked?.rangeAt(i);
      if (range === undefined || range.start >= end) break;
      this.#lost.remove(range.start, range.end);
    }
  }

  /** Nothing more will be sent. */
  clear(): void {
    this.#blocks = [];
    this.#lost = undefined;
    this.#acked = undefined;
    this.#end = this.#sentTo;
    this.#ackedTo = this.#sentTo;
    this.#blocksFrom = this.#sentTo;
  }

  #release(): void {
    if (this.#ackedTo === this.#end) {
      // Idle streams keep no memory.
      this.#blocks = [];
      this.#blocksFrom = this.#end;
      if (this.#acked?.isEmpty !== false) this.#acked = undefined;
      if (this.#lost?.isEmpty !== false) this.#lost = undefined;
      return;
    }
    const done = Math.floor((this.#ackedTo - this.#blocksFrom) / BLOCK_BYTES);
    if (done < 1) return;
    this.#blocks.splice(0, done);
    this.#blocksFrom += done * BLOCK_BYTES;
  }
}
