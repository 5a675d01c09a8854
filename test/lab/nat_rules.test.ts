/** Every kind of NAT is what its name says: judged by Debian's `stun` client and by sockets of our own on both sides of it. */
import { describe, expect, it } from "vitest";
import type { TransportAddress } from "../../shared/address.ts";
import { withLab } from "./lab_case.ts";
import { type NatKind, natRuleset } from "./nat_rules.ts";
import { type Filtering, filtering, mappedAddress, startStunServer } from "./stun_probe.ts";
import type { Host, Lab, SiteNat } from "./topology.ts";
import { UdpProber } from "./udp_probe.ts";

const SERVERS: readonly TransportAddress[] = ["203.0.113.10", "203.0.113.11"].flatMap((ip) =>
  [3478, 3479].map((port) => ({ ip, port })),
);
const SERVER: TransportAddress = { ip: "203.0.113.10", port: 3478 };
/** Debian's package stun-client. Without it our own sockets are the only judge, and the report says so. */
const DEBIAN_CLIENT = Bun.which("stun") !== null;
if (!DEBIAN_CLIENT)
  console.log("Debian's stun client is not installed (stun-client): NAT kinds are judged by our own probes only");
/** Long enough for a datagram that is not dropped, in a lab without delay. */
const NOTHING_MS = 300;

interface Expected {
  readonly nat: SiteNat;
  readonly filtering: Filtering;
  readonly debian: string;
  /** External ports of one inside port, 5000, towards the four server sockets in turn. */
  readonly ports: (ports: readonly number[]) => void;
}

const preserved = (ports: readonly number[]): void => expect(ports).toEqual([5000, 5000, 5000, 5000]);
/** Random ports for different destinations may well be equal, but not all four of them. */
const varied = (ports: readonly number[]): void => expect(new Set(ports).size).toBeGreaterThan(1);
const block = (size: number) => (ports: readonly number[]) => {
  varied(ports);
  for (const port of ports) {
    expect(port).toBeGreaterThanOrEqual(40_000);
    expect(port).toBeLessThan(40_000 + size);
  }
};
const STRICT = "address-and-port-dependent";

const KINDS: readonly Expected[] = [
  { nat: "open", filtering: "endpoint-independent", debian: "Open", ports: preserved },
  { nat: "firewalled", filtering: STRICT, debian: "Firewall", ports: preserved },
  {
    nat: "fullcone",
    filtering: "endpoint-independent",
    debian: "Independent Mapping, Independent Filter, preserves ports, no hairpin",
    ports: preserved,
  },
  {
    nat: "restricted",
    filtering: "address-dependent",
    debian: "Independent Mapping, Address Dependent Filter, preserves ports, no hairpin",
    ports: preserved,
  },
  {
    nat: "portrestricted",
    filtering: STRICT,
    debian: "Independent Mapping, Port Dependent Filter, preserves ports, no hairpin",
    ports: preserved,
  },
  {
    nat: "symmetric",
    filtering: STRICT,
    debian: "Dependent Mapping, random port",
    ports: (ports) => {
      varied(ports);
      // A sequence would be no random NAT: three equal small steps do not happen by chance.
      expect(new Set(ports.slice(1).map((port, index) => port - (ports[index] ?? 0))).size).toBeGreaterThan(1);
    },
  },
  {
    nat: "symseq",
    filtering: STRICT,
    debian: "Dependent Mapping, random port",
    ports: (ports) => expect(ports).toEqual([20_000, 20_001, 20_002, 20_003]),
  },
  { nat: "symblock256", filtering: STRICT, debian: "Dependent Mapping, random port", ports: block(256) },
  { nat: "symblock512", filtering: STRICT, debian: "Dependent Mapping, random port", ports: block(512) },
  { nat: "symblock1024", filtering: STRICT, debian: "Dependent Mapping, random port", ports: block(1_024) },
];

describe("a NAT of kind", () => {
  it.each(KINDS)("$nat maps and filters as its name says", async ({ nat, filtering: expected, debian, ports }) => {
    await withLab({ sites: [{ nat }] }, async (lab) => {
      await startStunServer(lab);
      const prober = new UdpProber(lab.site(1).host);
      const socket = await prober.bind(5000);
      const mapped: TransportAddress[] = [];
      for (const server of SERVERS) mapped.push(must(await mappedAddress(socket, server)));
      for (const address of mapped) expect(address.ip).toBe(lab.site(1).publicAddress);
      ports(mapped.map(({ port }) => port));
      expect(await filtering(await prober.bind(), SERVER)).toBe(expected);
      if (!DEBIAN_CLIENT) return;
      let verdict = "";
      // A random port may be the same twice, one time in 256 at worst; the client then takes the mapping for an independent one.
      for (let round = 0; round < 3 && !verdict.includes(debian); round += 1) {
        verdict = await debianVerdict(lab.site(1).host);
      }
      expect(verdict).toContain(debian);
    });
  });

  it.each(["fullcone", "restricted", "portrestricted"] as const)(
    "%s with hairpin lets two inside hosts meet at their external addresses",
    async (nat) => {
      await withLab({ sites: [{ nat, hosts: 2, hairpin: true }] }, async (lab) => {
        await startStunServer(lab);
        const [first, second] = await insideSockets(lab);
        const [one, two] = [must(await mappedAddress(first, SERVER)), must(await mappedAddress(second, SERVER))];
        first.send(two, "first opens its filter");
        // Only the filter of the first is open yet, unless there is none: what arrives comes from the external address.
        expect(await second.senderOf("first opens its filter", NOTHING_MS)).toEqual(
          nat === "fullcone" ? one : undefined,
        );
        second.send(one, "second to first");
        expect(await first.senderOf("second to first")).toEqual(two);
        first.send(two, "first to second");
        expect(await second.senderOf("first to second")).toEqual(one);
      });
    },
  );

  it("fullcone without hairpin keeps two inside hosts apart at their external addresses", async () => {
    await withLab({ sites: [{ nat: "fullcone", hosts: 2 }] }, async (lab) => {
      await startStunServer(lab);
      const [first, second] = await insideSockets(lab);
      const [one, two] = [must(await mappedAddress(first, SERVER)), must(await mappedAddress(second, SERVER))];
      first.send(two, "to second");
      second.send(one, "to first");
      expect(await second.senderOf("to second", NOTHING_MS)).toBeUndefined();
      expect(await first.senderOf("to first", 0)).toBeUndefined();
      // On the LAN itself nothing is between them.
      first.send(second.local, "on the LAN");
      expect(await second.senderOf("on the LAN")).toEqual(first.local);
    });
  });

  it.each(["fullcone", "restricted", "portrestricted"] as const)(
    "%s gives two inside hosts on one port an external port each, whatever they talk to",
    async (nat) => {
      await withLab({ sites: [{ nat, hosts: 2 }] }, async (lab) => {
        await startStunServer(lab);
        const [first, second] = await insideSockets(lab);
        const ports = { first: new Set<number>(), second: new Set<number>() };
        for (const server of SERVERS) {
          ports.second.add(must(await mappedAddress(second, server)).port);
          ports.first.add(must(await mappedAddress(first, server)).port);
        }
        expect([...ports.first]).toEqual([5000]);
        expect([...ports.second]).toEqual([5000 ^ 0x155]);
        const filters = await Promise.all(
          [first, second].map(async (_, index) =>
            filtering(await new UdpProber(hostAt(lab, index)).bind(6000 + index), SERVER),
          ),
        );
        expect(filters[1]).toBe(filters[0]);
      });
    },
  );

  it.each([
    ["drops unasked packets keeps its port", "drop", false],
    ["takes unasked packets itself moves to another port", "open", true],
  ] as const)("portrestricted whose router %s towards whoever sent too early", async (_, input, moves) => {
    await withLab({ sites: [{ nat: "portrestricted", input }, { nat: "open" }] }, async (lab) => {
      await startStunServer(lab);
      const inside = await new UdpProber(lab.site(1).host).bind(5000);
      const outside = await new UdpProber(lab.site(2).host).bind(7000);
      const external = must(await mappedAddress(inside, SERVER));
      outside.send(external, "too early");
      expect(await inside.senderOf("too early", NOTHING_MS)).toBeUndefined();
      inside.send(outside.local, "late");
      const seen = must(await outside.senderOf("late"));
      if (moves) expect(seen.port).not.toBe(external.port);
      else expect(seen).toEqual(external);
    });
  });
});

describe("an exit policy", () => {
  it("udpblocked lets no UDP over IPv4 out, but UDP over IPv6 behind the stateful firewall", async () => {
    const site = { nat: "udpblocked", ipv6: true } as const;
    await withLab({ sites: [site, site], coordinatorAddresses: 1 }, async (lab) => {
      await startStunServer(lab);
      const [here, there] = [new UdpProber(lab.site(1).host), new UdpProber(lab.site(2).host)];
      expect(await mappedAddress(await here.bind(), SERVER, NOTHING_MS)).toBeUndefined();
      if (DEBIAN_CLIENT) expect(await debianVerdict(lab.site(1).host)).toContain("Blocked");
      const one = await here.bind(5000, lab.site(1).host.ipv6Address);
      const two = await there.bind(5000, lab.site(2).host.ipv6Address);
      expect(await mappedAddress(one, { ip: "2001:db8::10", port: 3478 })).toEqual(one.local);
      one.send(two.local, "unasked");
      expect(await two.senderOf("unasked", NOTHING_MS)).toBeUndefined();
      two.send(one.local, "through the hole");
      expect(await one.senderOf("through the hole")).toEqual(two.local);
      one.send(two.local, "answer");
      expect(await two.senderOf("answer")).toEqual(one.local);
    });
  });

  it("tcp443only lets TCP to port 443 out and nothing else", async () => {
    await withLab({ sites: [{ nat: "tcp443only" }, { nat: "open" }] }, async (lab) => {
      await startStunServer(lab);
      const { host } = lab.site(1);
      expect(await mappedAddress(await new UdpProber(host).bind(), SERVER, NOTHING_MS)).toBeUndefined();
      const outside = lab.site(2).host;
      for (const port of ["443", "2222"]) {
        const server = outside.spawn([
          process.execPath,
          `${import.meta.dirname}/traffic.ts`,
          "serve",
          outside.address,
          port,
        ]);
        await server.waitFor("ready", (line) => (line.text === "ready" ? true : undefined), 5_000);
      }
      const connect = async (port: number): Promise<number> =>
        (await host.exec(["timeout", "1", "bash", "-c", `: > /dev/tcp/${outside.address}/${port}`])).code;
      expect(await connect(443)).toBe(0);
      expect(await connect(2222)).toBe(124);
    });
  });
});

describe("a site", () => {
  it("changes its kind while flows run, and forgets them when told", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "open" }] }, async (lab) => {
      await startStunServer(lab);
      const inside = await new UdpProber(lab.site(1).host).bind(5000);
      expect(must(await mappedAddress(inside, SERVER)).port).toBe(5000);
      await lab.site(1).setNat("symseq");
      expect(must(await mappedAddress(inside, SERVER)).port).toBe(5000);
      await lab.site(1).flushConntrack();
      expect(must(await mappedAddress(inside, SERVER)).port).toBe(20_000);
      await lab.site(1).setNat("udpblocked");
      expect(await mappedAddress(inside, SERVER, NOTHING_MS)).toBeUndefined();
      await lab.site(1).setNat("fullcone");
      expect(await mappedAddress(inside, SERVER)).toBeDefined();
    });
  });

  it("in a carrier's range has host and gateway in 100.64.0.0/10 and reaches the internet", async () => {
    await withLab({ sites: [{ nat: "fullcone", cgnRange: true }] }, async (lab) => {
      await startStunServer(lab);
      const { host, lan } = lab.site(1);
      expect([host.address, lan?.gateway]).toEqual(["100.64.1.10", "100.64.1.1"]);
      expect(must(await mappedAddress(await new UdpProber(host).bind(5000), SERVER)).ip).toBe("198.51.100.10");
    });
  });

  it.each([
    { carrier: "fullcone", filtering: "address-and-port-dependent" },
    { carrier: "symmetric", filtering: "address-and-port-dependent" },
  ] as const)(
    "behind a $carrier carrier has the stricter of both behaviours",
    async ({ carrier, filtering: expected }) => {
      await withLab({ sites: [{ nat: "portrestricted", carrier }] }, async (lab) => {
        await startStunServer(lab);
        const prober = new UdpProber(lab.site(1).host);
        const socket = await prober.bind(5000);
        const ports = new Set<number>();
        for (const server of SERVERS) {
          const mapped = must(await mappedAddress(socket, server));
          expect(mapped.ip).toBe("198.51.100.10");
          ports.add(mapped.port);
        }
        if (carrier === "fullcone") expect([...ports]).toEqual([5000]);
        else expect(ports.size).toBeGreaterThan(1);
        expect(await filtering(await prober.bind(), SERVER)).toBe(expected);
        expect(lab.site(1).router?.address).toBe("100.127.1.2");
        // The home router lets anyone in; what is left is the carrier's filter.
        await lab.site(1).setNat("fullcone");
        const left = await filtering(await prober.bind(), SERVER);
        expect(left).toBe(carrier === "fullcone" ? "endpoint-independent" : expected);
      });
    },
  );

  it.each([true, false])(
    "shares a carrier with another, which lets the two meet with hairpin alone: %s",
    async (hairpin) => {
      const sites = [
        { nat: "portrestricted", carrier: "fullcone", carrierHairpin: hairpin },
        { nat: "portrestricted", carrierOf: 1 },
      ] as const;
      await withLab({ sites }, async (lab) => {
        await startStunServer(lab);
        const first = await new UdpProber(lab.site(1).host).bind(5000);
        const second = await new UdpProber(lab.site(2).host).bind(5000);
        const [one, two] = [must(await mappedAddress(first, SERVER)), must(await mappedAddress(second, SERVER))];
        expect([one, two].map(({ ip }) => ip)).toEqual(["198.51.100.10", "198.51.100.10"]);
        expect(lab.sites.map(({ router }) => router?.address)).toEqual(["100.127.1.2", "100.127.1.3"]);
        expect(two.port).not.toBe(one.port);
        first.send(two, "opens the first home router");
        expect(await second.senderOf("opens the first home router", NOTHING_MS)).toBeUndefined();
        second.send(one, "second to first");
        expect(await first.senderOf("second to first", NOTHING_MS)).toEqual(hairpin ? two : undefined);
        first.send(two, "first to second");
        expect(await second.senderOf("first to second", NOTHING_MS)).toEqual(hairpin ? one : undefined);
        // Nor is there a way past the carrier's NAT.
        const routers = lab.sites.map(({ router }) => must(router));
        expect((await must(routers[0]).exec(["ping", "-c", "1", "-W", "0.2", "100.127.1.3"])).code).toBe(1);
      });
    },
  );

  it("keeps its hosts from each other when they are isolated, but not from the router", async () => {
    await withLab({ sites: [{ nat: "fullcone", hosts: 2, hairpin: true, isolated: true }] }, async (lab) => {
      await startStunServer(lab);
      const [first, second] = await insideSockets(lab);
      const [one, two] = [must(await mappedAddress(first, SERVER)), must(await mappedAddress(second, SERVER))];
      first.send(second.local, "on the LAN");
      first.send(two, "by the router");
      expect(await second.senderOf("by the router")).toEqual(one);
      expect(await second.senderOf("on the LAN", NOTHING_MS)).toBeUndefined();
    });
  });

  it("may use the private network of another site", async () => {
    const site = { nat: "portrestricted", lan: "192.168.1.0/24" } as const;
    await withLab({ sites: [site, site] }, async (lab) => {
      await startStunServer(lab);
      const [one, two] = await Promise.all(
        [lab.site(1), lab.site(2)].map(async ({ host }) => new UdpProber(host).bind(5000)),
      );
      const [first, second] = [must(one), must(two)];
      expect(first.local).toEqual(second.local);
      const [here, there] = [must(await mappedAddress(first, SERVER)), must(await mappedAddress(second, SERVER))];
      first.send(there, "knock");
      // Answered after the knock has left: from here on the first site's filter is open.
      await mappedAddress(first, SERVER);
      second.send(here, "hello");
      expect(await first.senderOf("hello")).toEqual(there);
    });
  });
});

describe("a rule set", () => {
  it.each<NatKind>(["symmetric", "symseq", "symblock256"])("of kind %s refuses hairpin", (kind) => {
    const nat = { kind, external: "198.51.100.10", lan: "10.1.0.0/24", hosts: ["10.1.0.10"], hairpin: true };
    expect(() => natRuleset(nat)).toThrow("no stable external port");
  });
});

const hostAt = (lab: Lab, index: number): Host => must(lab.site(1).hosts[index]);

/** A socket on port 5000 of each of the site's two hosts. */
async function insideSockets(lab: Lab) {
  return [await new UdpProber(hostAt(lab, 0)).bind(5000), await new UdpProber(hostAt(lab, 1)).bind(5000)] as const;
}

/** What Debian's STUN client says; its exit code carries the verdict too, so it is no measure of success. */
async function debianVerdict(host: Host): Promise<string> {
  const { stdout } = await host.exec(["stun", SERVER.ip], { timeoutMs: 15_000 });
  return /^Primary: .*$/m.exec(stdout)?.[0] ?? stdout;
}

function must<T>(value: T | undefined): T {
  if (value === undefined) throw new Error("No answer arrived");
  return value;
}
