/**
 * Handshake packets: initiation, response, and the cookie reply under load.
 *
 * Layout follows WireGuard's idea: a Noise IK message, then two MACs. `mac1` is keyed by the responder's public key, so nobody who
 * does not know whom he talks to can make us do X25519 work; `mac2` is keyed by a cookie that we ask for when flooded, which binds
 * the sender to the address he writes from. First bytes 0x00 to 0x03 are left to STUN (RFC 7983).
 *
 *   initiation  | 0x05 | version | 0 0 | sender index 4 | Noise message 1 ... | mac1 16 | mac2 16 |
 *   response    | 0x06 | version | 0 0 | sender index 4 | receiver index 4 | Noise message 2 ... | mac1 16 | mac2 16 |
 *   cookie      | 0x07 | version | 0 0 | receiver index 4 | nonce 12 | sealed cookie 16 + 16 |
 */
import { Reader, Writer } from "./cursor.ts";

export const HANDSHAKE_VERSION = 1;
export const INITIATION = 0x05;
export const RESPONSE = 0x06;
export const COOKIE_REPLY = 0x07;
export const MAC_BYTES = 16;

/** A handshake fits any path of 1280 bytes: nothing larger is looked at. */
export const MAX_HANDSHAKE_BYTES = 1200;
const NOISE_MINIMUM_BYTES = 48;
const NONCE_BYTES = 12;
const SEALED_COOKIE_BYTES = 32;

export interface InitiationPacket {
  readonly type: "initiation";
  readonly senderIndex: number;
  readonly noise: Uint8Array;
}

export interface ResponsePacket {
  readonly type: "response";
  readonly senderIndex: number;
  readonly receiverIndex: number;
  readonly noise: Uint8Array;
}

export interface CookiePacket {
  readonly type: "cookie";
  readonly receiverIndex: number;
  readonly nonce: Uint8Array;
  readonly sealed: Uint8Array;
}

export type HandshakePacket = InitiationPacket | ResponsePacket | CookiePacket;

/** Computes a 16-byte MAC over the bytes so far; given by the session, since this room holds no keys. */
export type Mac = (covered: Uint8Array) => Uint8Array;

const NO_MAC: Mac = () => new Uint8Array(MAC_BYTES);

/** @param mac2 absent while no cookie is held: sixteen zeros */
export function encodeHandshake(packet: InitiationPacket | ResponsePacket, mac1: Mac, mac2: Mac = NO_MAC): Uint8Array {
  const writer = new Writer(packet.noise.length + 64);
  writer
    .u8(packet.type === "initiation" ? INITIATION : RESPONSE)
    .u8(HANDSHAKE_VERSION)
    .u16(0)
    .u32(packet.senderIndex);
  if (packet.type === "response") writer.u32(packet.receiverIndex);
  writer.bytes(packet.noise);
  writer.bytes(mac1(writer.finish()));
  return writer.bytes(mac2(writer.finish())).finish();
}

export const encodeCookie = (packet: CookiePacket): Uint8Array =>
  new Writer(64)
    .u8(COOKIE_REPLY)
    .u8(HANDSHAKE_VERSION)
    .u16(0)
    .u32(packet.receiverIndex)
    .bytes(packet.nonce)
    .bytes(packet.sealed)
    .finish();

/** Everything that `mac1` covers, `mac1`, everything that `mac2` covers, `mac2`. Undefined when the packet is too short to have them. */
export function handshakeMacs(bytes: Uint8Array):
  | {
      readonly covered1: Uint8Array;
      readonly mac1: Uint8Array;
      readonly covered2: Uint8Array;
      readonly mac2: Uint8Array;
    }
  | undefined {
  const end1 = bytes.length - 2 * MAC_BYTES;
  if (end1 < NOISE_MINIMUM_BYTES) return undefined;
  return {
    covered1: bytes.subarray(0, end1),
    mac1: bytes.subarray(end1, end1 + MAC_BYTES),
    covered2: bytes.subarray(0, end1 + MAC_BYTES),
    mac2: bytes.subarray(end1 + MAC_BYTES),
  };
}

/** Views into `bytes`. Undefined for another version, and for anything malformed. */
export function decodeHandshake(bytes: Uint8Array): HandshakePacket | undefined {
  if (bytes.length > MAX_HANDSHAKE_BYTES) return undefined;
  const reader = new Reader(bytes);
  const type = reader.u8();
  if (reader.u8() !== HANDSHAKE_VERSION) return undefined;
  reader.skip(2);
  const first = reader.u32();
  if (type === COOKIE_REPLY) {
    const nonce = reader.bytes(NONCE_BYTES);
    const sealed = reader.bytes(SEALED_COOKIE_BYTES);
    return reader.failed ? undefined : { type: "cookie", receiverIndex: first, nonce, sealed };
  }
  if (type !== INITIATION && type !== RESPONSE) return undefined;
  const receiverIndex = type === RESPONSE ? reader.u32() : 0;
  const length = reader.remaining - 2 * MAC_BYTES;
  if (reader.failed || length < NOISE_MINIMUM_BYTES) return undefined;
  const noise = reader.bytes(length);
  return type === INITIATION
    ? { type: "initiation", senderIndex: first, noise }
    : { type: "response", senderIndex: first, receiverIndex, noise };
}
