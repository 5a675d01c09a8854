/**
 * IPv6 behind stateful firewalls: no translation, but each side admits only what it has asked for, so both must send first.
 * With UDP over IPv4 blocked at both sites there is no other way.
 */
import { isIPv6 } from "node:net";
import { expect, test } from "vitest";
import { parseTransportAddress } from "../../shared/address.ts";
import { withLab } from "./lab_case.ts";
import { bothDirect, startPair, transferFile } from "./mesh.ts";

test("two stateful IPv6 firewalls are opened from both sides while IPv4 blocks UDP", async () => {
  await withLab({ sites: [{ nat: "udpblocked" }, { nat: "udpblocked" }], ipv6: true }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    for (const [agent, peer] of [
      [one, two],
      [two, one],
    ] as const) {
      const { path, why } = await agent.peer(peer.name);
      expect(path?.kind).toBe("direct");
      expect(parseTransportAddress(path?.remoteAddress ?? "")?.ip).toBe(peer.host.ipv6Address);
      expect(why).toContain("over IPv6");
      const { udp, ipv4, ipv6 } = await agent.netcheck();
      expect({ udp, ipv4, ipv6: ipv6.available }).toEqual({ udp: true, ipv4: null, ipv6: true });
    }
    // The mesh has both families whatever the path below has.
    const overIPv6 = await transferFile(one, two, { ipv6: true });
    const overIPv4 = await transferFile(two, one);
    expect([overIPv6.bytes, overIPv4.bytes]).toEqual([10_000_000, 10_000_000]);
    expect(isIPv6((await one.status()).self.meshIPv6)).toBe(true);
    expect((await one.peer(two.name)).path?.kind).toBe("direct");
  });
});

test("a site with IPv6 and one without meet over IPv4", async () => {
  await withLab({ sites: [{ nat: "restricted", ipv6: true }, { nat: "portrestricted" }] }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const { path } = await one.peer(two.name);
    expect(parseTransportAddress(path?.remoteAddress ?? "")?.ip).toBe(lab.site(2).publicAddress);
    expect((await transferFile(one, two, { ipv6: true, bytes: 1_000_000 })).bytes).toBe(1_000_000);
  });
});
