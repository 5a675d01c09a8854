/**
 * Right bytes at full speed: checksummed transfers through the TUN devices with each offload on one side and another set on the other, over
 * networks that lose, repeat and reorder, over small links, and while the path is switched.
 *
 * The bridge of a lab carries batches of frames whole, so what happens to single ones is tested over the userspace wire, whose
 * ports make the kernel cut them.
 */
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startAgent, startCoordinator, startPair, transferFile } from "./mesh.ts";
import type { Lab } from "./topology.ts";

const SITES = [{ nat: "fullcone" }, { nat: "portrestricted" }] as const;

describe("a transfer is right both ways, IPv4 and IPv6, when one side has all offloads and the other has", () => {
  test.each([
    "none",
    "tun-checksum",
    "tun-checksum,tun-tcp",
    "tun-checksum,tun-udp,udp-send",
    "udp-send,udp-receive",
    "libcrypto,udp-receive",
    "",
  ])("%j", async (offloads) => {
    await withLab({ sites: SITES }, async (lab) => {
      const [one, two] = await pairWith(lab, offloads);
      await transfers(one, two, 20_000_000);
    });
  });
});

describe("a transfer is right both ways over a network that", () => {
  test.each([
    { lossPercent: 0.1, duplicatePercent: 0, reorderPercent: 0, bytes: 10_000_000 },
    { lossPercent: 1, duplicatePercent: 1, reorderPercent: 2, bytes: 4_000_000 },
    { lossPercent: 5, duplicatePercent: 0, reorderPercent: 0, bytes: 1_000_000 },
    { lossPercent: 0, duplicatePercent: 10, reorderPercent: 10, bytes: 4_000_000 },
  ])("loses $lossPercent %, repeats $duplicatePercent % and reorders $reorderPercent %", async ({ bytes, ...wire }) => {
    await withLab({ sites: SITES, roundTripMs: 4 }, async (lab) => {
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      await lab.setWire(wire);
      await transfers(one, two, bytes);
      await lab.setWire({ lossPercent: 0, duplicatePercent: 0, reorderPercent: 0 });
    });
  });
});

test.each(["hosts", "routers", "hosts of one site"])("links of 1280 bytes at the %s carry it, too", async (where) => {
  await withLab({ sites: SITES }, async (lab) => {
    for (const [index, host] of lab.hosts.entries()) {
      if (where === "hosts of one site" && index > 0) break;
      const machine = where === "routers" ? lab.site(index + 1).router : host;
      const device = where === "routers" ? "wan" : "eth0";
      await machine?.execChecked(["ip", "link", "set", "dev", device, "mtu", "1280"]);
    }
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    await transfers(one, two, 3_000_000);
  });
});

test("a transfer is right while its path is switched again and again", async () => {
  await withLab({ sites: SITES }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    let isOver = false;
    const transfer = transferFile(one, two, { bytes: 300_000_000, bytesPerSecond: 60_000_000 }).finally(() => {
      isOver = true;
    });
    let switches = 0;
    for (const rung of ["ssh", "auto", "websocket", "auto", "ssh", "websocket", "auto"]) {
      if (isOver) break;
      const { code, stderr } = await one.command(["path", two.name, rung]);
      expect([code, stderr]).toEqual([0, ""]);
      switches++;
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
    const { milliseconds, bytes } = await transfer;
    console.log(`${switches} switches in ${(bytes / 1e6).toFixed(0)} MB and ${milliseconds.toFixed(0)} ms`);
    expect(switches).toBeGreaterThanOrEqual(5);
  });
});

async function transfers(one: MeshAgent, two: MeshAgent, bytes: number): Promise<void> {
  const rates: string[] = [];
  for (const [from, to] of [
    [one, two],
    [two, one],
  ] as const) {
    for (const ipv6 of [false, true]) {
      const { milliseconds } = await transferFile(from, to, { bytes, ipv6 });
      rates.push(((bytes * 8) / milliseconds / 1000).toFixed(0));
    }
  }
  console.log(`Mbit/s there (IPv4, IPv6) and back: ${rates.join(", ")}`);
  expect((await one.peer(two.name))?.path?.kind).toBe("direct");
}

async function pairWith(lab: Lab, offloads: string): Promise<[MeshAgent, MeshAgent]> {
  const coordinator = await startCoordinator(lab);
  const key = await coordinator.createKey({ reusable: true });
  const [first, second] = lab.hosts;
  if (first === undefined || second === undefined) throw new Error("This lab has not two hosts");
  const options = { url: coordinator.url, key };
  const agents = await Promise.all([
    startAgent(lab, first, { ...options, name: "one" }),
    startAgent(lab, second, { ...options, name: "two", env: { TUNNELMESH_OFFLOADS: offloads } }),
  ]);
  await bothDirect(...agents);
  return agents;
}
