import { describe, expect, test } from "vitest";
import { isDirectExpected, natLabel } from "../../../../agent/path/nat_behavior.ts";
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
