/**
 * A small internet made of network namespaces: a coordinator, and sites of hosts behind kernel NATs.
 *
 *                       namespace "internet": a bridge, or with a round trip the userspace switch wire.ts
 *          203.0.113.1  ------------+---------------------+----------------------+----------------------
 *          2001:db8::1              |                     |                      |
 *                                  wan                   wan                    wan
 *                       "coord" 203.0.113.10     "r1" 198.51.100.10     "h2-1" 198.51.100.20
 *                               203.0.113.11          2001:db8::1:1            2001:db8::1:2
 *                               2001:db8::10     | nft: the NAT |       an open site: no router
 *                               2001:db8::11             lan
 *                                                   10.1.0.1/24, 2001:db8:1::1/64
 *                                               --+-------------+--
 *                                                eth0          eth0
 *                                             "h1-1"          "h1-2"
 *                                            10.1.0.10       10.1.0.11       default route by the router
 *                                       2001:db8:1::10  2001:db8:1::11
 *
 * Site n has the public address 198.51.100.(10 n) and the LAN 10.n.0.0/24 (100.64.n.0/24 with `cgnRange`). All public addresses are
 * on one segment, so any two of them are one hop apart. A host with a public address calls its interface `wan` too. Addresses
 * outside the documentation ranges exist only inside; no namespace has a way out to the real network.
 *
 * With `carrier`, a second NAT "c1" stands between: wan 198.51.100.10, lan 100.127.1.1, and r1 has wan 100.127.1.2. A site with
 * `carrierOf: 1` is behind the same one, r2 having wan 100.127.1.3, and the public address of both is 198.51.100.10.
 *
 * The NATs live in nat_rules.ts, sites in site.ts, carriers in carrier.ts, addresses in addressing.ts, namespaces and programs in namespace.ts and process.ts. A lab is up in well under a second;
 * `await using lab = await createLab(...)` takes it down again whatever happens.
 */
import { fileURLToPath } from "node:url";
import {
  carrierScript,
  GATEWAY,
  hostScript,
  internetScript,
  PORTS_FORWARDING,
  publicScript,
  routerScript,
} from "./addressing.ts";
import { Carrier } from "./carrier.ts";
import { Namespaces } from "./namespace.ts";
import { type LabProcess, runChecked } from "./process.ts";
import { type Host, isOpenSite, lanNamed, Machine, publicAddressOf, Site, type SiteOptions } from "./site.ts";

export { Host, isOpenSite, Machine, type NatOptions, Site, type SiteNat, type SiteOptions } from "./site.ts";

export interface LabOptions {
  readonly sites: readonly SiteOptions[];
  /** Public IPv4 addresses of the coordinator; default 2. */
  readonly coordinatorAddresses?: 1 | 2;
  /** Round trip between any two public addresses; default none (a bridge). 0 asks for the wire without delay, to be raised later. */
  readonly roundTripMs?: number;
  /** Frames lost on the internet segment, each way. Asks for the wire. */
  readonly lossPercent?: number;
  /** Routers between any two public addresses, as far as a packet's time to live can tell. Asks for the wire. */
  readonly hops?: number;
  /** Native IPv6 at every site that does not say otherwise; default false. */
  readonly ipv6?: boolean;
}

const WIRE = fileURLToPath(new URL("wire.ts", import.meta.url));
const COORDINATOR = {
  ipv4: ["203.0.113.10", "203.0.113.11"],
  ipv6: ["2001:db8::10", "2001:db8::11"],
} as const;
const WIRE_START_MS = 5_000;
const BRIDGE_START_MS = 3_000;
const RATE_QUEUE_MS = 50;
/**
 * Interface index of the first bridge port. When both ends of a veth pair happen to have one index in their two namespaces, the
 * kernel takes them for no pair and reports the carrier up to a second late: indexes that cannot be equal avoid that.
 */
const FIRST_PORT_INDEX = 1_000;

export async function createLab(options: LabOptions): Promise<Lab> {
  const lab = await Lab.create(options);
  try {
    await lab.build();
    return lab;
  } catch (error) {
    await lab.destroy();
    throw error;
  }
}

export class Lab {
  readonly sites: readonly Site[];
  readonly coordinator: Machine;
  readonly internet: Machine;
  readonly #namespaces: Namespaces;
  readonly #options: LabOptions;
  readonly #carriers: readonly Carrier[];
  #wire: LabProcess | undefined;
  #cleanups: (() => void | Promise<void>)[] = [];

  private constructor(namespaces: Namespaces, options: LabOptions) {
    this.#namespaces = namespaces;
    this.#options = options;
    this.internet = new Machine(namespaces, "internet", [GATEWAY.ipv4], [GATEWAY.ipv6]);
    const ipv6 = options.sites.map((site) => site.ipv6 ?? options.ipv6 ?? false);
    this.coordinator = new Machine(
      namespaces,
      "coord",
      COORDINATOR.ipv4.slice(0, options.coordinatorAddresses ?? 2),
      ipv6.includes(true) ? COORDINATOR.ipv6.slice(0, options.coordinatorAddresses ?? 2) : [],
    );
    const carriers = new Map<number, Carrier>();
    this.sites = options.sites.map((site, position) => {
      const index = position + 1;
      const own = carrierFor(namespaces, index, site);
      if (own !== undefined) carriers.set(index, own);
      const carrier = own ?? carriers.get(site.carrierOf ?? 0);
      return new Site(namespaces, index, site, { carrier, ipv6: ipv6[position] ?? false });
    });
    this.#carriers = [...carriers.values()];
  }

  /** The namespaces, with nothing in them; `createLab` is the way to a finished lab. */
  static async create(options: LabOptions): Promise<Lab> {
    const roles = options.sites.flatMap((site, index) => [
      ...(isOpenSite(site.nat) ? [] : [`r${index + 1}`]),
      ...(site.carrier === undefined ? [] : [`c${index + 1}`]),
      ...Array.from({ length: site.hosts ?? 1 }, (_, host) => `h${index + 1}-${host + 1}`),
    ]);
    return new Lab(await Namespaces.create(["internet", "coord", ...roles]), options);
  }

  get hosts(): readonly Host[] {
    return this.sites.flatMap((site) => site.hosts);
  }

  /** Site by number from 1, as in its addresses. */
  site(index: number): Site {
    const site = this.sites[index - 1];
    if (site === undefined) throw new Error(`This lab has no site ${index}`);
    return site;
  }

  async build(): Promise<void> {
    // A carrier stands for several sites.
    const segment = [this.coordinator, ...new Set(this.sites.flatMap((site) => site.outer))];
    await this.#connectSegment(segment);
    await this.#connectLans();
    await Promise.all(
      this.#scripts(segment).map(async ([machine, script]) => machine.execChecked(["sh", "-e"], { input: script })),
    );
    // A bridge drops frames of a port until it has heard of its carrier, which the kernel tells it later than us.
    const bridges = [
      ...(this.#wire === undefined ? [this.internet] : []),
      ...this.sites.flatMap((site) => site.router ?? []),
      ...this.#carriers.map(({ machine }) => machine),
    ];
    await Promise.all(
      bridges.map(async (machine) =>
        machine.execChecked(["sh", "-c", PORTS_FORWARDING], { timeoutMs: BRIDGE_START_MS }),
      ),
    );
    if (this.#wire !== undefined) {
      const { roundTripMs = 0, lossPercent = 0, hops = 0 } = this.#options;
      await this.setWire({ roundTripMs, lossPercent, hops });
    }
  }

  /** Changes delay or loss of the internet segment; returns once frames are treated so. Only in a lab that has the wire. */
  async setWire({
    roundTripMs,
    ...rest
  }: {
    readonly roundTripMs?: number;
    readonly lossPercent?: number;
    readonly duplicatePercent?: number;
    readonly reorderPercent?: number;
    readonly hops?: number;
  }): Promise<void> {
    const wire = this.#wire;
    if (wire === undefined) throw new Error("This lab has a bridge: ask createLab for roundTripMs or lossPercent");
    const since = wire.lines.length;
    wire.write(
      `${JSON.stringify({
        // A frame passes two ports on each of the two ways.
        ...(roundTripMs === undefined ? {} : { delayMs: roundTripMs / 4 }),
        ...rest,
      })}\n`,
    );
    await wire.waitFor(
      "confirmation of the change",
      (line) => (wire.lines.indexOf(line) >= since && line.text === "set" ? true : undefined),
      WIRE_START_MS,
    );
  }

  /**
   * From here on the internet segment carries so many Mbit/s towards each of its machines, with a queue before it that holds 50 ms, as good
   * routers do, and drops what comes then. Only in a lab that has the bridge.
   */
  async setRate(mbits: number): Promise<void> {
    if (this.#wire !== undefined) throw new Error("This lab has the wire: its rate cannot be limited");
    const ports = [this.coordinator, ...this.sites.flatMap((site) => site.outer)].keys();
    for (const index of ports) {
      const limit = ["rate", `${mbits}mbit`, "burst", "32kb", "latency", `${RATE_QUEUE_MS}ms`];
      await this.internet.execChecked(["tc", "qdisc", "replace", "dev", `p${index}`, "root", "tbf", ...limit]);
    }
  }

  /** Called by `destroy`, last one first, while the programs still run. */
  onDestroy(cleanup: () => void | Promise<void>): void {
    this.#cleanups.push(cleanup);
  }

  /** A new empty directory for a program's files, removed with the lab. */
  directory(name: string): string {
    return this.#namespaces.directory(name);
  }

  /** Output of every program started in the lab, for the report of a failed test. */
  logs(): string {
    return this.#namespaces.processes
      .map(
        (child) => `--- ${child.name} (${child.running ? "running" : `exit code ${child.exitCode}`})\n${child.log()}`,
      )
      .join("\n");
  }

  async destroy(): Promise<void> {
    const cleanups = this.#cleanups.reverse();
    this.#cleanups = [];
    const results = [];
    for (const cleanup of cleanups) results.push(...(await Promise.allSettled([cleanup()])));
    await this.#namespaces.remove();
    const failed = results.find((result) => result.status === "rejected");
    if (failed !== undefined) throw new Error("Cannot end a program of the lab in order", { cause: failed.reason });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.destroy();
  }

  /** Gives every machine of the segment its `wan`. */
  async #connectSegment(machines: readonly Machine[]): Promise<void> {
    const { roundTripMs, lossPercent, hops } = this.#options;
    if (roundTripMs === undefined && lossPercent === undefined && hops === undefined) {
      const internet = this.internet.namespace;
      await runChecked(["ip", "-batch", "-"], {
        input: machines
          .map(
            ({ namespace }, index) =>
              `link add name p${index} netns ${internet} index ${FIRST_PORT_INDEX + index} type veth peer name wan netns ${namespace}\n`,
          )
          .join(""),
      });
      await this.internet.execChecked(["ip", "-batch", "-"], {
        input: [
          "link add name wan type bridge mcast_snooping 0",
          ...machines.flatMap((_, index) => [`link set dev p${index} master wan up`]),
          "",
        ].join("\n"),
      });
      return;
    }
    const ports = machines.map((_, index) => `p${index}`);
    this.#wire = this.internet.spawn([process.execPath, WIRE, "wan", ...ports]);
    await this.#wire.waitFor("ready", (line) => (line.text === "ready" ? true : undefined), WIRE_START_MS);
    await this.internet.execChecked(["ip", "-batch", "-"], {
      input: machines.map(({ namespace }, index) => `link set dev p${index} netns ${namespace} name wan\n`).join(""),
    });
  }

  /** Gives every host behind a router its `eth0`, and each router a bridge port for every machine behind it. */
  async #connectLans(): Promise<void> {
    const commands = this.sites.flatMap(({ router, carrier, hosts }) => [
      ...(router === undefined ? [] : hosts.map((host, index) => cable(router, index, host, "eth0"))),
      ...(router === undefined || carrier === undefined
        ? []
        : [cable(carrier.machine, carrier.subscribers.indexOf(router.address), router, "wan")]),
    ]);
    if (commands.length > 0) await runChecked(["ip", "-batch", "-"], { input: commands.join("") });
  }

  /** What each machine runs to become what it is. */
  #scripts(segment: readonly Machine[]): [Machine, string][] {
    const { sites } = this;
    const all = [this.internet, ...segment];
    return [
      [this.internet, internetScript(all, this.internet)],
      ...segment.flatMap((machine): [Machine, string][] => {
        const site = sites.find(({ hosts }) => (hosts as readonly Machine[]).includes(machine));
        if (machine !== this.coordinator && site === undefined) return [];
        return [[machine, publicScript(all, machine, sites, site?.ruleset())]];
      }),
      ...sites.flatMap((site): [Machine, string][] => {
        const { router, lan, hosts } = site;
        if (router === undefined || lan === undefined) return [];
        return [
          [router, routerScript(all, site, router, sites)],
          ...hosts.map((host): [Machine, string] => [host, hostScript(host, lan)]),
        ];
      }),
      ...this.#carriers.map((carrier): [Machine, string] => [carrier.machine, carrierScript(all, carrier)]),
    ];
  }
}

/** The carrier that a site brings along. */
function carrierFor(
  namespaces: Namespaces,
  index: number,
  { carrier, carrierHairpin }: SiteOptions,
): Carrier | undefined {
  if (carrier === undefined) return undefined;
  const machine = new Machine(namespaces, `c${index}`, [publicAddressOf(index)]);
  return new Carrier(
    machine,
    lanNamed(`100.127.${index}`),
    carrier,
    carrierHairpin === undefined ? {} : { hairpin: carrierHairpin },
  );
}

/** A veth pair: bridge port number `index` of `bridge`, and `device` of `machine`. */
const cable = (bridge: Machine, index: number, machine: Machine, device: string): string =>
  `link add name l${index} netns ${bridge.namespace} index ${FIRST_PORT_INDEX + index} type veth peer name ${device} netns ${machine.namespace}\n`;
