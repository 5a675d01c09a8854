/** TCP to a peer without a network device ends at a listener of the agent: every packet stays valid, and a refusal is a reset. */
import { describe, expect, test } from "vitest";
import { Turnaround } from "../../../../agent/data/turnaround.ts";
import { ipBytes } from "../../../../shared/address.ts";
import { makeSide, PEER, T0 } from "./planes.ts";

const SYN = 0x02;
const ACK = 0x10;
const [LISTENER_IPV4, LISTENER_IPV6] = [40_001, 40_002];
const FAMILIES = [
  ["IPv4", "100.96.0.1", "100.96.0.2", LISTENER_IPV4],
  ["IPv6", "fd00::1", "fd00::2", LISTENER_IPV6],
] as const;

describe.each(FAMILIES)("a connection over %s", (family, self, peer, listener) => {
  test("is held, reported, let through to the listener, and its answers find back", () => {
    const world = new World();
    const syn = tcp(self, peer, 50_000, 80, { flags: SYN, sequence: 1000 });
    world.turn(syn);
    expect(world.delivered).toEqual([]);
    const { flow = 0, alias = 0, port } = world.reports[0] ?? {};
    expect([port, world.reports]).toEqual([80, [expect.objectContaining({ family: family === "IPv4" ? 4 : 6 })]]);
    // Repeated while it waits: nothing more is reported.
    world.turn(syn);
    expect(world.reports.length).toBe(1);

    world.turnaround.admit(flow);
    expect(world.take().map(describePacket)).toEqual([`${peer}:${alias} > ${self}:${listener} S ok`]);
    world.turn(tcp(self, peer, listener, alias, { flags: SYN | ACK }));
    expect(world.take().map(describePacket)).toEqual([`${peer}:80 > ${self}:50000 SA ok`]);
    world.turn(tcp(self, peer, 50_000, 80, { flags: ACK, payload: 1001 }));
    expect(world.take().map(describePacket)).toEqual([`${peer}:${alias} > ${self}:${listener} A ok`]);
  });

  test("that is refused gets the reset of a closed port, and may be tried again", () => {
    const world = new World();
    world.turn(tcp(self, peer, 50_000, 81, { flags: SYN, sequence: 0xffff_ffff }));
    world.turnaround.refuse(world.reports[0]?.flow ?? 0);
    const [reset] = world.take();
    expect(reset === undefined ? "" : describePacket(reset)).toBe(`${peer}:81 > ${self}:50000 RA ok`);
    // It acknowledges the SYN, around the end of the numbers.
    expect(new DataView(reset?.buffer ?? new ArrayBuffer(64)).getUint32((reset?.length ?? 40) - 12)).toBe(0);
    world.turn(tcp(self, peer, 50_000, 81, { flags: SYN, sequence: 5 }));
    expect(world.reports.length).toBe(2);
  });

  test("of an earlier life of the agent is reset", () => {
    const world = new World();
    world.turn(tcp(self, peer, 50_000, 80, { flags: ACK, payload: 100 }));
    expect(world.take().map(describePacket)).toEqual([`${peer}:80 > ${self}:50000 R ok`]);
  });

  test("whose checksum is left to the kernel keeps what there is of it", () => {
    const world = new World();
    world.turn(tcp(self, peer, 50_000, 80, { flags: SYN }));
    world.turnaround.admit(world.reports[0]?.flow ?? 0);
    world.take();
    const packet = tcp(self, peer, 50_000, 80, { flags: ACK, payload: 3000 });
    const at = packet.length - 3000 - 4;
    packet.set([0x12, 0x34], at);
    world.turn(packet, true);
    expect([...(world.take()[0]?.subarray(at, at + 2) ?? [])]).toEqual([0x12, 0x34]);
  });
});

test("two connections from one port to two ports get two aliases; a new SYN between the same ports is a new connection", () => {
  const world = new World();
  world.turn(tcp("100.96.0.1", "100.96.0.2", 50_000, 80, { flags: SYN, sequence: 1 }));
  world.turn(tcp("100.96.0.1", "100.96.0.2", 50_000, 81, { flags: SYN, sequence: 1 }));
  expect(new Set(world.reports.map(({ alias }) => alias)).size).toBe(2);
  world.turn(tcp("100.96.0.1", "100.96.0.2", 50_000, 80, { flags: SYN, sequence: 2 }));
  expect(world.reports.length).toBe(3);
});

test("UDP, fragments and cut packets are not turned round", () => {
  const world = new World();
  const udp = tcp("100.96.0.1", "100.96.0.2", 1, 2, { flags: SYN });
  udp[9] = 17;
  const fragment = tcp("100.96.0.1", "100.96.0.2", 1, 2, { flags: SYN });
  fragment[7] = 5;
  const whole = tcp("100.96.0.1", "100.96.0.2", 1, 2, { flags: SYN });
  for (const packet of [udp, fragment, ...Array.from({ length: 40 }, (_, i) => whole.slice(0, i))]) {
    expect(world.turn(packet)).toBe(false);
  }
});

test("the data path turns round what goes to a rootless peer, from our own addresses only, and what waited for it", () => {
  const { plane, world } = makeSide("a");
  plane.handleCommand({ type: "set_self", addresses: [ipBytes("100.96.0.1")] }, T0);
  plane.handleCommand({ type: "set_peer", peer: PEER, addresses: [ipBytes("100.96.0.2")] }, T0);
  plane.handleCommand({ type: "turn_listeners", ipv4: LISTENER_IPV4, ipv6: undefined }, T0);
  plane.handlePacket(tcp("100.96.0.1", "100.96.0.2", 50_000, 80, { flags: SYN }), T0);
  expect(world.reported("turned")).toEqual([]);
  plane.handleCommand({ type: "set_rootless", peer: PEER, isRootless: true }, T0);
  expect(world.reported("turned")).toMatchObject([{ peer: PEER, port: 80 }]);
  plane.handlePacket(tcp("192.0.2.9", "100.96.0.2", 50_000, 80, { flags: SYN }), T0);
  expect(world.reported("turned").length).toBe(1);
  plane.handleCommand({ type: "turn", flow: world.reported("turned")[0]?.flow ?? 0, verdict: "admit" }, T0);
  expect(world.delivered.length).toBe(1);
});

class World {
  readonly delivered: Uint8Array[] = [];
  readonly reports: { readonly flow: number; readonly alias: number; readonly port: number }[] = [];
  readonly turnaround = new Turnaround({
    deliver: (packet) => void this.delivered.push(packet.slice()),
    report: (report) => void this.reports.push(report),
  });

  constructor() {
    this.turnaround.setListeners({ ipv4: LISTENER_IPV4, ipv6: LISTENER_IPV6 });
  }

  turn(packet: Uint8Array, isUnfinished = false): boolean {
    const bytes = packet.slice();
    return this.turnaround.handle(PEER, bytes, () => this.delivered.push(bytes), isUnfinished);
  }

  take(): Uint8Array[] {
    return this.delivered.splice(0);
  }
}

function tcp(
  source: string,
  destination: string,
  from: number,
  to: number,
  { flags, sequence = 7, payload = 0 }: { flags: number; sequence?: number; payload?: number },
): Uint8Array {
  const isIPv6 = source.includes(":");
  const at = isIPv6 ? 40 : 20;
  const packet = new Uint8Array(at + 20 + payload).map((_, i) => (i * 37) & 0xff);
  packet.fill(0, 0, at + 20);
  const view = new DataView(packet.buffer);
  if (isIPv6) {
    view.setUint8(0, 0x60);
    view.setUint16(4, 20 + payload);
    view.setUint8(6, 6);
    packet.set(ipBytes(source), 8);
    packet.set(ipBytes(destination), 24);
  } else {
    view.setUint8(0, 0x45);
    view.setUint16(2, packet.length);
    view.setUint8(9, 6);
    packet.set(ipBytes(source).subarray(12), 12);
    packet.set(ipBytes(destination).subarray(12), 16);
    view.setUint16(10, onesComplement(packet.subarray(0, 20)));
  }
  view.setUint16(at, from);
  view.setUint16(at + 2, to);
  view.setUint32(at + 4, sequence);
  view.setUint8(at + 12, 0x50);
  view.setUint8(at + 13, flags);
  view.setUint16(at + 16, onesComplement(covered(packet, at)));
  return packet;
}

/** `source:port > destination:port FLAGS ok`, or what is wrong with its checksums. */
function describePacket(packet: Uint8Array): string {
  const isIPv6 = (packet[0] ?? 0) >> 4 === 6;
  const at = isIPv6 ? 40 : 20;
  const view = new DataView(packet.buffer, packet.byteOffset);
  const address = (from: number): string => {
    const bytes = packet.subarray(from, from + (isIPv6 ? 16 : 4));
    return isIPv6 ? `fd00::${bytes[15]}` : bytes.join(".");
  };
  const flags = packet[at + 13] ?? 0;
  const names = `${flags & 4 ? "R" : ""}${flags & 2 ? "S" : ""}${flags & 16 ? "A" : ""}`;
  const isValid = onesComplement(covered(packet, at)) === 0 && (isIPv6 || onesComplement(packet.subarray(0, 20)) === 0);
  const [source, destination] = isIPv6 ? [8, 24] : [12, 16];
  return `${address(source)}:${view.getUint16(at)} > ${address(destination)}:${view.getUint16(at + 2)} ${names} ${isValid ? "ok" : "wrong checksum"}`;
}

/** The pseudo header and everything from the TCP header on. */
function covered(packet: Uint8Array, at: number): Uint8Array {
  const addresses = at === 40 ? packet.subarray(8, 40) : packet.subarray(12, 20);
  const length = packet.length - at;
  return Uint8Array.of(...addresses, 0, 6, length >> 8, length & 0xff, ...packet.subarray(at));
}

function onesComplement(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += ((bytes[i] ?? 0) << 8) | (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
