/**
 * What a machine's addresses and routes mean for us: pure questions about a snapshot (netlink.ts).
 *
 * Carrier networks and other overlays live in 100.64.0.0/10 too. A mesh address that this machine already reaches in another way than
 * by its default route is left to that other way, and reported.
 */
import { cidrContains, isIPv6 } from "../../../shared/address.ts";
import type { NetworkSnapshot } from "./netlink.ts";
import type { Route } from "./rtnetlink.ts";

const RTN_UNICAST = 1;
const RTN_LOCAL = 2;
const RTN_BLACKHOLE = 6;
const RTN_UNREACHABLE = 7;
const RTN_PROHIBIT = 8;
const RT_TABLE_MAIN = 254;

/** What covers a mesh address: an address of an interface, or a route more specific than the default. */
export interface Coverage {
  readonly kind: "address" | "route";
  /** `100.64.0.0/10` */
  readonly cidr: string;
  /** Name of the interface; undefined for a route that refuses. */
  readonly interface: string | undefined;
}

/** Our own routes cover nothing, and with a thousand peers there are two thousand of them: not to be looked at for each address. */
export const withoutRoutesOf = (snapshot: NetworkSnapshot, index: number | undefined): NetworkSnapshot => ({
  ...snapshot,
  routes: snapshot.routes.filter((route) => index === undefined || route.index !== index),
});

/** Undefined when the mesh address is free to be ours. What belongs to our own TUN device does not count. */
export function coverageOf(snapshot: NetworkSnapshot, ip: string, ownIndex: number | undefined): Coverage | undefined {
  const nameOf = (index: number | undefined): string | undefined =>
    snapshot.links.find((link) => link.index === index)?.name;

  const address = snapshot.addresses.find((candidate) => candidate.index !== ownIndex && candidate.ip === ip);
  if (address !== undefined) {
    return { kind: "address", cidr: `${address.ip}/${address.prefix}`, interface: nameOf(address.index) };
  }
  let closest: Route | undefined;
  for (const route of snapshot.routes) {
    if (route.prefix === 0 || !decides(route) || (ownIndex !== undefined && route.index === ownIndex)) continue;
    if (!cidrContains(`${route.destination}/${route.prefix}`, ip)) continue;
    if (closest === undefined || route.prefix > closest.prefix) closest = route;
  }
  if (closest === undefined) return undefined;
  return { kind: "route", cidr: `${closest.destination}/${closest.prefix}`, interface: nameOf(closest.index) };
}

/** The default route in use for a family: of the main table, the one with the least metric. */
export function defaultRoute(snapshot: Pick<NetworkSnapshot, "routes">, family: 4 | 6): Route | undefined {
  let best: Route | undefined;
  for (const route of snapshot.routes) {
    if (route.prefix !== 0 || route.type !== RTN_UNICAST || route.table !== RT_TABLE_MAIN) continue;
    if (isIPv6(route.destination) !== (family === 6)) continue;
    if (best === undefined || route.metric < best.metric) best = route;
  }
  return best;
}

/**
 * Routes of any table that packets of ours could follow: policy routing puts those of other overlays into tables of their own. Local
 * routes to one address only mirror the addresses, which are looked at by themselves.
 */
function decides({ type, prefix, destination }: Route): boolean {
  if (type === RTN_LOCAL) return prefix < (isIPv6(destination) ? 128 : 32);
  return type === RTN_UNICAST || type === RTN_BLACKHOLE || type === RTN_UNREACHABLE || type === RTN_PROHIBIT;
}
