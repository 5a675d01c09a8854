/** The receiving half of a stream: puts bytes in order, each exactly once. What is in order goes on at once; only the rest is kept. */

interface Held {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** What a kept piece costs beside its bytes, roughly. */
const PIECE_COST_BYTES = 96;

export class ReceiveBuffer {
  #next = 0;
  #held: Held[] | undefined;
  #heldCost = 0;

  /** Everything below has been given out. */
  get next(): number {
    return this.#next;
  }

  /** Memory taken by what waits for earlier bytes. */
  get heldCost(): number {
    return this.#heldCost;
  }

  /** Returns what may go on, in order: views of `bytes`, or pieces kept before. */
  handle(offset: number, bytes: Uint8Array): Uint8Array[] {
    const end = offset + bytes.length;
    if (end <= this.#next) return [];
    if (offset > this.#next) {
      this.#keep(offset, bytes);
      return [];
    }
    const ready = [bytes.subarray(this.#next - offset)];
    this.#next = end;
    this.#release(ready);
    return ready;
  }

  clear(): void {
    this.#held = undefined;
    this.#heldCost = 0;
  }

  #keep(offset: number, bytes: Uint8Array): void {
    const held = (this.#held ??= []);
    // Pieces come nearly in order, so the place is near the end.
    let at = held.length;
    while (at > 0 && (held[at - 1]?.offset ?? 0) >= offset) at--;
    const before = held[at - 1];
    if (before !== undefined && before.offset + before.bytes.length >= offset + bytes.length) return;
    const same = held[at];
    if (same?.offset === offset) {
      if (same.bytes.length >= bytes.length) return;
      held.splice(at, 1);
      this.#heldCost -= same.bytes.length + PIECE_COST_BYTES;
    }
    // A copy: the view would keep the whole batch it came in.
    held.splice(at, 0, { offset, bytes: bytes.slice() });
    this.#heldCost += bytes.length + PIECE_COST_BYTES;
  }

  #release(ready: Uint8Array[]): void {
    const held = this.#held;
    if (held === undefined) return;
    let taken = 0;
    for (const { offset, bytes } of held) {
      if (offset > this.#next) break;
      taken++;
      this.#heldCost -= bytes.length + PIECE_COST_BYTES;
      const end = offset + bytes.length;
      if (end <= this.#next) continue;
      ready.push(bytes.subarray(this.#next - offset));
      this.#next = end;
    }
    if (taken === held.length) this.#held = undefined;
    else if (taken > 0) held.splice(0, taken);
  }
}
