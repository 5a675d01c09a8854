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
 * A block of which each port serves one destination cannot give out more mappings than it has ports, and those that an attempt takes are
 * missed by everything else of this subscriber. There two sides meet in **rounds** of at most half a block, one each time when the
 * mappings of the last are gone: with half of both blocks a round finds a path in 1 - exp(-1/4), 22 %, of all cases.
 *
 * The budgets are for 99.9 % (exp(-6.9)) where the caps allow that. Both sides compute the same plan from the same two reports; an
 * operator may set lower caps, which the offers tell.
 */
import type { NatReport } from "../../shared/wire/candidates.ts";
import type { PunchRole } from "../../shared/wire/control.ts";
import { isDependent, isDirectExpected } from "./nat_behavior.ts";
import { PRIMER_HOPS } from "./primer.ts";

/** What an attempt may take at most. */
export interface PunchLimits {
  /** Sockets are descriptors here. */
  readonly sockets: number;
  /** Packets are entries in the NAT's table, each for some 30 s. 0: no attempts at all. */
  readonly packets: number;
  readonly perSecond: number;
}

/** Whatever a peer offers. 2000 packets a second are about 1.3 Mbit/s, and a home router sets up some thousands of mappings a second. */
export const MAX_PUNCH: PunchLimits = { sockets: 384, packets: 4000, perSecond: 2000 };
/** An attempt, or all its rounds together, with less of a chance is not made. */
export const MIN_PUNCH_CHANCE = 0.25;
/** Rounds of half a block: together 93 % for blocks of 256, 97 % for those of 1024, in 33 minutes. */
export const PUNCH_ROUNDS = 16;
/** In two minutes no more than the last pause of full attempts lets through: 4000 in 600 s (target_pauses.ts). */
const MAX_ROUND_PACKETS = 800;
/** Of a block whose borders are only nearly known, so much is half of it for sure. */
const HALF = 0.48;
/** Plain rounds have mappings too. */
const RESERVED_PORTS = 16;

export interface PunchPlan {
  /** What this side does; the peer does the counterpart. */
  readonly role: PunchRole;
  /** Of a side that spreads, and of each side that meets. */
  readonly sockets: number;
  /** Of the side that guesses, and of this side where both meet. */
  readonly probes: number;
  /**
   * Routers that our packets may pass (primer.ts); undefined: all. Who meets sends each of them twice then, the first time with so many:
   * half of the packets make mappings before anything of the peer's can be there, and the other half go through them.
   */
  readonly hops: number | undefined;
  /** Of the peer, where both meet. */
  readonly peerProbes: number;
  /** Where both meet: how many mappings all our attempts may have at our NAT at a time; undefined: that does not matter. */
  readonly room: number | undefined;
  readonly perSecond: number;
  /** Of one attempt, 0 to 1. */
  readonly chance: number;
  /** More than one where an attempt takes part of a block only: so many are made, two minutes apart. */
  readonly rounds: number;
  /** Of all rounds together. */
  readonly chanceInAll: number;
}

/** All ports that a NAT may use: 1024 to 65535. */
const ALL_PORTS = 64_512;
const CERTAINTY = 6.9;
/** The chance that we call certain. */
const ALMOST_SURE = 0.999;
/** Failures that happen by chance less often than this have another cause. */
export const IMPLAUSIBLE = 0.01;
/** Learned borders of a block are a little off on both sides. */
const BORDER_FACTOR = 1.15;
/** The first guesses leave before the other side has opened anything. */
const EARLY_GUESSES = 300;
/** A socket that meets aims at another port with each packet, and should not come to the end of them. */
const LEAST_MEETING_SOCKETS = 16;

/**
 * Sent twice for the sake of routers that take what they did not ask for, the packets have to find a path in most cases still: half as many
 * find a quarter of the meetings, which is 82 % where all find one in 99.9 %, and mostly there is room for more of them.
 */
const LEAST_PRIMED_CHANCE = 0.68;

/** Opposite a counter: so many mappings, and guesses that take in what other traffic takes meanwhile. */
const COUNTER_SOCKETS = 16;
const COUNTER_GUESSES = 96;
const COUNTER_MEETINGS = 512;

export interface PunchContext {
  /** Our operator's. */
  readonly limits?: PunchLimits;
  /** Attempts that have found nothing: when chance does not explain them, a block of which nothing else is known seems to fill up. */
  readonly failed?: number;
}

export function planPunch(local: NatReport, remote: NatReport, context: PunchContext = {}): PunchPlan | undefined {
  if (isDirectExpected(local, remote) !== false || local.udpBlocked || remote.udpBlocked) return undefined;
  // A discovery that has not ended yet says nothing of ports: to guess now what it will know in a moment would waste an attempt.
  if (local.filtering === undefined || remote.filtering === undefined) return undefined;
  const { limits = MAX_PUNCH, failed = 0 } = context;
  if (limits.packets === 0) return undefined;
  if (!isDependent(remote.mapping)) {
    // What spreads opens our NAT and need not arrive; should ours be deeper in the network than that, the next attempt finds it.
    const hops = failed % 2 === 0 ? PRIMER_HOPS : undefined;
    return { ...inOneRound("spread", guessing(local, limits), limits), hops };
  }
  if (!isDependent(local.mapping)) return inOneRound("guess", guessing(remote, limits), limits);
  const effort = { limits, failed };
  const hopeful = meeting(local, remote, effort, true);
  return (1 - hopeful.chance) ** failed < IMPLAUSIBLE ? meeting(local, remote, effort, false) : hopeful;
}

/** How many ports there are to choose from, as far as known. */
export function portCount({ allocation, ports }: NatReport): number {
  return allocation === "block" && ports !== undefined ? ports.last - ports.first + 1 : ALL_PORTS;
}

/** How many mappings an attempt may have at this NAT; undefined: as many as it likes. */
function roomOf(nat: NatReport, isHopeful: boolean): number | undefined {
  if (nat.allocation !== "block" || nat.ports === undefined || (nat.sharesPorts ?? isHopeful)) return undefined;
  return Math.max(1, Math.floor(portCount(nat) * HALF) - RESERVED_PORTS);
}

const isCounter = ({ allocation, ports }: NatReport): boolean => allocation === "sequential" && ports !== undefined;

type Effort = Pick<PunchPlan, "sockets" | "probes" | "chance">;

const inOneRound = (role: PunchRole, effort: Effort, { perSecond }: PunchLimits): PunchPlan => ({
  role,
  ...effort,
  peerProbes: 0,
  hops: undefined,
  room: undefined,
  perSecond,
  rounds: 1,
  chanceInAll: effort.chance,
});

/** @param hard the NAT with dependent mapping */
function guessing(hard: NatReport, limits: PunchLimits): Effort {
  const mostSockets = Math.min(limits.sockets, limits.packets);
  if (isCounter(hard)) {
    const probes = Math.min(limits.packets, COUNTER_GUESSES);
    return { sockets: Math.min(mostSockets, COUNTER_SOCKETS), probes, chance: ALMOST_SURE };
  }
  const count = portCount(hard);
  // Both numbers cost entries in a NAT's table; sockets cost more than packets do, so there are fewer of them.
  const sockets = Math.min(mostSockets, Math.ceil(1.6 * Math.sqrt(count)));
  const wanted = ((CERTAINTY * count) / sockets) * BORDER_FACTOR + EARLY_GUESSES;
  const probes = Math.min(limits.packets, Math.ceil(wanted));
  return { sockets, probes, chance: chanceOf((sockets * probes) / count) };
}

/** @param isHopeful a block of which it is not known is taken to let a port serve many destinations */
function meeting(
  local: NatReport,
  remote: NatReport,
  { limits, failed }: Required<PunchContext>,
  isHopeful: boolean,
): PunchPlan {
  const role = "meet";
  // Sides that meet need every packet at first: routers that take what they did not ask for are thought of when that has failed.
  const isPrimed = failed % 2 === 1;
  if (isCounter(local) && isCounter(remote)) {
    const probes = Math.min(limits.packets, isPrimed ? 2 * COUNTER_MEETINGS : COUNTER_MEETINGS);
    const effort = { sockets: Math.min(limits.sockets, COUNTER_SOCKETS), probes, chance: ALMOST_SURE };
    const hops = isPrimed ? PRIMER_HOPS : undefined;
    return { ...inOneRound(role, effort, limits), peerProbes: probes, hops };
  }
  // Opposite a counter each packet can be aimed at one port, so only the other side's ports are a matter of chance.
  const oneSided = isCounter(local) ? portCount(remote) : isCounter(remote) ? portCount(local) : undefined;
  const pairs = oneSided ?? portCount(local) * portCount(remote);
  const hits = (ours: number, theirs: number): number =>
    (oneSided === undefined ? ours * theirs : Math.min(ours, theirs)) / pairs;
  const wanted = oneSided === undefined ? Math.sqrt(CERTAINTY * pairs) : CERTAINTY * pairs;
  const [ourRoom, theirRoom] = [roomOf(local, isHopeful), roomOf(remote, isHopeful)];
  let probes = Math.min(limits.packets, Math.ceil(wanted * BORDER_FACTOR), ourRoom ?? Infinity);
  let peerProbes = Math.min(limits.packets, Math.ceil(wanted * BORDER_FACTOR), theirRoom ?? Infinity);
  // Who has no room leaves more to the other, who may have.
  if (oneSided === undefined && (ourRoom === undefined) !== (theirRoom === undefined)) {
    const more = (few: number): number =>
      Math.min(limits.packets, Math.ceil(((CERTAINTY * pairs) / few) * BORDER_FACTOR));
    if (ourRoom === undefined) probes = Math.max(probes, more(peerProbes));
    else peerProbes = Math.max(peerProbes, more(probes));
  }
  if (oneSided !== undefined) probes = peerProbes = Math.min(probes, peerProbes);
  if (ourRoom !== undefined && theirRoom !== undefined) {
    probes = Math.min(probes, MAX_ROUND_PACKETS);
    peerProbes = Math.min(peerProbes, MAX_ROUND_PACKETS);
  }
  const chance = chanceOf(hits(probes, peerProbes));
  // What is sure at once, or too large to be repeated soon, is one attempt like any other.
  const isPartial = (ourRoom ?? theirRoom) !== undefined && chance < ALMOST_SURE;
  const rounds = isPartial && Math.max(probes, peerProbes) <= MAX_ROUND_PACKETS ? PUNCH_ROUNDS : 1;
  const perSocket = Math.min(portCount(local), portCount(remote)) / 4;
  const sockets = Math.max(LEAST_MEETING_SOCKETS, Math.ceil(Math.max(probes, peerProbes) / perSocket));
  // A packet that goes through the mapping of its primer takes no other: only the caps limit those.
  const isRoomy = ourRoom === undefined && theirRoom === undefined;
  const twice = (packets: number): number => (isRoomy ? Math.min(limits.packets, 2 * packets) : packets);
  const primedChance = chanceOf(hits(twice(probes) / 2, twice(peerProbes) / 2));
  const isTwice = isPrimed && primedChance >= LEAST_PRIMED_CHANCE;
  return {
    role,
    sockets: Math.min(limits.sockets, sockets),
    probes: isTwice ? twice(probes) : probes,
    peerProbes: isTwice ? twice(peerProbes) : peerProbes,
    hops: isTwice ? PRIMER_HOPS : undefined,
    room: ourRoom,
    perSecond: limits.perSecond,
    chance,
    rounds,
    chanceInAll: Math.min(ALMOST_SURE, 1 - (1 - chance) ** rounds),
  };
}

/** The chance of at least one hit where so many are expected. */
const chanceOf = (expected: number): number => Math.min(ALMOST_SURE, 1 - Math.exp(-expected));
