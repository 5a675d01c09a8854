import { describe, expect, test } from "vitest";
import { explainNoDirect, isDirectExpected, natLabel } from "../../../../agent/path/nat_behavior.ts";
import { type Filtering, type Mapping, type NatReport, UNKNOWN_NAT } from "../../../../shared/wire/candidates.ts";

const FILTERINGS: readonly Filtering[] = ["endpoint-independent", "address-dependent", "address-and-port-dependent"];
const MAPPINGS: readonly Mapping[] = ["endpoint-independent", "address-dependent", "address-and-port-dependent"];

const nat = (mapping: Mapping, filtering: Filtering): NatReport => ({
  ...UNKNOWN_NAT,
  mapping,
  filtering,
  certain: true,
});
const BLOCKED: NatReport = { ...UNKNOWN_NAT, udpBlocked: true };
const PORT_RESTRICTED = nat("endpoint-independent", "address-and-port-dependent");
const SYMMETRIC = nat("address-and-port-dependent", "address-and-port-dependent");

describe("the names that users know", () => {
  test.each<[string, NatReport]>([
    ["open", nat("none", "endpoint-independent")],
    ["restricted cone", nat("none", "address-dependent")],
    ["port-restricted cone", nat("none", "address-and-port-dependent")],
    ["full cone", nat("endpoint-independent", "endpoint-independent")],
    ["restricted cone", nat("endpoint-independent", "address-dependent")],
    ["port-restricted cone", PORT_RESTRICTED],
    ["symmetric", nat("address-dependent", "endpoint-independent")],
    ["symmetric", SYMMETRIC],
    ["symmetric", { ...SYMMETRIC, filtering: undefined }],
    ["unknown", { ...PORT_RESTRICTED, filtering: undefined }],
    ["unknown", UNKNOWN_NAT],
    ["udp blocked", BLOCKED],
    ["udp blocked", { ...PORT_RESTRICTED, udpBlocked: true }],
  ])("%s", (label, report) => expect(natLabel(report)).toBe(label));
});

describe("where a direct path is expected", () => {
  const all = MAPPINGS.flatMap((mapping) => FILTERINGS.map((filtering) => nat(mapping, filtering)));

  test("in 49 of the 81 pairings of mapping and filtering, whichever side asks", () => {
    const pairings = all.flatMap((a) => all.map((b) => [a, b] as const));
    expect(pairings.filter(([a, b]) => isDirectExpected(a, b))).toHaveLength(49);
    for (const [a, b] of pairings) expect(isDirectExpected(a, b)).toBe(isDirectExpected(b, a));
  });

  test("never where UDP is blocked, and unknown while a side is", () => {
    expect(isDirectExpected(BLOCKED, PORT_RESTRICTED)).toBe(false);
    expect(isDirectExpected(UNKNOWN_NAT, BLOCKED)).toBe(false);
    expect(isDirectExpected(UNKNOWN_NAT, PORT_RESTRICTED)).toBeUndefined();
  });
});

test.each<[NatReport, NatReport, string]>([
  [BLOCKED, BLOCKED, "Both networks block UDP; allowing outgoing UDP on both sides would make a direct path possible"],
  [BLOCKED, SYMMETRIC, "This network blocks UDP; allowing outgoing UDP here would make a direct path possible"],
  [
    SYMMETRIC,
    BLOCKED,
    'The network of "nas" blocks UDP; allowing outgoing UDP there would make a direct path possible',
  ],
  [
    SYMMETRIC,
    SYMMETRIC,
    "Both routers use a different port per destination (symmetric) and admit only exact ports; a port forward or UPnP on either router would make a direct path possible",
  ],
  [
    SYMMETRIC,
    PORT_RESTRICTED,
    'This router uses a different port per destination (symmetric) and the router of "nas" admits only exact ports (port-restricted cone); a port forward or UPnP on either router would make a direct path possible',
  ],
  [
    PORT_RESTRICTED,
    SYMMETRIC,
    'The router of "nas" uses a different port per destination (symmetric) and this router admits only exact ports (port-restricted cone); a port forward or UPnP on either router would make a direct path possible',
  ],
  [
    UNKNOWN_NAT,
    PORT_RESTRICTED,
    "No direct path yet: how the router of this network behaves is not known so far; probing goes on",
  ],
  [
    PORT_RESTRICTED,
    UNKNOWN_NAT,
    'No direct path yet: how the router of the network of "nas" behaves is not known so far; probing goes on',
  ],
  [
    PORT_RESTRICTED,
    PORT_RESTRICTED,
    "No direct path yet although these routers (port-restricted cone, port-restricted cone) allow one: probes are being lost, perhaps in a firewall; probing goes on",
  ],
])("why there is no direct path, case %#", (local, remote, sentence) => {
  expect(explainNoDirect(local, remote, "nas")).toBe(sentence);
});
