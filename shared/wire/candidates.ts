/**
 * Candidates and the capabilities that travel with them: in the payload of a handshake, and in a control frame when they change.
 *
 *   candidate list   | generation 4 | NAT mapping 1 | NAT filtering 1 | NAT allocation 1 | flags 1 | count 1 | count x candidate |
 *                    | ports 6, when the flags say so | more flags 1, likewise |
 *   candidate        | kind 1 (0 host, 1 server-reflexive, 2 port-mapped) | packed address 18 |
 *   ports            | first 2 | last 2 | stride 2 (signed) |
 *
 * A list with a higher generation replaces the earlier one whole.
 */
import { PACKED_ADDRESS_BYTES, packAddress, type TransportAddress, unpackAddress } from "../address.ts";
import type { Reader, Writer } from "./cursor.ts";

export type CandidateKind = "host" | "server-reflexive" | "port-mapped";
const KINDS: readonly CandidateKind[] = ["host", "server-reflexive", "port-mapped"];

/** RFC 4787 §4.1. `none`: no translation at all. */
export type Mapping = "none" | "endpoint-independent" | "address-dependent" | "address-and-port-dependent";
/** RFC 4787 §5. */
export type Filtering = "endpoint-independent" | "address-dependent" | "address-and-port-dependent";
/** How a NAT with dependent mapping picks ports. */
export type Allocation = "preserving" | "sequential" | "block" | "random";

const MAPPINGS: readonly (Mapping | undefined)[] = [
  undefined,
  "none",
  "endpoint-independent",
  "address-dependent",
  "address-and-port-dependent",
];
const FILTERINGS: readonly (Filtering | undefined)[] = [
  undefined,
  "endpoint-independent",
  "address-dependent",
  "address-and-port-dependent",
];
const ALLOCATIONS: readonly (Allocation | undefined)[] = [undefined, "preserving", "sequential", "block", "random"];

const FLAG_UDP_BLOCKED = 1;
const FLAG_CERTAIN = 2;
const FLAG_PORTS = 4;
const FLAG_ROOTLESS = 8;
const FLAG_PORTS_SHARED = 16;
const FLAG_PORTS_EXCLUSIVE = 32;
const FLAG_NO_GUESSING = 64;
const FLAG_IPV4_BLOCKED = 128;
/** Both together, which says nothing of the ports: more flags follow, those two among them. */
const FLAGS_MORE = FLAG_PORTS_SHARED | FLAG_PORTS_EXCLUSIVE;
const MORE_PORTS_SHARED = 1;
const MORE_PORTS_EXCLUSIVE = 2;
const MORE_BEHIND_NAT = 4;
const MORE_UNSEEN = 8;

export const MAX_CANDIDATES = 24;

export interface WireCandidate {
  readonly kind: CandidateKind;
  readonly address: TransportAddress;
}

/** Which external ports a NAT will use: a block (stride 0), or a counter that stands at `first` = `last` and goes on by `stride`. */
export interface PortRange {
  readonly first: number;
  readonly last: number;
  readonly stride: number;
}

/** What an agent knows of its own NAT: told to peers, so that both can say in words why there is no direct path. */
export interface NatReport {
  readonly mapping: Mapping | undefined;
  readonly filtering: Filtering | undefined;
  readonly allocation: Allocation | undefined;
  /** Of a block and a counter. */
  readonly ports?: PortRange | undefined;
  /** Does one external port serve several destinations? Asked of a block only; undefined: not known. */
  readonly sharesPorts?: boolean | undefined;
  /** Nothing came back on UDP at all. */
  readonly udpBlocked: boolean;
  /** Nothing came back over IPv4, though over IPv6. */
  readonly isIPv4Blocked?: boolean | undefined;
  /** The router's own address is not the one that the internet sees: a carrier's NAT, or another router, stands before it. */
  readonly isRouterBehindNat?: boolean | undefined;
  /** The coordinator is in the agent's own network, and nobody else has told the address that the internet sees. */
  readonly isUnseen?: boolean | undefined;
  readonly certain: boolean;
}

export const UNKNOWN_NAT: NatReport = {
  mapping: undefined,
  filtering: undefined,
  allocation: undefined,
  udpBlocked: false,
  certain: false,
};

export interface CandidateList {
  readonly generation: number;
  /** The agent has no network device: it takes streams, not packets. */
  readonly isRootless?: boolean;
  /** The agent takes no part in attempts with many packets: its operator has switched them off. */
  readonly isGuessingOff?: boolean;
  readonly nat: NatReport;
  readonly candidates: readonly WireCandidate[];
}

export function writeCandidates(writer: Writer, list: CandidateList): void {
  const { nat } = list;
  const candidates = list.candidates.slice(0, MAX_CANDIDATES);
  const outside = (nat.isRouterBehindNat === true ? MORE_BEHIND_NAT : 0) | (nat.isUnseen === true ? MORE_UNSEEN : 0);
  const sharing = nat.sharesPorts === undefined ? 0 : nat.sharesPorts ? FLAG_PORTS_SHARED : FLAG_PORTS_EXCLUSIVE;
  writer
    .u32(list.generation)
    .u8(Math.max(0, MAPPINGS.indexOf(nat.mapping)))
    .u8(Math.max(0, FILTERINGS.indexOf(nat.filtering)))
    .u8(Math.max(0, ALLOCATIONS.indexOf(nat.allocation)))
    .u8(
      (nat.udpBlocked ? FLAG_UDP_BLOCKED : 0) |
        (nat.certain ? FLAG_CERTAIN : 0) |
        (nat.ports === undefined ? 0 : FLAG_PORTS) |
        (list.isRootless === true ? FLAG_ROOTLESS : 0) |
        (outside === 0 ? sharing : FLAGS_MORE) |
        (list.isGuessingOff === true ? FLAG_NO_GUESSING : 0) |
        (nat.isIPv4Blocked === true ? FLAG_IPV4_BLOCKED : 0),
    )
    .u8(candidates.length);
  for (const { kind, address } of candidates) writer.u8(KINDS.indexOf(kind)).bytes(packAddress(address));
  if (nat.ports !== undefined) writePorts(writer, nat.ports);
  if (outside === 0) return;
  writer.u8(
    outside |
      (nat.sharesPorts === true ? MORE_PORTS_SHARED : 0) |
      (nat.sharesPorts === false ? MORE_PORTS_EXCLUSIVE : 0),
  );
}

export function writePorts(writer: Writer, { first, last, stride }: PortRange): void {
  writer
    .u16(first)
    .u16(last)
    .u16(stride & 0xffff);
}

/** Undefined for a range that is none; then nothing is known of the ports. */
export function readPorts(reader: Reader): PortRange | undefined {
  const first = reader.u16();
  const last = reader.u16();
  const stride = (reader.u16() << 16) >> 16;
  return first === 0 || last < first ? undefined : { first, last, stride };
}

/** Undefined when truncated or over the maximum. Candidates of unknown kinds are left out. */
export function readCandidates(reader: Reader): CandidateList | undefined {
  const generation = reader.u32();
  const mapping = MAPPINGS[reader.u8()];
  const filtering = FILTERINGS[reader.u8()];
  const allocation = ALLOCATIONS[reader.u8()];
  const flags = reader.u8();
  const count = reader.u8();
  if (reader.failed || count > MAX_CANDIDATES) return undefined;
  const candidates: WireCandidate[] = [];
  for (let i = 0; i < count; i++) {
    const kind = KINDS[reader.u8()];
    const address = reader.bytes(PACKED_ADDRESS_BYTES);
    if (reader.failed) return undefined;
    if (kind !== undefined) candidates.push({ kind, address: unpackAddress(address) });
  }
  const ports = (flags & FLAG_PORTS) === 0 ? undefined : readPorts(reader);
  const more = (flags & FLAGS_MORE) === FLAGS_MORE ? reader.u8() : 0;
  if (reader.failed) return undefined;
  const isShared = (more & MORE_PORTS_SHARED) !== 0 || (flags & FLAGS_MORE) === FLAG_PORTS_SHARED;
  const isExclusive = (more & MORE_PORTS_EXCLUSIVE) !== 0 || (flags & FLAGS_MORE) === FLAG_PORTS_EXCLUSIVE;
  const nat: NatReport = {
    mapping,
    filtering,
    allocation,
    ...(ports === undefined ? {} : { ports }),
    ...(isShared === isExclusive ? {} : { sharesPorts: isShared }),
    udpBlocked: (flags & FLAG_UDP_BLOCKED) !== 0,
    ...((flags & FLAG_IPV4_BLOCKED) === 0 ? {} : { isIPv4Blocked: true }),
    ...((more & MORE_BEHIND_NAT) === 0 ? {} : { isRouterBehindNat: true }),
    ...((more & MORE_UNSEEN) === 0 ? {} : { isUnseen: true }),
    certain: (flags & FLAG_CERTAIN) !== 0,
  };
  const isRootless = (flags & FLAG_ROOTLESS) !== 0;
  const isGuessingOff = (flags & FLAG_NO_GUESSING) !== 0;
  return {
    generation,
    nat,
    candidates,
    ...(isRootless ? { isRootless } : {}),
    ...(isGuessingOff ? { isGuessingOff } : {}),
  };
}
