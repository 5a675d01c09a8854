/** Machines that live in 100.64.0.0/10 themselves, as carriers' customers and users of other overlays do. The mesh range is in there too. */
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startPair, transferFile } from "./mesh.ts";
import type { Host } from "./topology.ts";

test("hosts whose address and gateway are in 100.64.0.0/10 connect directly", async () => {
  await withLab(
    {
      sites: [
        { nat: "portrestricted", cgnRange: true },
        { nat: "restricted", cgnRange: true },
      ],
    },
    async (lab) => {
      expect(lab.hosts.map(({ address }) => address.slice(0, 7))).toEqual(["100.64.", "100.64."]);
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      expect((await transferFile(one, two)).bytes).toBe(10_000_000);
      const { path, why } = await one.peer(two.name);
      expect(path?.kind).toBe("direct");
      expect(path?.remoteAddress.split(":")[0]).toBe(lab.site(2).publicAddress);
      expect(why).toContain("through both routers");
    },
  );
});

test("mesh addresses that a route of the host covers are reported and left alone; the other family works", async () => {
  await withLab({ sites: [{ nat: "portrestricted" }, { nat: "restricted" }] }, async (lab) => {
    const { host } = lab.site(1);
    // Another overlay, or a carrier that numbers its whole network so.
    await host.execChecked(["ip", "route", "add", "100.64.0.0/10", "via", lab.site(1).lan?.gateway ?? ""]);
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const [own, peer] = [(await one.status()).self, await one.peer(two.name)];
    for (const address of [own.meshIPv4, peer.meshIPv4]) {
      expect(await warningAbout(one, address)).toContain("route 100.64.0.0/10 of eth0 covers it");
    }
    expect(await routeTo(host, peer.meshIPv4)).toContain("dev eth0");
    expect(await routeTo(host, own.meshIPv4)).toContain("dev eth0");
    expect(await routeTo(host, peer.meshIPv6)).toContain(`dev ${own.tun}`);
    expect((await transferFile(two, one, { ipv6: true })).bytes).toBe(10_000_000);
    expect((await one.peer(two.name)).path?.kind).toBe("direct");
  });
});

/** The log line that says that this address is not installed. */
async function warningAbout(agent: MeshAgent, address: string): Promise<string> {
  return agent.process.waitFor(
    `warning about ${address}`,
    ({ text }) => (text.includes('"warn"') && text.includes(`mesh address ${address}`) ? text : undefined),
    2_000,
  );
}

const routeTo = async (host: Host, address: string): Promise<string> =>
  host.execChecked(["ip", "route", "get", address]);
