/** Puts what NAT discovery found into words and the shape of `netcheck --json`. */
import { formatTransportAddress } from "../../shared/address.ts";
import type { Netcheck, NatStatus } from "../local/contract.ts";
import type { DiscoveryResult } from "../path/nat_discovery.ts";

export function netcheckOf(nat: NatStatus, ipv6: DiscoveryResult | undefined, websocket: boolean): Netcheck {
  const [address] = ipv6?.publicAddresses ?? [];
  const hasIPv4 = nat.publicAddress !== null;
  return {
    schema: 1,
    udp: hasIPv4 || address !== undefined,
    ipv4: hasIPv4 ? { ...nat, hairpin: null } : null,
    ipv6: {
      available: address !== undefined,
      publicAddress: address === undefined ? null : formatTransportAddress(address),
    },
    portMapping: { upnp: null, natPmp: null, pcp: null },
    ssh: null,
    websocket,
    proxy: null,
    summary: summaryOf(nat, address !== undefined, websocket),
  };
}

const SENTENCE: Readonly<Record<NatStatus["label"], string>> = {
  open: "This machine has a public address that anybody can reach: direct paths work with everyone",
  "full cone": "The router lets anybody answer once this machine has sent: direct paths work with everyone",
  "restricted cone":
    "The router lets in whom this machine has sent to: direct paths work with everyone, whatever their router",
  "port-restricted cone":
    "The router lets in only the exact addresses that this machine has sent to: direct paths work with all but symmetric routers",
  symmetric:
    "The router uses a different port for each destination: direct paths work with open machines and with full and restricted cones",
  "udp blocked": "UDP does not get out of this network: no direct paths",
  unknown: "How the router behaves is not known yet",
};

function summaryOf(nat: NatStatus, hasIPv6: boolean, websocket: boolean): string {
  const doubt =
    nat.certain || nat.label === "unknown" || nat.label === "udp blocked"
      ? ""
      : " (as far as one coordinator address can tell)";
  const ipv6 = hasIPv6 ? "; IPv6 works too" : "";
  const offline = websocket ? "" : "; the coordinator is not reachable at the moment";
  return `${SENTENCE[nat.label]}${doubt}${ipv6}${offline}`;
}
