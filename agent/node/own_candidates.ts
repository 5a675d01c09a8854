/**
 * What we tell peers of ourselves, from all that has been learned (gathering.ts): the addresses where they may reach us, and what our
 * NAT does.
 */
import { isPrivate, sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import type { Instant } from "../../shared/time.ts";
import {
  type CandidateList,
  MAX_CANDIDATES,
  type NatReport,
  UNKNOWN_NAT,
  type WireCandidate,
} from "../../shared/wire/candidates.ts";
import type { DiscoveryResult } from "../path/nat_discovery.ts";
import type { KnownAddresses, SeenReports } from "./seen_reports.ts";

/** What discovery has found for one address family. */
export interface Discovered {
  /** Of the data socket. */
  readonly port: number;
  readonly result: DiscoveryResult | undefined;
  /** When discovery last ended, and when STUN last saw us where it had seen us then. */
  readonly endedAt: Instant | undefined;
  readonly confirmedAt: Instant | undefined;
}

export interface Learned {
  /** Interface addresses with the data sockets' ports. */
  readonly hosts: readonly TransportAddress[];
  readonly ipv4: Discovered;
  readonly ipv6: Discovered;
  /** What the gateway says that it forwards to our IPv4 data socket. */
  readonly portMapped: TransportAddress | undefined;
  /** The gateway says that it has no public address to map ports at. */
  readonly hasGatewayNoAddress: boolean;
  /** Where peers say that our packets come from. */
  readonly reports: SeenReports;
  /** The operator has named the port of the data sockets, so perhaps forwards it too. */
  readonly isPortChosen: boolean;
}

/** Of each family: a NAT that shows every destination another address would fill the list. */
const MAX_REFLEXIVE = 4;

/** @param withHosts false while the peer has not yet authenticated: host candidates tell about our LAN */
export function candidatesOf(learned: Learned, withHosts: boolean): CandidateList["candidates"] {
  const as = (kind: WireCandidate["kind"], addresses: readonly TransportAddress[]): WireCandidate[] =>
    addresses.map((address) => ({ kind, address }));
  const seen = withHosts ? [...reported(learned), ...forwarded(learned)] : [];
  return [
    ...as("server-reflexive", reflexive(learned)),
    ...as("port-mapped", mapped(learned, withHosts)),
    ...as("server-reflexive", seen),
    ...as("host", withHosts ? learned.hosts : []),
  ].slice(0, MAX_CANDIDATES);
}

export function natReportOf(learned: Learned): NatReport {
  const ipv4 = learned.ipv4.result;
  const hasIPv6 = (learned.ipv6.result?.publicAddresses.length ?? 0) > 0;
  const udpBlocked = ipv4?.udpBlocked === true && !hasIPv6;
  const outside = {
    ...(isGatewayBehindNat(learned) ? { isRouterBehindNat: true } : {}),
    ...(isUnseen(learned) ? { isUnseen: true } : {}),
  };
  // What happens between us and a coordinator in our own LAN says nothing of the router.
  if (isCoordinatorInside(learned)) return { ...UNKNOWN_NAT, udpBlocked, ...outside };
  if (isContradicted(learned)) {
    const mapping = "address-and-port-dependent";
    return { mapping, filtering: ipv4?.filtering, allocation: undefined, udpBlocked, ...outside, certain: false };
  }
  return {
    mapping: ipv4?.mapping,
    filtering: ipv4?.filtering,
    allocation: ipv4?.allocation?.kind,
    ports: ipv4?.allocation?.ports,
    sharesPorts: ipv4?.allocation?.sharesPorts,
    udpBlocked,
    ...(ipv4?.udpBlocked === true && hasIPv6 ? { isIPv4Blocked: true } : {}),
    ...outside,
    certain: ipv4?.certain ?? false,
  };
}

/** Where we know that peers may see us. */
export const knownAddresses = ({ ipv4, portMapped }: Learned): KnownAddresses => ({
  seen: ipv4.result?.publicAddresses ?? [],
  mapped: portMapped,
});

const reflexive = ({ ipv4, ipv6 }: Learned): TransportAddress[] =>
  [ipv4, ipv6].flatMap(({ result }) => [...(result?.publicAddresses ?? [])].slice(0, MAX_REFLEXIVE));

/**
 * A gateway with another address than the internet sees is behind a NAT itself. Its mapping may still serve a peer behind the same
 * carrier, or one whose coordinator sees only our LAN; like a host candidate it is for peers that have authenticated.
 */
function mapped(learned: Learned, withHosts: boolean): TransportAddress[] {
  const { portMapped } = learned;
  const known = reflexive(learned);
  if (portMapped === undefined || known.some((address) => sameTransportAddress(address, portMapped))) return [];
  return withHosts || known.some(({ ip }) => ip === portMapped.ip) ? [portMapped] : [];
}

/**
 * Where a port forward that the operator has made for the port of his choice leads: a router that gives us other ports towards the
 * internet shows nothing of it.
 */
function forwarded(learned: Learned): TransportAddress[] {
  const { result, port } = learned.ipv4;
  const [seen] = result?.publicAddresses ?? [];
  if (!learned.isPortChosen || seen === undefined || isCoordinatorInside(learned)) return [];
  const isKnown = result?.publicAddresses.some((address) => address.ip === seen.ip && address.port === port);
  return isKnown === true ? [] : [{ ip: seen.ip, port }];
}

/**
 * With a coordinator in our own LAN, STUN shows no address that the internet knows. Then peers' words count: of those that we
 * already have a path to, and only while they agree, since a NAT that shows each another port has none to offer.
 */
function reported(learned: Learned): TransportAddress[] {
  const agreed = isCoordinatorInside(learned) ? learned.reports.agreed() : undefined;
  return agreed === undefined ? [] : [agreed];
}

/**
 * STUN shows one port, but more peers than not have seen others, after STUN had shown it and before it did so again: our NAT treats the
 * coordinator otherwise than them.
 */
function isContradicted(learned: Learned): boolean {
  const { result, endedAt, confirmedAt } = learned.ipv4;
  if (result?.mapping !== "endpoint-independent" || endedAt === undefined || confirmedAt === undefined) return false;
  return learned.reports.contradict(knownAddresses(learned), endedAt, confirmedAt);
}

/** All that the coordinator sees of us are private addresses. */
function isCoordinatorInside({ ipv4 }: Learned): boolean {
  const addresses = ipv4.result?.publicAddresses ?? [];
  return addresses.length > 0 && addresses.every(({ ip }) => isPrivate(ip));
}

/** As far as it can be told from inside: by a gateway that maps ports at another address than the internet's, or has none to map at. */
function isGatewayBehindNat(learned: Learned): boolean {
  const seen = learned.ipv4.result?.publicAddresses ?? [];
  const { portMapped } = learned;
  if (portMapped === undefined) return learned.hasGatewayNoAddress;
  if (isCoordinatorInside(learned)) return isPrivate(portMapped.ip);
  return seen.length > 0 && !seen.some(({ ip }) => ip === portMapped.ip);
}

/** Neither the coordinator nor the router nor a peer has told us where the internet sees us. */
function isUnseen(learned: Learned): boolean {
  const isMappedOutside = learned.portMapped !== undefined && !isPrivate(learned.portMapped.ip);
  return isCoordinatorInside(learned) && learned.reports.agreed() === undefined && !isMappedOutside;
}
