import { describe, expect, test } from "vitest";
import type { Protocol } from "../../../../agent/portmap/client.ts";
import { encodePcpMap } from "../../../../agent/portmap/pcp.ts";
import { FakeGateway, GATEWAY, LOCAL, PORT } from "./fake_gateway.ts";

const HOUR_MS = 3600_000;

function mapped(options: ConstructorParameters<typeof FakeGateway>[0]): FakeGateway {
  const gateway = new FakeGateway(options);
  gateway.begin();
  gateway.run(400);
  return gateway;
}

describe("which protocol is taken", () => {
  test.each<[Protocol[], Protocol]>([
    [["pcp", "nat-pmp", "upnp"], "pcp"],
    [["nat-pmp", "upnp"], "nat-pmp"],
    [["upnp"], "upnp"],
    [["pcp"], "pcp"],
  ])("of %j: %s, within 300 ms", (speaks, protocol) => {
    const gateway = new FakeGateway({ speaks });
    gateway.begin();
    gateway.run(300);
    expect(gateway.changes).toEqual([`${protocol} 198.51.100.10:${PORT}`]);
    expect(gateway.mappings).toEqual([{ external: PORT, lease: 7200 }]);
    gateway.run(3000);
    const expected = {
      pcp: speaks.includes("pcp"),
      "nat-pmp": speaks.includes("nat-pmp"),
      upnp: speaks.includes("upnp"),
    };
    expect(gateway.machine.report().spoken).toEqual(expected);
  });

  test("a preferred protocol that refuses is passed over", () => {
    const gateway = mapped({ speaks: ["pcp", "nat-pmp"], pcpResult: 2 });
    expect(gateway.changes).toEqual([`nat-pmp 198.51.100.10:${PORT}`]);
    expect(gateway.machine.report().refusal).toBeUndefined();
  });

  test("when all refuse, the report says who and why", () => {
    const gateway = mapped({ speaks: ["pcp", "upnp"], pcpResult: 2, fault: 606 });
    gateway.run(3000);
    expect(gateway.machine.report()).toMatchObject({
      mapping: undefined,
      refusal: { protocol: "pcp", reason: "it forbids this" },
    });
  });

  test("a missing public address explains the other refusals", () => {
    const gateway = mapped({ speaks: ["pcp", "upnp"], pcpResult: 8, externalIp: "0.0.0.0" });
    gateway.run(3000);
    expect(gateway.machine.report().refusal?.reason).toBe("no address");
  });

  test("on a public address nothing is searched by multicast", () => {
    const gateway = new FakeGateway({ speaks: ["upnp"] });
    gateway.begin(PORT, false);
    gateway.run(10_000);
    expect(gateway.asked.filter((what) => what.startsWith("ssdp"))).toEqual([]);
    expect(gateway.machine.report().spoken.upnp).toBeUndefined();
  });

  test("without a port only what is spoken is found out", () => {
    const gateway = new FakeGateway({ speaks: ["pcp", "upnp"] });
    gateway.begin(null);
    gateway.run(10_000);
    expect(gateway.machine.isComplete).toBe(true);
    expect(gateway.machine.report().spoken).toEqual({ pcp: true, "nat-pmp": false, upnp: true });
    expect(gateway.asked.filter((what) => /map|Add/.test(what))).toEqual([]);
    expect(gateway.machine.deadline()).toBeUndefined();
  });
});

describe("UPnP, as routers differ", () => {
  test.each([
    ["version 2 is asked for any port", {}, ["AddAnyPortMapping 5000 7200"]],
    ["version 1 for this one", { version: 1 }, ["AddPortMapping 5000 7200"]],
    ["permanent leases only", { version: 1, leaseFault: 725 }, ["AddPortMapping 5000 7200", "AddPortMapping 5000 0"]],
    [
      "permanent leases only, and a router that says so vaguely",
      { version: 1, leaseFault: 402 },
      ["AddPortMapping 5000 7200", "AddPortMapping 5000 0"],
    ],
  ] as const)("%s", (_, options, calls) => {
    const gateway = mapped({ speaks: ["upnp"], ...options });
    expect(gateway.changes).toEqual([`upnp 198.51.100.10:${PORT}`]);
    expect(gateway.asked.filter((what) => what.includes("Add")).map((what) => what.replace("upnp ", ""))).toEqual([
      "GetExternalIPAddress",
      ...calls,
    ]);
  });

  test("a port that is somebody else's is left to them", () => {
    const gateway = mapped({ speaks: ["upnp"], version: 1, taken: [PORT] });
    const [mapping] = gateway.mappings;
    expect(mapping?.external).toBeGreaterThanOrEqual(1024);
    expect(mapping?.external).not.toBe(PORT);
    expect(gateway.changes).toEqual([`upnp 198.51.100.10:${mapping?.external}`]);
  });

  test("a router that refuses everything is asked eight times at most, and then left alone for a while", () => {
    const gateway = mapped({ speaks: ["upnp"], version: 1, fault: 718 });
    gateway.run(4000);
    expect(gateway.asked.filter((what) => what.includes("AddPortMapping"))).toHaveLength(8);
    expect(gateway.machine.report().refusal).toEqual({ protocol: "upnp", reason: "it refused with error 718" });
  });

  test("a permanent mapping is looked after, and removed", () => {
    const gateway = mapped({ speaks: ["upnp"], version: 1, leaseFault: 725 });
    gateway.restart();
    gateway.run(HOUR_MS);
    expect(gateway.mappings).toEqual([{ external: PORT, lease: 0 }]);
    gateway.close();
    expect(gateway.mappings).toEqual([]);
  });
});

describe("keeping the mapping", () => {
  test.each<Protocol>(["pcp", "nat-pmp", "upnp"])("%s: renewed at half of its lifetime", (protocol) => {
    const gateway = mapped({ speaks: [protocol], lifetime: 600 });
    const requests = (): number => gateway.asked.filter((what) => /map [1-9]|Add\w+ \d+ [1-9]/.test(what)).length;
    const first = requests();
    expect(first).toBe(1);
    gateway.run(290_000);
    // A look each minute or five costs PCP and NAT-PMP no mapping request.
    expect(requests()).toBe(1);
    gateway.run(20_000);
    expect(requests()).toBe(2);
    expect(gateway.changes).toHaveLength(1);
  });

  test("a gateway that falls silent keeps its word until the lease ends, then the candidate goes", () => {
    const gateway = mapped({ speaks: ["pcp"], lifetime: 120 });
    gateway.isSilent = true;
    gateway.run(119_000);
    expect(gateway.changes).toHaveLength(1);
    gateway.run(2000);
    expect(gateway.changes).toEqual([`pcp 198.51.100.10:${PORT}`, "none"]);
    gateway.isSilent = false;
    gateway.run(61_000);
    expect(gateway.changes.at(-1)).toBe(`pcp 198.51.100.10:${PORT}`);
  });

  test.each<"pcp" | "nat-pmp">(["pcp", "nat-pmp"])("%s: a restart is seen by the epoch within a minute", (protocol) => {
    const gateway = mapped({ speaks: [protocol] });
    gateway.run(300_000);
    gateway.restart();
    gateway.run(64_000);
    expect(gateway.mappings).toHaveLength(1);
  });

  test.each<Protocol>(["pcp", "nat-pmp", "upnp"])("%s: an announcement brings the mapping back at once", (protocol) => {
    const gateway = mapped({ speaks: [protocol] });
    gateway.run(300_000);
    gateway.restart();
    gateway.announce(protocol);
    gateway.run(100);
    expect(gateway.mappings).toHaveLength(1);
  });

  test("a gateway that moves to another address is believed", () => {
    const gateway = mapped({ speaks: ["nat-pmp"] });
    gateway.run(120_000);
    gateway.options = { ...gateway.options, externalIp: "198.51.100.99" };
    gateway.announce("nat-pmp");
    gateway.run(100);
    expect(gateway.changes.at(-1)).toBe(`nat-pmp 198.51.100.99:${PORT}`);
  });

  test("a doubt renews at once", () => {
    const gateway = mapped({ speaks: ["pcp"] });
    gateway.run(300_000);
    gateway.restart();
    gateway.machine.handleDoubt(gateway.now);
    gateway.drain();
    gateway.run(100);
    expect(gateway.mappings).toHaveLength(1);
  });

  test.each<Protocol>(["pcp", "nat-pmp", "upnp"])("%s: removed at the end", (protocol) => {
    const gateway = mapped({ speaks: [protocol] });
    expect(gateway.mappings).toHaveLength(1);
    gateway.close();
    expect(gateway.mappings).toEqual([]);
    expect(gateway.changes.at(-1)).toBe("none");
    expect(gateway.machine.deadline()).toBeUndefined();
  });

  test("another network: what was mapped is forgotten, and asked for there", () => {
    const gateway = mapped({ speaks: ["pcp"] });
    gateway.machine.setTarget({ gateway: "10.2.0.1", local: "10.2.0.10", port: PORT }, true, gateway.now);
    gateway.drain();
    expect(gateway.changes.at(-1)).toBe("none");
    // The old gateway is not listened to any more.
    gateway.announce("pcp");
    expect(gateway.machine.report().spoken.pcp).toBeUndefined();
  });
});

describe("politeness", () => {
  test("a network without any of it sees four tries, and ever fewer", () => {
    const gateway = new FakeGateway({ speaks: [] });
    gateway.begin();
    gateway.run(4000);
    expect(count(gateway)).toEqual({ "pcp announce": 4, "nat-pmp address": 4, "ssdp group": 8, "ssdp gateway": 8 });
    gateway.run(HOUR_MS);
    // Once a minute, four tries each.
    expect(count(gateway)["pcp announce"]).toBeLessThan(4 * 65);
  });

  test("a flood of announcements, forged or not, brings a look each three seconds", () => {
    const gateway = mapped({ speaks: ["pcp"] });
    gateway.run(10_000);
    const before = gateway.asked.length;
    for (let i = 0; i < 3000; i++) {
      gateway.announce("upnp");
      gateway.run(10);
    }
    expect(gateway.asked.length - before).toBeLessThanOrEqual(12);
  });

  test("a gateway with absurdly short leases does not keep us busy", () => {
    const gateway = mapped({ speaks: ["pcp"], lifetime: 1 });
    gateway.run(60_000);
    expect(gateway.asked.filter((what) => what.startsWith("pcp map")).length).toBeLessThanOrEqual(7);
  });
});

describe("hostile answers", () => {
  test("an answer of somebody else than the gateway, or from another port, changes nothing", () => {
    const gateway = new FakeGateway({ speaks: [] });
    gateway.begin();
    const announcement = Uint8Array.of(2, 0x80, ...new Uint8Array(22));
    gateway.deliver(announcement, 5351, "10.1.0.66");
    gateway.deliver(announcement, 6000, GATEWAY);
    expect(gateway.machine.report().spoken.pcp).toBeUndefined();
    gateway.deliver(announcement, 5351, GATEWAY);
    expect(gateway.machine.report().spoken.pcp).toBe(true);
  });

  test.each([
    ["another nonce", new Uint8Array(12).fill(9), []],
    // The control: all that was missing is the nonce.
    ["our nonce", Uint8Array.from({ length: 12 }, (_, i) => i + 1), ["pcp 192.0.2.66:666"]],
  ])("a PCP answer with %s", (_, nonce, changes) => {
    const gateway = new FakeGateway({ speaks: ["pcp"] });
    gateway.begin();
    gateway.run(2);
    gateway.isSilent = true;
    const external = { ip: "192.0.2.66", port: 666 };
    const answer = encodePcpMap({ local: LOCAL, nonce, internalPort: PORT, external, lifetime: 7200 });
    answer[1] = 0x81;
    answer.fill(0, 8, 24);
    gateway.deliver(answer, 5351);
    expect(gateway.changes).toEqual(changes);
  });

  test("an answer that nobody asked for gives no mapping", () => {
    const gateway = mapped({ speaks: ["nat-pmp"] });
    gateway.deliver(Uint8Array.of(0, 0x81, 0, 0, 0, 0, 0, 1, 0x13, 0x88, 0x02, 0x9a, 0, 0, 0x1c, 0x20), 5351);
    gateway.run(100);
    expect(gateway.changes).toEqual([`nat-pmp 198.51.100.10:${PORT}`]);
  });

  test("random datagrams and responses never throw, and never keep it awake", () => {
    const gateway = mapped({ speaks: ["upnp"] });
    let seed = 7;
    const random = (): number => (seed = (seed * 48_271) % 2_147_483_647);
    for (let i = 0; i < 2000; i++) {
      const bytes = Uint8Array.from({ length: random() % 64 }, () => random() & 0xff);
      bytes[0] = random() % 3;
      bytes[1] = 0x80 | (random() % 3);
      gateway.deliver(bytes, 5351);
      gateway.machine.handleHttp(random() % 40, random() % 2 === 0 ? bytes : undefined, gateway.now);
      gateway.drain();
      gateway.run(50);
    }
    expect(gateway.machine.report()).toBeDefined();
  });
});

function count(gateway: FakeGateway): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const what of gateway.asked) counts[what] = (counts[what] ?? 0) + 1;
  return counts;
}
