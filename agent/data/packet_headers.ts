/**
 * The IP and TCP or UDP headers of a packet that is cut into pieces: where they end, and what they say in front of each piece.
 *
 * A **super-packet** is what the kernel's segmentation offload gives and takes: one IP packet of up to 64 KB that stands for many, with
 * the payload size of each told beside it. An **unfinished** packet has the sum of its pseudo-header alone where its TCP or UDP checksum
 * belongs; a kernel that takes offloads completes it. Headers may come from a peer: nothing in them is believed before `parse`.
 *
 * Only plain TCP and UDP right behind an IP header are known (RFC 9293, RFC 768); everything else travels packet by packet.
 */

export const TCP = 6;
export const UDP = 17;
/** IPv4 and TCP with all their options. */
export const MAX_HEADERS_BYTES = 120;

const UDP_HEADER_BYTES = 8;
const TCP_FIN = 0x01;
const TCP_PSH = 0x08;
const TCP_CWR = 0x80;

export class PacketHeaders {
  version = 0;
  protocol = 0;
  ipBytes = 0;
  /** All headers together. */
  bytes = 0;

  /** Where in the TCP or UDP header the checksum is. */
  get checksumOffset(): number {
    return this.protocol === TCP ? 16 : 6;
  }

  /** Reads the headers at `start`; false when there is anything but IP and TCP or UDP, a fragment, or less than whole headers. */
  parse(bytes: Uint8Array, start: number, end: number): boolean {
    const version = (bytes[start] ?? 0) >> 4;
    const length = end - start;
    let ipBytes: number;
    let protocol: number;
    if (version === 4) {
      ipBytes = ((bytes[start] ?? 0) & 15) * 4;
      protocol = bytes[start + 9] ?? 0;
      // More fragments, or not the first one.
      if (((bytes[start + 6] ?? 0) & 0x3f) !== 0 || bytes[start + 7] !== 0) return false;
      if (ipBytes < 20) return false;
    } else if (version === 6) {
      ipBytes = 40;
      protocol = bytes[start + 6] ?? 0;
    } else return false;
    if (protocol !== TCP && protocol !== UDP) return false;
    if (length < ipBytes + UDP_HEADER_BYTES) return false;
    const own = protocol === UDP ? UDP_HEADER_BYTES : ((bytes[start + ipBytes + 12] ?? 0) >> 4) * 4;
    if (protocol === TCP && own < 20) return false;
    if (length < ipBytes + own) return false;
    this.version = version;
    this.protocol = protocol;
    this.ipBytes = ipBytes;
    this.bytes = ipBytes + own;
    return true;
  }

  copyFrom(other: PacketHeaders): void {
    this.version = other.version;
    this.protocol = other.protocol;
    this.ipBytes = other.ipBytes;
    this.bytes = other.bytes;
  }

  /** Has the sender answered a congestion mark in this packet (RFC 3168)? Only the first piece may say so. */
  hasCwr(bytes: Uint8Array, start: number): boolean {
    return this.protocol === TCP && ((bytes[start + this.ipBytes + 13] ?? 0) & TCP_CWR) !== 0;
  }
}

/**
 * Turns the headers at `at`, a copy of those of a super-packet with `total` bytes of payload, into those of the piece with the `length`
 * bytes from `offset` on: lengths, identification, sequence number, flags, IPv4's checksum, and the pseudo-header's sum.
 */
export function fitHeaders(
  bytes: Uint8Array,
  at: number,
  headers: PacketHeaders,
  piece: { readonly offset: number; readonly length: number; readonly total: number; readonly segmentBytes: number },
): void {
  const { offset, length, total } = piece;
  const own = at + headers.ipBytes;
  const ownLength = headers.bytes - headers.ipBytes + length;
  if (headers.version === 4) {
    writeU16(bytes, at + 2, headers.bytes + length);
    writeU16(bytes, at + 4, readU16(bytes, at + 4) + Math.floor(offset / piece.segmentBytes));
    writeU16(bytes, at + 10, 0);
    writeU16(bytes, at + 10, ~fold(sumOf(bytes, at, own)));
  } else writeU16(bytes, at + 4, ownLength);
  if (headers.protocol === TCP) {
    // Modulo 2^32, since it is written as two halves.
    const sequence = ((readU16(bytes, own + 4) << 16) | readU16(bytes, own + 6)) + offset;
    writeU16(bytes, own + 4, sequence >>> 16);
    writeU16(bytes, own + 6, sequence);
    let flags = bytes[own + 13] ?? 0;
    if (offset > 0) flags &= ~TCP_CWR;
    if (offset + length < total) flags &= ~(TCP_FIN | TCP_PSH);
    bytes[own + 13] = flags;
  } else writeU16(bytes, own + 4, ownLength);
  writeU16(bytes, own + headers.checksumOffset, pseudoHeaderSum(bytes, at, headers, ownLength));
}

/** Completes the checksum of the unfinished packet between `start` and `end`. */
export function finishChecksum(bytes: Uint8Array, from: number, end: number, checksumAt: number, isUdp: boolean): void {
  const checksum = ~fold(sumOf(bytes, from, end)) & 0xffff;
  // A UDP checksum of zero says that there is none (RFC 768).
  writeU16(bytes, checksumAt, checksum === 0 && isUdp ? 0xffff : checksum);
}

/** Writes the super-packet or unfinished packet between `start` and `end` as finished IP packets, one after the other, into `scratch`. */
export function finishPackets(
  bytes: Uint8Array,
  start: number,
  end: number,
  headers: PacketHeaders,
  segmentBytes: number,
  scratch: Uint8Array,
  deliver: (packet: Uint8Array) => void,
): void {
  const payload = start + headers.bytes;
  const total = end - payload;
  const size = segmentBytes === 0 ? Math.max(1, total) : segmentBytes;
  for (let offset = 0; offset === 0 || offset < total; offset += size) {
    const length = Math.min(size, total - offset);
    scratch.set(bytes.subarray(start, payload));
    scratch.set(bytes.subarray(payload + offset, payload + offset + length), headers.bytes);
    const packetEnd = headers.bytes + length;
    fitHeaders(scratch, 0, headers, { offset, length, total, segmentBytes: size });
    const { ipBytes, checksumOffset, protocol } = headers;
    finishChecksum(scratch, ipBytes, packetEnd, ipBytes + checksumOffset, protocol === UDP);
    deliver(scratch.subarray(0, packetEnd));
  }
}

/** The sum over the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1), folded, not complemented: what the kernel calls partial. */
function pseudoHeaderSum(bytes: Uint8Array, at: number, headers: PacketHeaders, ownLength: number): number {
  const addresses = headers.version === 4 ? sumOf(bytes, at + 12, at + 20) : sumOf(bytes, at + 8, at + 40);
  return fold(addresses + headers.protocol + ownLength);
}

/** Sums 16-bit words; at most 64 KB, so it stays far below 2^53. */
function sumOf(bytes: Uint8Array, from: number, end: number): number {
  let sum = 0;
  let i = from;
  for (; i + 1 < end; i += 2) sum += ((bytes[i] ?? 0) << 8) | (bytes[i + 1] ?? 0);
  return i < end ? sum + ((bytes[i] ?? 0) << 8) : sum;
}

function fold(sum: number): number {
  let folded = sum;
  while (folded > 0xffff) folded = (folded & 0xffff) + Math.floor(folded / 0x10000);
  return folded;
}

const readU16 = (bytes: Uint8Array, at: number): number => ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);

function writeU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

/** IP packets that a packet with so much payload stands for. */
export const partsOf = (payload: number, segmentBytes: number): number =>
  segmentBytes === 0 ? 1 : Math.max(1, Math.ceil(payload / segmentBytes));
