/** The numbers of the legs that control gives to the data path (agent/data/plane.ts), and how a relay leg names a peer. */
import type { RelayLeg } from "../../shared/signal/messages.ts";
import { FIRST_RELAY_LEG, type Leg } from "../data/plane.ts";

/** Data legs: the two UDP sockets that carry everything. */
export const DATA_LEG_IPV4: Leg = 1;
export const DATA_LEG_IPV6: Leg = 2;
/** The sockets of volleys count down from here, and so never meet those that count up towards the relays. */
export const LAST_PUNCH_LEG: Leg = 0;
/** The leg of sealed frames that travel as signalling messages. */
export const SIGNAL_LEG: Leg = FIRST_RELAY_LEG;
/** The legs of the relay connections. */
export const RELAY_LEGS: Readonly<Record<RelayLeg, Leg>> = { websocket: FIRST_RELAY_LEG + 1, ssh: FIRST_RELAY_LEG + 2 };
export const RELAY_KINDS: readonly RelayLeg[] = ["ssh", "websocket"];

const PACKED_BYTES = 18;

/** The `to` of a relay or signalling leg: the peer's slot, in as many bytes as a packed address has. */
export function packedSlot(slot: number): Uint8Array {
  const packed = new Uint8Array(PACKED_BYTES);
  new DataView(packed.buffer).setUint32(0, slot);
  return packed;
}

export const slotOf = (packed: Uint8Array): number => new DataView(packed.buffer, packed.byteOffset).getUint32(0);
