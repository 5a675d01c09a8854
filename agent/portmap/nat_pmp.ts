/**
 * NAT-PMP (RFC 6886): the two requests that we send, for the external address and for a mapping of UDP, and the responses to them.
 *
 *   request    | version 0 (1) | opcode: 0 address, 1 map UDP (1) | map only: reserved (2) | internal port (2) | external port (2) |
 *              | lifetime, seconds (4) |
 *   response   | version 0 (1) | 0x80 + opcode (1) | result (2) | epoch (4) | address (4), or: internal port (2) | external port (2) |
 *              | lifetime (4) |
 */
import { ipFromBytes } from "../../shared/address.ts";
import type { RefusalReason } from "./client.ts";
import { Reader, Writer } from "../../shared/wire/cursor.ts";

const VERSION = 0;
const OPCODE_ADDRESS = 0;
const OPCODE_MAP_UDP = 1;
const RESPONSE = 0x80;
/** RFC 6886 §3.5; 0 is success. */
const RESULTS: Readonly<Record<number, RefusalReason>> = {
  1: "it speaks another version",
  2: "it forbids this",
  3: "no address",
  4: "it has no resources left",
  5: "it does not know this request",
};

export type NatPmpResponse = { readonly result: number; readonly epoch: number } & (
  | { readonly type: "address"; readonly ip: string }
  | {
      readonly type: "map";
      readonly internalPort: number;
      readonly externalPort: number;
      /** Seconds. */
      readonly lifetime: number;
    }
);

export const natPmpRefusal = (result: number): RefusalReason => RESULTS[result] ?? `it answered with result ${result}`;

export const encodeNatPmpAddress = (): Uint8Array => Uint8Array.of(VERSION, OPCODE_ADDRESS);

/** @param lifetime seconds; 0 removes the mapping, and the external port must be 0 then (RFC 6886 §3.4) */
export const encodeNatPmpMap = (internalPort: number, externalPort: number, lifetime: number): Uint8Array =>
  new Writer(12).u8(VERSION).u8(OPCODE_MAP_UDP).zeros(2).u16(internalPort).u16(externalPort).u32(lifetime).finish();

/** Undefined for everything that is no response to one of the two. One that reports a failure may be short: the rest is zero. */
export function decodeNatPmpResponse(bytes: Uint8Array): NatPmpResponse | undefined {
  const reader = new Reader(bytes);
  const version = reader.u8();
  const kind = reader.u8();
  const result = reader.u16();
  const epoch = reader.u32();
  if (reader.failed || version !== VERSION) return undefined;
  if (kind === RESPONSE + OPCODE_ADDRESS) {
    const ip = reader.bytes(4);
    if (reader.failed && result === 0) return undefined;
    return { type: "address", result, epoch, ip: reader.failed ? "0.0.0.0" : ipFromBytes(ip) };
  }
  if (kind !== RESPONSE + OPCODE_MAP_UDP) return undefined;
  const internalPort = reader.u16();
  const externalPort = reader.u16();
  const lifetime = reader.u32();
  if (reader.failed && result === 0) return undefined;
  return { type: "map", result, epoch, internalPort, externalPort, lifetime };
}
