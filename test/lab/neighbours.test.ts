/**
 * Two agents behind one router. Without hairpin their public addresses lead nowhere, so only the LAN joins them; where the LAN keeps its
 * hosts apart, as wireless networks for guests do, only hairpin can.
 *
 * Nobody tells a peer about its LAN before it has authenticated, so this also shows that host candidates do arrive afterwards.
 */
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startPair, transferFile } from "./mesh.ts";
import type { SiteOptions } from "./topology.ts";

const sites: [string, SiteOptions][] = [
  ["one router", { nat: "portrestricted", hosts: 2 }],
  ["one symmetric router", { nat: "symmetric", hosts: 2 }],
  ["one router behind a carrier's NAT", { nat: "portrestricted", carrier: "symmetric", hosts: 2 }],
  ["one router with hairpin", { nat: "portrestricted", hosts: 2, hairpin: true }],
];

test.each(sites)("two agents behind %s find each other over the LAN", async (_, site) => {
  await withLab({ sites: [site] }, async (lab) => {
    const { one, two } = await startPair(lab);
    await Promise.all([localPath(one, two), localPath(two, one)]);
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

describe("two agents whose LAN keeps them apart", () => {
  test.each(["fullcone", "portrestricted"] as const)(
    "meet at the public address of a %s router with hairpin",
    async (nat) => {
      await withLab({ sites: [{ nat, hosts: 2, isolated: true, hairpin: true }] }, async (lab) => {
        const { one, two } = await startPair(lab);
        await bothDirect(one, two);
        expect((await transferFile(one, two)).bytes).toBe(10_000_000);
        for (const [agent, peer] of [
          [one, two],
          [two, one],
        ] as const) {
          const { path, why } = await agent.peer(peer.name);
          expect(path?.kind).toBe("direct");
          expect(path?.remoteAddress.split(":")[0]).toBe(lab.site(1).publicAddress);
          expect(why).not.toContain("over the local network");
        }
      });
    },
  );

  test.each<["client isolation" | "hairpin", string]>([
    ["client isolation", "over the local network"],
    ["hairpin", "through both routers"],
  ])("are relayed without hairpin; each remedy that why names makes a direct path: %s", async (remedy, how) => {
    await withLab({ sites: [{ nat: "portrestricted", hosts: 2, isolated: true }] }, async (lab) => {
      const site = lab.site(1);
      const { one, two } = await startPair(lab);
      expect(await one.wait(`direct=${two.name}`, 5)).toBe(7);
      const { path, why } = await one.peer(two.name);
      expect(path?.kind).toBe("ssh");
      expect(why).toMatch(new RegExp(`both machines are behind one public address, .*${remedy}`));
      if (remedy === "hairpin") await site.setNat("portrestricted", { hairpin: true });
      else await site.endIsolation();
      await bothDirect(one, two, 15);
      expect((await one.peer(two.name)).why).toContain(how);
    });
  });
});

/** The hairpin may be found first: then the path moves to the LAN. */
const localPath = async (agent: MeshAgent, peer: MeshAgent): Promise<unknown> =>
  agent.directEvent(peer.name, {
    timeoutMs: 10_000,
    accept: ({ remoteAddress }) => String(remoteAddress).startsWith(`${peer.host.address}:`),
  });
