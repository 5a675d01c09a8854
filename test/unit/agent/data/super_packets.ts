/** Super-packets as a kernel with segmentation offload hands them over, and an independent look at what became of them. */
import type { PacketOffload } from "../../../../agent/data/plane.ts";
import { ipBytes } from "../../../../shared/address.ts";

export interface SuperPacketOptions {
  readonly protocol: "tcp" | "udp";
  readonly source: string;
  readonly destination: string;
  readonly payload: Uint8Array;
  readonly segmentBytes: number;
  readonly sequence?: number;
  readonly id?: number;
  /** TCP flags; default ACK and PSH. */
  readonly flags?: number;
  /** Bytes of TCP options, a multiple of 4. */
  readonly options?: number;
}

/** The packet and what the TUN device says about it. The sum of the pseudo-header stands where the checksum belongs. */
export function superPacket(options: SuperPacketOptions): { packet: Uint8Array; offload: PacketOffload } {
  const is6 = options.source.includes(":");
  const isTcp = options.protocol === "tcp";
  const optionBytes = isTcp ? (options.options ?? 0) : 0;
  const [ipLength, ownLength] = [is6 ? 40 : 20, isTcp ? 20 + optionBytes : 8];
  const packet = new Uint8Array(ipLength + ownLength + options.payload.length);
  const view = new DataView(packet.buffer);
  const [source, destination] = [ipBytes(options.source), ipBytes(options.destination)];
  if (is6) {
    packet[0] = 0x60;
    view.setUint16(4, packet.length - 40);
    packet[6] = isTcp ? 6 : 17;
    packet[7] = 64;
    packet.set(source, 8);
    packet.set(destination, 24);
  } else {
    packet[0] = 0x45;
    view.setUint16(2, packet.length);
    view.setUint16(4, options.id ?? 0x1000);
    packet[8] = 64;
    packet[9] = isTcp ? 6 : 17;
    packet.set(source.subarray(12), 12);
    packet.set(destination.subarray(12), 16);
    view.setUint16(10, ~internetSum(packet.subarray(0, 20)) & 0xffff);
  }
  view.setUint16(ipLength, 5001);
  view.setUint16(ipLength + 2, 5002);
  if (isTcp) {
    view.setUint32(ipLength + 4, options.sequence ?? 0xffff_ff00);
    view.setUint32(ipLength + 8, 77);
    packet[ipLength + 12] = (ownLength / 4) << 4;
    packet[ipLength + 13] = options.flags ?? 0x18;
    view.setUint16(ipLength + 14, 500);
    packet.fill(1, ipLength + 20, ipLength + ownLength);
  } else view.setUint16(ipLength + 4, packet.length - ipLength);
  packet.set(options.payload, ipLength + ownLength);
  const checksumOffset = isTcp ? 16 : 6;
  view.setUint16(ipLength + checksumOffset, pseudoSum(packet, is6 ? 6 : 4, packet.length - ipLength));
  const { segmentBytes } = options;
  return { packet, offload: { isUnfinished: true, checksumStart: ipLength, checksumOffset, segmentBytes } };
}

/** An acknowledgement with timestamps, and perhaps a SACK block. */
export function acknowledgement(source: string, destination: string, hasSack: boolean): ReturnType<typeof superPacket> {
  const options = hasSack ? 24 : 12;
  const made = superPacket({
    protocol: "tcp",
    source,
    destination,
    payload: new Uint8Array(),
    segmentBytes: 0,
    options,
  });
  const at = made.packet.length - options;
  made.packet.set([1, 1, 8, 10, 0, 0, 5, 5, 0, 0, 5, 5], at);
  if (hasSack) made.packet.set([1, 1, 5, 10, 0, 0, 9, 9, 0, 0, 9, 10], at + 12);
  return made;
}

/** One finished packet, taken apart; throws unless every length and checksum in it is right. */
export interface Part {
  readonly payload: Uint8Array;
  /** TCP only. */
  readonly sequence: number;
  readonly flags: number;
  /** IPv4 only. */
  readonly id: number;
}

export function readPart(packet: Uint8Array): Part {
  const view = new DataView(packet.buffer, packet.byteOffset, packet.length);
  const is6 = packet[0] === 0x60;
  const ipLength = is6 ? 40 : 20;
  const isTcp = packet[is6 ? 6 : 9] === 6;
  if (is6 ? view.getUint16(4) + 40 !== packet.length : view.getUint16(2) !== packet.length) {
    throw new Error("The IP length is wrong");
  }
  if (!is6 && internetSum(packet.subarray(0, 20)) !== 0xffff) throw new Error("The IPv4 checksum is wrong");
  if (!isTcp && view.getUint16(ipLength + 4) !== packet.length - ipLength) throw new Error("The UDP length is wrong");
  const pseudo = pseudoSum(packet, is6 ? 6 : 4, packet.length - ipLength);
  if (fold(pseudo + internetSum(packet.subarray(ipLength))) !== 0xffff) throw new Error("The checksum is wrong");
  const ownLength = isTcp ? ((packet[ipLength + 12] ?? 0) >> 4) * 4 : 8;
  return {
    payload: packet.slice(ipLength + ownLength),
    sequence: isTcp ? view.getUint32(ipLength + 4) : 0,
    flags: isTcp ? (packet[ipLength + 13] ?? 0) : 0,
    id: is6 ? 0 : view.getUint16(4),
  };
}

/** Bytes of which no stretch is like another. */
export const countingBytes = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => Math.imul(i + 1, 0x9e37_79b1) >>> 24);

function pseudoSum(packet: Uint8Array, version: 4 | 6, length: number): number {
  const addresses = version === 4 ? packet.subarray(12, 20) : packet.subarray(8, 40);
  const protocol = packet[version === 4 ? 9 : 6] ?? 0;
  return fold(internetSum(addresses) + protocol + length);
}

/** RFC 1071, written as differently from the product's as it can be. */
function internetSum(bytes: Uint8Array): number {
  let sum = 0;
  for (const [i, byte] of bytes.entries()) sum += i % 2 === 0 ? byte * 256 : byte;
  return fold(sum);
}

const fold = (sum: number): number => (sum > 0xffff ? fold((sum % 0x10000) + Math.floor(sum / 0x10000)) : sum);
