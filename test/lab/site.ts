/**
 * The places of a lab: machines where programs run, hosts, and the sites they stand at, with the NAT of each and how to change it.
 *
 * Only addresses and rules are decided here; topology.ts draws the picture and joins the pieces.
 */
import type { Carrier } from "./carrier.ts";
import type { Namespaces } from "./namespace.ts";
import { isNatKind, isPublicKind, type NatKind, natRuleset, type PublicKind, publicRuleset } from "./nat_rules.ts";
import type { CommandOptions, CommandOutput, Environment, LabProcess } from "./process.ts";

export type SiteNat = NatKind | PublicKind;

/** Host number of the first guest on a LAN, and the interface index of its bridge port, unlike any of a host (see topology.ts). */
const GUEST_ADDRESS = 100;
const GUEST_PORT_INDEX = 2000;
/** A guest's end of the cable while it waits. */
const GUEST_DEVICE = "guest";

export interface NatOptions {
  readonly hairpin?: boolean;
  /** What the router does with unexpected packets for itself; default drop. */
  readonly input?: "drop" | "open";
  /** IPv6 through the router: replies only (default), or everything. */
  readonly ipv6Firewall?: "stateful" | "open";
  /** Seconds until an idle mapping is forgotten, by the cone tables and by conntrack; default 120 (and conntrack's own 30). */
  readonly mappingSeconds?: number;
  /** Every external port of a cone is another than without this, as after a restart of the router. */
  readonly remapped?: number;
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
  /** A second NAT, of this kind, between the router and the internet: the router's own public address is one of 100.64.0.0/10. */
  readonly carrier?: NatKind;
  /** The carrier's NAT lets its subscribers reach each other through its public address. */
  readonly carrierHairpin?: boolean;
  /** Instead of a carrier of its own: that of the earlier site with this number. */
  readonly carrierOf?: number;
  /** The hosts reach the router and not each other, as guests of a wireless network. */
  readonly isolated?: boolean;
  /** Native IPv6; default as the lab. Not behind a carrier's NAT. */
  readonly ipv6?: boolean;
}

/** A place where programs run: one namespace. */
export class Machine {
  readonly role: string;
  readonly ipv6Addresses: readonly string[];
  readonly #namespaces: Namespaces;
  readonly #addresses: readonly string[];

  constructor(
    namespaces: Namespaces,
    role: string,
    addresses: readonly string[],
    ipv6Addresses: readonly string[] = [],
  ) {
    this.#namespaces = namespaces;
    this.role = role;
    this.#addresses = addresses;
    this.ipv6Addresses = ipv6Addresses;
  }

  /** Every IPv4 address of its own, the one it sends from first. */
  get addresses(): readonly string[] {
    return this.#addresses;
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
  /** The interface towards the router, or the internet. */
  readonly device: string;
  readonly #home: Site;
  #visit: { readonly site: Site; readonly address: string } | undefined;

  constructor(
    namespaces: Namespaces,
    role: string,
    site: Site,
    device: string,
    addresses: readonly string[],
    ipv6Addresses: readonly string[],
  ) {
    super(namespaces, role, addresses, ipv6Addresses);
    this.#home = site;
    this.device = device;
  }

  /** Where it stands now. */
  get site(): Site {
    return this.#visit?.site ?? this.#home;
  }

  override get addresses(): readonly string[] {
    return this.#visit === undefined ? super.addresses : [this.#visit.address];
  }

  /**
   * Leaves its network without a word and turns up on the LAN of another site, as a laptop that is carried elsewhere: the old link is
   * gone before the new one comes, with another address and gateway. Resolves when the new network can be used.
   */
  async moveTo(site: Site): Promise<void> {
    const { lan, router } = site;
    if (lan === undefined || router === undefined || site.ipv6 || this.ipv6Addresses.length > 0 || site === this.site) {
      throw new Error(`${this.role} cannot move to site ${site.index}: that needs another LAN, and IPv4 alone`);
    }
    const visit = { site, address: await site.admit(this) };
    const { device, namespace } = this;
    const script = [
      `ip link del ${device}`,
      `ip -n ${router.namespace} link set ${GUEST_DEVICE} netns ${namespace} name ${device}`,
      `ip link set ${device} up`,
      `ip addr add ${visit.address}/24 dev ${device}`,
      `ip route add default via ${lan.gateway} dev ${device}`,
    ];
    this.#visit = visit;
    await this.execChecked(["sh", "-e"], { input: script.join("\n") });
  }
}

export class Site {
  /** Counted from 1; part of every address. */
  readonly index: number;
  readonly options: SiteOptions;
  readonly ipv6: boolean;
  /** The address that the internet sees; of an open site that of its first host. */
  readonly publicAddress: string;
  /** The LAN and its gateway; undefined at an open site. */
  readonly lan: Lan | undefined;
  /** The carrier's NAT in front of the router. */
  readonly carrier: Carrier | undefined;
  /** The router; undefined at an open site, whose hosts carry the rules themselves. */
  readonly router: Machine | undefined;
  readonly hosts: readonly Host[];
  #nat: SiteNat;
  #natOptions: NatOptions;
  readonly #guestAddresses: string[] = [];
  #restarts = 0;
  /** The router's public address, once it is another than at the start. */
  #external: string | undefined;

  constructor(
    namespaces: Namespaces,
    index: number,
    options: SiteOptions,
    { carrier, ipv6 }: { readonly carrier: Carrier | undefined; readonly ipv6: boolean },
  ) {
    this.index = index;
    this.options = options;
    this.ipv6 = ipv6;
    this.carrier = carrier;
    this.publicAddress = carrier?.machine.address ?? publicAddressOf(index);
    this.#nat = options.nat;
    this.#natOptions = options;
    const routed = !isOpenSite(options.nat);
    if (index > 25 || (options.hosts ?? 1) > 10) throw new Error("A lab has at most 25 sites of at most 10 hosts each");
    if (carrier !== undefined && (ipv6 || !routed)) {
      throw new Error(`Site ${index} cannot have a carrier's NAT: that needs a router, and IPv4 alone`);
    }
    this.lan = routed ? lanOf(index, options) : undefined;
    this.router = routed
      ? new Machine(
          namespaces,
          `r${index}`,
          [carrier?.admit() ?? this.publicAddress],
          ipv6 ? [`2001:db8::1:${index}`] : [],
        )
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
    if (this.carrier !== undefined) return [this.carrier.machine];
    return this.router === undefined ? this.hosts : [this.router];
  }

  /** The rules for the current kind, as text for `nft -f`. */
  ruleset(): string {
    if (this.lan === undefined) {
      if (!isPublicKind(this.#nat)) throw new Error(`Site ${this.index} has no router to be a "${this.#nat}" NAT`);
      return publicRuleset(this.#nat, this.#natOptions.forward);
    }
    if (!isNatKind(this.#nat)) throw new Error(`Site ${this.index} has a router and cannot be "${this.#nat}"`);
    const { hairpin, input, ipv6Firewall, mappingSeconds, remapped, forward } = this.#natOptions;
    return natRuleset({
      kind: this.#nat,
      external: this.#external ?? this.router?.address ?? "",
      lan: this.lan.cidr,
      hosts: [...this.hosts.map((_, host) => `${this.lan?.base}.${10 + host}`), ...this.#guestAddresses],
      ...(hairpin === undefined ? {} : { hairpin }),
      ...(input === undefined ? {} : { input }),
      ...(ipv6Firewall === undefined ? {} : { ipv6: ipv6Firewall }),
      ...(mappingSeconds === undefined ? {} : { mappingSeconds }),
      ...(remapped === undefined ? {} : { remapped }),
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
    await Promise.all(this.#ruled.map(async (machine) => machine.execChecked(["nft", "-f", "-"], { input: ruleset })));
  }

  /** Prepares a place for a host of another site: an address, the NAT's rules for it, and a cable whose far end waits at the router. */
  async admit(guest: Host): Promise<string> {
    const { router, lan } = this;
    if (router === undefined || lan === undefined) throw new Error(`Site ${this.index} has no LAN for ${guest.role}`);
    const number = this.#guestAddresses.length;
    const address = `${lan.base}.${GUEST_ADDRESS + number}`;
    this.#guestAddresses.push(address);
    await this.setNat(this.#nat);
    const port = `g${number}`;
    await router.execChecked(["ip", "-batch", "-"], {
      input: [
        `link add name ${port} index ${GUEST_PORT_INDEX + number} type veth peer name ${GUEST_DEVICE}`,
        `link set dev ${port} master lan up`,
        "",
      ].join("\n"),
    });
    return address;
  }

  /** The router lets frames pass between its hosts again. */
  async endIsolation(): Promise<void> {
    const ports = this.hosts.map((_, port) => `link set dev l${port} type bridge_slave isolated off\n`);
    await this.router?.execChecked(["ip", "-batch", "-"], { input: ports.join("") });
  }

  /** What a router loses when it restarts: every mapping and every flow. The rules stay. The carrier's NAT goes on. */
  async flushConntrack(): Promise<void> {
    await this.setNat(this.#nat);
    await Promise.all(this.#ruled.map(async (machine) => machine.execChecked(["conntrack", "-F"])));
  }

  /** The router restarts, and gives every inside port another external one than before. Only a cone. */
  async rebootNat(): Promise<void> {
    this.#natOptions = { ...this.#natOptions, remapped: ++this.#restarts };
    await this.flushConntrack();
  }

  /** The provider gives the router another public address, as after a reconnection; the flows through the old one end with it. */
  async changePublicAddress(address: string): Promise<void> {
    const { router } = this;
    if (router === undefined || this.carrier !== undefined)
      throw new Error(`Site ${this.index} has no router with a public address of its own`);
    const before = this.#external ?? router.address;
    this.#external = address;
    const input = `addr add ${address}/32 dev wan\naddr del ${before}/32 dev wan\n`;
    await router.execChecked(["ip", "-batch", "-"], { input });
    await this.flushConntrack();
  }

  /** The machines that carry the site's rules. */
  get #ruled(): readonly Machine[] {
    return this.router === undefined ? this.hosts : [this.router];
  }
}

export interface Lan {
  readonly cidr: string;
  readonly base: string;
  readonly gateway: string;
}

export const publicAddressOf = (site: number): string => `198.51.100.${site * 10}`;

export const isOpenSite = (nat: SiteNat): boolean => nat === "open" || nat === "firewalled";

function lanOf(index: number, options: SiteOptions): Lan {
  const cidr = options.lan ?? (options.cgnRange === true ? `100.64.${index}.0/24` : `10.${index}.0.0/24`);
  const base = /^(\d+\.\d+\.\d+)\.0\/24$/.exec(cidr)?.[1];
  if (base === undefined) throw new Error(`The LAN of site ${index} must be a /24 such as 192.168.1.0/24, not ${cidr}`);
  return lanNamed(base);
}

export const lanNamed = (base: string): Lan => ({ cidr: `${base}.0/24`, base, gateway: `${base}.1` });
