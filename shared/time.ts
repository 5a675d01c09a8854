/**
 * Points in time. Every pure room is told the time, none asks for it.
 *
 * An Instant is milliseconds, with fractions, on a monotonic clock whose origin means nothing outside the process. Wall-clock time
 * (for people, certificates and handshake timestamps) is a plain `number` of Unix milliseconds and is always named `...UnixMs`.
 */
declare const instantBrand: unique symbol;
export type Instant = number & { readonly [instantBrand]: true };

export const instant = (milliseconds: number): Instant => milliseconds as Instant;

/** The point in time `milliseconds` after `at`. */
export const after = (at: Instant, milliseconds: number): Instant => (at + milliseconds) as Instant;

/** The earliest of several deadlines, ignoring the absent ones. */
export function earliest(...deadlines: (Instant | undefined)[]): Instant | undefined {
  let first: Instant | undefined;
  for (const deadline of deadlines) {
    if (deadline !== undefined && (first === undefined || deadline < first)) first = deadline;
  }
  return first;
}
