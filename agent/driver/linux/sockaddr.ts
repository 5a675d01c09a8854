/**
 * `sockaddr_in` and `sockaddr_in6` <-> the packed address of shared/address.ts, in place: the data path converts two per packet.
 *
 *   sockaddr_in    0 family   2 port, big-endian   4 address (4)   8 zero (8)                         16 bytes
 *   sockaddr_in6   0 family   2 port, big-endian   4 flow info (4)   8 address (16)   24 scope (4)    28 bytes
 *
 * The family is a number of the machine, little-endian on all that we run on. The scope is always zero: link-local addresses are
 * never sent to (PROTOCOL.md, "Nobody can be aimed").
 */
import { isPackedIPv4 } from "../../../shared/address.ts";
import { AF_INET, AF_INET6 } from "./libc.ts";

/** Room for either kind. */
export const SOCKADDR_BYTES = 28;
export const SOCKADDR_IN_BYTES = 16;
export const SOCKADDR_IN6_BYTES = 28;

export type AddressFamily = 4 | 6;

/** Writes `packed` for a socket of this family and returns its length, or 0 when the address is of the other family. */
export function encodeSockaddr(packed: Uint8Array, family: AddressFamily, into: Uint8Array): number {
  if (isPackedIPv4(packed) !== (family === 4)) return 0;
  into[1] = 0;
  into[2] = packed[16] ?? 0;
  into[3] = packed[17] ?? 0;
  if (family === 4) {
    into[0] = AF_INET;
    for (let i = 0; i < 4; i++) into[4 + i] = packed[12 + i] ?? 0;
    for (let i = 8; i < 16; i++) into[i] = 0;
    return SOCKADDR_IN_BYTES;
  }
  into[0] = AF_INET6;
  for (let i = 4; i < 8; i++) into[i] = 0;
  for (let i = 0; i < 16; i++) into[8 + i] = packed[i] ?? 0;
  for (let i = 24; i < 28; i++) into[i] = 0;
  return SOCKADDR_IN6_BYTES;
}

/** Reads what the kernel wrote. False, and `packed` untouched, when it is neither IPv4 nor IPv6. */
export function decodeSockaddr(sockaddr: Uint8Array, packed: Uint8Array): boolean {
  const family = (sockaddr[0] ?? 0) | ((sockaddr[1] ?? 0) << 8);
  if (family === AF_INET) {
    for (let i = 0; i < 10; i++) packed[i] = 0;
    packed[10] = 0xff;
    packed[11] = 0xff;
    for (let i = 0; i < 4; i++) packed[12 + i] = sockaddr[4 + i] ?? 0;
  } else if (family === AF_INET6) {
    for (let i = 0; i < 16; i++) packed[i] = sockaddr[8 + i] ?? 0;
  } else {
    return false;
  }
  packed[16] = sockaddr[2] ?? 0;
  packed[17] = sockaddr[3] ?? 0;
  return true;
}
