/**
 * rtnetlink messages <-> values, as far as a TUN device and a look around need them (rtnetlink(7), linux/rtnetlink.h).
 *
 * A message is a header, a fixed part by type, and attributes; all numbers are little-endian here, all parts aligned to 4:
 *
 *   header      0 length   4 type (2)   6 flags (2)   8 sequence   12 port                       16 bytes
 *   attribute   0 length (2)   2 type (2)   4 value, padded
 *   ifinfomsg   0 family (1)   2 device type (2)   4 index   8 flags   12 changed flags              16 bytes
 *   ifaddrmsg   0 family (1)   1 prefix (1)   2 flags (1)   3 scope (1)   4 index                     8 bytes
 *   rtmsg       0 family (1)   1 destination bits (1)   2 source bits (1)   3 TOS (1)   4 table (1)   5 protocol (1)
 *               6 scope (1)   7 type (1)   8 flags (4)                                               12 bytes
 */
import { ipBytes, ipFromBytes, isIPv6 } from "../../../shared/address.ts";
import { AF_INET, AF_INET6, AF_UNSPEC } from "./libc.ts";

const HEADER_BYTES = 16;

const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const RTM_NEWLINK = 16;
const RTM_DELLINK = 17;
const RTM_GETLINK = 18;
const RTM_NEWADDR = 20;
const RTM_DELADDR = 21;
const RTM_GETADDR = 22;
const RTM_NEWROUTE = 24;
const RTM_DELROUTE = 25;
const RTM_GETROUTE = 26;

const NLM_F_REQUEST = 0x001;
const NLM_F_ACK = 0x004;
/** On an answer: the table changed while it was dumped, so that the dump may be torn. */
const NLM_F_DUMP_INTR = 0x010;
const NLM_F_REPLACE = 0x100;
const NLM_F_EXCL = 0x200;
const NLM_F_DUMP = 0x300;
const NLM_F_CREATE = 0x400;
/** On an error: attributes follow, among them the kernel's own words. */
const NLM_F_ACK_TLVS = 0x200;

const IFF_UP = 0x1;
/** linux/if_arp.h. */
const ARPHRD_ETHER = 1;
const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_LINKINFO = 18;
const IFLA_INFO_KIND = 1;
const IFLA_AF_SPEC = 26;
const IFLA_INET6_ADDR_GEN_MODE = 8;
const IN6_ADDR_GEN_MODE_NONE = 1;
const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
const IFA_FLAGS = 8;
/** No duplicate address detection: the address is usable at once, and nobody else on a TUN device could have it. */
const IFA_F_NODAD = 0x02;
/** No route for the address's prefix: every peer gets a host route of its own. */
const IFA_F_NOPREFIXROUTE = 0x200;
const RTA_DST = 1;
const RTA_OIF = 4;
const RTA_GATEWAY = 5;
const RTA_PRIORITY = 6;
const RTA_PREFSRC = 7;
const RTA_METRICS = 8;
const RTA_MULTIPATH = 9;
const RTA_TABLE = 15;
const RTAX_MTU = 2;
const RT_TABLE_MAIN = 254;
const RTPROT_STATIC = 4;
const RT_SCOPE_UNIVERSE = 0;
const RT_SCOPE_LINK = 253;
const RTN_UNICAST = 1;
const NLMSGERR_ATTR_MSG = 1;
/** Attribute types carry "nested" and "byte order" in their upper bits. */
const NLA_TYPE_MASK = 0x3fff;
const NLA_F_NESTED = 0x8000;

export interface Link {
  readonly index: number;
  readonly name: string;
  readonly flags: number;
  readonly mtu: number;
  /** What made it: "tun", "bridge", "veth", "wireguard"; undefined for hardware and loopback. */
  readonly kind: string | undefined;
  /** It carries frames, not bare packets: of two devices of the kind "tun" only a TAP does. */
  readonly isEthernet: boolean;
}

export interface InterfaceIp {
  readonly index: number;
  readonly ip: string;
  readonly prefix: number;
  /** IFA_F_* of linux/if_addr.h. */
  readonly flags: number;
}

export interface Route {
  /** Text of the destination; "0.0.0.0" or "::" with prefix 0 is the default route. */
  readonly destination: string;
  readonly prefix: number;
  readonly gateway: string | undefined;
  /** The outgoing interface; of several, the first. Undefined for routes that refuse. */
  readonly index: number | undefined;
  readonly metric: number;
  readonly table: number;
  /** RTN_*: 1 unicast, 2 local, 3 broadcast, 5 multicast, 6 blackhole, 7 unreachable, 8 prohibit. */
  readonly type: number;
  readonly preferredSource: string | undefined;
}

export type NetlinkMessage = { readonly sequence: number } & (
  | { readonly type: "link"; readonly removed: boolean; readonly link: Link }
  | { readonly type: "address"; readonly removed: boolean; readonly address: InterfaceIp }
  | { readonly type: "route"; readonly removed: boolean; readonly route: Route }
  /** The answer to a request; errno 0 is success. `text` is the kernel's explanation, when it has one. */
  | { readonly type: "result"; readonly errno: number; readonly text: string | undefined }
  | { readonly type: "done"; readonly errno: number }
  /** The dump was torn: ask again. */
  | { readonly type: "interrupted" }
);

export type DumpKind = "link" | "address" | "route";

export const encodeDump = (kind: DumpKind, sequence: number): Uint8Array => {
  const [type, fixed] =
    kind === "link" ? [RTM_GETLINK, 16] : kind === "address" ? [RTM_GETADDR, 8] : [RTM_GETROUTE, 12];
  const body = new Uint8Array(fixed);
  body[0] = AF_UNSPEC;
  return message(type, NLM_F_REQUEST | NLM_F_DUMP, sequence, [body]);
};

/** Sets the MTU and brings the interface up. */
export const encodeLinkUp = (index: number, mtu: number, sequence: number): Uint8Array =>
  message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, [
    linkHeader(index, IFF_UP, IFF_UP),
    attribute(IFLA_MTU, u32(mtu)),
  ]);

/** Keeps the kernel from giving the interface a link-local address, which would send router solicitations into the tunnel. */
export const encodeNoLinkLocal = (index: number, sequence: number): Uint8Array =>
  message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, [
    linkHeader(index, 0, 0),
    attribute(
      IFLA_AF_SPEC | NLA_F_NESTED,
      attribute(AF_INET6 | NLA_F_NESTED, attribute(IFLA_INET6_ADDR_GEN_MODE, Uint8Array.of(IN6_ADDR_GEN_MODE_NONE))),
    ),
  ]);

/** Adds an address without a prefix route, IPv6 without duplicate address detection. Adding it again is no error. */
export function encodeAddAddress(index: number, ip: string, prefix: number, sequence: number): Uint8Array {
  const bytes = rawIp(ip);
  const header = new Uint8Array(8);
  header[0] = familyOf(ip);
  header[1] = prefix;
  header[3] = RT_SCOPE_UNIVERSE;
  header.set(u32(index), 4);
  return message(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, sequence, [
    header,
    attribute(IFA_LOCAL, bytes),
    attribute(IFA_ADDRESS, bytes),
    attribute(IFA_FLAGS, u32(IFA_F_NOPREFIXROUTE | (isIPv6(ip) ? IFA_F_NODAD : 0))),
  ]);
}

/**
 * A route to one address through an interface. To add one never replaces a route of somebody else: then the answer is EEXIST. Our own is
 * replaced when the size of packets changes.
 *
 * @param mtu the largest packet that goes there, of which TCP's segment size follows; undefined: the interface's
 */
export function encodeHostRoute(
  action: "add" | "replace" | "delete",
  index: number,
  ip: string,
  sequence: number,
  mtu?: number,
): Uint8Array {
  const header = new Uint8Array(12);
  header[0] = familyOf(ip);
  header[1] = isIPv6(ip) ? 128 : 32;
  header[4] = RT_TABLE_MAIN;
  header[5] = RTPROT_STATIC;
  header[6] = isIPv6(ip) ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
  header[7] = RTN_UNICAST;
  const flags = { add: NLM_F_CREATE | NLM_F_EXCL, replace: NLM_F_CREATE | NLM_F_REPLACE, delete: 0 }[action];
  return message(action === "delete" ? RTM_DELROUTE : RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, [
    header,
    attribute(RTA_DST, rawIp(ip)),
    attribute(RTA_OIF, u32(index)),
    ...(mtu === undefined ? [] : [attribute(RTA_METRICS, attribute(RTAX_MTU, u32(mtu)))]),
  ]);
}

/** All messages of one datagram of the kernel. Types that we do not know, and whatever is cut off, are left out. */
export function decodeNetlink(bytes: Uint8Array): NetlinkMessage[] {
  const messages: NetlinkMessage[] = [];
  const view = viewOf(bytes);
  let at = 0;
  while (at + HEADER_BYTES <= bytes.length) {
    const length = view.getUint32(at, true);
    if (length < HEADER_BYTES || at + length > bytes.length) break;
    const flags = view.getUint16(at + 6, true);
    const sequence = view.getUint32(at + 8, true);
    const body = bytes.subarray(at + HEADER_BYTES, at + length);
    const type = view.getUint16(at + 4, true);
    const decoded = decodeBody(type, flags, sequence, body);
    if (decoded !== undefined) messages.push(decoded);
    if (type !== NLMSG_ERROR && (flags & NLM_F_DUMP_INTR) !== 0) messages.push({ type: "interrupted", sequence });
    at += align(length);
  }
  return messages;
}

function decodeBody(type: number, flags: number, sequence: number, body: Uint8Array): NetlinkMessage | undefined {
  switch (type) {
    case NLMSG_ERROR:
      return decodeResult(flags, sequence, body);
    case NLMSG_DONE:
      return { type: "done", sequence, errno: body.length < 4 ? 0 : errnoOf(body) };
    case RTM_NEWLINK:
    case RTM_DELLINK: {
      const link = decodeLink(body);
      return link && { type: "link", sequence, removed: type === RTM_DELLINK, link };
    }
    case RTM_NEWADDR:
    case RTM_DELADDR: {
      const address = decodeAddress(body);
      return address && { type: "address", sequence, removed: type === RTM_DELADDR, address };
    }
    case RTM_NEWROUTE:
    case RTM_DELROUTE: {
      const route = decodeRoute(body);
      return route && { type: "route", sequence, removed: type === RTM_DELROUTE, route };
    }
    default:
      return undefined;
  }
}

/** `struct nlmsgerr`: the negative errno, the header of the request, then attributes (the request's body is never asked for). */
function decodeResult(flags: number, sequence: number, body: Uint8Array): NetlinkMessage | undefined {
  if (body.length < 4) return undefined;
  const errno = errnoOf(body);
  const said = (flags & NLM_F_ACK_TLVS) === 0 ? undefined : attributes(body, 20).get(NLMSGERR_ATTR_MSG);
  return { type: "result", sequence, errno, text: said && text(said) };
}

function decodeLink(body: Uint8Array): Link | undefined {
  if (body.length < 16) return undefined;
  const view = viewOf(body);
  const found = attributes(body, 16);
  const info = found.get(IFLA_LINKINFO);
  const kind = info && attributes(info, 0).get(IFLA_INFO_KIND);
  return {
    index: view.getInt32(4, true),
    name: text(found.get(IFLA_IFNAME) ?? new Uint8Array(0)),
    flags: view.getUint32(8, true),
    mtu: number(found.get(IFLA_MTU)) ?? 0,
    kind: kind && text(kind),
    isEthernet: view.getUint16(2, true) === ARPHRD_ETHER,
  };
}

function decodeAddress(body: Uint8Array): InterfaceIp | undefined {
  if (body.length < 8) return undefined;
  const found = attributes(body, 8);
  // On a point-to-point interface IFA_ADDRESS is the other end; IFA_LOCAL, where there is one, is always ours.
  const ip = ipText(found.get(IFA_LOCAL) ?? found.get(IFA_ADDRESS));
  if (ip === undefined) return undefined;
  return {
    index: viewOf(body).getUint32(4, true),
    ip,
    prefix: body[1] ?? 0,
    flags: number(found.get(IFA_FLAGS)) ?? body[2] ?? 0,
  };
}

function decodeRoute(body: Uint8Array): Route | undefined {
  if (body.length < 12) return undefined;
  const family = body[0];
  if (family !== AF_INET && family !== AF_INET6) return undefined;
  const found = attributes(body, 12);
  // `struct rtnexthop`: length (2), flags (1), hops (1), interface (4), attributes.
  const hop = found.get(RTA_MULTIPATH);
  const hopIndex = hop && hop.length >= 8 ? viewOf(hop).getInt32(4, true) : undefined;
  const hopGateway = hop && hop.length > 8 ? attributes(hop, 8).get(RTA_GATEWAY) : undefined;
  return {
    destination: ipText(found.get(RTA_DST)) ?? (family === AF_INET ? "0.0.0.0" : "::"),
    prefix: body[1] ?? 0,
    gateway: ipText(found.get(RTA_GATEWAY) ?? hopGateway),
    index: number(found.get(RTA_OIF)) ?? hopIndex,
    metric: number(found.get(RTA_PRIORITY)) ?? 0,
    table: number(found.get(RTA_TABLE)) ?? body[4] ?? 0,
    type: body[7] ?? 0,
    preferredSource: ipText(found.get(RTA_PREFSRC)),
  };
}

/** The attributes from `start` on, by type. Of two of the same type, the first. */
function attributes(bytes: Uint8Array, start: number): Map<number, Uint8Array> {
  const found = new Map<number, Uint8Array>();
  const view = viewOf(bytes);
  let at = start;
  while (at + 4 <= bytes.length) {
    const length = view.getUint16(at, true);
    if (length < 4 || at + length > bytes.length) break;
    const type = view.getUint16(at + 2, true) & NLA_TYPE_MASK;
    if (!found.has(type)) found.set(type, bytes.subarray(at + 4, at + length));
    at += align(length);
  }
  return found;
}

function message(type: number, flags: number, sequence: number, parts: readonly Uint8Array[]): Uint8Array {
  const bytes = concat([new Uint8Array(HEADER_BYTES), ...parts]);
  const view = viewOf(bytes);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, type, true);
  view.setUint16(6, flags, true);
  view.setUint32(8, sequence, true);
  return bytes;
}

function linkHeader(index: number, flags: number, changed: number): Uint8Array {
  const header = new Uint8Array(16);
  header.set(u32(index), 4);
  header.set(u32(flags), 8);
  header.set(u32(changed), 12);
  return header;
}

/** Padded; its length counts the value only. */
function attribute(type: number, value: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(align(4 + value.length));
  viewOf(bytes).setUint16(0, 4 + value.length, true);
  viewOf(bytes).setUint16(2, type, true);
  bytes.set(value, 4);
  return bytes;
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

const align = (length: number): number => (length + 3) & ~3;
const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const u32 = (value: number): Uint8Array => new Uint8Array(Uint32Array.of(value).buffer);
const number = (bytes: Uint8Array | undefined): number | undefined =>
  bytes && bytes.length >= 4 ? viewOf(bytes).getUint32(0, true) : undefined;
const ipText = (bytes: Uint8Array | undefined): string | undefined =>
  bytes && (bytes.length === 4 || bytes.length === 16) ? ipFromBytes(bytes) : undefined;
/** Kernels say errors as negative numbers. */
const errnoOf = (bytes: Uint8Array): number => Math.abs(viewOf(bytes).getInt32(0, true));
const familyOf = (ip: string): number => (isIPv6(ip) ? AF_INET6 : AF_INET);
const rawIp = (ip: string): Uint8Array => (isIPv6(ip) ? ipBytes(ip) : ipBytes(ip).subarray(12));

/** Text ends at its zero byte, if it has one. */
function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}
