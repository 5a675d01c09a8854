/** What there is to say of the router's port mapping: for `status`, `why` and `netcheck`. */
import { formatTransportAddress, isPrivate } from "../../shared/address.ts";
import type { Netcheck, PortMappingStatus } from "../local/contract.ts";
import type { Gathering } from "../node/gathering.ts";
import { PROTOCOL_NAME } from "../portmap/client.ts";
import type { PortMappingReport } from "../portmap/port_mapping.ts";

/** @param report undefined: port mapping is switched off */
export function portMappingStatus(report: PortMappingReport | undefined, gathering: Gathering): PortMappingStatus {
  const mapping = report?.mapping;
  return {
    protocol: mapping === undefined ? null : PROTOCOL_NAME[mapping.protocol],
    address: mapping === undefined ? null : formatTransportAddress(mapping.external),
    note: report === undefined ? null : (noteOf(report, gathering) ?? null),
  };
}

export function portMappingVerdicts(
  report: PortMappingReport | undefined,
  gathering: Gathering,
): Netcheck["portMapping"] {
  const { spoken } = report ?? {};
  return {
    upnp: spoken?.upnp ?? null,
    natPmp: spoken?.["nat-pmp"] ?? null,
    pcp: spoken?.pcp ?? null,
    ...portMappingStatus(report, gathering),
  };
}

/** What is wrong with it, and what would help. */
function noteOf({ mapping, refusal }: PortMappingReport, gathering: Gathering): string | undefined {
  if (refusal?.reason === "no address") {
    return `The router speaks ${PROTOCOL_NAME[refusal.protocol]}, but has no public address of its own to map ports at: it is behind another NAT, or offline; map a port on the outer router, or ask the provider for a public address`;
  }
  if (refusal !== undefined) {
    return `The router speaks ${PROTOCOL_NAME[refusal.protocol]} but maps no port to this machine: ${refusal.reason}; allow port mapping (UPnP, NAT-PMP, PCP) in its settings`;
  }
  const seen = gathering.ipv4?.publicAddresses ?? [];
  const [first] = seen;
  if (mapping === undefined || first === undefined || seen.some(({ ip }) => ip === mapping.external.ip))
    return undefined;
  // A coordinator in our own LAN sees a private address of ours: that says nothing of the router.
  if (isPrivate(first.ip) && !isPrivate(mapping.external.ip)) return undefined;
  return `The router maps a port by ${PROTOCOL_NAME[mapping.protocol]}, but it is behind another NAT itself: it calls its address ${mapping.external.ip}, the coordinator sees ${first.ip}; map a port on the outer router too, or ask the provider for a public address`;
}
