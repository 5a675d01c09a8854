/** The few fields of an IP packet that routing needs (RFC 791, RFC 8200). */

/** A peer's mesh address as a map key: the 4 or 16 address bytes as text. Undefined for anything that is no IP packet. */
export function destinationKey(packet: Uint8Array): string | undefined {
  return isIPv4Packet(packet) ? keyOf(packet, 16, 4) : isIPv6Packet(packet) ? keyOf(packet, 24, 16) : undefined;
}

export function sourceKey(packet: Uint8Array): string | undefined {
  return isIPv4Packet(packet) ? keyOf(packet, 12, 4) : isIPv6Packet(packet) ? keyOf(packet, 8, 16) : undefined;
}

/** The same key from the 16 bytes of an address, IPv4 as ::ffff:a.b.c.d. */
export function addressKey(bytes: Uint8Array): string {
  const isIPv4 =
    bytes.length === 16 && bytes[10] === 0xff && bytes[11] === 0xff && bytes.subarray(0, 10).every((b) => b === 0);
  return isIPv4 ? keyOf(bytes, 12, 4) : keyOf(bytes, 0, bytes.length);
}

const isIPv4Packet = (packet: Uint8Array): boolean => packet.length >= 20 && (packet[0] ?? 0) >> 4 === 4;
const isIPv6Packet = (packet: Uint8Array): boolean => packet.length >= 40 && (packet[0] ?? 0) >> 4 === 6;

function keyOf(bytes: Uint8Array, offset: number, length: number): string {
  let key = "";
  for (let i = offset; i < offset + length; i++) key += String.fromCharCode(bytes[i] ?? 0);
  return key;
}
