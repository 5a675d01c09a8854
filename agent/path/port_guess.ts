/** Which port of the peer to try next, from what is known of how its NAT picks them. */
import type { NatReport, PortRange } from "../../shared/wire/candidates.ts";
import { wrapped } from "./port_allocation.ts";

/**
 * A counter may have been told a little too far when answers overtook each other, and the peer's plain probes may have taken a port or two since.
 * Those ports come late: one of them may be known to our router from such a probe, and a router with an open WAN input then takes our
 * port away for all guesses that follow (primer.ts). The peer sends from more sockets than that.
 */
const COUNTER_BACK = 4;
const COUNTER_TAKEN = 4;
const COUNTER_AHEAD_FIRST = 64;
/**
 * How far it may be from what is known, when both sides meet: other traffic moves it on, and a packet that repeats an earlier one's
 * ports does not move it at all. What counts is the sum of both sides' drifts, so the range begins well below zero.
 */
const LEAST_DRIFT = -12;
const MOST_DRIFT = 20;
const FIRST_PORT = 1024;
const LAST_PORT = 65_535;

/** The port for packet number `index` of the attempt, sent from socket number `socket`. */
export type PortGuess = (socket: number, index: number) => number;

/**
 * @param nat the peer's
 * @param meetingSockets of the peer, where both sides meet; undefined where the peer sends to one address only
 * @param random a number in [0, 1)
 */
export function guessPorts(nat: NatReport, meetingSockets: number | undefined, random: () => number): PortGuess {
  const { allocation, ports, mapping } = nat;
  if (allocation === "sequential" && ports !== undefined) {
    const at = (ahead: number): number => wrapped(ports.first + ports.stride * ahead);
    if (meetingSockets === undefined) return (_, index) => at(counterOrder(index));
    // Each packet of the peer has a port of its own, or each socket if its NAT looks at our address only. If nothing else went through
    // that NAT, the one of the same number has this port: how much did is tried at random.
    const mappings = mapping === "address-dependent" ? meetingSockets : Number.POSITIVE_INFINITY;
    const drift = (): number => LEAST_DRIFT + Math.floor(random() * (MOST_DRIFT - LEAST_DRIFT));
    return (_, index) => at((index % mappings) + drift());
  }
  const range =
    allocation === "block" && ports !== undefined ? ports : { first: FIRST_PORT, last: LAST_PORT, stride: 0 };
  const walks = new Map<number, () => number>();
  return (socket) => {
    const walk = walks.get(socket) ?? shuffled(range, random);
    walks.set(socket, walk);
    return walk();
  };
}

/** How far ahead of where the counter stands each guess is: 4 to 63, 3 to -4, 64 and so on. */
function counterOrder(index: number): number {
  const first = index + COUNTER_TAKEN;
  if (first < COUNTER_AHEAD_FIRST) return first;
  const back = COUNTER_AHEAD_FIRST - 1 - index;
  return back >= -COUNTER_BACK ? back : index - COUNTER_BACK;
}

/** All ports of the range in a random order that needs no memory: steps of a random size that takes in every one. */
function shuffled({ first, last }: PortRange, random: () => number): () => number {
  const count = last - first + 1;
  let step = 1 + Math.floor(random() * (count - 1));
  while (divisor(step, count) !== 1) step++;
  let at = Math.floor(random() * count);
  return () => {
    at = (at + step) % count;
    return first + at;
  };
}

const divisor = (a: number, b: number): number => (b === 0 ? a : divisor(b, a % b));
