import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { hasBlock, withBlock, withoutBlock } from "../../../../agent/dns/hosts_block.ts";

const NAS = { name: "nas", meshIPv4: "100.96.0.2", meshIPv6: "fd00::2" };
const PI = { name: "pi", meshIPv4: "100.96.0.3", meshIPv6: undefined };
const HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n";

describe("the block in /etc/hosts", () => {
  test("has a line for each address, after the lines of others", () => {
    expect(withBlock(HOSTS, [NAS, PI])).toBe(`${HOSTS}# BEGIN TunnelMesh: written by the agent, removed when it stops
100.96.0.2 nas.mesh nas
fd00::2 nas.mesh nas
100.96.0.3 pi.mesh pi
# END TunnelMesh
`);
  });

  test("leaves names alone that the machine knows already", () => {
    const own = `${HOSTS}192.168.1.9  NAS nas.lan # the old one\n`;
    expect(withBlock(own, [NAS])).toMatch(/^100\.96\.0\.2 nas\.mesh$/m);
    expect(withBlock(`${HOSTS}10.0.0.1 nas.mesh\n`, [NAS])).toBe(`${HOSTS}10.0.0.1 nas.mesh\n`);
    // A comment is no name.
    expect(withBlock(`${HOSTS}# 10.0.0.1 nas\n`, [NAS])).toContain("100.96.0.2 nas.mesh nas\n");
  });

  test("is replaced, not repeated, and leaves nothing behind", () => {
    const once = withBlock(HOSTS, [NAS]);
    expect(withBlock(once, [NAS])).toBe(once);
    expect(withBlock(once, [PI])).toBe(withBlock(HOSTS, [PI]));
    expect(withBlock(once, [])).toBe(HOSTS);
    expect(withoutBlock(once)).toBe(HOSTS);
    expect([hasBlock(once), hasBlock(HOSTS)]).toEqual([true, false]);
  });

  test("lines that others have added below stay, also where the end of the block was cut off", () => {
    const below = "10.0.0.7 printer\n127.0.1.1 laptop\n";
    expect(withoutBlock(withBlock(HOSTS, [NAS]) + below)).toBe(HOSTS + below);
    expect(withoutBlock(withBlock(HOSTS, [NAS]).replace("# END TunnelMesh\n", "") + below)).toBe(HOSTS + below);
  });

  test("whatever the file holds, taking the block out gives the file back", () => {
    const line = fc.oneof(
      fc.string().map((text) => text.replaceAll("\n", "")),
      fc.constantFrom("# END TunnelMesh", "1.2.3.4 nas.mesh nas", ""),
    );
    fc.assert(
      fc.property(fc.array(line), (lines) => {
        const text = lines.map((each) => `${each}\n`).join("");
        expect(withoutBlock(withBlock(text, [NAS, PI]))).toBe(text);
      }),
    );
  });
});
