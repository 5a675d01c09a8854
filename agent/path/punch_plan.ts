/**
 * What would it take to open a path between two NATs where plain simultaneous opening cannot, and what is the chance?
 *
 * - One side has endpoint-independent mapping: the other **spreads**, that is, sends from many sockets to its one address, while it
 *   **guesses**, that is, sends to many ports of the other's address. The first guess that meets a mapping opens the path. With S
 *   mappings among N ports, P guesses hit with 1 - exp(-S P / N).
 * - Both have dependent mapping: they **meet**. Every packet of each side is a mapping of its own, from a port that its NAT picks to a
 *   port that it guesses. A path opens when a packet of the one and a packet of the other agree on both ports; with n packets on each
 *   side that is the birthday problem over Na x Nb, and the chance 1 - exp(-n^2 / (Na Nb)).
 * - Against a counter nothing has to be guessed but how much else went through the NAT meanwhile.
 *
 * The budgets are for 99.9 % (exp(-6.9)) where the caps allow that. Both sides compute the same plan from the same two reports.
 */
import type { NatReport } from "../../shared/wire/candidates.ts";
import type { PunchRole } from "../../shared/wire/control.ts";
import { isDependent, isDirectExpected } from "./nat_behavior.ts";

/** At most, whatever a peer offers. Sockets are descriptors here; packets are entries in the NAT's table, each for some 30 s. */
export const MAX_PUNCH_SOCKETS = 384;
export const MAX_PUNCH_PROBES = 4000;
/** About 1.3 Mbit/s. A home router sets up some thousands of mappings a second. */
export const MAX_PUNCH_PER_SECOND = 2000;
/** An attempt with less of a chance is not made. */
export const MIN_PUNCH_CHANCE = 0.25;

export interface PunchPlan {
  /** What this side does; the peer does the counterpart. */
  readonly role: PunchRole;
  /** Of a side that spreads, and of each side that meets. */
  readonly sockets: number;
  /** Of the side that guesses, and of each side that meets. */
  readonly probes: number;
  readonly perSecond: number;
  /** Of one attempt, 0 to 1. */
  readonly chance: number;
}

/** All ports that a NAT may use: 1024 to 65535. */
const ALL_PORTS = 64_512;
const CERTAINTY = 6.9;
/** The chance that we call certain. */
const ALMOST_SURE = 0.999;
/** Learned borders of a block are a little off on both sides. */
const BORDER_FACTOR = 1.15;
/** The first guesses leave before the other side has opened anything. */
const EARLY_GUESSES = 300;

/** Opposite a counter: so many mappings, and guesses that take in what other traffic takes meanwhile. */
const COUNTER_SOCKETS = 16;
const COUNTER_GUESSES = 96;
const COUNTER_MEETINGS = 512;

export function planPunch(local: NatReport, remote: NatReport): PunchPlan | undefined {
  if (isDirectExpected(local, remote) !== false || local.udpBlocked || remote.udpBlocked) return undefined;
  // A discovery that has not ended yet says nothing of ports: to guess now what it will know in a moment would waste an attempt.
  if (local.filtering === undefined || remote.filtering === undefined) return undefined;
  const perSecond = MAX_PUNCH_PER_SECOND;
  if (!isDependent(remote.mapping)) return { role: "spread", ...guessing(local), perSecond };
  if (!isDependent(local.mapping)) return { role: "guess", ...guessing(remote), perSecond };
  return { role: "meet", ...meeting(local, remote), perSecond };
}

/** How many ports there are to choose from, as far as known. */
export function portCount({ allocation, ports }: NatReport): number {
  return allocation === "block" && ports !== undefined ? ports.last - ports.first + 1 : ALL_PORTS;
}

const isCounter = ({ allocation, ports }: NatReport): boolean => allocation === "sequential" && ports !== undefined;

type Effort = Pick<PunchPlan, "sockets" | "probes" | "chance">;

/** @param hard the NAT with dependent mapping */
function guessing(hard: NatReport): Effort {
  if (isCounter(hard)) return { sockets: COUNTER_SOCKETS, probes: COUNTER_GUESSES, chance: ALMOST_SURE };
  const count = portCount(hard);
  // Both numbers cost entries in a NAT's table; sockets cost more than packets do, so there are fewer of them.
  const sockets = Math.min(MAX_PUNCH_SOCKETS, Math.ceil(1.6 * Math.sqrt(count)));
  const wanted = ((CERTAINTY * count) / sockets) * BORDER_FACTOR + EARLY_GUESSES;
  const probes = Math.min(MAX_PUNCH_PROBES, Math.ceil(wanted));
  return { sockets, probes, chance: chanceOf((sockets * probes) / count) };
}

function meeting(a: NatReport, b: NatReport): Effort {
  if (isCounter(a) && isCounter(b)) {
    return { sockets: COUNTER_SOCKETS, probes: COUNTER_MEETINGS, chance: ALMOST_SURE };
  }
  // Opposite a counter each packet can be aimed at one port, so only the other side's ports are a matter of chance.
  const oneSided = isCounter(a) ? portCount(b) : isCounter(b) ? portCount(a) : undefined;
  const wanted = oneSided === undefined ? Math.sqrt(CERTAINTY * portCount(a) * portCount(b)) : CERTAINTY * oneSided;
  const probes = Math.min(MAX_PUNCH_PROBES, Math.ceil(wanted * BORDER_FACTOR));
  const expected = oneSided === undefined ? probes ** 2 / (portCount(a) * portCount(b)) : probes / oneSided;
  // A socket aims at another port with each packet, and should not run out of ports.
  const sockets = Math.max(16, Math.ceil(probes / (Math.min(portCount(a), portCount(b)) / 4)));
  return { sockets: Math.min(MAX_PUNCH_SOCKETS, sockets), probes, chance: chanceOf(expected) };
}

/** The chance of at least one hit where so many are expected. */
const chanceOf = (expected: number): number => Math.min(ALMOST_SURE, 1 - Math.exp(-expected));
