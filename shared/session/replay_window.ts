/**
 * Replay window over frame counters (RFC 6479's ring of words, so that sliding is cheap).
 *
 * One counter spans all paths of a session, so a frame on a slow relay may come in behind everything that a fast direct path delivered
 * meanwhile: at 200 000 frames a second and half a second of difference that is 100 000 frames, hence the width.
 *
 * `accept` moves the window and must be called only for a frame that has been authenticated.
 */
const WORD_BITS = 32;
/** 4096 words, 16 KiB. One word is the margin that lets whole words be cleared ahead of the newest counter. */
const WORDS = 4096;
export const REPLAY_WINDOW_BITS = (WORDS - 1) * WORD_BITS;

export class ReplayWindow {
  readonly #words = new Uint32Array(WORDS);
  #newest = -1;

  /** The highest counter accepted; -1 before the first. */
  get newest(): number {
    return this.#newest;
  }

  /** Cheap check before the AEAD: could this counter still be accepted? */
  mayAccept(counter: number): boolean {
    if (counter > this.#newest) return counter < Number.MAX_SAFE_INTEGER;
    if (this.#newest - counter >= REPLAY_WINDOW_BITS) return false;
    return ((this.#words[wordOf(counter)] ?? 0) & bitOf(counter)) === 0;
  }

  /** Marks an authenticated counter; false when it is a replay or too old. */
  accept(counter: number): boolean {
    if (!this.mayAccept(counter)) return false;
    if (counter > this.#newest) {
      const from = Math.floor(this.#newest / WORD_BITS);
      const to = Math.floor(counter / WORD_BITS);
      if (to - from >= WORDS) this.#words.fill(0);
      else for (let word = from + 1; word <= to; word++) this.#words[word % WORDS] = 0;
      this.#newest = counter;
    }
    const word = wordOf(counter);
    this.#words[word] = (this.#words[word] ?? 0) | bitOf(counter);
    return true;
  }
}

const wordOf = (counter: number): number => Math.floor(counter / WORD_BITS) % WORDS;
const bitOf = (counter: number): number => 1 << (counter % WORD_BITS);
