/**
 * Right bytes at full speed: checksummed transfers through the TUN devices with each offload on one side and another set on the other, over
 * networks that lose, repeat and reorder, over small links, and while the path is switched.
 *
 * The bridge of a lab carries batches of frames whole, so what happens to single ones is tested over the userspace wire, whose
 * ports make the kernel cut them.
 */
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startAgent, startCoordinator, startPair, transferFile } from "./mesh.ts";
import type { Lab } from "./topology.ts";

const TRAFFIC = fileURLToPath(new URL("traffic.ts", import.meta.url));
const UDP_BATCHES = fileURLToPath(new URL("udp_batches.ts", import.meta.url));
const SITES = [{ nat: "fullcone" }, { nat: "portrestricted" }] as const;

/** More than any relay carries while it is looked at. */
const FLOW_BYTES = 20_000_000_000;
/** A queue that stands would take more; what two cores take to hand a packet through seven threads is some 10 ms. */
const MOST_LOADED_MS = 50;

const IS_FULL = process.env["LAB_FULL"] === "1";
/** Each on and off. */
const SOME_SETS = [
  "none",
  "tun-checksum",
  "tun-checksum,tun-tcp",
  "tun-checksum,tun-udp,udp-send",
  "udp-send,udp-receive",
  "udp-many",
  "libcrypto,udp-receive",
  "",
];

/** Every combination that is one: the TUN device's two need the first. */
function everySet(): string[] {
  const tun = [
    [],
    ["tun-checksum"],
    ["tun-checksum", "tun-tcp"],
    ["tun-checksum", "tun-udp"],
    ["tun-checksum", "tun-tcp", "tun-udp"],
  ];
  const batches = [[], ["udp-send"], ["udp-receive"], ["udp-send", "udp-receive"]];
  const others = batches.flatMap((names) => [names, [...names, "udp-many"]]);
  const sealing = [[], ["libcrypto"]];
  const all = tun.flatMap((a) => others.flatMap((b) => sealing.map((c) => [...a, ...b, ...c].join(","))));
  return all.map((names) => (names === "" ? "none" : names));
}

describe("a transfer is right both ways, IPv4 and IPv6, when one side has all offloads and the other has", () => {
  test.each(IS_FULL ? everySet() : SOME_SETS)("%j", async (offloads) => {
    await withLab({ sites: SITES }, async (lab) => {
      const [one, two] = await pairWith(lab, offloads);
      await transfers(one, two, 20_000_000);
    });
  });
});

describe("UDP that leaves the program in batches, as QUIC does it, arrives datagram by datagram, when the sender has", () => {
  // Whether the TUN device takes batches whole is seen by how many packets it has counted.
  test.each([
    ["all offloads", "", true],
    ["no UDP super-packets", "tun-checksum,tun-tcp,udp-send,udp-receive,udp-many,libcrypto", false],
    ["none", "none", false],
  ] as const)("%s", async (_, offloads, isWhole) => {
    await withLab({ sites: SITES }, async (lab) => {
      const [two, one] = await pairWith(lab, offloads);
      const { meshIPv4 } = (await two.status()).self;
      const receiver = two.host.spawn([process.execPath, UDP_BATCHES, "receive", "5301"]);
      await receiver.waitFor("receiver", ({ text }) => (text === "ready" ? true : undefined), 5000);
      const before = await sentPackets(one);
      const output = await one.host.execChecked([process.execPath, UDP_BATCHES, "send", meshIPv4, "5301", "100"]);
      expect(JSON.parse(output)).toEqual({ sent: 4000, failed: 0 });
      await new Promise((resolve) => setTimeout(resolve, 200));
      const packets = (await sentPackets(one)) - before;
      receiver.closeInput();
      const account = await receiver.waitFor("account", ({ text }) => (text.startsWith("{") ? text : undefined), 5000);
      console.log(`${packets} packets into the TUN device for 4000 datagrams: ${account}`);
      expect(JSON.parse(account)).toEqual({ received: 4000, wrong: 0 });
      if (isWhole) expect(packets).toBeLessThan(1000);
      else expect(packets).toBeGreaterThanOrEqual(4000);
    });
  });
});

test("a transfer is right both ways over IPv6 outside", async () => {
  await withLab({ sites: [{ nat: "udpblocked" }, { nat: "udpblocked" }], ipv6: true }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    expect((await one.peer(two.name)).path?.remoteAddress).toContain("2001:db8");
    await transfers(one, two, 50_000_000);
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

test("a ping beside a flow that fills a relay has its answer, every time", async () => {
  await withLab({ sites: SITES }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const { meshIPv4 } = (await two.status()).self;
    const traffic = (...words: string[]): string[] => [process.execPath, TRAFFIC, ...words];
    const server = two.host.spawn(traffic("serve", meshIPv4, "5302"));
    await server.waitFor("server", ({ text }) => (text === "ready" ? true : undefined), 5000);
    for (const rung of ["websocket", "ssh"]) {
      expect((await one.command(["path", two.name, rung])).code).toBe(0);
      const sentBytes = async (): Promise<number> => (await one.peer(two.name)).txBytes;
      const before = await sentBytes();
      const flow = one.host.spawn(traffic("send", meshIPv4, "5302", `${FLOW_BYTES}`));
      await expect.poll(sentBytes, { timeout: 5000 }).toBeGreaterThan(before + 10_000_000);
      const output = await one.host.execChecked(traffic("rtt", meshIPv4, "5302", "100"), { timeoutMs: 20_000 });
      expect(flow.running).toBe(true);
      await flow.stop();
      const answers = (JSON.parse(output) as (number | null)[]).map((ms) => ms ?? Infinity).toSorted((a, b) => a - b);
      const [median, slow] = [answers[50] ?? Infinity, answers[95] ?? Infinity];
      console.log(`${rung}: ${median.toFixed(1)} ms in the median, ${slow.toFixed(1)} at the 95th percentile`);
      expect(answers.filter((ms) => ms === Infinity)).toEqual([]);
      expect(median).toBeLessThan(MOST_LOADED_MS);
    }
  });
});

/** Packets that this machine's kernel has handed to its TUN device. */
async function sentPackets(agent: MeshAgent): Promise<number> {
  const { tun } = (await agent.status()).self;
  const [link] = JSON.parse(await agent.host.execChecked(["ip", "-j", "-s", "link", "show", "dev", `${tun}`])) as {
    readonly stats64: { readonly tx: { readonly packets: number } };
  }[];
  return link?.stats64.tx.packets ?? Number.NaN;
}

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
