/**
 * A home lab: the coordinator stands in one peer's own LAN, behind a port forward. Its neighbour there sees the coordinator's STUN from
 * inside and learns nothing of the address that the internet sees; it has to learn it in another way.
 */
import { existsSync } from "node:fs";
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startAgent, startCoordinator } from "./mesh.ts";
import { MINIUPNPD, Miniupnpd } from "./miniupnpd.ts";
import type { Lab, SiteNat } from "./topology.ts";

const isMissing = !existsSync(MINIUPNPD);

test.skipIf(isMissing).each<[SiteNat, SiteNat]>([
  ["portrestricted", "portrestricted"],
  ["symmetric", "symmetric"],
])(
  `%s x %s: by the router's port mapping${isMissing ? ` (skipped: ${MINIUPNPD} is not installed)` : ""}`,
  async (home, away) => {
    await withLab({ sites: [{ nat: home, hosts: 2 }, { nat: away }] }, async (lab) => {
      await Miniupnpd.start(lab, lab.site(1));
      const { neighbour, others } = await startHomeMesh(lab);
      const [other] = others;
      if (other === undefined) throw new Error("A peer elsewhere expected");
      await bothDirect(neighbour, other);
      // STUN has shown it nothing but its own address: what the peer reaches it at is the router's word.
      expect((await neighbour.status()).self.nat.publicAddress).toMatch(/^10\.1\.0\.10:/);
      const mapped = (await neighbour.status()).self.portMapping?.address;
      expect((await neighbour.status()).self.portMapping?.note).toBeNull();
      // What it cannot know it does not say.
      expect((await neighbour.status()).self.nat).toMatchObject({ label: "unknown", certain: false });
      expect((await neighbour.netcheck()).summary).toContain("The coordinator is in this machine's own network");
      expect(mapped).toMatch(/^198\.51\.100\.10:/);
      expect((await other.peer(neighbour.name)).path?.remoteAddress).toBe(mapped);
    });
  },
);

test("portrestricted x portrestricted: by what a third peer has seen", async () => {
  const sites = [{ nat: "portrestricted", hosts: 2 }, { nat: "portrestricted" }, { nat: "open" }] as const;
  await withLab({ sites }, async (lab) => {
    const { neighbour, others } = await startHomeMesh(lab);
    const [other, witness] = others;
    if (other === undefined || witness === undefined) throw new Error("Two peers elsewhere expected");
    await bothDirect(neighbour, witness);
    await bothDirect(neighbour, other);
    const seen = (await witness.peer(neighbour.name)).path?.remoteAddress;
    expect(seen).toMatch(/^198\.51\.100\.10:/);
    expect((await other.peer(neighbour.name)).path?.remoteAddress).toBe(seen);
  });
});

test("portrestricted x portrestricted alone: nobody can say, so it is relayed, why tells it on both sides, and its remedy works", async () => {
  await withLab({ sites: [{ nat: "portrestricted", hosts: 2 }, { nat: "portrestricted" }] }, async (lab) => {
    const { neighbour, others } = await startHomeMesh(lab);
    const [other] = others;
    if (other === undefined) throw new Error("A peer elsewhere expected");
    expect(await neighbour.wait(`direct=${other.name}`, 6)).toBe(7);
    const peer = await neighbour.peer(other.name);
    expect(peer.path?.kind).toBe("ssh");
    const remedy = "UPnP, NAT-PMP or PCP on either router would make a direct path possible";
    expect(peer.why).toContain(
      `coordinator is in this machine's own network, so nobody has seen the public address of this router; ${remedy}`,
    );
    expect((await other.peer(neighbour.name)).why).toContain(
      `coordinator is in the network of "${neighbour.name}", so nobody has seen the public address of the router there; ${remedy}`,
    );
    if (isMissing) return;
    await Miniupnpd.start(lab, lab.site(1));
    await bothDirect(neighbour, other);
  });
});

/** The coordinator on the second host of site 1, reached from outside through its router; agents on the others. */
async function startHomeMesh(lab: Lab): Promise<{ neighbour: MeshAgent; others: readonly MeshAgent[] }> {
  const home = lab.site(1);
  const [neighbourHost, machine] = home.hosts;
  if (neighbourHost === undefined || machine === undefined || home.router === undefined) {
    throw new Error("Site 1 needs a router and two hosts");
  }
  await home.router.execChecked(["nft", "-f", "-"], {
    input: `table ip home {
 chain pre { type nat hook prerouting priority dstnat - 5;
  iifname "wan" ip daddr ${home.publicAddress} tcp dport { 8080, 2222 } dnat to ${machine.address}
  iifname "wan" ip daddr ${home.publicAddress} udp dport { 3478, 3479 } dnat to ${machine.address}
 }
}
`,
  });
  const coordinator = await startCoordinator(lab, { machine });
  const key = await coordinator.createKey({ reusable: true });
  const outside = coordinator.url.replace(machine.address, home.publicAddress);
  const [neighbour, ...others] = await Promise.all([
    startAgent(lab, neighbourHost, { name: neighbourHost.role, url: coordinator.url, key }),
    ...lab.sites.slice(1).map(async ({ host }) => startAgent(lab, host, { name: host.role, url: outside, key })),
  ]);
  return { neighbour, others };
}
