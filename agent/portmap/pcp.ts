/**
 * PCP (RFC 6887): the two requests that we send, MAP and ANNOUNCE, and the responses to them.
 *
 *   request    | version 2 (1) | opcode (1) | reserved (2) | lifetime, seconds (4) | client address (16) | opcode's data |
 *   response   | version 2 (1) | 0x80 + opcode (1) | reserved (1) | result (1) | lifetime (4) | epoch (4) | reserved (12) | data |
 *   MAP        | nonce (12) | protocol (1) | reserved (3) | internal port (2) | external port (2) | external address (16) |
 */
import { ipBytes, ipFromBytes, type TransportAddress } from "../../shared/address.ts";
import type { RefusalReason } from "./client.ts";
import { Reader, Writer } from "../../shared/wire/cursor.ts";

/** Of PCP and NAT-PMP servers alike (RFC 6887 §19.2, RFC 6886 §3.1); they announce themselves to clients on the next lower one. */
export const GATEWAY_PORT = 5351;
export const ANNOUNCEMENT_PORT = 5350;
export const NONCE_BYTES = 12;

/** The result of PCP and of NAT-PMP that means: this was no version of mine. */
export const UNSUPPORTED_VERSION = 1;

const VERSION = 2;
const OPCODE_ANNOUNCE = 0;
const OPCODE_MAP = 1;
const RESPONSE = 0x80;
const PROTOCOL_UDP = 17;
/** RFC 6887 §7: no message is longer. */
const MAX_BYTES = 1100;
const UNKNOWN_EXTERNAL = "0.0.0.0";

/** RFC 6887 §7.4, those that a client of MAP can meet; 0 is success. */
const RESULTS: Readonly<Record<number, RefusalReason>> = {
  1: "it speaks another version",
  2: "it forbids this",
  3: "it did not understand the request",
  4: "it does not know this request",
  5: "it does not know an option",
  6: "it did not understand an option",
  7: "no address",
  8: "it has no resources left",
  9: "it does not map UDP",
  10: "this machine has all the ports that it may have",
  11: "it cannot give this port",
  12: "another NAT stands between this machine and the router",
  13: "it has too many remote peers",
};

export interface PcpResponse {
  readonly result: number;
  /** Seconds: of the mapping, or of the error. */
  readonly lifetime: number;
  /** Seconds since the server lost its state. */
  readonly epoch: number;
  /** Absent from the answer to an ANNOUNCE. */
  readonly map:
    | { readonly nonce: Uint8Array; readonly internalPort: number; readonly external: TransportAddress }
    | undefined;
}

export const pcpRefusal = (result: number): RefusalReason => RESULTS[result] ?? `it answered with result ${result}`;

/** @param lifetime seconds; 0 removes the mapping */
export function encodePcpMap(map: {
  readonly local: string;
  readonly nonce: Uint8Array;
  readonly internalPort: number;
  /** Wished for; undefined leaves the choice to the server. */
  readonly external: TransportAddress | undefined;
  readonly lifetime: number;
}): Uint8Array {
  return header(OPCODE_MAP, map.lifetime, map.local)
    .bytes(map.nonce)
    .u8(PROTOCOL_UDP)
    .zeros(3)
    .u16(map.internalPort)
    .u16(map.external?.port ?? 0)
    .bytes(ipBytes(map.external?.ip ?? UNKNOWN_EXTERNAL))
    .finish();
}

/** Asks only whether there is a server, and for its epoch (RFC 6887 §14.1.1). */
export const encodePcpAnnounce = (local: string): Uint8Array => header(OPCODE_ANNOUNCE, 0, local).finish();

/** Undefined for everything that is no response of version 2 to MAP for UDP or to ANNOUNCE. */
export function decodePcpResponse(bytes: Uint8Array): PcpResponse | undefined {
  if (bytes.length > MAX_BYTES) return undefined;
  const reader = new Reader(bytes);
  const version = reader.u8();
  const kind = reader.u8();
  reader.skip(1);
  const result = reader.u8();
  const lifetime = reader.u32();
  const epoch = reader.u32();
  reader.skip(12);
  if (reader.failed || version !== VERSION) return undefined;
  if (kind === RESPONSE + OPCODE_ANNOUNCE) return { result, lifetime, epoch, map: undefined };
  if (kind !== RESPONSE + OPCODE_MAP) return undefined;
  const nonce = reader.bytes(NONCE_BYTES).slice();
  const protocol = reader.u8();
  reader.skip(3);
  const internalPort = reader.u16();
  const port = reader.u16();
  const address = reader.bytes(16);
  if (reader.failed || protocol !== PROTOCOL_UDP) return undefined;
  const external = { ip: ipFromBytes(address), port };
  return { result, lifetime, epoch, map: { nonce, internalPort, external } };
}

function header(opcode: number, lifetime: number, local: string): Writer {
  return new Writer(60).u8(VERSION).u8(opcode).zeros(2).u32(lifetime).bytes(ipBytes(local));
}
