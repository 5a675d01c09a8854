/**
 * Hysteresis: how much proof a new direct path must give before traffic moves to it.
 *
 * The first answer is enough for a peer whose paths have not died lately, so the usual start is as fast as the punch. Each death asks for
 * more the next time, so that a path that comes and goes does not take the traffic along.
 */
import { after, type Instant } from "../../shared/time.ts";

/** Deaths are held against a path for so long. */
const MEMORY_MS = 120_000;
/** Answers in a row after the first death; twice as many after each further one. */
const FIRST_ANSWERS = 3;
/** Two seconds: longer than a path that flaps lasts, and short enough that one whose firewall has opened is back within five. */
const MAX_ANSWERS = 40;
/** A path that answers probes and swallows data: its answers are worth less. */
const DEAF_ANSWERS = 200;
/** Between the probes of a pair that is proving itself. */
export const PROVING_GAP_MS = 50;

export class Stability {
  #deaths: Instant[] = [];
  #deafUntil: Instant | undefined;

  onDeath(isDeaf: boolean, now: Instant): void {
    this.#deaths = [...this.#deaths.filter((at) => now < after(at, MEMORY_MS)), now];
    if (isDeaf) this.#deafUntil = after(now, MEMORY_MS);
  }

  /** Answers in a row that a pair must give before it is selected. */
  answersNeeded(now: Instant): number {
    if (this.#deafUntil !== undefined && now < this.#deafUntil) return DEAF_ANSWERS;
    const deaths = this.#deaths.filter((at) => now < after(at, MEMORY_MS)).length;
    return deaths === 0 ? 1 : Math.min(FIRST_ANSWERS * 2 ** (deaths - 1), MAX_ANSWERS);
  }

  /** The network is another one: what was learned of the old one says nothing. */
  forget(): void {
    this.#deaths = [];
    this.#deafUntil = undefined;
  }
}
