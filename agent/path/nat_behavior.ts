/**
 * What a NAT does, in the two axes of RFC 4787 (mapping, filtering), and the four names that users know.
 *
 * The names appear in the CLI and in `why`; everything else in the code reasons with the axes.
 */
import type { Filtering, Mapping, NatReport } from "../../shared/wire/candidates.ts";

export type NatLabel =
  | "open"
  | "full cone"
  | "restricted cone"
  | "port-restricted cone"
  | "symmetric"
  | "udp blocked"
  | "unknown";

const CONE: Readonly<Record<Filtering, NatLabel>> = {
  "endpoint-independent": "full cone",
  "address-dependent": "restricted cone",
  "address-and-port-dependent": "port-restricted cone",
};

/** The user's name for a NAT. A public address behind a stateful firewall (mapping `none`) carries the name of its filtering. */
export function natLabel(nat: NatReport): NatLabel {
  if (nat.udpBlocked) return "udp blocked";
  if (nat.mapping === undefined) return "unknown";
  if (nat.mapping === "address-dependent" || nat.mapping === "address-and-port-dependent") return "symmetric";
  if (nat.filtering === undefined) return "unknown";
  if (nat.mapping === "none" && nat.filtering === "endpoint-independent") return "open";
  return CONE[nat.filtering];
}

/** Is the external port another one for another destination? */
export const isDependent = (mapping: Mapping | undefined): boolean =>
  mapping === "address-dependent" || mapping === "address-and-port-dependent";

/** Does the sender's changing port defeat the receiver's filter? */
const defeats = (sender: NatReport, receiver: NatReport): boolean =>
  isDependent(sender.mapping) && receiver.filtering === "address-and-port-dependent";

/**
 * Does plain simultaneous opening work between these two? Undefined while one of them is not known.
 *
 * With a filter kept per internal address (RFC 4787 §5) that is so in 49 of the 81 pairings of three mappings and three filterings:
 * a side whose external port differs per destination cannot pass a filter that wants the exact port.
 */
export function isDirectExpected(a: NatReport, b: NatReport): boolean | undefined {
  if (a.udpBlocked || b.udpBlocked) return false;
  if (natLabel(a) === "unknown" || natLabel(b) === "unknown") return undefined;
  return !defeats(a, b) && !defeats(b, a);
}

/**
 * Why there is no direct path between these two NATs, in one sentence for people, with what would help.
 *
 * @param remoteName the peer's name
 */
export function explainNoDirect(local: NatReport, remote: NatReport, remoteName: string): string {
  if (local.udpBlocked && remote.udpBlocked) {
    return `Both networks block UDP; allowing outgoing UDP on both sides would make a direct path possible`;
  }
  if (local.udpBlocked) {
    return `This network blocks UDP; allowing outgoing UDP here would make a direct path possible`;
  }
  if (remote.udpBlocked) {
    return `The network of "${remoteName}" blocks UDP; allowing outgoing UDP there would make a direct path possible`;
  }
  const ours = natLabel(local);
  const theirs = natLabel(remote);
  if (defeats(local, remote) && defeats(remote, local)) {
    return `Both routers use a different port per destination (symmetric) and admit only exact ports; a port forward or UPnP on either router would make a direct path possible`;
  }
  if (defeats(local, remote)) {
    return `This router uses a different port per destination (symmetric) and the router of "${remoteName}" admits only exact ports (${theirs}); a port forward or UPnP on either router would make a direct path possible`;
  }
  if (defeats(remote, local)) {
    return `The router of "${remoteName}" uses a different port per destination (symmetric) and this router admits only exact ports (${ours}); a port forward or UPnP on either router would make a direct path possible`;
  }
  if (ours === "unknown" || theirs === "unknown") {
    const whose = ours === "unknown" ? "this network" : `the network of "${remoteName}"`;
    return `No direct path yet: how the router of ${whose} behaves is not known so far; probing goes on`;
  }
  return `No direct path yet although these routers (${ours}, ${theirs}) allow one: probes are being lost, perhaps in a firewall; probing goes on`;
}
