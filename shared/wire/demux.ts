/** What kind of datagram is this? Decided by its first bytes alone (RFC 7983: 0 to 3 is STUN), before any key is looked at. */
import { COOKIE_REPLY, INITIATION, RESPONSE } from "./handshake.ts";
import { SEALED } from "./frame.ts";

export type DatagramKind = "stun" | "sealed" | "handshake" | "unknown";

export function datagramKind(bytes: Uint8Array): DatagramKind {
  const first = bytes[0];
  if (first === undefined) return "unknown";
  if (first <= 3) return "stun";
  if (first === SEALED) return "sealed";
  return first === INITIATION || first === RESPONSE || first === COOKIE_REPLY ? "handshake" : "unknown";
}
