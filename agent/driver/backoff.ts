/** How long to wait before the coordinator is tried again. Told what became of the last attempt, and a random number; asks nobody. */

/** The first soon, since most outages are a restart. */
const FIRST_MS = 250;
const MAX_MS = 3500;
/**
 * Attempts that find nobody are cheap for both sides, and a coordinator that restarts is back within a second or two: so many go by before
 * the waits grow. Over 3 seconds, with what the attempts take themselves.
 */
const ATTEMPTS_THAT_FIND_NOBODY = 12;

export class Backoff {
  #waitMs = FIRST_MS;
  #foundNobody = 0;

  /** It works again, or there is a reason to believe so. */
  reset(): void {
    this.#waitMs = FIRST_MS;
    this.#foundNobody = 0;
  }

  /**
   * Milliseconds. Jittered, so that a thousand agents do not come at once.
   *
   * @param wasFound somebody was there, and ended the connection: a coordinator that has too much to do is not one to come back to at once
   * @param random 0 to 1
   */
  next(wasFound: boolean, random: number): number {
    const waitMs = this.#waitMs * (0.5 + random);
    if (!wasFound) this.#foundNobody++;
    if (wasFound || this.#foundNobody >= ATTEMPTS_THAT_FIND_NOBODY) this.#waitMs = Math.min(this.#waitMs * 2, MAX_MS);
    return waitMs;
  }
}
