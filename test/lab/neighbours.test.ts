/**
 * Two agents behind one router that has no hairpin: their public addresses lead nowhere, so only the LAN joins them.
 *
 * Nobody tells a peer about its LAN before it has authenticated, so this also shows that host candidates do arrive afterwards.
 */
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, startPair, transferFile } from "./mesh.ts";
import type { SiteOptions } from "./topology.ts";

const sites: [string, SiteOptions][] = [
  ["one router", { nat: "portrestricted", hosts: 2 }],
  ["one symmetric router", { nat: "symmetric", hosts: 2 }],
  ["one router behind a carrier's NAT", { nat: "portrestricted", carrier: "symmetric", hosts: 2 }],
];

test.each(sites)("two agents behind %s find each other over the LAN", async (_, site) => {
  await withLab({ sites: [site] }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const file = await transferFile(one, two);
    expect(file.bytes).toBe(10_000_000);
    for (const [agent, peer] of [
      [one, two],
      [two, one],
    ] as const) {
      const { path, why } = await agent.peer(peer.name);
      expect(path?.kind).toBe("direct");
      expect(path?.localAddress.split(":")[0]).toBe(agent.host.address);
      expect(path?.remoteAddress.split(":")[0]).toBe(peer.host.address);
      expect(why).toContain("over the local network");
    }
  });
});
