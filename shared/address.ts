/**
 * Transport addresses (RFC 8445: ip + port) and the few questions we ask about an ip.
 *
 * Text is canonical (RFC 5952, IPv4-mapped IPv6 unwrapped), so that equal addresses are equal strings. The packed form, 16 bytes of
 * IPv6 (IPv4 as ::ffff:a.b.c.d) and 2 bytes of port, is what codecs and the data path use.
 */
import ipaddr from "ipaddr.js";

export interface TransportAddress {
  readonly ip: string;
  readonly port: number;
}

/** Bytes of the packed form: 16 of address, 2 of port, big-endian. */
export const PACKED_ADDRESS_BYTES = 18;

export const isIPv6 = (ip: string): boolean => ip.includes(":");

/** Canonical text of an ip, or undefined when it is none. Zone ids (`fe80::1%eth0`) are refused. */
export function canonicalIp(text: string): string | undefined {
  // Not by ipaddr.js, which also accepts "10.1", "0x7f.1" and "010.0.0.1" (octal, so 8.0.0.1), and takes longer.
  if (!isIPv6(text)) return FOUR_DECIMALS.test(text) ? text : undefined;
  return text.includes("%") || !ipaddr.isValid(text) ? undefined : ipaddr.process(text).toString();
}

/** Four numbers up to 255 without leading zeros: canonical as they stand. */
const FOUR_DECIMALS = /^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?=\d)|$)){4}$/;

/** Parses `1.2.3.4:5` and `[2001:db8::1]:5`. */
export function parseTransportAddress(text: string): TransportAddress | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):(\d{1,5})$/.exec(text);
  if (match === null) return undefined;
  const ip = canonicalIp(match[1] ?? match[2] ?? "");
  const port = Number(match[3]);
  return ip === undefined || port > 65_535 ? undefined : { ip, port };
}

export const formatTransportAddress = (address: TransportAddress): string =>
  isIPv6(address.ip) ? `[${address.ip}]:${address.port}` : `${address.ip}:${address.port}`;

export const sameTransportAddress = (a: TransportAddress, b: TransportAddress): boolean =>
  a.port === b.port && a.ip === b.ip;

/** The 16 bytes of an ip, IPv4 as ::ffff:a.b.c.d. The ip must be canonical. */
export function ipBytes(ip: string): Uint8Array {
  if (!isIPv6(ip)) return mappedBytes(ip);
  const parsed = ipaddr.parse(ip);
  return Uint8Array.from(parsed.toByteArray());
}

/** Without the parser: every probe passes here. */
function mappedBytes(ip: string): Uint8Array {
  const bytes = new Uint8Array(16);
  bytes[10] = bytes[11] = 0xff;
  const parts = ip.split(".");
  for (let i = 0; i < 4; i++) bytes[12 + i] = Number(parts[i]);
  return bytes;
}

/** Canonical text of 16 bytes (IPv4-mapped unwrapped) or of 4. */
export function ipFromBytes(bytes: Uint8Array): string {
  if (bytes.length === 4) return bytes.join(".");
  if (bytes.length === 16 && isPackedIPv4(bytes)) return `${bytes[12]}.${bytes[13]}.${bytes[14]}.${bytes[15]}`;
  return canonicalIp((ipaddr.fromByteArray([...bytes]) as ipaddr.IPv6).toString()) ?? "::";
}

export function packAddress(address: TransportAddress): Uint8Array {
  const packed = new Uint8Array(PACKED_ADDRESS_BYTES);
  packed.set(ipBytes(address.ip));
  packed[16] = address.port >> 8;
  packed[17] = address.port & 0xff;
  return packed;
}

export const unpackAddress = (packed: Uint8Array): TransportAddress => ({
  ip: ipFromBytes(packed.subarray(0, 16)),
  port: ((packed[16] ?? 0) << 8) | (packed[17] ?? 0),
});

/** Is the packed address IPv4 (::ffff:0:0/96)? */
export function isPackedIPv4(packed: Uint8Array): boolean {
  for (let i = 0; i < 10; i++) if (packed[i] !== 0) return false;
  return packed[10] === 0xff && packed[11] === 0xff;
}

/** Does `cidr` (`10.0.0.0/8`, `fd00::/48`) contain `ip`? False across families and for text that is no CIDR. */
export function cidrContains(cidr: string, ip: string): boolean {
  if (!ipaddr.isValidCIDR(cidr)) return false;
  const [network, bits] = ipaddr.parseCIDR(cidr);
  const address = ipaddr.parse(ip);
  return address.kind() === network.kind() && address.match(network, bits);
}

/**
 * May an unauthenticated hint make us send to this ip? Never to multicast, broadcast, loopback, unspecified or link-local
 * addresses (PROTOCOL.md, "Nobody can be aimed"). Loopback is allowed only where `allowLoopback` says that the whole mesh is
 * one machine: a demo, a test.
 */
export function isProbeable(ip: string, allowLoopback = false): boolean {
  if (FOUR_DECIMALS.test(ip)) {
    const [first = 0, second] = ip.split(".").map(Number);
    if (first === 127) return allowLoopback;
    // 0.0.0.0/8, link-local, multicast, broadcast.
    return (
      first !== 0 && !(first === 169 && second === 254) && (first < 224 || first >= 240) && ip !== "255.255.255.255"
    );
  }
  if (!ipaddr.isValid(ip)) return false;
  const range = ipaddr.process(ip).range();
  if (range === "loopback") return allowLoopback;
  return !["unspecified", "broadcast", "multicast", "linkLocal"].includes(range) && !ip.startsWith("0.");
}

/** RFC 1918, RFC 6598, RFC 2544, RFC 4193: addresses that mean something else elsewhere. */
const PRIVATE_RANGES = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7"];

export const isPrivate = (ip: string): boolean => PRIVATE_RANGES.some((range) => cidrContains(range, ip));
