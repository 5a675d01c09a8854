/**
 * How does a NAT pick the ports of its mappings? Judged from ports that it has given us, in the order in which we asked.
 *
 * Four answers (RFC 4787 §4.2 and what carriers do): it keeps our own port, it counts, it draws from a block that belongs to this
 * subscriber (RFC 7422), or it draws from everything. The peer aims by this (punch_plan.ts), so a range is told with it: the block
 * with its borders, or where the counter stands.
 */
import type { Allocation, PortRange } from "../../shared/wire/candidates.ts";

export interface PortAllocation {
  readonly kind: Allocation;
  /** Of a counter: the next port and the step. Of a block: its borders, as far as known. */
  readonly ports: PortRange | undefined;
  /** Of a block: does a port serve several destinations (port_reuse.ts)? */
  readonly sharesPorts?: boolean | undefined;
}

/** A counter's step, and what other machines behind the same NAT may take between two of our requests. */
const MAX_STRIDE = 16;
/** Of the steps between one answer and the next, so many must be the same: the rest is other traffic. */
const SAME_STEPS = 0.5;
/** The same of the ports in the order of their numbers, where requests overtook each other. */
const SAME_GAPS = 0.7;
/** Carriers give blocks of 128 to 4096 ports (RFC 7422 §2, vendors' defaults: 256, 512, 1000). */
const MAX_BLOCK_PORTS = 4500;
/** So many ports before a block is told from chance: 8 of 64512 lie within 4500 once in 10^7 times. */
const MIN_BLOCK_SAMPLES = 8;
const MIN_SAMPLES = 4;
const LAST_PORT = 65_535;
/** NATs leave the well-known ports alone (RFC 4787 §4.2.2). */
const FIRST_PORT = 1024;

/** @param ports external ports of different mappings, in the order in which they were asked for */
export function judgePorts(ports: readonly number[]): PortAllocation | undefined {
  if (new Set(ports).size < MIN_SAMPLES) return undefined;
  return counter(ports) ?? block(ports) ?? { kind: "random", ports: undefined };
}

function counter(ports: readonly number[]): PortAllocation | undefined {
  const steps = stepsOf(ports);
  const stride = commonStep(steps, SAME_STEPS);
  if (stride !== undefined) return { kind: "sequential", ports: nextOf(ports.at(-1) ?? 0, stride) };
  const gap = commonStep(stepsOf(ports.toSorted((a, b) => a - b)), SAME_GAPS);
  if (gap === undefined) return undefined;
  const isRising = steps.filter((step) => step > 0).length * 2 > steps.length;
  return {
    kind: "sequential",
    ports: isRising ? nextOf(Math.max(...ports), gap) : nextOf(Math.min(...ports), -gap),
  };
}

const stepsOf = (ports: readonly number[]): number[] => ports.slice(1).map((port, index) => port - (ports[index] ?? 0));

/** The step that this share of all steps is. */
function commonStep(steps: readonly number[], share: number): number | undefined {
  const step = mostFrequent(steps.filter((other) => other !== 0 && Math.abs(other) <= MAX_STRIDE));
  return steps.filter((other) => other === step).length >= steps.length * share ? step : undefined;
}

/** Where a counter with this step goes after this port. */
export function nextOf(port: number, stride: number): PortRange {
  const next = wrapped(port + stride);
  return { first: next, last: next, stride };
}

function block(ports: readonly number[]): PortAllocation | undefined {
  const known = new Set(ports).size;
  const [least, most] = [Math.min(...ports), Math.max(...ports)];
  // Of n numbers drawn from a block, the n - 1 gaps between them and the two to its borders are equal on average.
  const gap = (most - least) / (known - 1);
  if (known < MIN_BLOCK_SAMPLES || most - least + 2 * gap > MAX_BLOCK_PORTS) return undefined;
  const first = Math.max(FIRST_PORT, Math.floor(least - gap));
  return { kind: "block", ports: { first, last: Math.min(LAST_PORT, Math.ceil(most + gap)), stride: 0 } };
}

function mostFrequent(values: readonly number[]): number | undefined {
  const counts = new Map<number, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].toSorted(([, a], [, b]) => b - a)[0]?.[0];
}

/** A counter that runs out begins again above the well-known ports. */
export function wrapped(port: number): number {
  const ports = LAST_PORT - FIRST_PORT + 1;
  return FIRST_PORT + ((((port - FIRST_PORT) % ports) + ports) % ports);
}
