/**
 * Whether the way to a peer loses packets, by what its TCP answers: an acknowledgement that carries SACK blocks (RFC 2018) tells of a hole in
 * what we have sent. Frames are cut accordingly (run_cutter.ts), so nothing but the price of a lost frame depends on it.
 */

/** So many acknowledgements more with holes than without, of late, and the way loses; as many the other way, and it does not. */
const ENOUGH = 32;

const TCP = 6;
const IPV6_HEADER_BYTES = 40;
const TCP_HEADER_BYTES = 20;
const SYN = 0x02;
const OPTION_END = 0;
const OPTION_NOTHING = 1;
const OPTION_SACK = 5;

export class LossSigns {
  #score = 0;
  #isLossy = false;

  get isLossy(): boolean {
    return this.#isLossy;
  }

  /** An IP packet has come from the peer. */
  note(packet: Uint8Array): void {
    const at = tcpHeaderAt(packet);
    if (at < 0) return;
    if (hasSack(packet, at)) {
      this.#score = Math.min(ENOUGH, this.#score + 1);
      if (this.#score === ENOUGH) this.#isLossy = true;
    } else {
      this.#score = Math.max(0, this.#score - 1);
      if (this.#score === 0) this.#isLossy = false;
    }
  }
}

/** Where the header of an established connection's TCP begins; -1 where there is none. */
function tcpHeaderAt(packet: Uint8Array): number {
  const first = packet[0] ?? 0;
  const isIPv4 = first >>> 4 === 4;
  const at = isIPv4 ? (first & 15) * 4 : IPV6_HEADER_BYTES;
  if (packet[isIPv4 ? 9 : 6] !== TCP || packet.length < at + TCP_HEADER_BYTES) return -1;
  return ((packet[at + 13] ?? 0) & SYN) === 0 ? at : -1;
}

function hasSack(packet: Uint8Array, tcp: number): boolean {
  const end = Math.min(packet.length, tcp + ((packet[tcp + 12] ?? 0) >>> 4) * 4);
  for (let at = tcp + TCP_HEADER_BYTES; at < end; ) {
    const kind = packet[at];
    if (kind === OPTION_SACK) return true;
    if (kind === OPTION_END) return false;
    at += kind === OPTION_NOTHING ? 1 : Math.max(2, packet[at + 1] ?? 0);
  }
  return false;
}
