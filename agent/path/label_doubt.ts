/**
 * Are the labels of two NATs to be believed, when plain opening fails between them again and again although it should not?
 *
 * A NAT may treat the coordinator's addresses otherwise than a peer's: rules for some destinations, several uplinks, a router whose own
 * stack has taken a port (primer.ts). Then one of the two uses another port towards the other than STUN has shown, and that other wants the exact
 * one. Which of them it is cannot be seen from inside, so each is doubted in turn, beginning with the one whose opposite is known to be
 * exact; both sides reckon the same. Doubt is for this one peer alone, and ends after a few attempts: a firewall may be all that there is.
 */
import type { NatReport } from "../../shared/wire/candidates.ts";
import { isDependent, isDirectExpected } from "./nat_behavior.ts";

/** One round may meet an outage. */
const DOUBTFUL_ROUNDS = 2;
/** Each of the two is doubted twice. */
const MAX_DOUBTS = 4;

export interface PlainRecord {
  /** Rounds that ended without a path, one after the other. */
  readonly failedRounds: number;
  /** Attempts with many packets that found nothing. */
  readonly failedAttempts: number;
}

/** Both NATs as an attempt is to take them. */
export interface Assumption {
  readonly local: NatReport;
  readonly remote: NatReport;
}

/**
 * What may be assumed of the two, likeliest first; empty while the labels are not to be doubted.
 *
 * @param isFirst is our id the smaller one? Only so that both sides keep the same order.
 */
export function doubtedLabels(
  local: NatReport,
  remote: NatReport,
  { failedRounds, failedAttempts }: PlainRecord,
  isFirst: boolean,
): readonly Assumption[] {
  const isDoubtful = failedRounds >= DOUBTFUL_ROUNDS && failedAttempts < MAX_DOUBTS;
  if (!isDoubtful || isDirectExpected(local, remote) !== true) return [];
  const ours: Suspect = { whose: "local", isLikely: isExact(remote), isPossible: !isDependent(local.mapping) };
  const theirs: Suspect = { whose: "remote", isLikely: isExact(local), isPossible: !isDependent(remote.mapping) };
  const suspects = (isFirst ? [ours, theirs] : [theirs, ours]).filter(({ isPossible }) => isPossible);
  const ordered = suspects.toSorted((a, b) => Number(b.isLikely) - Number(a.isLikely));
  const turn = failedAttempts % Math.max(1, ordered.length);
  return [...ordered.slice(turn), ...ordered.slice(0, turn)].map(({ whose }) =>
    whose === "local"
      ? { local: asDependent(local), remote: asExact(remote) }
      : { local: asExact(local), remote: asDependent(remote) },
  );
}

interface Suspect {
  readonly whose: "local" | "remote";
  readonly isLikely: boolean;
  readonly isPossible: boolean;
}

const isExact = ({ filtering }: NatReport): boolean => filtering === "address-and-port-dependent";
const asExact = (nat: NatReport): NatReport => ({ ...nat, filtering: "address-and-port-dependent", certain: false });
/** Its ports, as STUN has seen them, say nothing of those that the peer gets. */
const asDependent = ({ filtering, udpBlocked }: NatReport): NatReport => ({
  mapping: "address-and-port-dependent",
  filtering,
  allocation: undefined,
  udpBlocked,
  certain: false,
});
