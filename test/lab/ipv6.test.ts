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

test("a site without UDP over IPv4 and one without IPv6 are relayed, and why names the family", async () => {
  await withLab({ sites: [{ nat: "udpblocked", ipv6: true }, { nat: "portrestricted" }] }, async (lab) => {
    const { one, two } = await startPair(lab);
    const here =
      /this network blocks UDP over IPv4, and over IPv6 the two do not reach each other; allowing outgoing UDP over IPv4 here/;
    await one.waitWhy(two.name, here);
    await two.waitWhy(one.name, /the network of "h1-1" blocks UDP over IPv4/);
    expect((await one.peer(two.name)).path?.kind).toBe("ssh");
    // The remedy that it names.
    await lab.site(1).setNat("portrestricted");
    await bothDirect(one, two);
  });
});

test("both families are raced, and either one carries on when UDP dies on the other", async () => {
  const nat = "portrestricted" as const;
  await withLab({ sites: [{ nat }, { nat }], ipv6: true, roundTripMs: 20 }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const pings = one.startPing(two.name, { count: 200, intervalSeconds: 0.05 });
    const familyOf = async (): Promise<boolean> =>
      isIPv6(parseTransportAddress((await one.peer(two.name)).path?.remoteAddress ?? "")?.ip ?? "");
    const first = await familyOf();
    for (const dead of [first, !first]) {
      const rule = `meta nfproto ${dead ? "ipv6" : "ipv4"} meta l4proto udp drop`;
      const since = performance.now();
      await lab.site(1).setNat(nat, { forward: [rule] });
      const { at } = await one.directEvent(two.name, {
        since,
        timeoutMs: 6000,
        accept: ({ remoteAddress }) => isIPv6(parseTransportAddress(String(remoteAddress))?.ip ?? "") === !dead,
      });
      console.log(`UDP over ${dead ? "IPv6" : "IPv4"} died: direct over the other after ${(at - since).toFixed(0)} ms`);
      expect(at - since).toBeLessThan(3 * 1000);
    }
    await pings.stop();
  });
});
