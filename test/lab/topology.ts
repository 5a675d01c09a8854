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
 * The rules live in nat_rules.ts, the life of namespaces and programs in namespace.ts and process.ts. A lab is up in well under a second;
 * `await using lab = await createLab(...)` takes it down again whatever happens.
 */
import { fileURLToPath } from "node:url";
import { Namespaces } from "./namespace.ts";
import { isNatKind, isPublicKind, type NatKind, natRuleset, type PublicKind, publicRuleset } from "./nat_rules.ts";
import { type CommandOptions, type CommandOutput, type Environment, type LabProcess, runChecked } from "./process.ts";

export type SiteNat = NatKind | PublicKind;

export interface NatOptions {
  readonly hairpin?: boolean;
  /** What the router does with unexpected packets for itself; default drop. */
  readonly input?: "drop" | "open";
  /** IPv6 through the router: replies only (default), or everything. */
  readonly ipv6Firewall?: "stateful" | "open";
  /** Seconds until an idle mapping is forgotten, by the cone tables and by conntrack; default 120 (and conntrack's own 30). */
  readonly mappingSeconds?: number;
  /** Further nft rules at the head of the router's forward chain, e.g. `meta length > 1400 drop`. */
  readonly forward?: readonly string[];
}

export interface SiteOptions extends NatOptions {
  readonly nat: SiteNat;
  /** Hosts at this site; default 1. On a LAN they share one NAT, on the open internet each has an address. */
  readonly hosts?: number;
  /** The LAN as `192.168.1.0/24`; only /24. Two sites may use the same one. */
  readonly lan?: string;
  /** Puts the LAN, its gateway included, into 100.64.0.0/10, as a carrier does. */
  readonly cgnRange?: boolean;
  /** Native IPv6; default as the lab. */
  readonly ipv6?: boolean;
}

export interface LabOptions {
  readonly sites: readonly SiteOptions[];
  /** Public IPv4 addresses of the coordinator; default 2. */
  readonly coordinatorAddresses?: 1 | 2;
  /** Round trip between any two public addresses; default none (a bridge). 0 asks for the wire without delay, to be raised later. */
  readonly roundTripMs?: number;
  /** Frames lost on the internet segment, each way. Asks for the wire. */
  readonly lossPercent?: number;
  /** Native IPv6 at every site that does not say otherwise; default false. */
  readonly ipv6?: boolean;
}

const WIRE = fileURLToPath(new URL("wire.ts", import.meta.url));
const GATEWAY = { ipv4: "203.0.113.1", ipv6: "2001:db8::1" } as const;
const COORDINATOR = {
  ipv4: ["203.0.113.10", "203.0.113.11"],
  ipv6: ["2001:db8::10", "2001:db8::11"],
} as const;
const PUBLIC_RANGES = ["203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"] as const;
const WIRE_START_MS = 5_000;
const BRIDGE_START_MS = 3_000;
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

/** A place where programs run: one namespace. */
export class Machine {
  readonly role: string;
  /** Every IPv4 address of its own, the one it sends from first. */
  readonly addresses: readonly string[];
  readonly ipv6Addresses: readonly string[];
  readonly #namespaces: Namespaces;

  constructor(
    namespaces: Namespaces,
    role: string,
    addresses: readonly string[],
    ipv6Addresses: readonly string[] = [],
  ) {
    this.#namespaces = namespaces;
    this.role = role;
    this.addresses = addresses;
    this.ipv6Addresses = ipv6Addresses;
  }

  get namespace(): string {
    return this.#namespaces.name(this.role);
  }

  get address(): string {
    return this.addresses[0] ?? "";
  }

  get ipv6Address(): string | undefined {
    return this.ipv6Addresses[0];
  }

  async exec(command: readonly string[], options: CommandOptions = {}): Promise<CommandOutput> {
    return this.#namespaces.exec(this.role, command, options);
  }

  async execChecked(command: readonly string[], options: CommandOptions = {}): Promise<string> {
    return this.#namespaces.execChecked(this.role, command, options);
  }

  spawn(command: readonly string[], env: Environment = {}, cwd?: string): LabProcess {
    return this.#namespaces.spawn(this.role, command, cwd === undefined ? { env } : { env, cwd });
  }
}

export class Host extends Machine {
  readonly site: Site;
  /** The interface towards the router, or the internet. */
  readonly device: string;

  constructor(
    namespaces: Namespaces,
    role: string,
    site: Site,
    device: string,
    addresses: readonly string[],
    ipv6Addresses: readonly string[],
  ) {
    super(namespaces, role, addresses, ipv6Addresses);
    this.site = site;
    this.device = device;
  }
}

export class Site {
  /** Counted from 1; part of every address. */
  readonly index: number;
  readonly options: SiteOptions;
  readonly ipv6: boolean;
  /** The address that the internet sees; of an open site its first host's. */
  readonly publicAddress: string;
  /** The LAN and its gateway; undefined at an open site. */
  readonly lan: { readonly cidr: string; readonly base: string; readonly gateway: string } | undefined;
  /** The router; undefined at an open site, whose hosts carry the rules themselves. */
  readonly router: Machine | undefined;
  readonly hosts: readonly Host[];
  #nat: SiteNat;
  #natOptions: NatOptions;

  constructor(namespaces: Namespaces, index: number, options: SiteOptions, ipv6: boolean) {
    this.index = index;
    this.options = options;
    this.ipv6 = ipv6;
    this.publicAddress = `198.51.100.${index * 10}`;
    this.#nat = options.nat;
    this.#natOptions = options;
    const routed = !isOpenSite(options.nat);
    this.lan = routed ? lanOf(index, options) : undefined;
    this.router = routed
      ? new Machine(namespaces, `r${index}`, [this.publicAddress], ipv6 ? [`2001:db8::1:${index}`] : [])
      : undefined;
    this.hosts = Array.from({ length: options.hosts ?? 1 }, (_, host) => {
      const role = `h${index}-${host + 1}`;
      return this.lan === undefined
        ? new Host(
            namespaces,
            role,
            this,
            "wan",
            [`198.51.100.${index * 10 + host}`],
            ipv6 ? [`2001:db8::1:${index}${host === 0 ? "" : `:${host}`}`] : [],
          )
        : new Host(
            namespaces,
            role,
            this,
            "eth0",
            [`${this.lan.base}.${10 + host}`],
            ipv6 ? [`2001:db8:${index}::${10 + host}`] : [],
          );
    });
  }

  get nat(): SiteNat {
    return this.#nat;
  }

  /** The first host, which is the only one at most sites. */
  get host(): Host {
    const [host] = this.hosts;
    if (host === undefined) throw new Error(`Site ${this.index} has no host`);
    return host;
  }

  /** The machines on the internet segment that stand for this site. */
  get outer(): readonly Machine[] {
    return this.router === undefined ? this.hosts : [this.router];
  }

  /** The rules for the current kind, as text for `nft -f`. */
  ruleset(): string {
    if (this.lan === undefined) {
      if (!isPublicKind(this.#nat)) throw new Error(`Site ${this.index} has no router to be a "${this.#nat}" NAT`);
      return publicRuleset(this.#nat, this.#natOptions.forward);
    }
    if (!isNatKind(this.#nat)) throw new Error(`Site ${this.index} has a router and cannot be "${this.#nat}"`);
    const { hairpin, input, ipv6Firewall, mappingSeconds, forward } = this.#natOptions;
    return natRuleset({
      kind: this.#nat,
      external: this.publicAddress,
      lan: this.lan.cidr,
      hosts: this.hosts.map(({ address }) => address),
      ...(hairpin === undefined ? {} : { hairpin }),
      ...(input === undefined ? {} : { input }),
      ...(ipv6Firewall === undefined ? {} : { ipv6: ipv6Firewall }),
      ...(mappingSeconds === undefined ? {} : { mappingSeconds }),
      ...(forward === undefined ? {} : { forward }),
    });
  }

  /**
   * Replaces the rules in one step. What conntrack knows stays, so a running flow keeps the port it has, unless the new rules
   * forbid it; `flushConntrack` afterwards makes the router forget.
   */
  async setNat(kind: SiteNat, options: NatOptions = this.#natOptions): Promise<void> {
    this.#nat = kind;
    this.#natOptions = options;
    const ruleset = this.ruleset();
    await Promise.all(this.outer.map(async (machine) => machine.execChecked(["nft", "-f", "-"], { input: ruleset })));
  }

  /** What a router loses when it restarts: every mapping and every flow. The rules stay. */
  async flushConntrack(): Promise<void> {
    await this.setNat(this.#nat);
    await Promise.all(this.outer.map(async (machine) => machine.execChecked(["conntrack", "-F"])));
  }
}

export class Lab {
  readonly sites: readonly Site[];
  readonly coordinator: Machine;
  readonly internet: Machine;
  readonly #namespaces: Namespaces;
  readonly #options: LabOptions;
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
    this.sites = options.sites.map((site, index) => new Site(namespaces, index + 1, site, ipv6[index] ?? false));
  }

  /** The namespaces, with nothing in them; `createLab` is the way to a finished lab. */
  static async create(options: LabOptions): Promise<Lab> {
    const roles = options.sites.flatMap((site, index) => [
      ...(isOpenSite(site.nat) ? [] : [`r${index + 1}`]),
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
    const segment = [this.coordinator, ...this.sites.flatMap((site) => site.outer)];
    await this.#connectSegment(segment);
    await this.#connectLans();
    await Promise.all([
      this.internet.execChecked(["sh", "-e"], {
        input: [
          QUIET_IPV6,
          "ip link set lo up",
          "ip link set wan up",
          `ip addr add ${GATEWAY.ipv4}/24 dev wan`,
          `ip addr add ${GATEWAY.ipv6}/64 dev wan nodad`,
          ...PUBLIC_RANGES.filter((range) => range !== PUBLIC_RANGES[0]).map(
            (range) => `ip route add ${range} dev wan`,
          ),
        ].join("\n"),
      }),
      this.coordinator.execChecked(["sh", "-e"], { input: this.#outerScript(this.coordinator, undefined) }),
      ...this.sites.flatMap((site) => [
        ...site.outer.map(async (machine) =>
          machine.execChecked(["sh", "-e"], { input: this.#outerScript(machine, site) }),
        ),
        ...(site.lan === undefined
          ? []
          : site.hosts.map(async (host) => host.execChecked(["sh", "-e"], { input: innerScript(host) }))),
      ]),
    ]);
    // A bridge drops frames of a port until it has heard of its carrier, which the kernel tells it later than us.
    const bridges = [
      ...(this.#wire === undefined ? [this.internet] : []),
      ...this.sites.flatMap((site) => site.router ?? []),
    ];
    await Promise.all(
      bridges.map(async (machine) =>
        machine.execChecked(["sh", "-c", PORTS_FORWARDING], { timeoutMs: BRIDGE_START_MS }),
      ),
    );
    if (this.#wire !== undefined) {
      await this.setWire({ roundTripMs: this.#options.roundTripMs ?? 0, lossPercent: this.#options.lossPercent ?? 0 });
    }
  }

  /** Changes delay or loss of the internet segment; returns once frames are treated so. Only in a lab that has the wire. */
  async setWire(change: { readonly roundTripMs?: number; readonly lossPercent?: number }): Promise<void> {
    const wire = this.#wire;
    if (wire === undefined) throw new Error("This lab has a bridge: ask createLab for roundTripMs or lossPercent");
    const since = wire.lines.length;
    wire.write(
      `${JSON.stringify({
        // A frame passes two ports on each of the two ways.
        ...(change.roundTripMs === undefined ? {} : { delayMs: change.roundTripMs / 4 }),
        ...(change.lossPercent === undefined ? {} : { lossPercent: change.lossPercent }),
      })}\n`,
    );
    await wire.waitFor(
      "confirmation of the change",
      (line) => (wire.lines.indexOf(line) >= since && line.text === "set" ? true : undefined),
      WIRE_START_MS,
    );
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
    if (this.#options.roundTripMs === undefined && this.#options.lossPercent === undefined) {
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

  /** Gives every host behind a router its `eth0`, and the router a bridge `lan` with one port for each. */
  async #connectLans(): Promise<void> {
    const commands = this.sites.flatMap((site) =>
      site.router === undefined
        ? []
        : site.hosts.map(
            (host, index) =>
              `link add name l${index} netns ${site.router?.namespace} index ${FIRST_PORT_INDEX + index} type veth peer name eth0 netns ${host.namespace}\n`,
          ),
    );
    if (commands.length > 0) await runChecked(["ip", "-batch", "-"], { input: commands.join("") });
  }

  /** Sets up a machine of the internet segment, with the LAN side and the rules if it is a router. */
  #outerScript(machine: Machine, site: Site | undefined): string {
    const ipv6 = machine.ipv6Addresses.length > 0;
    // On-link routes to every public address, and a gateway for the rest, since programs look for a default route.
    const script = [
      QUIET_IPV6,
      "ip link set lo up",
      "ip link set wan up",
      ...machine.addresses.map((address) => `ip addr add ${address}/32 dev wan`),
      ...PUBLIC_RANGES.map((range) => `ip route add ${range} dev wan`),
      `ip route add default via ${GATEWAY.ipv4} dev wan`,
    ];
    if (ipv6) {
      script.push(
        ...machine.ipv6Addresses.map((address) => `ip addr add ${address}/64 dev wan nodad`),
        `ip -6 route add default via ${GATEWAY.ipv6} dev wan`,
        ...this.sites
          .filter((other) => other !== site && other.ipv6 && other.router !== undefined)
          .map((other) => `ip -6 route add 2001:db8:${other.index}::/64 via ${other.router?.ipv6Address} dev wan`),
      );
    }
    if (site?.router === machine && site.lan !== undefined) {
      script.push(
        ...ROUTER_SETTINGS,
        "ip link add name lan type bridge mcast_snooping 0",
        ...site.hosts.map((_, index) => `ip link set dev l${index} master lan up`),
        "echo 0 > /proc/sys/net/ipv6/conf/lan/accept_dad",
        "ip link set lan up",
        `ip addr add ${site.lan.gateway}/24 dev lan`,
        ...(ipv6 ? [`ip addr add 2001:db8:${site.index}::1/64 dev lan nodad`] : []),
      );
      if (site.options.mappingSeconds !== undefined) {
        script.push(
          `echo ${site.options.mappingSeconds} > /proc/sys/net/netfilter/nf_conntrack_udp_timeout`,
          `echo ${site.options.mappingSeconds} > /proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream`,
        );
      }
    }
    if (site !== undefined) script.push("nft -f - <<'EOF'", `${site.ruleset()}EOF`);
    return script.join("\n");
  }
}

/** Duplicate address detection would make each IPv6 address wait a second. */
const QUIET_IPV6 = "for setting in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 > $setting; done";

const PORTS_FORWARDING = "while grep -qv 3 /sys/class/net/*/brport/state; do sleep 0.005; done";

const ROUTER_SETTINGS = [
  "echo 1 > /proc/sys/net/ipv4/ip_forward",
  "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
  // A packet that turns round inside must not teach the hosts a way past the NAT.
  "for setting in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 > $setting; done",
  // With br_netfilter in the kernel, frames between two hosts of one LAN would otherwise pass conntrack and NAT.
  "for setting in /proc/sys/net/bridge/bridge-nf-call-*; do [ -e $setting ] && echo 0 > $setting; done",
];

const isOpenSite = (nat: SiteNat): boolean => nat === "open" || nat === "firewalled";

function lanOf(index: number, options: SiteOptions): { cidr: string; base: string; gateway: string } {
  const cidr = options.lan ?? (options.cgnRange === true ? `100.64.${index}.0/24` : `10.${index}.0.0/24`);
  const base = /^(\d+\.\d+\.\d+)\.0\/24$/.exec(cidr)?.[1];
  if (base === undefined) throw new Error(`The LAN of site ${index} must be a /24 such as 192.168.1.0/24, not ${cidr}`);
  return { cidr, base, gateway: `${base}.1` };
}

/** Sets up a host behind a router. */
function innerScript(host: Host): string {
  const { lan, index } = host.site;
  return [
    QUIET_IPV6,
    "ip link set lo up",
    "ip link set eth0 up",
    `ip addr add ${host.address}/24 dev eth0`,
    `ip route add default via ${lan?.gateway} dev eth0`,
    ...(host.ipv6Address === undefined
      ? []
      : [
          `ip addr add ${host.ipv6Address}/64 dev eth0 nodad`,
          `ip -6 route add default via 2001:db8:${index}::1 dev eth0`,
        ]),
  ].join("\n");
}
