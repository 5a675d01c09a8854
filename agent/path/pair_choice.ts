/** Which of a peer's pairs is the better one, and the words for why one is taken or left. */
import { isIPv6 } from "../../shared/address.ts";
import type { Pair } from "./pair.ts";
import type { Verdict } from "./path_watch.ts";

/** A better pair must be better by this much to displace a working one. */
const HYSTERESIS_SHARE = 0.2;
const HYSTERESIS_MS = 2;
export const NETWORK_CHANGED = "the network has changed";

/**
 * What the LAN may seem slower by: single answers of a machine that has just started are late by many milliseconds, and the way through a
 * router that turns packets round (hairpin) takes the same LAN twice. Small enough for a bridged overlay that only looks like a LAN.
 */
const LAN_BONUS_MS = 20;
/** No NAT can take the mapping of IPv6 away. */
const IPV6_BONUS_MS = 1;

/** Milliseconds; lower is better. */
export const score = (pair: Pair): number =>
  (pair.rttMs ?? Number.POSITIVE_INFINITY) -
  (pair.isLocal ? LAN_BONUS_MS : 0) -
  (isIPv6(pair.remote.ip) ? IPV6_BONUS_MS : 0);

/** Order of first probes: the LAN, then what the coordinator has seen, then the rest. */
export const probingRank = (pair: Pair): number => (pair.isLocal ? 0 : pair.isTrusted ? 1 : 2);

/** Why to leave a working pair for one that has just been proven; undefined: it is not clearly better. */
export function reasonToMove(current: Pair, pair: Pair): string | undefined {
  if (pair.isStraight !== current.isStraight) {
    return pair.isStraight ? "an address that the peer's own packets keep open" : undefined;
  }
  const leastGain = HYSTERESIS_MS + HYSTERESIS_SHARE * (current.rttMs ?? 0);
  return score(current) - score(pair) > leastGain ? "faster path" : undefined;
}

/** @param isTooLarge small packets still come through */
export function reasonOfDeath(verdict: Verdict, isTooLarge: boolean): string {
  if (isTooLarge) return "large packets do not get through";
  return verdict === "deaf" ? "probes get through, data does not" : "the path stopped answering";
}
