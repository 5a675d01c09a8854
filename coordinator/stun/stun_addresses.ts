/**
 * Chooses the addresses that STUN answers on when the operator names none: each global one on an interface with a default route,
 * else each that is not loopback, else 127.0.0.1, so that a demo on one machine works.
 *
 * "Global" is meant as the kernel means it: not loopback and not link-local. A private address counts, since a coordinator inside a
 * home LAN with a port forward is an ordinary case. Temporary and deprecated IPv6 addresses do not: agents would lose them.
 */
import { readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { canonicalIp, isIPv6 } from "../../shared/address.ts";

/** Agents need two of a family (RFC 5780); the signalling message has room for four. */
export const MAX_STUN_ADDRESSES_PER_FAMILY = 4;

export interface LocalAddress {
  readonly ip: string;
  readonly interface: string;
}

/** What the choice depends on, read from the machine by `readLocalNetwork`. */
export interface LocalNetwork {
  readonly addresses: readonly LocalAddress[];
  /** Interfaces with a default route, per family. */
  readonly defaultRoutes: { readonly ipv4: ReadonlySet<string>; readonly ipv6: ReadonlySet<string> };
  /** IPv6 addresses that will go away by themselves, or that are not usable. */
  readonly transientIPv6: ReadonlySet<string>;
  /** Some IPv6 address is still being checked for duplicates, which takes a second or two after the interface came up. */
  readonly isSettling: boolean;
}

/** @param listenHosts hosts of --listen: a loopback one among them is answered on as well */
export function defaultStunAddresses(network: LocalNetwork, listenHosts: readonly string[]): string[] {
  const usable = network.addresses.filter(
    ({ ip }) => !isLoopback(ip) && !isLinkLocal(ip) && !network.transientIPv6.has(ip),
  );
  const routed = usable.filter(({ ip, interface: name }) =>
    (isIPv6(ip) ? network.defaultRoutes.ipv6 : network.defaultRoutes.ipv4).has(name),
  );
  const chosen = (routed.length > 0 ? routed : usable).map(({ ip }) => ip);
  const loopback = listenHosts.map((host) => canonicalIp(host) ?? "").filter(isLoopback);
  const all = [...new Set([...loopback, ...chosen])];
  return capPerFamily(all.length > 0 ? all : ["127.0.0.1"]);
}

function capPerFamily(ips: readonly string[]): string[] {
  const counts = { ipv4: 0, ipv6: 0 };
  return ips.filter((ip) => counts[isIPv6(ip) ? "ipv6" : "ipv4"]++ < MAX_STUN_ADDRESSES_PER_FAMILY);
}

const isLoopback = (ip: string): boolean => ip === "::1" || ip.startsWith("127.");
const isLinkLocal = (ip: string): boolean => ip.startsWith("169.254.") || /^fe[89ab]/i.test(ip);

/** Reads the machine's addresses and, on Linux, its default routes and the flags of its IPv6 addresses. */
export function readLocalNetwork(): LocalNetwork {
  const inet6 = readOrEmpty("/proc/net/if_inet6");
  const addresses: LocalAddress[] = [];
  for (const [name, entries] of Object.entries(networkInterfaces())) {
    for (const entry of entries ?? []) {
      const ip = canonicalIp(entry.address);
      if (ip !== undefined) addresses.push({ ip, interface: name });
    }
  }
  return {
    addresses,
    defaultRoutes: {
      ipv4: parseDefaultRoutesIPv4(readOrEmpty("/proc/net/route")),
      ipv6: parseDefaultRoutesIPv6(readOrEmpty("/proc/net/ipv6_route")),
    },
    transientIPv6: parseTransientIPv6(inet6),
    isSettling: rows(inet6).some(
      (row) => (flagsOf(row) & (TENTATIVE | DUPLICATE)) === TENTATIVE && row[3] === GLOBAL_SCOPE,
    ),
  };
}

/** Interfaces of the lines of /proc/net/route whose destination and mask are zero. */
export const parseDefaultRoutesIPv4 = (text: string): Set<string> =>
  new Set(
    rows(text)
      .filter((row) => row[1] === "00000000" && row[7] === "00000000")
      .map((row) => row[0] ?? ""),
  );

/** The same of /proc/net/ipv6_route; the kernel's own "unreachable" entry is on lo. */
export const parseDefaultRoutesIPv6 = (text: string): Set<string> =>
  new Set(
    rows(text)
      .filter((row) => /^0+$/.test(row[0] ?? "") && row[1] === "00" && row[9] !== "lo")
      .map((row) => row[9] ?? ""),
  );

/** if_addr.h: IFA_F_... */
const TEMPORARY = 0x01;
const DUPLICATE = 0x08;
const DEPRECATED = 0x20;
const TENTATIVE = 0x40;
const TRANSIENT_FLAGS = TEMPORARY | DUPLICATE | DEPRECATED | TENTATIVE;
const GLOBAL_SCOPE = "00";

const flagsOf = (row: readonly string[]): number => Number.parseInt(row[4] ?? "0", 16);

/** Addresses of /proc/net/if_inet6 that have one of those flags. */
export const parseTransientIPv6 = (text: string): Set<string> =>
  new Set(
    rows(text)
      .filter((row) => (flagsOf(row) & TRANSIENT_FLAGS) !== 0)
      .map((row) => canonicalIp((row[0] ?? "").replace(/(.{4})(?=.)/g, "$1:")) ?? ""),
  );

const rows = (text: string): string[][] =>
  text
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => line.trim().split(/\s+/));

function readOrEmpty(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // Not Linux, or a container without /proc/net: then every address counts.
  }
}
