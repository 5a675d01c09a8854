/**
 * How long the coordinator's answer to a challenge may take, given the round trip to it.
 */

/** One lost segment is repeated after 200 ms and a round trip, and its answer takes another. */
const PATIENCE_MS = 300;
/** A little more than the answer ever takes where nothing is lost. */
const USUAL_ROUND_TRIPS = 1.25;
const USUAL_MARGIN_MS = 30;

export interface ChallengeTimes {
  /** Without an answer by then the connection is given up. */
  readonly timeoutMs: number;
  /** Without an answer by then it may be dead: something may be prepared. */
  readonly usualMs: number;
}

export const challengeTimes = (roundTripMs = 0): ChallengeTimes => ({
  timeoutMs: PATIENCE_MS + 2 * roundTripMs,
  usualMs: USUAL_ROUND_TRIPS * roundTripMs + USUAL_MARGIN_MS,
});
