/**
 * STUN messages: RFC 8489 (Binding, integrity by SHA-256, FINGERPRINT), the NAT discovery attributes of RFC 5780, and the classic
 * RFC 3489 form, which has no magic cookie and a transaction id of 16 bytes.
 *
 * Bytes to values only. Who is answered, and with what, is coordinator/stun; what an answer means is agent/path.
 *
 *   0        2        4              8                         20
 *   | type   | length | 0x2112A442   | transaction id          | attributes ...
 *   attribute: | type u16 | length u16 | value | 0-3 bytes of padding |
 *
 * Departures from RFC 8489: MESSAGE-INTEGRITY (SHA-1) is neither written nor checked, and MESSAGE-INTEGRITY-SHA256 must not be
 * truncated, so that nobody can talk us down to a weaker tag.
 */
import {
  ipFromBytes,
  ipBytes,
  isIPv6,
  PACKED_ADDRESS_BYTES,
  packAddress,
  type TransportAddress,
  unpackAddress,
} from "../address.ts";
import { Reader, Writer } from "./cursor.ts";

export type StunClass = "request" | "indication" | "success" | "error";
export type HmacSha256 = (key: Uint8Array, data: Uint8Array) => Uint8Array;

/** The only method that we speak. */
export const STUN_BINDING = 0x001;

const MAGIC_COOKIE = 0x2112_a442;
const HEADER_BYTES = 20;
const TAG_BYTES = 32;
/** RFC 8489 §14.7: the CRC is XORed with the ASCII of "STUN", so that it differs from a CRC of the application's own. */
const FINGERPRINT_XOR = 0x5354_554e;
/** RFC 8489 §14.14: SOFTWARE and reason phrases are under 128 characters, at most 763 bytes. */
const TEXT_LIMIT_BYTES = 763;
/** RFC 8489 §14.3. */
const USERNAME_LIMIT_BYTES = 508;
const UNKNOWN_LIMIT = 32;
export const STUN_ECHO_BYTES = 8;

const ATTRIBUTE = {
  mappedAddress: 0x0001,
  changeRequest: 0x0003,
  sourceAddress: 0x0004, // RFC 3489
  changedAddress: 0x0005, // RFC 3489
  username: 0x0006,
  messageIntegrity: 0x0008,
  errorCode: 0x0009,
  unknownAttributes: 0x000a,
  messageIntegritySha256: 0x001c,
  xorMappedAddress: 0x0020,
  software: 0x8022,
  fingerprint: 0x8028,
  responseOrigin: 0x802b, // RFC 5780
  otherAddress: 0x802c, // RFC 5780
  /**
   * Ours, comprehension-optional: a u64 that only grows, so that a recorded request cannot be replayed from elsewhere. "TM" with the
   * top bit set, which lies in the range for designated experts (RFC 8489 §18.3) and is not taken.
   */
  tunnelmeshSequence: 0xd44d,
  /** Ours: in an answer to a signed request what its source may echo, in a request the echo. Who forges a source never sees it. */
  tunnelmeshEcho: 0xd44e,
  /** Ours: where the answer is to go instead of to the asker, with what an answer to that address has brought. */
  tunnelmeshReturn: 0xd44f,
} as const;

export interface StunAttributes {
  readonly mappedAddress?: TransportAddress | undefined;
  readonly xorMappedAddress?: TransportAddress | undefined;
  readonly sourceAddress?: TransportAddress | undefined;
  readonly changedAddress?: TransportAddress | undefined;
  readonly responseOrigin?: TransportAddress | undefined;
  readonly otherAddress?: TransportAddress | undefined;
  readonly changeRequest?: { readonly ip: boolean; readonly port: boolean } | undefined;
  readonly username?: string | undefined;
  readonly software?: string | undefined;
  readonly errorCode?: { readonly code: number; readonly reason: string } | undefined;
  readonly unknownAttributes?: readonly number[] | undefined;
  readonly sequence?: number | undefined;
  /** 8 bytes. */
  readonly echo?: Uint8Array | undefined;
  readonly returnTo?: { readonly address: TransportAddress; readonly echo: Uint8Array } | undefined;
}

export interface StunMessage extends StunAttributes {
  readonly class: StunClass;
  readonly method: number;
  /** 12 bytes, or 16 in a classic message, which is how the two are told apart. */
  readonly transactionId: Uint8Array;
}

export interface DecodedStun extends StunMessage {
  /** Comprehension-required attributes (below 0x8000) that we do not know: a request that has any is answered with 420. */
  readonly unknownRequired: readonly number[];
  /** What MESSAGE-INTEGRITY-SHA256 covers, and its tag. Nothing is authenticated until `verifyStunIntegrity` said so. */
  readonly integrity: { readonly covered: Uint8Array; readonly tag: Uint8Array } | undefined;
  /** FINGERPRINT was there; it was right, or the message would not have been decoded. */
  readonly fingerprinted: boolean;
}

export interface StunSealing {
  readonly integrity?: { readonly key: Uint8Array; readonly hmacSha256: HmacSha256 } | undefined;
  readonly fingerprint?: boolean;
}

export const isClassicStun = (message: { readonly transactionId: Uint8Array }): boolean =>
  message.transactionId.length === 16;

/** Encodes a message; attributes that are not given are not written. */
export function encodeStun(message: StunMessage, sealing: StunSealing = {}): Uint8Array {
  const id = message.transactionId;
  const writer = new Writer(160).u16(typeBits(message.method, message.class)).u16(0);
  if (!isClassicStun(message)) writer.u32(MAGIC_COOKIE);
  writer.bytes(id);

  putAddress(writer, ATTRIBUTE.xorMappedAddress, message.xorMappedAddress, id);
  putAddress(writer, ATTRIBUTE.mappedAddress, message.mappedAddress);
  putAddress(writer, ATTRIBUTE.sourceAddress, message.sourceAddress);
  putAddress(writer, ATTRIBUTE.changedAddress, message.changedAddress);
  putAddress(writer, ATTRIBUTE.responseOrigin, message.responseOrigin);
  putAddress(writer, ATTRIBUTE.otherAddress, message.otherAddress);
  if (message.changeRequest !== undefined) {
    const { ip, port } = message.changeRequest;
    writer
      .u16(ATTRIBUTE.changeRequest)
      .u16(4)
      .u32((ip ? 4 : 0) | (port ? 2 : 0));
  }
  if (message.errorCode !== undefined) {
    const { code, reason } = message.errorCode;
    const value = new Writer()
      .u16(0)
      .u8(Math.floor(code / 100))
      .u8(code % 100)
      .bytes(utf8.encode(reason));
    putBytes(writer, ATTRIBUTE.errorCode, value.finish());
  }
  if (message.unknownAttributes !== undefined) {
    const value = new Writer();
    for (const type of message.unknownAttributes) value.u16(type);
    putBytes(writer, ATTRIBUTE.unknownAttributes, value.finish());
  }
  if (message.username !== undefined) putBytes(writer, ATTRIBUTE.username, utf8.encode(message.username));
  if (message.software !== undefined) putBytes(writer, ATTRIBUTE.software, utf8.encode(message.software));
  if (message.sequence !== undefined) writer.u16(ATTRIBUTE.tunnelmeshSequence).u16(8).u64(message.sequence);
  if (message.echo !== undefined) putBytes(writer, ATTRIBUTE.tunnelmeshEcho, message.echo);
  if (message.returnTo !== undefined) {
    const { address, echo } = message.returnTo;
    putBytes(writer, ATTRIBUTE.tunnelmeshReturn, Uint8Array.of(...packAddress(address), ...echo));
  }

  // RFC 8489 §14.6: the tag covers everything before it, with the length that the message has once the tag is in.
  if (sealing.integrity !== undefined) {
    writer.setU16(2, writer.length - HEADER_BYTES + 4 + TAG_BYTES);
    const tag = sealing.integrity.hmacSha256(sealing.integrity.key, writer.finish());
    putBytes(writer, ATTRIBUTE.messageIntegritySha256, tag);
  }
  if (sealing.fingerprint === true) {
    writer.setU16(2, writer.length - HEADER_BYTES + 8);
    const crc = crc32(writer.finish());
    writer
      .u16(ATTRIBUTE.fingerprint)
      .u16(4)
      .u32((crc ^ FINGERPRINT_XOR) >>> 0);
  }
  writer.setU16(2, writer.length - HEADER_BYTES);
  return writer.finish();
}

/** Decodes one datagram, or undefined when it is not a whole STUN message with sound attributes. Never throws. */
export function decodeStun(bytes: Uint8Array): DecodedStun | undefined {
  const reader = new Reader(bytes);
  const type = reader.u16();
  const length = reader.u16();
  if (reader.failed || type >= 0x4000 || length % 4 !== 0 || length !== bytes.length - HEADER_BYTES) return undefined;
  const classic = reader.u32() !== MAGIC_COOKIE;
  const transactionId = bytes.slice(classic ? 4 : 8, HEADER_BYTES);
  reader.skip(12);

  const found: { -readonly [K in keyof StunAttributes]: StunAttributes[K] } = {};
  const unknownRequired: number[] = [];
  let integrity: DecodedStun["integrity"];
  let fingerprinted = false;
  let legacyIntegrity = false;

  while (reader.remaining > 0 && !fingerprinted) {
    const start = reader.offset;
    const attribute = reader.u16();
    const valueLength = reader.u16();
    const value = reader.bytes(valueLength);
    reader.skip(-valueLength & 3);
    if (reader.failed) return undefined;

    if (attribute === ATTRIBUTE.fingerprint) {
      // RFC 8489 §14.7: it must be the last attribute. A wrong one means that this is not STUN at all.
      const crc = new Reader(value).u32();
      if (valueLength !== 4 || reader.remaining > 0) return undefined;
      if ((crc32(bytes.subarray(0, start)) ^ FINGERPRINT_XOR) >>> 0 !== crc) return undefined;
      fingerprinted = true;
      continue;
    }
    // RFC 8489 §14.5, §14.6: what follows an integrity attribute is not covered by it, so it must be ignored.
    if (integrity !== undefined) continue;
    if (attribute === ATTRIBUTE.messageIntegritySha256) {
      if (valueLength !== TAG_BYTES) return undefined;
      const covered = bytes.slice(0, start);
      const lengthWithTag = start - HEADER_BYTES + 4 + TAG_BYTES;
      covered[2] = lengthWithTag >>> 8;
      covered[3] = lengthWithTag & 0xff;
      integrity = { covered, tag: value.slice() };
      continue;
    }
    if (legacyIntegrity) continue;
    if (attribute === ATTRIBUTE.messageIntegrity) {
      legacyIntegrity = true;
      continue;
    }
    const outcome = readAttribute(found, attribute, value, transactionId);
    if (outcome === "malformed") return undefined;
    if (outcome === "unknown" && attribute < 0x8000 && unknownRequired.length < UNKNOWN_LIMIT)
      unknownRequired.push(attribute);
  }
  return {
    class: CLASSES[((type >> 7) & 2) | ((type >> 4) & 1)] ?? "request",
    method: (type & 0x000f) | ((type & 0x00e0) >> 1) | ((type & 0x3e00) >> 2),
    transactionId,
    ...found,
    unknownRequired,
    integrity,
    fingerprinted,
  };
}

/** Does the message carry a MESSAGE-INTEGRITY-SHA256 that was made with `key`? */
export function verifyStunIntegrity(message: DecodedStun, key: Uint8Array, hmacSha256: HmacSha256): boolean {
  if (message.integrity === undefined) return false;
  const expected = hmacSha256(key, message.integrity.covered);
  // Compares every byte whatever the outcome, so that the time taken says nothing about how much was right.
  let difference = expected.length ^ TAG_BYTES;
  for (let i = 0; i < TAG_BYTES; i++) difference |= (expected[i] ?? 0) ^ (message.integrity.tag[i] ?? 0);
  return difference === 0;
}

const CLASSES: readonly StunClass[] = ["request", "indication", "success", "error"];
const utf8 = new TextEncoder();
const text = new TextDecoder();

/** RFC 8489 §5: the two class bits sit between the bits of the method. */
function typeBits(method: number, stunClass: StunClass): number {
  const bits = CLASSES.indexOf(stunClass);
  return ((method & 0xf80) << 2) | ((bits & 2) << 7) | ((method & 0x070) << 1) | ((bits & 1) << 4) | (method & 0x00f);
}

/** Reads one attribute into `found`. RFC 8489 §14: of several of one type only the first counts. */
function readAttribute(
  found: { -readonly [K in keyof StunAttributes]: StunAttributes[K] },
  attribute: number,
  value: Uint8Array,
  transactionId: Uint8Array,
): "read" | "unknown" | "malformed" {
  switch (attribute) {
    case ATTRIBUTE.mappedAddress:
      return keep(found, "mappedAddress", readAddress(value));
    case ATTRIBUTE.xorMappedAddress:
      return keep(found, "xorMappedAddress", readAddress(value, transactionId));
    case ATTRIBUTE.sourceAddress:
      return keep(found, "sourceAddress", readAddress(value));
    case ATTRIBUTE.changedAddress:
      return keep(found, "changedAddress", readAddress(value));
    case ATTRIBUTE.responseOrigin:
      return keep(found, "responseOrigin", readAddress(value));
    case ATTRIBUTE.otherAddress:
      return keep(found, "otherAddress", readAddress(value));
    case ATTRIBUTE.changeRequest: {
      const flags = new Reader(value).u32();
      return keep(
        found,
        "changeRequest",
        value.length === 4 ? { ip: (flags & 4) !== 0, port: (flags & 2) !== 0 } : undefined,
      );
    }
    case ATTRIBUTE.username:
      return keep(found, "username", value.length <= USERNAME_LIMIT_BYTES ? text.decode(value) : undefined);
    case ATTRIBUTE.software:
      return keep(found, "software", value.length <= TEXT_LIMIT_BYTES ? text.decode(value) : undefined);
    case ATTRIBUTE.errorCode:
      return keep(found, "errorCode", readErrorCode(value));
    case ATTRIBUTE.unknownAttributes:
      return keep(found, "unknownAttributes", readTypes(value));
    case ATTRIBUTE.tunnelmeshSequence: {
      const reader = new Reader(value);
      const sequence = reader.u64();
      return keep(found, "sequence", value.length === 8 && !reader.failed ? sequence : undefined);
    }
    case ATTRIBUTE.tunnelmeshEcho:
      return keep(found, "echo", value.length === STUN_ECHO_BYTES ? value.slice() : undefined);
    case ATTRIBUTE.tunnelmeshReturn: {
      const isWhole = value.length === PACKED_ADDRESS_BYTES + STUN_ECHO_BYTES;
      const address = isWhole ? unpackAddress(value.subarray(0, PACKED_ADDRESS_BYTES)) : undefined;
      const echo = value.slice(PACKED_ADDRESS_BYTES);
      return keep(found, "returnTo", address === undefined ? undefined : { address, echo });
    }
    default:
      return "unknown";
  }
}

function keep<K extends keyof StunAttributes>(
  found: { -readonly [N in keyof StunAttributes]: StunAttributes[N] },
  name: K,
  value: StunAttributes[K],
): "read" | "malformed" {
  if (value === undefined) return "malformed";
  found[name] ??= value;
  return "read";
}

/** With a transaction id the address is XORed (RFC 8489 §14.2): some routers rewrite any bytes that look like an address of theirs. */
function readAddress(value: Uint8Array, transactionId?: Uint8Array): TransportAddress | undefined {
  const reader = new Reader(value);
  reader.skip(1);
  const family = reader.u8();
  const port = reader.u16();
  const ip = reader.rest();
  if (reader.failed || ip.length !== (family === 1 ? 4 : family === 2 ? 16 : -1)) return undefined;
  if (transactionId === undefined) return { ip: ipFromBytes(ip), port };
  return { ip: ipFromBytes(xorWithMask(ip, transactionId)), port: port ^ (MAGIC_COOKIE >>> 16) };
}

function putAddress(
  writer: Writer,
  attribute: number,
  address: TransportAddress | undefined,
  transactionId?: Uint8Array,
): void {
  if (address === undefined) return;
  const v6 = isIPv6(address.ip);
  const ip = v6 ? ipBytes(address.ip) : ipBytes(address.ip).subarray(12);
  writer
    .u16(attribute)
    .u16(4 + ip.length)
    .u8(0)
    .u8(v6 ? 2 : 1)
    .u16(transactionId === undefined ? address.port : address.port ^ (MAGIC_COOKIE >>> 16))
    .bytes(transactionId === undefined ? ip : xorWithMask(ip, transactionId));
}

/** XOR with the cookie and the transaction id. In a classic message that is simply the whole id. */
function xorWithMask(ip: Uint8Array, transactionId: Uint8Array): Uint8Array {
  const cookie = new Writer(4).u32(MAGIC_COOKIE).finish();
  const mask = transactionId.length === 16 ? transactionId : Uint8Array.of(...cookie, ...transactionId);
  return ip.map((byte, i) => byte ^ (mask[i] ?? 0));
}

function readErrorCode(value: Uint8Array): { code: number; reason: string } | undefined {
  const reader = new Reader(value);
  reader.skip(2);
  const hundreds = reader.u8() & 7;
  const rest = reader.u8();
  if (reader.failed || rest > 99 || value.length > TEXT_LIMIT_BYTES + 4) return undefined;
  return { code: hundreds * 100 + rest, reason: text.decode(reader.rest()) };
}

function readTypes(value: Uint8Array): number[] | undefined {
  if (value.length % 2 !== 0) return undefined;
  const reader = new Reader(value);
  const types: number[] = [];
  while (reader.remaining > 0 && types.length < UNKNOWN_LIMIT) types.push(reader.u16());
  return types;
}

function putBytes(writer: Writer, attribute: number, value: Uint8Array): void {
  writer
    .u16(attribute)
    .u16(value.length)
    .bytes(value)
    .zeros(-value.length & 3);
}

/** CRC-32 of ITU V.42, as FINGERPRINT uses it. */
function crc32(bytes: Uint8Array): number {
  let crc = 0xffff_ffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (CRC_TABLE[(crc ^ byte) & 0xff] ?? 0);
  return (crc ^ 0xffff_ffff) >>> 0;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let crc = n;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 1 ? (crc >>> 1) ^ 0xedb8_8320 : crc >>> 1;
  return crc;
});
