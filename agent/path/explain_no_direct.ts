/**
 * Why there is no direct path to a peer, in one sentence for people, with what would help. Made from what both agents have said of their
 * NATs and from how attempts have gone, so that nobody is blamed for what is normal for a pair.
 */
import type { NatReport } from "../../shared/wire/candidates.ts";
import type { PunchEndReason } from "../../shared/wire/control.ts";
import { defeats, natLabel } from "./nat_behavior.ts";
import { IMPLAUSIBLE, MAX_PUNCH, MIN_PUNCH_CHANCE, planPunch, type PunchLimits, type PunchPlan } from "./punch_plan.ts";

/** How attempts with many packets have gone with this peer. */
export interface PunchRecord {
  /** Attempts that found nothing, since the last path. */
  readonly failed: number;
  /** Why the peer, or we, took no part the last time. */
  readonly refusal: PunchEndReason | undefined;
}

export const NO_ATTEMPTS: PunchRecord = { failed: 0, refusal: undefined };

/** What the two operators allow of attempts with many packets. */
export interface GuessingRules {
  readonly limits: PunchLimits;
  /** The peer's operator has switched them off. */
  readonly isOffThere: boolean;
}

const AS_BUILT: GuessingRules = { limits: MAX_PUNCH, isOffThere: false };

/** Behind one router or one carrier, where neither the inside network nor a packet that turns round (hairpin) joins the two. */
const ONE_ADDRESS =
  "Both machines are behind one public address, and neither the network behind it nor the router or carrier that has it leads from one to the other";
const REMEDY_INSIDE =
  "switching off client isolation in that network, or switching on hairpin (NAT loopback) at that router, would make a direct path possible";
/** Hairpin joins two inside ports that are known, and here each destination sees another one. */
const REMEDY_INSIDE_SYMMETRIC =
  "letting them reach each other inside that network (client isolation off, a route between its parts) would make a direct path possible";
/** Both machines have reached the coordinator without leaving the network that it is in. */
const ONE_INSIDE =
  "Both machines are in the coordinator's own network, and it does not lead from one to the other; allowing UDP between them there (a firewall, client isolation) would make a direct path possible";
/** What loses probes to peers but not the questions to the coordinator is a rule of one of the two networks. */
const FIREWALL_REMEDY = "allowing UDP to any address and port on both sides would make one possible";

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
  rules: GuessingRules = AS_BUILT,
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
  if (isOneAddress) {
    const isSymmetric = defeats(local, remote) || defeats(remote, local);
    return `${ONE_ADDRESS}; ${isSymmetric ? REMEDY_INSIDE_SYMMETRIC : REMEDY_INSIDE}`;
  }
  if (local.isUnseen === true && remote.isUnseen === true) return ONE_INSIDE;
  // One of the two has IPv6, or both: then it is that which does not get through.
  if (local.isIPv4Blocked === true || remote.isIPv4Blocked === true) {
    const there = `the network of "${remoteName}"`;
    const [whose, where] =
      remote.isIPv4Blocked !== true
        ? ["This network blocks", "here"]
        : local.isIPv4Blocked !== true
          ? [`The network of "${remoteName}" blocks`, "there"]
          : [`This network and ${there} block`, "on both sides"];
    return `${whose} UDP over IPv4, and over IPv6 the two do not reach each other; allowing outgoing UDP over IPv4 ${where}, or IPv6 with UDP on both sides, would make a direct path possible`;
  }
  if (local.isUnseen === true || remote.isUnseen === true) {
    const [where, whose] =
      remote.isUnseen !== true
        ? ["this machine's own network", "this router"]
        : [`the network of "${remoteName}"`, "the router there"];
    return `The coordinator is in ${where}, so nobody has seen the public address of ${whose}; ${remedyOf(local, remote, remoteName, MAPPING)}`;
  }
  const remedy = remedyOf(local, remote, remoteName, FORWARD);
  const ours = natLabel(local);
  const theirs = natLabel(remote);
  const obstacle = obstacleOf(local, remote, remoteName);
  if (obstacle !== undefined) {
    const off = switchedOffWords(rules, remoteName);
    const plan = planPunch(local, remote, { limits: rules.limits, failed: record.failed });
    const guessing = off ?? (plan === undefined ? undefined : guessingWords(plan, record, remoteName));
    return [obstacle, guessing, remedy].filter((part) => part !== undefined).join("; ");
  }
  if (ours === "unknown" || theirs === "unknown") {
    const whose = ours === "unknown" ? "this network" : `the network of "${remoteName}"`;
    return `No direct path yet: how the router of ${whose} behaves is not known so far; probing goes on; ${remedy}`;
  }
  return `No direct path yet although these routers (${ours}, ${theirs}) allow one: probes are being lost, perhaps in a firewall; probing goes on; ${FIREWALL_REMEDY}`;
}

/** What helps at a router that shows its public address, and where nobody has seen that: then the router has to say it. */
const FORWARD = "a port forward or UPnP";
const MAPPING = "UPnP, NAT-PMP or PCP";
const BEHIND_NAT = "behind another NAT, as those of a carrier's customers are";

/** One open port is enough, on either side; at a router that is behind a NAT itself it opens nothing. */
function remedyOf(local: NatReport, remote: NatReport, remoteName: string, what: string): string {
  const there = `the router of "${remoteName}"`;
  const [isOursInner, isTheirsInner] = [local.isRouterBehindNat === true, remote.isRouterBehindNat === true];
  if (isOursInner && isTheirsInner) {
    return `both routers are ${BEHIND_NAT}, so ${what} on them would not help; a public address from the provider, on either side, with ${what} on the router there would make a direct path possible`;
  }
  const inner = (whose: string): string => `; on ${whose} it would not, since that is ${BEHIND_NAT}`;
  if (isOursInner) return `${what} on ${there} would make a direct path possible${inner("this router")}`;
  if (isTheirsInner) return `${what} on this router would make a direct path possible${inner(there)}`;
  return `${what} on either router would make a direct path possible`;
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

function switchedOffWords({ limits, isOffThere }: GuessingRules, remoteName: string): string | undefined {
  if (limits.packets === 0) return `guessing ports is switched off on this machine by --punch-packets 0`;
  return isOffThere ? `guessing ports is switched off on "${remoteName}"` : undefined;
}

/** What is to be expected of guessing ports, or has come of it. */
function guessingWords(plan: PunchPlan, { failed, refusal }: PunchRecord, remoteName: string): string {
  const { chance } = plan;
  if (plan.chanceInAll < MIN_PUNCH_CHANCE) {
    return `guessing ports with ${packetWords(plan)} would succeed ${chanceWords(chance)}, so it is not tried, which is normal for this pair`;
  }
  if (refusal === "unwilling") return `"${remoteName}" does not agree to guessing ports`;
  if (refusal === "not attested") {
    return `ports are not guessed, since the coordinator has not seen the public address of "${remoteName}" itself`;
  }
  if (plan.rounds > 1 && (1 - chance) ** failed >= IMPLAUSIBLE) return roundsWords(plan, failed);
  if (failed === 0) return `the port will be guessed in a moment, which succeeds ${chanceWords(chance)}`;
  const attempts = failed === 1 ? "one attempt" : `${failed} attempts`;
  if ((1 - chance) ** failed < IMPLAUSIBLE) {
    return `${attempts} at guessing the port found nothing, although each succeeds ${chanceWords(chance)}: packets are being lost, perhaps in a firewall`;
  }
  return `${attempts} at guessing the port found nothing so far, where each succeeds ${chanceWords(chance)}; more follow`;
}

function packetWords({ probes, peerProbes }: PunchPlan): string {
  if (peerProbes === 0) return `${probes} packets`;
  return probes === peerProbes
    ? `${probes} packets from each side`
    : `${probes} packets from here and ${peerProbes} from there`;
}

/** Of blocks that serve one destination with each port: what one round brings, and all of them. */
function roundsWords({ chance, chanceInAll, probes, rounds }: PunchPlan, failed: number): string {
  const each = `a round of ${probes} packets, at most half of a router's block of ports, succeeds ${chanceWords(chance)}`;
  if (failed >= rounds)
    return `${failed} rounds of guessing ports found nothing, where ${each}; one more follows each 10 minutes`;
  const budget = `${rounds} of them, two minutes apart, ${chanceWords(chanceInAll)}`;
  return failed === 0
    ? `ports are guessed in rounds: ${each}, ${budget}`
    : `${failed} of ${rounds} rounds of guessing ports found nothing so far: ${each}, ${budget}`;
}

/** `in 63 % of cases`, `once in 260 attempts`. */
function chanceWords(chance: number): string {
  if (chance >= 0.99) return "nearly always";
  if (chance >= 0.05) return `in ${Math.round(100 * chance)} % of cases`;
  const times = 1 / chance;
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(times)) - 1);
  return `once in ${Math.round(times / unit) * unit} attempts`;
}
