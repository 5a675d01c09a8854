/**
 * Why there is no direct path to a peer, in one sentence for people, with what would help. Made from what both agents have said of their
 * NATs and from how attempts have gone, so that nobody is blamed for what is normal for a pair.
 */
import type { NatReport } from "../../shared/wire/candidates.ts";
import type { PunchEndReason } from "../../shared/wire/control.ts";
import { defeats, natLabel } from "./nat_behavior.ts";
import { MIN_PUNCH_CHANCE, planPunch, type PunchPlan } from "./punch_plan.ts";

/** How attempts with many packets have gone with this peer. */
export interface PunchRecord {
  /** Attempts that found nothing, since the last path. */
  readonly failed: number;
  /** Why the peer, or we, took no part the last time. */
  readonly refusal: PunchEndReason | undefined;
}

export const NO_ATTEMPTS: PunchRecord = { failed: 0, refusal: undefined };

/** Behind one router or one carrier, where neither the inside network nor a packet that turns round (hairpin) joins the two. */
const ONE_ADDRESS =
  "Both machines are behind one public address, and neither the network behind it nor the router or carrier that has it leads from one to the other";
const REMEDY_INSIDE =
  "switching off client isolation in that network, or switching on hairpin (NAT loopback) at that router, would make a direct path possible";
const REMEDY = "a port forward or UPnP on either router would make a direct path possible";
/** Failures that happen by chance less often than this have another cause. */
const IMPLAUSIBLE = 0.01;

/**
 * @param remoteName the peer's name
 * @param isOneAddress the internet sees both at one address
 */
export function explainNoDirect(
  local: NatReport,
  remote: NatReport,
  remoteName: string,
  record: PunchRecord = NO_ATTEMPTS,
  isOneAddress = false,
): string {
  if (local.udpBlocked && remote.udpBlocked) {
    return `Both networks block UDP; allowing outgoing UDP on both sides would make a direct path possible`;
  }
  if (local.udpBlocked) {
    return `This network blocks UDP; allowing outgoing UDP here would make a direct path possible`;
  }
  if (remote.udpBlocked) {
    return `The network of "${remoteName}" blocks UDP; allowing outgoing UDP there would make a direct path possible`;
  }
  // What their routers do towards the internet has nothing to do with it.
  if (isOneAddress) return `${ONE_ADDRESS}; ${REMEDY_INSIDE}`;
  const ours = natLabel(local);
  const theirs = natLabel(remote);
  const obstacle = obstacleOf(local, remote, remoteName);
  if (obstacle !== undefined) {
    const plan = planPunch(local, remote);
    const guessing = plan === undefined ? [] : [guessingWords(plan, record, remoteName)];
    return [obstacle, ...guessing, REMEDY].join("; ");
  }
  if (ours === "unknown" || theirs === "unknown") {
    const whose = ours === "unknown" ? "this network" : `the network of "${remoteName}"`;
    return `No direct path yet: how the router of ${whose} behaves is not known so far; probing goes on`;
  }
  return `No direct path yet although these routers (${ours}, ${theirs}) allow one: probes are being lost, perhaps in a firewall; probing goes on`;
}

/** What stands against plain simultaneous opening. */
function obstacleOf(local: NatReport, remote: NatReport, remoteName: string): string | undefined {
  if (defeats(local, remote) && defeats(remote, local)) {
    return `Both routers use a different port per destination (symmetric) and admit only exact ports`;
  }
  if (defeats(local, remote)) {
    return `This router uses a different port per destination (symmetric) and the router of "${remoteName}" admits only exact ports (${natLabel(remote)})`;
  }
  if (defeats(remote, local)) {
    return `The router of "${remoteName}" uses a different port per destination (symmetric) and this router admits only exact ports (${natLabel(local)})`;
  }
  return undefined;
}

/** What is to be expected of guessing ports, or has come of it. */
function guessingWords({ chance, probes }: PunchPlan, { failed, refusal }: PunchRecord, remoteName: string): string {
  if (chance < MIN_PUNCH_CHANCE) {
    return `guessing ports with ${probes} packets from each side would succeed ${chanceWords(chance)}, so it is not tried, which is normal for this pair`;
  }
  if (refusal === "unwilling") return `"${remoteName}" does not agree to guessing ports`;
  if (refusal === "not attested") {
    return `ports are not guessed, since the coordinator has not seen the public address of "${remoteName}" itself`;
  }
  if (failed === 0) return `the port will be guessed in a moment, which succeeds ${chanceWords(chance)}`;
  const attempts = failed === 1 ? "one attempt" : `${failed} attempts`;
  if ((1 - chance) ** failed < IMPLAUSIBLE) {
    return `${attempts} at guessing the port found nothing, although each succeeds ${chanceWords(chance)}: packets are being lost, perhaps in a firewall`;
  }
  return `${attempts} at guessing the port found nothing so far, where each succeeds ${chanceWords(chance)}; more follow`;
}

/** `in 63 % of cases`, `once in 260 attempts`. */
function chanceWords(chance: number): string {
  if (chance >= 0.99) return "nearly always";
  if (chance >= 0.05) return `in ${Math.round(100 * chance)} % of cases`;
  const times = 1 / chance;
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(times)) - 1);
  return `once in ${Math.round(times / unit) * unit} attempts`;
}
