/**
 * Several byte strings in one, each behind its length in two bytes: how frames travel between threads, where one large buffer costs far
 * less than many small ones.
 */

export const BATCH_LENGTH_BYTES = 2;

export class BatchWriter {
  #buffer: Uint8Array;
  #length = 0;

  constructor(capacity: number) {
    this.#buffer = new Uint8Array(capacity);
  }

  get length(): number {
    return this.#length;
  }

  push(bytes: Uint8Array): void {
    const at = this.#length;
    this.#length += BATCH_LENGTH_BYTES + bytes.length;
    if (this.#length > this.#buffer.length) {
      const grown = new Uint8Array(Math.max(this.#length, this.#buffer.length * 2));
      grown.set(this.#buffer);
      this.#buffer = grown;
    }
    this.#buffer[at] = bytes.length >>> 8;
    this.#buffer[at + 1] = bytes.length;
    this.#buffer.set(bytes, at + BATCH_LENGTH_BYTES);
  }

  /** A copy of everything pushed since the last time; empties the writer. */
  take(): Uint8Array {
    const bytes = this.#buffer.slice(0, this.#length);
    this.#length = 0;
    return bytes;
  }
}

/** The byte strings of a batch, as views. What is cut short at the end is left out. */
export function* batchEntries(batch: Uint8Array): Generator<Uint8Array> {
  let at = 0;
  while (at + BATCH_LENGTH_BYTES <= batch.length) {
    const end = at + BATCH_LENGTH_BYTES + (((batch[at] ?? 0) << 8) | (batch[at + 1] ?? 0));
    if (end > batch.length) return;
    yield batch.subarray(at + BATCH_LENGTH_BYTES, end);
    at = end;
  }
}
