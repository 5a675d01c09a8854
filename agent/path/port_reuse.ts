/**
 * Does one external port of a block serve several destinations at once?
 *
 * Linux lets it, some carriers do not: there a subscriber with a block of N ports has N mappings at a time, and an attempt that takes more
 * only fills the block, so that nothing else of this subscriber gets out (punch_plan.ts).
 *
 * One port seen towards two destinations proves that ports are shared. That they never are can only be said after so many samples that
 * chance would have repeated one.
 */

export interface PortSample {
  readonly port: number;
  /** Ip and port of the server that saw it. */
  readonly destination: string;
}

/** Where a NAT that shares ports would have shown so many repetitions, none at all is chance once in twenty times (exp(-3)). */
const LEAST_REPEATS = 3;
/** So many are asked for: with all answers that is once in four hundred times. Some are lost, and the block may be larger than it seemed. */
const WANTED_REPEATS = 6;
/** Enough for blocks of some 1200 ports; larger ones would take more questions than discovery should ask. */
const MAX_SAMPLES = 140;
/** Of the block: what the questions take is missed by the first attempt, and by everything else. */
const MAX_SHARE = 0.32;

/** @param samples of different mappings. Undefined: they do not tell. */
export function judgeReuse(samples: readonly PortSample[], blockPorts: number): boolean | undefined {
  const destinations = new Map<number, string>();
  for (const { port, destination } of samples) {
    const known = destinations.get(port);
    if (known !== undefined && known !== destination) return true;
    destinations.set(port, destination);
  }
  // Mappings towards one destination never share a port, so only pairs towards two of them say anything.
  const perDestination = Map.groupBy(samples, ({ destination }) => destination);
  const alike = [...perDestination.values()].reduce((sum, { length }) => sum + length ** 2, 0);
  const pairs = (samples.length ** 2 - alike) / 2;
  return pairs / blockPorts >= LEAST_REPEATS ? false : undefined;
}

/** How many samples in all would tell; undefined when that is too many, or there are no two destinations. */
export function samplesToTell(blockPorts: number, destinations: number): number | undefined {
  if (destinations < 2) return undefined;
  const wanted = Math.ceil(Math.sqrt((2 * WANTED_REPEATS * blockPorts) / (1 - 1 / destinations)));
  return wanted > Math.min(MAX_SAMPLES, blockPorts * MAX_SHARE) ? undefined : wanted;
}
