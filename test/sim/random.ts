/** Seeded randomness: the same seed gives the same run. Mulberry32, good enough to scatter ports and delays. */
export class SeededRandom {
  #state: number;

  constructor(seed: number) {
    // Neighbouring seeds would otherwise begin with neighbouring numbers.
    this.#state = Math.imul(seed >>> 0, 0x9e37_79b1) >>> 0;
  }

  /** In [0, 1). */
  next(): number {
    return this.#u32() / 2 ** 32;
  }

  /** A whole number in [from, to]. */
  between(from: number, to: number): number {
    return from + Math.floor(this.next() * (to - from + 1));
  }

  chance(percent: number): boolean {
    return percent > 0 && this.next() * 100 < percent;
  }

  pick<T>(values: readonly T[]): T {
    const value = values[Math.floor(this.next() * values.length)];
    if (value === undefined) throw new Error("Nothing to pick from");
    return value;
  }

  bytes(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; at += 4) {
      const word = this.#u32();
      for (let i = 0; i < 4 && at + i < length; i++) bytes[at + i] = word >>> (8 * i);
    }
    return bytes;
  }

  #u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }
}
