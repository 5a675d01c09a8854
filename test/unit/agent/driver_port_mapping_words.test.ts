/** Golden texts: what `status`, `why` and `netcheck` say of a router's port mapping, and what would help. */
import { expect, test } from "vitest";
import { portMappingStatus } from "../../../agent/driver/port_mapping_words.ts";
import type { Gathering } from "../../../agent/node/gathering.ts";
import type { PortMappingReport } from "../../../agent/portmap/port_mapping.ts";

const SPOKEN = { pcp: false, "nat-pmp": false, upnp: true } as const;
const mappedAt = (ip: string): PortMappingReport => ({
  spoken: SPOKEN,
  mapping: { protocol: "upnp", external: { ip, port: 6000 } },
  refusal: undefined,
});
const refused = (reason: NonNullable<PortMappingReport["refusal"]>["reason"]): PortMappingReport => ({
  spoken: SPOKEN,
  mapping: undefined,
  refusal: { protocol: "upnp", reason },
});
/** Of which STUN has seen this address; undefined: none yet. */
const seenAt = (ip: string | undefined): Gathering =>
  ({ ipv4: ip === undefined ? undefined : { publicAddresses: [{ ip, port: 5000 }] } }) as unknown as Gathering;

test.each<[string, PortMappingReport | undefined, string | undefined, string | null]>([
  ["switched off", undefined, "198.51.100.10", null],
  ["a mapping at the address that the internet sees", mappedAt("198.51.100.10"), "198.51.100.10", null],
  ["a mapping before STUN has answered", mappedAt("198.51.100.10"), undefined, null],
  ["a public mapping, with a coordinator in this network", mappedAt("198.51.100.10"), "10.1.0.10", null],
  [
    "a mapping behind a carrier's NAT",
    mappedAt("100.127.1.2"),
    "198.51.100.10",
    "The router maps a port by UPnP, but it is behind another NAT itself: it calls its address 100.127.1.2, the coordinator sees 198.51.100.10; map a port on the outer router too, or ask the provider for a public address",
  ],
  [
    "a router behind a carrier's NAT that maps nothing there",
    refused("no address"),
    "198.51.100.10",
    "The router speaks UPnP, but has no public address of its own to map ports at: it is behind another NAT, or offline; map a port on the outer router, or ask the provider for a public address",
  ],
  [
    "a router that refuses",
    refused("it allows no mapping to this machine"),
    "198.51.100.10",
    "The router speaks UPnP but maps no port to this machine: it allows no mapping to this machine; allow port mapping (UPnP, NAT-PMP, PCP) in its settings",
  ],
])("%s", (_, report, seen, note) => {
  expect(portMappingStatus(report, seenAt(seen)).note).toBe(note);
});
