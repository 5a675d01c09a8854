/** Two data planes that share keys, with a world in which every datagram, packet and report is kept. */
import { DataPlane } from "../../../../agent/data/data_plane.ts";
import type { PacketHeaders } from "../../../../agent/data/packet_headers.ts";
import type { Leg, PathRef, PeerSlot, PlaneIo, PlaneReport } from "../../../../agent/data/plane.ts";
import { framesOf } from "../../../../agent/data/send_batch.ts";
import { ipBytes, packAddress } from "../../../../shared/address.ts";
import { sha256 } from "../../../../shared/session/primitives.ts";
import type { EpochKeys } from "../../../../shared/session/peer_session.ts";
import { utf8 } from "../../../../shared/bytes.ts";
import { type Instant, instant } from "../../../../shared/time.ts";

export const T0 = instant(50_000);
export const UDP_LEG: Leg = 1;
export const WIDE_MTU = 1472;

export interface Datagram {
  readonly leg: Leg;
  readonly to: Uint8Array;
  readonly bytes: Uint8Array;
}

/** Bytes are borrowed during a call, so the world keeps copies. */
export class World implements PlaneIo {
  readonly datagrams: Datagram[] = [];
  readonly delivered: Uint8Array[] = [];
  readonly reports: PlaneReport[] = [];
  errno = 0;
  /** Set by tests of a machine whose TUN device takes packets that are not finished. */
  deliverUnfinished?: (packet: Uint8Array, headers: PacketHeaders, segmentBytes: number) => void;

  transmit(leg: Leg, to: Uint8Array, bytes: Uint8Array, frameBytes: number): number {
    if (this.errno !== 0) return this.errno;
    for (const frame of framesOf(bytes, frameBytes)) {
      this.datagrams.push({ leg, to: to.slice(), bytes: frame.slice() });
    }
    return 0;
  }
  deliver(packet: Uint8Array): void {
    this.delivered.push(packet.slice());
  }
  report(report: PlaneReport): void {
    this.reports.push(report);
  }

  take(): Datagram[] {
    return this.datagrams.splice(0);
  }
  reported<T extends PlaneReport["type"]>(type: T): Extract<PlaneReport, { type: T }>[] {
    return this.reports.filter((report): report is Extract<PlaneReport, { type: T }> => report.type === type);
  }
}

export interface Side {
  readonly plane: DataPlane;
  readonly world: World;
  readonly ipv4: string;
  readonly ipv6: string;
  readonly address: Uint8Array;
}

export const PEER: PeerSlot = 1;

/** Keys of one epoch for both sides; indexes are `100 + number` and `200 + number`. */
export function epochKeys(number: number): { readonly a: EpochKeys; readonly b: EpochKeys } {
  const [one, two] = [sha256(utf8(`one ${number}`)), sha256(utf8(`two ${number}`))];
  const [indexA, indexB] = [100 + number, 200 + number];
  return {
    a: { localIndex: indexA, remoteIndex: indexB, sendKey: one, receiveKey: two },
    b: { localIndex: indexB, remoteIndex: indexA, sendKey: two, receiveKey: one },
  };
}

export function makeSide(which: "a" | "b", limits?: ConstructorParameters<typeof DataPlane>[1]): Side {
  const world = new World();
  const number = which === "a" ? 1 : 2;
  return {
    plane: new DataPlane(world, limits),
    world,
    ipv4: `100.96.0.${number}`,
    ipv6: `fd00::${number}`,
    address: packAddress({ ip: `192.0.2.${number}`, port: 4000 + number }),
  };
}

/** Both sides know each other; no keys and no path yet. */
export function introduce(a: Side, b: Side): void {
  for (const [side, other] of [
    [a, b],
    [b, a],
  ] as const) {
    const addresses = [ipBytes(other.ipv4), ipBytes(other.ipv6)];
    side.plane.handleCommand({ type: "set_peer", peer: PEER, addresses }, T0);
  }
}

export const pathTo = (side: Side): PathRef => ({ leg: UDP_LEG, to: side.address });

export function selectPath(from: Side, to: Side, mtu = WIDE_MTU, now: Instant = T0): void {
  from.plane.handleCommand({ type: "select_path", peer: PEER, path: pathTo(to), mtu, isPlanned: false }, now);
}

/** Two sides with one epoch that both may send under, and a path each. */
export function makePair(
  options: { readonly mtu?: number; readonly limits?: ConstructorParameters<typeof DataPlane>[1] } = {},
) {
  const [a, b] = [makeSide("a", options.limits), makeSide("b", options.limits)];
  introduce(a, b);
  const keys = epochKeys(0);
  a.plane.handleCommand({ type: "install_epoch", peer: PEER, keys: keys.a, active: true }, T0);
  b.plane.handleCommand({ type: "install_epoch", peer: PEER, keys: keys.b, active: true }, T0);
  selectPath(a, b, options.mtu);
  selectPath(b, a, options.mtu);
  return { a, b };
}

/** Delivers datagrams that `from` has sent, in the order given. */
export function carry(
  from: Side,
  to: Side,
  datagrams: readonly Datagram[] = from.world.take(),
  now: Instant = T0,
): void {
  for (const { bytes } of datagrams) to.plane.handleDatagram(UDP_LEG, from.address, bytes, now);
}

export function drops(side: Side): Readonly<Record<string, number>> {
  side.plane.handleCommand({ type: "read_counters" }, T0);
  return side.world.reported("counters").at(-1)?.drops ?? {};
}

export function ipv4Packet(source: string, destination: string, length: number, fill = 0): Uint8Array {
  const packet = new Uint8Array(length).fill(fill);
  packet[0] = 0x45;
  packet.set(ipBytes(source).subarray(12), 12);
  packet.set(ipBytes(destination).subarray(12), 16);
  return packet;
}

export function ipv6Packet(source: string, destination: string, length: number, fill = 0): Uint8Array {
  const packet = new Uint8Array(length).fill(fill);
  packet[0] = 0x60;
  packet.set(ipBytes(source), 8);
  packet.set(ipBytes(destination), 24);
  return packet;
}
