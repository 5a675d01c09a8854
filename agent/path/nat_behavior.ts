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
export const defeats = (sender: NatReport, receiver: NatReport): boolean =>
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
