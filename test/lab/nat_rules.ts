/**
 * The nft rule sets that turn a Linux router into a NAT of a given kind, as pure functions from a description to text.
 *
 * The router has two interfaces, `wan` with one public IPv4 address and `lan`. Conntrack alone is a port-preserving,
 * port-restricted NAT. The cone kinds add an endpoint-independent table of their own (`eim`: external port to inside address and
 * port) that is learned from what goes out and used for what comes in; the symmetric ones choose a port per connection.
 *
 * Three things decide whether a test means anything:
 * - The router must drop what nobody asked for in `input`. If its own stack takes the packet, conntrack keeps an entry
 *   remote -> public:port, and when the inside host then sends to that remote, its port is taken and it gets another one. Routers of
 *   both sorts exist, hence the option.
 * - Two inside hosts that use one source port share an external port under Linux until both talk to one destination, then the second
 *   moves. So every host but the first has its ports changed by an exclusive or with a number of its own below 1024: equal ports
 *   never clash, and none falls below 1024 that was not.
 * - A bare `numgen` as NAT port comes out with swapped bytes; a map puts it right.
 */

export type NatKind =
  | "fullcone"
  | "restricted"
  | "portrestricted"
  | "symmetric"
  | "symseq"
  | `symblock${256 | 512 | 1024}`
  | "udpblocked"
  | "tcp443only";

/** What a machine with a public address of its own has in front of it: nothing, a stateful firewall, or a strict exit policy. */
export type PublicKind = "open" | "firewalled" | "udpblocked" | "tcp443only";

export const isNatKind = (kind: NatKind | PublicKind): kind is NatKind => kind !== "open" && kind !== "firewalled";
export const isPublicKind = (kind: NatKind | PublicKind): kind is PublicKind =>
  kind === "open" || kind === "firewalled" || kind === "udpblocked" || kind === "tcp443only";

/** Seconds that a NAT remembers an inside port which sends nothing: RFC 4787 REQ-5 asks for two minutes. */
const MAPPING_SECONDS = 120;
/**
 * External ports of the sequential NAT. Real ones count through nearly all ports; a rule with a map of those would take long to load. With
 * this many a counter does not begin anew within three attempts of 4000 packets: with 4096 the second one met nothing but ports that never came.
 */
const SEQUENTIAL_FIRST = 20_000;
const SEQUENTIAL_PORTS = 16_384;
/** First external port of the block NATs. */
const BLOCK_FIRST = 40_000;
/** Changes the ports of the second host behind a NAT; further hosts get the next numbers. */
const SCRAMBLE_FIRST = 0x155;
/** Added to that number each time that the router restarts, and where the ports come round. */
const REMAP = 0x100;
const REMAPS = 0x80;

export interface NatDescription {
  readonly kind: NatKind;
  /** The router's public IPv4 address. */
  readonly external: string;
  /** The inside network, as `10.1.0.0/24`. */
  readonly lan: string;
  /** Inside IPv4 addresses, at most 100. */
  readonly hosts: readonly string[];
  /** Two inside hosts may reach each other through the public address. Only with endpoint-independent mapping. */
  readonly hairpin?: boolean;
  /** What the router does with packets for itself that nobody asked for; default drop. */
  readonly input?: "drop" | "open";
  /** IPv6 through the router: only what was asked for from inside (default), or everything. */
  readonly ipv6?: "stateful" | "open";
  readonly mappingSeconds?: number;
  /** How often the router has restarted: each time every host of a cone has other external ports. */
  readonly remapped?: number;
  /** Further nft rules at the very head of the forward chain, before established connections are let through. */
  readonly forward?: readonly string[];
}

export function natRuleset(nat: NatDescription): string {
  const hosts = nat.hosts.map((address, index) => insideHost(address, index, nat.remapped ?? 0));
  return `flush ruleset
table ip nat {
${natTable(nat, hosts)}}
table inet fw {
 chain input { type filter hook input priority filter;
${lines(inputRules(nat))} }
 chain forward { type filter hook forward priority filter;
${lines([
  ...(nat.forward ?? []),
  ...exitPolicy(nat.kind, 'iifname "lan" oifname "wan" '),
  "ct state established,related accept",
  'meta nfproto ipv4 iifname "wan" ct status ! dnat drop',
  ...(nat.ipv6 === "open" ? [] : ['meta nfproto ipv6 iifname "wan" drop']),
])} }
}
`;
}

/** Rules of a machine that sits on the internet itself, its interface being `wan`. */
export function publicRuleset(kind: PublicKind, extra: readonly string[] = []): string {
  return `flush ruleset
table inet fw {
 chain input { type filter hook input priority filter;
${lines([
  ...extra,
  ...(kind === "open"
    ? []
    : [
        'iifname "wan" ct state established,related accept',
        'iifname "wan" meta l4proto { icmp, ipv6-icmp } accept',
        'iifname "wan" drop',
      ]),
])} }
 chain output { type filter hook output priority filter;
${lines([...extra, ...(kind === "open" || kind === "firewalled" ? [] : exitPolicy(kind, 'oifname "wan" '))])} }
}
`;
}

interface InsideHost {
  readonly address: string;
  /** Its external port, as an expression on the packet it sends. */
  readonly port: string;
  readonly scrambled: boolean;
}

const insideHost = (address: string, index: number, remapped: number): InsideHost =>
  index === 0 && remapped === 0
    ? { address, port: "udp sport", scrambled: false }
    : { address, port: `udp sport ^ ${SCRAMBLE_FIRST + index - 1 + REMAP * (remapped % REMAPS)}`, scrambled: true };

/** What each kind remembers about where an inside port has sent to, and so lets back in. */
const FILTERS = {
  fullcone: undefined,
  restricted: { set: "adf", type: "inet_service . ipv4_addr" },
  portrestricted: { set: "apdf", type: "inet_service . ipv4_addr . inet_service" },
} as const;

function natTable(nat: NatDescription, hosts: readonly InsideHost[]): string {
  switch (nat.kind) {
    case "fullcone":
    case "restricted":
    case "portrestricted":
      return coneTable(nat, nat.kind, hosts);
    case "udpblocked":
    case "tcp443only":
      return coneTable(nat, "portrestricted", hosts);
    case "symmetric":
      return postrouting(nat, [
        `oifname "wan" meta l4proto { tcp, udp } snat to ${nat.external}:1024-65535 fully-random`,
      ]);
    case "symseq": {
      const ports = Array.from({ length: SEQUENTIAL_PORTS }, (_, index) => `${index} : ${SEQUENTIAL_FIRST + index}`);
      return postrouting(nat, [
        `oifname "wan" meta l4proto udp snat to ${nat.external}:numgen inc mod ${SEQUENTIAL_PORTS} map { ${ports.join(", ")} }`,
      ]);
    }
    default: {
      const last = BLOCK_FIRST + Number(nat.kind.slice("symblock".length)) - 1;
      return postrouting(nat, [
        `oifname "wan" meta l4proto udp snat to ${nat.external}:${BLOCK_FIRST}-${last} fully-random`,
      ]);
    }
  }
}

function postrouting(nat: NatDescription, rules: readonly string[]): string {
  if (nat.hairpin === true) throw new Error(`A ${nat.kind} NAT has no stable external port to hairpin to`);
  return ` chain post { type nat hook postrouting priority srcnat;
${lines([...rules, `oifname "wan" snat to ${nat.external}`])} }
`;
}

function coneTable(nat: NatDescription, kind: keyof typeof FILTERS, hosts: readonly InsideHost[]): string {
  const filter = FILTERS[kind];
  const hairpin = nat.hairpin === true;
  const seconds = nat.mappingSeconds ?? MAPPING_SECONDS;
  const memory = `flags dynamic,timeout; timeout ${seconds}s; size 65535;`;
  const learn = hosts.flatMap(({ address, port }) => {
    const sent = `iifname "lan" ip saddr ${address} ip daddr != ${nat.lan} meta l4proto udp`;
    const learned = [`${sent} update @eim { ${port} : ip saddr . udp sport }`];
    if (kind === "restricted") learned.push(`${sent} update @adf { ${port} . ip daddr }`);
    // Conntrack filters what comes from outside exactly so; the set is for packets that turn round inside.
    if (kind === "portrestricted" && hairpin) learned.push(`${sent} update @apdf { ${port} . ip daddr . udp dport }`);
    return learned;
  });
  const allowed = { fullcone: "", restricted: " udp dport . ip saddr @adf", portrestricted: "" }[kind];
  const inward =
    kind === "portrestricted"
      ? []
      : [`iifname "wan" ip daddr ${nat.external} meta l4proto udp${allowed} dnat ip to udp dport map @eim`];
  const turned = hosts.map(({ address, port }) => {
    // Inside sender and receiver swap the roles of the filter: the receiver must have sent to the sender's external address.
    const permitted = {
      fullcone: "",
      restricted: " udp dport . ip daddr @adf",
      portrestricted: ` udp dport . ip daddr . ${port} @apdf`,
    }[kind];
    return `iifname "lan" ip saddr ${address} ip daddr ${nat.external} meta l4proto udp${permitted} dnat ip to udp dport map @eim`;
  });
  const out = (selector: string): string[] =>
    hosts.map(
      ({ address, port, scrambled }) =>
        `${selector} ip saddr ${address} meta l4proto udp snat to ${nat.external}${scrambled ? `:${port}` : ""}`,
    );
  return ` map eim { type inet_service : ipv4_addr . inet_service; ${memory} }
${filter === undefined ? "" : ` set ${filter.set} { type ${filter.type}; ${memory} }\n`} chain learn { type filter hook prerouting priority mangle;
${lines(learn)} }
 chain pre { type nat hook prerouting priority dstnat;
${lines([...inward, ...(hairpin ? turned : [])])} }
 chain post { type nat hook postrouting priority srcnat;
${lines([
  ...(hairpin ? out('iifname "lan" oifname "lan" ct status dnat') : []),
  ...out('oifname "wan"'),
  `oifname "wan" snat to ${nat.external}`,
])} }
`;
}

function inputRules(nat: NatDescription): string[] {
  if (nat.input === "open") return [];
  return [
    'iifname "wan" ct state established,related accept',
    'iifname "wan" meta l4proto { icmp, ipv6-icmp } accept',
    'iifname "wan" drop',
    `iifname "lan" ip daddr ${nat.external} meta l4proto udp drop`,
  ];
}

/**
 * What may leave. IPv4 only, so that a site can have nothing but a direct path over IPv6; both rules stand before the one for
 * established connections, so that closing the door also ends what already went through it.
 */
function exitPolicy(kind: NatKind | PublicKind, outward: string): string[] {
  if (kind === "udpblocked") return ["meta nfproto ipv4 meta l4proto udp drop"];
  if (kind === "tcp443only") {
    return [
      `${outward}meta nfproto ipv4 meta l4proto != tcp drop`,
      `${outward}meta nfproto ipv4 ct direction original tcp dport != 443 drop`,
    ];
  }
  return [];
}

const lines = (rules: readonly string[]): string => rules.map((rule) => `  ${rule}\n`).join("");
