/** Shell scripts that give the machines of a lab their addresses and routes; each runs inside the machine's namespace. */
import type { Carrier } from "./carrier.ts";
import type { Host, Lan, Machine, Site } from "./site.ts";

/** The gateway that programs see as the way to the rest of the internet; it answers and forwards nothing. */
export const GATEWAY = { ipv4: "203.0.113.1", ipv6: "2001:db8::1" } as const;

const PUBLIC_RANGES = ["203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"] as const;

/** Duplicate address detection would make each IPv6 address wait a second. */
const PREPARE = [
  "for setting in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 > $setting; done",
  "ip link set lo up",
];

const ROUTER_SETTINGS = [
  "echo 1 > /proc/sys/net/ipv4/ip_forward",
  "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
  // A packet that turns round inside must not teach the hosts a way past the NAT.
  "for setting in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 > $setting; done",
  // With br_netfilter in the kernel, frames between two hosts of one LAN would otherwise pass conntrack and NAT.
  "for setting in /proc/sys/net/bridge/bridge-nf-call-*; do if [ -e $setting ]; then echo 0 > $setting; fi; done",
];

/** Ends once every bridge port of the namespace forwards frames (state 3). */
export const PORTS_FORWARDING = "while grep -qv 3 /sys/class/net/*/brport/state; do sleep 0.005; done";

/**
 * The machines of the internet segment, the gateway first. Each knows the hardware address of every other from the start: on a wire with
 * delay, address resolution would cost the first packet between any two a round trip that no real path has.
 */
export type Segment = readonly Machine[];

const hardwareAddress = (index: number): string => `02:00:00:00:00:${(index + 1).toString(16).padStart(2, "0")}`;

const connect = (segment: Segment, machine: Machine): string[] => [
  `ip link set wan address ${hardwareAddress(segment.indexOf(machine))}`,
  "ip link set wan up",
];

const acquaint = (segment: Segment, machine: Machine): string[] => [
  "ip -batch - <<'EOF'",
  ...segment.flatMap((other, index) =>
    other === machine
      ? []
      : [...other.addresses, ...(machine.ipv6Addresses.length === 0 ? [] : other.ipv6Addresses)].map(
          (address) => `neigh replace ${address} lladdr ${hardwareAddress(index)} dev wan nud permanent`,
        ),
  ),
  "EOF",
];

export const internetScript = (segment: Segment, machine: Machine): string =>
  script([
    ...PREPARE,
    ...connect(segment, machine),
    `ip addr add ${GATEWAY.ipv4}/24 dev wan`,
    `ip addr add ${GATEWAY.ipv6}/64 dev wan nodad`,
    ...PUBLIC_RANGES.slice(1).map((range) => `ip route add ${range} dev wan`),
    ...acquaint(segment, machine),
  ]);

/** A machine on the internet segment that is no router. */
export const publicScript = (
  segment: Segment,
  machine: Machine,
  sites: readonly Site[],
  rules: string | undefined,
): string => script([...PREPARE, ...publicInterface(segment, machine, sites), ...load(rules)]);

/** A router: on the internet segment, or on a carrier's network when there is one. */
export function routerScript(segment: Segment, site: Site, machine: Machine, sites: readonly Site[]): string {
  const { lan, carrier } = site;
  if (lan === undefined) throw new Error(`Site ${site.index} has no LAN`);
  const others = sites.filter((other) => other !== site);
  return script([
    ...PREPARE,
    ...(carrier === undefined
      ? publicInterface(segment, machine, others)
      : inside("wan", machine.address, carrier.lan)),
    ...lanBridge(lan, site.hosts.length, site.options.isolated === true),
    ...(machine.ipv6Addresses.length > 0 ? [`ip addr add 2001:db8:${site.index}::1/64 dev lan nodad`] : []),
    ...(site.options.mappingSeconds === undefined
      ? []
      : ["udp_timeout", "udp_timeout_stream"].map(
          (name) => `echo ${site.options.mappingSeconds} > /proc/sys/net/netfilter/nf_conntrack_${name}`,
        )),
    ...load(site.ruleset()),
  ]);
}

/** A carrier's NAT: on the internet segment, with routers as its inside hosts. */
export const carrierScript = (segment: Segment, carrier: Carrier): string =>
  script([
    ...PREPARE,
    ...publicInterface(segment, carrier.machine, []),
    ...lanBridge(carrier.lan, carrier.subscribers.length, true),
    ...load(carrier.ruleset()),
  ]);

/** A host behind a router. */
export function hostScript(host: Host, lan: Lan): string {
  const { index } = host.site;
  return script([
    ...PREPARE,
    ...inside("eth0", host.address, lan),
    ...(host.ipv6Address === undefined
      ? []
      : [
          `ip addr add ${host.ipv6Address}/64 dev eth0 nodad`,
          `ip -6 route add default via 2001:db8:${index}::1 dev eth0`,
        ]),
  ]);
}

/** On-link routes to every public address, and a gateway for the rest, since programs look for a default route. */
const publicInterface = (segment: Segment, machine: Machine, sites: readonly Site[]): string[] => [
  ...connect(segment, machine),
  ...machine.addresses.map((address) => `ip addr add ${address}/32 dev wan`),
  ...PUBLIC_RANGES.map((range) => `ip route add ${range} dev wan`),
  `ip route add default via ${GATEWAY.ipv4} dev wan`,
  ...(machine.ipv6Addresses.length === 0
    ? []
    : [
        ...machine.ipv6Addresses.map((address) => `ip addr add ${address}/64 dev wan nodad`),
        `ip -6 route add default via ${GATEWAY.ipv6} dev wan`,
        ...sites.flatMap(({ index, router }) =>
          router?.ipv6Address === undefined
            ? []
            : [`ip -6 route add 2001:db8:${index}::/64 via ${router.ipv6Address} dev wan`],
        ),
      ]),
  ...acquaint(segment, machine),
];

const inside = (device: string, address: string, lan: Lan): string[] => [
  `ip link set ${device} up`,
  `ip addr add ${address}/24 dev ${device}`,
  `ip route add default via ${lan.gateway} dev ${device}`,
];

/** @param isIsolated frames pass between a port and the router, and not between two ports */
const lanBridge = (lan: Lan, ports: number, isIsolated: boolean): string[] => [
  ...ROUTER_SETTINGS,
  "ip link add name lan type bridge mcast_snooping 0",
  ...Array.from({ length: ports }, (_, port) => `ip link set dev l${port} master lan up`),
  ...(isIsolated
    ? Array.from({ length: ports }, (_, port) => `ip link set dev l${port} type bridge_slave isolated on`)
    : []),
  "echo 0 > /proc/sys/net/ipv6/conf/lan/accept_dad",
  "ip link set lan up",
  `ip addr add ${lan.gateway}/24 dev lan`,
];

const load = (rules: string | undefined): string[] => (rules === undefined ? [] : ["nft -f - <<'EOF'", rules, "EOF"]);

const script = (commands: readonly string[]): string => `${commands.join("\n")}\n`;
