/**
 * TCP of programs here to peers without a network device: turned round, so that it ends at a listener of this agent, which makes a stream of
 * each connection (agent/driver/streams/turned_connections.ts).
 *
 *   program                    this file                    the agent's listener
 *   self:sp -> peer:dp         becomes peer:alias -> self:listener
 *   self:sp <- peer:dp         comes of peer:alias <- self:listener
 *
 * Each packet comes out of the TUN device and goes back into it with other ports. The addresses only change places, so the checksum has to
 * follow just the ports (RFC 1624). The first SYN is held until control says that the stream is open: a refusal is then a reset, as
 * from any machine.
 *
 * Flows are begun by programs of this machine only, never by a peer. Nothing but TCP is turned round.
 */
import type { PeerSlot, PlaneReport } from "./plane.ts";

/** Connections of programs here; beyond that new ones wait for old ones to be forgotten. */
const MAX_FLOWS = 8192;
const TCP = 6;
const TCP_HEADER_BYTES = 20;
const [FIN, SYN, RST, ACK] = [0x01, 0x02, 0x04, 0x10];
/** Aliases that are tried for a free one, beginning with the program's own port. */
const MAX_ALIAS_TRIES = 1024;

export interface ListenerPorts {
  readonly ipv4: number | undefined;
  readonly ipv6: number | undefined;
}

interface Flow {
  readonly id: number;
  readonly key: number;
  readonly aliasKey: number;
  /** Of the program, and the one it connects to. */
  readonly sourcePort: number;
  readonly port: number;
  /** The port under which the listener sees it. */
  readonly alias: number;
  readonly sequence: number;
  /** The held SYN; undefined once it has been let through. */
  syn: Uint8Array | undefined;
}

export interface TurnaroundIo {
  /** Gives a packet to this machine's network stack. */
  deliver(packet: Uint8Array): void;
  report(report: Extract<PlaneReport, { type: "turned" }>): void;
}

export class Turnaround {
  readonly #io: TurnaroundIo;
  readonly #flows = new Map<number, Flow>();
  readonly #byPorts = new Map<number, Flow>();
  readonly #byAlias = new Map<number, Flow>();
  #listeners: ListenerPorts = { ipv4: undefined, ipv6: undefined };
  #nextId = 1;

  constructor(io: TurnaroundIo) {
    this.#io = io;
  }

  setListeners(ports: ListenerPorts): void {
    this.#listeners = ports;
  }

  /**
   * A packet from this machine to this peer; changed in place. False: it is none that can be turned round.
   *
   * @param isUnfinished the checksum holds only the pseudo header's part, which does not cover ports
   */
  handle(peer: PeerSlot, packet: Uint8Array, deliver: () => void, isUnfinished = false): boolean {
    const isIPv6 = (packet[0] ?? 0) >> 4 === 6;
    const at = tcpOffset(packet, isIPv6);
    const listener = isIPv6 ? this.#listeners.ipv6 : this.#listeners.ipv4;
    if (at === undefined || listener === undefined) return false;
    const from = u16(packet, at);
    const to = u16(packet, at + 2);
    if (from === listener) {
      const flow = this.#byAlias.get(keyOf(peer, isIPv6, to, 0));
      if (flow === undefined) return false;
      turn(packet, isIPv6, at, flow.port, flow.sourcePort, isUnfinished);
      deliver();
      return true;
    }
    const flags = packet[at + 13] ?? 0;
    let flow = this.#byPorts.get(keyOf(peer, isIPv6, from, to));
    if ((flags & (SYN | ACK)) === SYN && flow?.sequence !== u32(packet, at + 4)) {
      // Another connection between the same ports: the one before is over for the program.
      if (flow !== undefined) this.#forget(flow);
      return this.#begin(peer, isIPv6, from, to, packet, at);
    }
    if (flow === undefined) {
      if ((flags & RST) === 0) this.#io.deliver(resetOf(packet, isIPv6, at));
      return true;
    }
    // A program that repeats its SYN while the stream opens.
    if (flow.syn !== undefined) return true;
    turn(packet, isIPv6, at, flow.alias, listener, isUnfinished);
    deliver();
    return true;
  }

  /** The stream is open: the listener may hear of the connection. */
  admit(id: number): void {
    const flow = this.#flows.get(id);
    if (flow?.syn === undefined) return;
    const { syn } = flow;
    flow.syn = undefined;
    const isIPv6 = (syn[0] ?? 0) >> 4 === 6;
    const listener = isIPv6 ? this.#listeners.ipv6 : this.#listeners.ipv4;
    const at = tcpOffset(syn, isIPv6);
    if (listener === undefined || at === undefined) return;
    turn(syn, isIPv6, at, flow.alias, listener, false);
    this.#io.deliver(syn);
  }

  /** Nobody takes the connection: the program hears a reset. */
  refuse(id: number): void {
    const flow = this.#flows.get(id);
    if (flow === undefined) return;
    this.#forget(flow);
    if (flow.syn === undefined) return;
    const isIPv6 = (flow.syn[0] ?? 0) >> 4 === 6;
    const at = tcpOffset(flow.syn, isIPv6);
    if (at !== undefined) this.#io.deliver(resetOf(flow.syn, isIPv6, at));
  }

  /** The connection is over for good. */
  drop(id: number): void {
    const flow = this.#flows.get(id);
    if (flow !== undefined) this.#forget(flow);
  }

  #begin(peer: PeerSlot, isIPv6: boolean, from: number, to: number, packet: Uint8Array, at: number): boolean {
    const alias = this.#freeAlias(peer, isIPv6, from);
    if (alias === undefined || this.#flows.size >= MAX_FLOWS) return false;
    const id = this.#nextId++;
    const syn = packet.slice();
    // What was left to the kernel is done here: a SYN is short.
    finishTcp(syn, isIPv6, at);
    const flow: Flow = {
      id,
      key: keyOf(peer, isIPv6, from, to),
      aliasKey: keyOf(peer, isIPv6, alias, 0),
      sourcePort: from,
      port: to,
      alias,
      sequence: u32(packet, at + 4),
      syn,
    };
    this.#flows.set(id, flow);
    this.#byPorts.set(flow.key, flow);
    this.#byAlias.set(flow.aliasKey, flow);
    this.#io.report({ type: "turned", peer, flow: id, port: to, alias, family: isIPv6 ? 6 : 4 });
    return true;
  }

  #freeAlias(peer: PeerSlot, isIPv6: boolean, wish: number): number | undefined {
    for (let i = 0; i < MAX_ALIAS_TRIES; i++) {
      const alias = 1024 + ((wish - 1024 + i + 64_512) % 64_512);
      if (!this.#byAlias.has(keyOf(peer, isIPv6, alias, 0))) return alias;
    }
    return undefined;
  }

  #forget(flow: Flow): void {
    this.#flows.delete(flow.id);
    this.#byPorts.delete(flow.key);
    this.#byAlias.delete(flow.aliasKey);
  }
}

/** Below 2^53 for two million peers. */
const keyOf = (peer: PeerSlot, isIPv6: boolean, one: number, other: number): number =>
  ((peer * 2 + (isIPv6 ? 1 : 0)) * 65_536 + one) * 65_536 + other;

/** Where the TCP header begins; undefined for a fragment, and for what is no TCP or too short for it. */
function tcpOffset(packet: Uint8Array, isIPv6: boolean): number | undefined {
  const at = isIPv6 ? 40 : ((packet[0] ?? 0) & 0x0f) * 4;
  if (packet.length < at + TCP_HEADER_BYTES || (packet[isIPv6 ? 6 : 9] ?? 0) !== TCP) return undefined;
  if (!isIPv6 && (at < 20 || (u16(packet, 6) & 0x3fff) !== 0)) return undefined;
  return at;
}

/** Lets the addresses change places and gives the ports. */
function turn(packet: Uint8Array, isIPv6: boolean, at: number, from: number, to: number, isUnfinished: boolean): void {
  swapAddresses(packet, isIPv6);
  if (!isUnfinished) {
    // RFC 1624, equation 3: HC' = ~(~HC + ~m + m'), for both ports.
    let sum = ~u16(packet, at + 16) & 0xffff;
    sum += (~u16(packet, at) & 0xffff) + from + (~u16(packet, at + 2) & 0xffff) + to;
    setU16(packet, at + 16, ~folded(sum) & 0xffff);
  }
  setU16(packet, at, from);
  setU16(packet, at + 2, to);
}

function swapAddresses(packet: Uint8Array, isIPv6: boolean): void {
  const length = isIPv6 ? 16 : 4;
  const at = isIPv6 ? 8 : 12;
  const source = packet.slice(at, at + length);
  packet.copyWithin(at, at + length, at + 2 * length);
  packet.set(source, at + length);
}

/** The reset that a closed port answers this packet with (RFC 9293 §3.10.7.1). */
function resetOf(packet: Uint8Array, isIPv6: boolean, at: number): Uint8Array {
  const ipBytes = isIPv6 ? 40 : 20;
  const reset = new Uint8Array(ipBytes + TCP_HEADER_BYTES);
  reset.set(packet.subarray(0, ipBytes));
  if (isIPv6) setU16(reset, 4, TCP_HEADER_BYTES);
  else {
    reset[0] = 0x45;
    setU16(reset, 2, reset.length);
    setU16(reset, 10, 0);
  }
  swapAddresses(reset, isIPv6);
  setU16(reset, ipBytes, u16(packet, at + 2));
  setU16(reset, ipBytes + 2, u16(packet, at));
  const flags = packet[at + 13] ?? 0;
  if ((flags & ACK) === 0) {
    const payload = packet.length - at - ((packet[at + 12] ?? 0) >> 4) * 4;
    const counted = ((flags & SYN) === 0 ? 0 : 1) + ((flags & FIN) === 0 ? 0 : 1);
    setU32(reset, ipBytes + 8, u32(packet, at + 4) + Math.max(0, payload) + counted);
    reset[ipBytes + 13] = RST | ACK;
  } else {
    setU32(reset, ipBytes + 4, u32(packet, at + 8));
    reset[ipBytes + 13] = RST;
  }
  reset[ipBytes + 12] = (TCP_HEADER_BYTES / 4) << 4;
  if (!isIPv6) setU16(reset, 10, ~folded(sumOf(reset, 0, 20)) & 0xffff);
  finishTcp(reset, isIPv6, ipBytes);
  return reset;
}

/** Computes the TCP checksum anew (RFC 9293 §3.1). */
function finishTcp(packet: Uint8Array, isIPv6: boolean, at: number): void {
  setU16(packet, at + 16, 0);
  const length = packet.length - at;
  const addresses = isIPv6 ? sumOf(packet, 8, 40) : sumOf(packet, 12, 20);
  setU16(packet, at + 16, ~folded(addresses + TCP + length + sumOf(packet, at, packet.length)) & 0xffff);
}

function sumOf(bytes: Uint8Array, from: number, to: number): number {
  let sum = 0;
  for (let i = from; i < to; i += 2) sum += ((bytes[i] ?? 0) << 8) | (i + 1 < to ? (bytes[i + 1] ?? 0) : 0);
  return sum;
}

function folded(sum: number): number {
  let rest = sum;
  while (rest > 0xffff) rest = (rest & 0xffff) + Math.floor(rest / 0x10000);
  return rest;
}

const u16 = (bytes: Uint8Array, at: number): number => ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
const u32 = (bytes: Uint8Array, at: number): number => u16(bytes, at) * 65_536 + u16(bytes, at + 2);

function setU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

function setU32(bytes: Uint8Array, at: number, value: number): void {
  setU16(bytes, at, (value >>> 16) & 0xffff);
  setU16(bytes, at + 2, value & 0xffff);
}
