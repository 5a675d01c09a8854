/**
 * Hysteresis: how much proof a new direct path must give before traffic moves to it.
 *
 * The first answer is enough for a peer whose paths have not died lately, so the usual start is as fast as the punch. Each death asks for
 * more the next time, so that a path that comes and goes does not take the traffic along.
 */
import { after, type Instant } from "../../shared/time.ts";

/** Deaths are held against a path for so long. */
const MEMORY_MS = 600_000;
/** Answers in a row after the first death; twice as many after each further one. */
const FIRST_ANSWERS = 3;
/** 30 s at the pace of `PROVING_GAP_MS`. */
const MAX_ANSWERS = 600;
/** A path that answers probes and swallows data counts as this many deaths: its answers are worth less. */
const DEAF_DEATHS = 5;
const MAX_DEATHS = 16;
/** Between the probes of a pair that is proving itself. */
export const PROVING_GAP_MS = 50;

export class Stability {
  #deaths: Instant[] = [];

  onDeath(isDeaf: boolean, now: Instant): void {
    for (let i = 0; i < (isDeaf ? DEAF_DEATHS : 1); i++) this.#deaths.push(now);
    this.#deaths = this.#deaths.slice(-MAX_DEATHS);
  }

  /** Answers in a row that a pair must give before it is selected. */
  answersNeeded(now: Instant): number {
    const deaths = this.#deaths.filter((at) => now < after(at, MEMORY_MS)).length;
    return deaths === 0 ? 1 : Math.min(FIRST_ANSWERS * 2 ** (deaths - 1), MAX_ANSWERS);
  }

  /** The network is another one: what was learned of the old one says nothing. */
  forget(): void {
    this.#deaths = [];
  }
}
