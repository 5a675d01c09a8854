/**
 * Links that carry less than Ethernet, or more: the path's size is found without a word of ICMP, routes and TCP follow it, and a link that
 * becomes narrower under a flow costs the flow a moment and not its path.
 */
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startPair, transferFile } from "./mesh.ts";
import { sleep, withFlow } from "./numbered_flow.ts";
import type { Machine, Site } from "./topology.ts";

const SITES = [{ nat: "portrestricted" }, { nat: "fullcone" }] as const;
/** IPv4, UDP, and what sealing adds. */
const AROUND_BYTES = 28 + 30;
const ETHERNET = 1500 - AROUND_BYTES;
/** The search is content with this (path_mtu.ts). */
const CLOSE_BYTES = 4;
/** What comes in may be larger by a VLAN tag, whether it has one or not. */
const VLAN_BYTES = 4;

test("a link of 1400 bytes whose router says nothing of it is found, and TCP's segments fit", async () => {
  await withLab({ sites: SITES }, async (lab) => {
    await narrow(lab.site(1), 1400);
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    for (const [agent, peer] of [
      [one, two],
      [two, one],
    ] as const) {
      const mtu = await settled(agent, peer, 1400 - AROUND_BYTES);
      await expect.poll(async () => routeMtu(agent, peer), { timeout: 2000 }).toBe(mtu);
      const { milliseconds } = await transferFile(agent, peer, { bytes: 5_000_000 });
      console.log(`packets of ${mtu} bytes, 5 MB in ${milliseconds.toFixed(0)} ms`);
      expect((await agent.peer(peer.name)).path?.kind).toBe("direct");
    }
  });
});

test("a link that becomes narrower under 1000 packets a second is noticed in a moment, and the path stays", async () => {
  await withLab({ sites: SITES }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    await settled(one, two, ETHERNET);
    const { account, lost } = await withFlow(
      one,
      two,
      5,
      async () => {
        await sleep(1000);
        await narrow(lab.site(1), 1380);
        await sleep(3000);
        await settled(one, two, 1380 - AROUND_BYTES);
      },
      { bytes: 1380 },
    );
    console.log(`narrower: lost ${lost}, longest gap ${account.longestGapMs.toFixed(0)} ms`);
    expect(account.longestGapMs).toBeLessThan(3 * 1000);
    expect([account.duplicated, account.reordered]).toEqual([0, 0]);
    const { path, history } = await one.peer(two.name);
    expect(path?.kind).toBe("direct");
    expect(history.filter(({ from }) => from === "direct")).toEqual([]);
  });
});

test("two machines on one LAN of jumbo frames use them", async () => {
  await withLab({ sites: [{ nat: "portrestricted", hosts: 2 }] }, async (lab) => {
    const { router } = lab.site(1);
    if (router === undefined) throw new Error("A router expected");
    const ports = await router.execChecked(["ip", "-o", "link", "show", "master", "lan"]);
    for (const [, port = ""] of ports.matchAll(/^\d+: ([^@:]+)/gm)) await setMtu(router, port, 9000);
    for (const host of lab.hosts) await setMtu(host, "eth0", 9000);
    await setMtu(router, "lan", 9000);
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const mtu = await settled(one, two, 9000 - AROUND_BYTES);
    expect(mtu).toBe(9000 - AROUND_BYTES);
    const { milliseconds } = await transferFile(one, two, { bytes: 20_000_000 });
    console.log(`jumbo frames: 20 MB in ${milliseconds.toFixed(0)} ms`);
  });
});

/** The router's link to the internet carries less from here on, and its router sends no ICMP about that. */
async function narrow(site: Site, mtu: number): Promise<void> {
  if (site.router === undefined) throw new Error("A router expected");
  await site.router.execChecked(["nft", "-f", "-"], {
    input: [
      "table inet silence {",
      " chain out { type filter hook output priority filter;",
      "  icmp type destination-unreachable drop",
      "  icmpv6 type packet-too-big drop",
      " }",
      "}",
      "",
    ].join("\n"),
  });
  await setMtu(site.router, "wan", mtu);
}

async function setMtu(machine: Machine, device: string, mtu: number): Promise<void> {
  await machine.execChecked(["ip", "link", "set", "dev", device, "mtu", `${mtu}`]);
}

/** The packets that pass in one frame, once the search has ended near what is expected. */
async function settled(agent: MeshAgent, peer: MeshAgent, expected: number): Promise<number> {
  const mtu = async (): Promise<number> => (await agent.peer(peer.name)).path?.mtu ?? 0;
  await expect
    .poll(mtu, { timeout: 6000 })
    .toSatisfy((bytes: number) => bytes <= expected + VLAN_BYTES && bytes > expected - CLOSE_BYTES);
  return mtu();
}

/** What the kernel of this machine thinks of packets to the peer. */
async function routeMtu(agent: MeshAgent, peer: MeshAgent): Promise<number> {
  const { meshIPv4 } = await agent.peer(peer.name);
  const route = await agent.host.execChecked(["ip", "route", "get", meshIPv4]);
  return Number(/ mtu (\d+)/.exec(route)?.[1]);
}
