import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Reassembly } from "../../../../agent/data/reassembly.ts";
import { sha256 } from "../../../../shared/session/primitives.ts";
import { after, type Instant } from "../../../../shared/time.ts";
import { FRAGMENT_HEADER_BYTES, writeFragmentHeader } from "../../../../shared/wire/frame.ts";
import { carry, type Datagram, drops, ipv4Packet, ipv6Packet, makePair, type Side, T0 } from "./planes.ts";

/** UDP payload of an IPv6 path of 1280 bytes, the least that IPv6 allows: 40 of IPv6 header, 8 of UDP. */
const SMALLEST_MTU = 1280 - 48;

describe("a 1280-byte packet on a 1280-byte IPv6 path", () => {
  test("is cut into frames that fit, and arrives whole", () => {
    const { a, b } = makePair({ mtu: SMALLEST_MTU });
    const packet = numbered(a, b, 1280, 1);
    a.plane.handlePacket(packet, T0);
    const datagrams = a.world.take();
    expect(datagrams.length).toBe(2);
    for (const { bytes } of datagrams) expect(bytes.length).toBeLessThanOrEqual(SMALLEST_MTU);
    expect(datagrams[0]?.bytes.length).toBe(SMALLEST_MTU);
    carry(a, b, datagrams);
    expect(b.world.delivered).toEqual([packet]);
  });

  test("arrives once when its fragments are reordered or duplicated", () => {
    const { a, b } = makePair({ mtu: SMALLEST_MTU });
    const packet = numbered(a, b, 1280, 1);
    a.plane.handlePacket(packet, T0);
    const datagrams = a.world.take();
    carry(a, b, [...datagrams].toReversed());
    carry(a, b, datagrams);
    expect(b.world.delivered).toEqual([packet]);
    expect(drops(b)).toEqual({ replay: 2 });
  });

  test("is lost alone when a fragment is lost", () => {
    const { a, b } = makePair({ mtu: SMALLEST_MTU });
    const packets = Array.from({ length: 10 }, (_, i) => numbered(a, b, 1280, i));
    for (const packet of packets) a.plane.handlePacket(packet, T0);
    const datagrams = a.world.take();
    datagrams.splice(7, 1);
    carry(a, b, datagrams);
    expect(b.world.delivered).toEqual(packets.filter((_, i) => i !== 3));
  });
});

test("packets that fit go in one frame, to the byte", () => {
  const { a, b } = makePair({ mtu: 1000 });
  for (const length of [970, 971]) a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, length), T0);
  expect(a.world.datagrams.map(({ bytes }) => bytes.length)).toEqual([1000, 1000, 13 + 16 + 7 + 971 - 964]);
});

test("a path that is too small for a packet drops it and counts it, whatever its size", () => {
  for (const mtu of [0, 1, 30, 36, 40]) {
    const { a, b } = makePair({ mtu });
    a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, 1500), T0);
    expect(a.world.datagrams).toEqual([]);
    expect(drops(a)).toEqual({ "path too small": 1 });
  }
});

test("any packets over any small path arrive whole, under reordering, duplication and loss of others", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 200, max: 1400 }),
      fc.array(fc.integer({ min: 40, max: 9000 }), { minLength: 1, maxLength: 6 }),
      fc.infiniteStream(fc.integer({ min: 0, max: 99 })),
      (mtu, lengths, dice) => {
        const roll = () => dice.next().value ?? 0;
        const { a, b } = makePair({ mtu });
        const packets = lengths.map((length, i) => numbered(a, b, length, i));
        const flights: Datagram[][] = packets.map((packet) => {
          a.plane.handlePacket(packet, T0);
          return a.world.take();
        });
        const whole = flights.map(() => true);
        const arriving = flights.flatMap((flight, i) =>
          flight.flatMap((datagram) => {
            expect(datagram.bytes.length).toBeLessThanOrEqual(mtu);
            const fate = roll();
            if (fate < 3) whole[i] = false;
            return fate < 3 ? [] : fate < 20 ? [datagram, datagram] : [datagram];
          }),
        );
        carry(
          a,
          b,
          arriving
            .map((datagram) => ({ at: roll(), datagram }))
            .toSorted((x, y) => x.at - y.at)
            .map(({ datagram }) => datagram),
        );
        const hash = (packet: Uint8Array) => Buffer.from(sha256(packet)).toString("hex");
        const expected = packets.filter((_, i) => whole[i]).map(hash);
        expect(b.world.delivered.map(hash).toSorted()).toEqual(expected.toSorted());
      },
    ),
    { numRuns: 60 },
  );
});

describe("reassembly", () => {
  test("forgets a packet whose rest does not come within a second", () => {
    const reassembly = new Reassembly();
    expect(reassembly.add(fragment(1, 0, 2), T0)).toBeUndefined();
    expect(reassembly.add(fragment(1, 1, 2), after(T0, 1000))).toBeUndefined();
    expect(reassembly.add(fragment(1, 0, 2), after(T0, 1001))?.length).toBe(20);
  });

  test("ignores headers that make no sense, and fragments that contradict the first", () => {
    const reassembly = new Reassembly();
    for (const [index, count] of [
      [0, 0],
      [0, 1],
      [2, 2],
      [255, 3],
    ] as const) {
      expect(reassembly.add(fragment(1, index, count), T0)).toBeUndefined();
    }
    expect(reassembly.add(new Uint8Array(FRAGMENT_HEADER_BYTES), T0)).toBeUndefined();
    reassembly.add(fragment(2, 0, 2), T0);
    expect(reassembly.add(fragment(2, 1, 3), T0)).toBeUndefined();
    expect(reassembly.add(fragment(2, 0, 2, 50), T0)).toBeUndefined();
    expect(reassembly.add(fragment(2, 1, 2), T0)?.length).toBe(20);
  });

  test("holds 32 packets in the making: a hostile peer pushes out its own oldest, and no more", () => {
    const reassembly = new Reassembly();
    for (let id = 0; id <= 32; id++) reassembly.add(fragment(id, 0, 2), T0);
    expect(reassembly.add(fragment(32, 1, 2), T0)?.length).toBe(20);
    expect(reassembly.add(fragment(1, 1, 2), T0)?.length).toBe(20);
    expect(reassembly.add(fragment(0, 1, 2), T0)).toBeUndefined();
  });

  test("never builds a packet above 65535 bytes", () => {
    const reassembly = new Reassembly();
    const whole = Array.from({ length: 255 }, (_, index) => reassembly.add(fragment(9, index, 255, 300), T0));
    expect(whole.every((packet) => packet === undefined)).toBe(true);
    const fits = Array.from({ length: 255 }, (_, index) => reassembly.add(fragment(10, index, 255, 257), T0));
    expect(fits.at(-1)?.length).toBe(65_535);
  });

  test("takes any bytes without throwing", () => {
    const reassembly = new Reassembly();
    let now: Instant = T0;
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
        now = after(now, 7);
        bytes.set([0x03, 0, 0, 0].slice(0, bytes.length));
        reassembly.add(bytes, now);
      }),
    );
  });
});

/** An IPv6 packet whose every byte is different enough to notice a swap. */
function numbered(from: Side, to: Side, length: number, seed: number): Uint8Array {
  const packet = ipv6Packet(from.ipv6, to.ipv6, length);
  for (let i = 40; i < length; i++) packet[i] = (i * 31 + (i >> 8) * 7 + seed * 101) & 0xff;
  return packet;
}

function fragment(id: number, index: number, count: number, length = 10): Uint8Array {
  const plaintext = new Uint8Array(FRAGMENT_HEADER_BYTES + length).fill(index);
  writeFragmentHeader(plaintext, { id, index, count });
  return plaintext;
}
