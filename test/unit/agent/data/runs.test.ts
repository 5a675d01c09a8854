/** Super-packets through two planes: whole ones stay whole, and a lost frame costs what it carried and nothing else. */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { PacketHeaders } from "../../../../agent/data/packet_headers.ts";
import { PACKET_ROOM_BEFORE, PACKET_ROOM_BEHIND, type PacketOffload } from "../../../../agent/data/plane.ts";
import { RunAssembly } from "../../../../agent/data/run_assembly.ts";
import { cutRun } from "../../../../agent/data/run_cutter.ts";
import { after } from "../../../../shared/time.ts";
import { SEGMENT_HEADER_BYTES, segmentOffset } from "../../../../shared/wire/frame.ts";
import { carry, drops, ipv4Packet, makePair, PEER, type Side, T0 } from "./planes.ts";
import {
  acknowledgement,
  countingBytes,
  type Part,
  readPart,
  superPacket,
  type SuperPacketOptions,
} from "./super_packets.ts";

const MTU = 1472;
const FRAME_OVERHEAD = 29 + SEGMENT_HEADER_BYTES;

describe("a TCP super-packet", () => {
  test.each(["100.96.0", "fd00:"])(
    "of %s arrives whole, in frames of one size but the last, and is told as unfinished",
    (net) => {
      const { a, b } = makePair({ mtu: MTU });
      const seen = watchUnfinished(b);
      const made = send(a, {
        ...between(net),
        protocol: "tcp",
        payload: countingBytes(50_000),
        segmentBytes: 1228,
        options: 12,
      });
      const frames = a.world.take();
      const sizes = frames.map(({ bytes }) => bytes.length);
      expect(sizes.slice(0, -1).every((size) => size === MTU)).toBe(true);
      expect(sizes.length).toBe(Math.ceil(50_000 / (MTU - FRAME_OVERHEAD)));
      carry(a, b, frames);
      expect(seen).toEqual([{ packet: made.packet, segmentBytes: 1228 }]);
      expect([drops(a), drops(b)]).toEqual([{}, {}]);
    },
  );

  test("is cut and completed for a machine whose TUN device takes none", () => {
    const { a, b } = makePair({ mtu: MTU });
    const payload = countingBytes(10_000);
    send(a, { ...between("100.96.0"), protocol: "tcp", payload, segmentBytes: 1228, flags: 0x89, id: 0xfffe });
    carry(a, b);
    const parts = b.world.delivered.map(readPart);
    expect(parts.map(({ payload: { length } }) => length)).toEqual([...Array.from({ length: 8 }, () => 1228), 176]);
    expect(Buffer.concat(parts.map((part) => part.payload)).equals(payload)).toBe(true);
    expect(parts.map(({ sequence }) => sequence)).toEqual(parts.map((_, i) => (0xffff_ff00 + i * 1228) % 2 ** 32));
    expect(parts.map(({ id }) => id)).toEqual(parts.map((_, i) => (0xfffe + i) % 0x10000));
    // CWR (0x80) only on the first, FIN (0x01) only on the last: RFC 3168 §6.1.2, RFC 9293.
    expect(parts.map(({ flags }) => flags)).toEqual(
      [0x88, ...Array.from({ length: 7 }, () => 0x08), 0x09].map((flags, i) => (i < 8 ? flags & ~0x08 : flags)),
    );
  });

  test("without its first frame is delivered from the second one on, by the headers of the last", () => {
    const { a, b } = makePair({ mtu: MTU });
    const seen = watchUnfinished(b);
    const payload = countingBytes(20_000);
    send(a, { ...between("100.96.0"), protocol: "tcp", payload, segmentBytes: 1228 });
    carry(a, b, a.world.take().slice(1));
    expect(seen).toEqual([]);
    b.plane.handleTimeout(after(T0, 2));
    const first = MTU - FRAME_OVERHEAD - 2 - 40;
    expect(seen.map(({ packet }) => packet.length - 40)).toEqual([20_000 - first]);
    expect(new DataView(seen[0]?.packet.buffer ?? new ArrayBuffer(40)).getUint32(24)).toBe(
      (0xffff_ff00 + first) % 2 ** 32,
    );
  });

  test("that is not whole goes when the next run begins, and before any other packet of that peer", () => {
    const { a, b } = makePair({ mtu: MTU });
    const seen = watchUnfinished(b);
    const run = { ...between("100.96.0"), protocol: "tcp", segmentBytes: 1228 } as const;
    send(a, { ...run, payload: countingBytes(5000) });
    carry(a, b, a.world.take().slice(0, -1));
    expect(seen.length).toBe(0);
    send(a, { ...run, payload: countingBytes(9000) });
    carry(a, b, a.world.take().slice(0, -1));
    expect(seen.length).toBe(1);
    const small = ipv4Packet("100.96.0.1", "100.96.0.2", 60);
    a.plane.handlePacket(small, T0);
    carry(a, b);
    expect([seen.length, b.world.delivered]).toEqual([2, [small]]);
  });

  test("waits 2 ms for its rest; what comes later goes on its own, also after other runs", () => {
    const { a, b } = makePair({ mtu: MTU });
    const seen = watchUnfinished(b);
    const run = { ...between("100.96.0"), protocol: "tcp", segmentBytes: 1228, payload: countingBytes(6000) } as const;
    send(a, run);
    const [first, second, third, ...rest] = a.world.take();
    if (first === undefined || second === undefined || third === undefined) throw new Error("too few frames");
    carry(a, b, [first]);
    expect(b.plane.deadline()).toBe(after(T0, 2));
    b.plane.handleTimeout(after(T0, 2));
    carry(a, b, [third], after(T0, 3));
    b.plane.handleTimeout(after(T0, 5));
    expect(seen.map(({ segmentBytes }) => segmentBytes)).toEqual([1228, 1228]);
    send(a, run);
    carry(a, b, a.world.take(), after(T0, 6));
    carry(a, b, [second], after(T0, 7));
    expect(seen.length).toBe(4);
    expect(seen[3]?.packet.length).toBe(MTU - FRAME_OVERHEAD + 40);
    carry(a, b, rest, after(T0, 8));
    expect(drops(b)).toEqual({});
  });

  test("is cut where segments end once the peer's acknowledgements tell of holes, so that a lost frame costs one of them", () => {
    const segmentBytes = 1380;
    const payload = countingBytes(20 * segmentBytes);
    const run = { ...between("100.96.0"), protocol: "tcp", segmentBytes, payload, options: 12 } as const;
    const partsWithout = (isLossy: boolean): readonly number[] => {
      const { a, b } = makePair({ mtu: MTU });
      if (isLossy) tellOfHoles(b, a);
      send(a, run);
      const frames = a.world.take();
      carry(a, b, [...frames.slice(0, 9), ...frames.slice(10)]);
      b.plane.handleTimeout(after(T0, 2));
      return b.world.delivered.map((packet) => readPart(packet).payload.length);
    };
    expect(partsWithout(true)).toEqual(Array.from({ length: 19 }, () => segmentBytes));
    expect(partsWithout(false).filter((length) => length !== segmentBytes).length).toBeGreaterThan(0);
  });

  test("gives its memory back after a second without runs", () => {
    const { a, b } = makePair({ mtu: MTU });
    send(a, { ...between("100.96.0"), protocol: "tcp", segmentBytes: 1228, payload: countingBytes(6000) });
    carry(a, b);
    b.plane.handleTimeout(after(T0, 100));
    expect(b.plane.deadline()).toBe(after(T0, 1000));
    b.plane.handleTimeout(after(T0, 1000));
    expect(b.plane.deadline()).toBeUndefined();
  });

  test("waits for a path like any packet, and is cut into packets where the path is too small for runs", () => {
    const { a, b } = makePair({ mtu: 120 });
    const payload = countingBytes(3000);
    a.plane.handleCommand({ type: "select_path", peer: PEER, path: undefined, mtu: 0, isPlanned: false }, T0);
    send(a, { ...between("100.96.0"), protocol: "tcp", payload, segmentBytes: 1228 });
    expect([a.world.take().length, a.world.reported("wanted").length]).toEqual([0, 1]);
    a.plane.handleCommand(
      { type: "select_path", peer: PEER, path: { leg: 1, to: b.address }, mtu: 120, isPlanned: false },
      T0,
    );
    carry(a, b);
    expect(Buffer.concat(b.world.delivered.map((packet) => readPart(packet).payload)).equals(payload)).toBe(true);
    drops(a);
    expect(a.world.reported("counters").at(-1)?.peers[0]).toMatchObject({ txPackets: 3, txBytes: 3040 });
  });
});

describe("a packet whose checksum is missing", () => {
  test.each(["tcp", "udp"] as const)("is completed by the receiver: %s", (protocol) => {
    for (const mtu of [MTU, 700]) {
      const { a, b } = makePair({ mtu });
      const payload = countingBytes(1101);
      send(a, { ...between("fd00:"), protocol, payload, segmentBytes: 0 });
      carry(a, b);
      expect(b.world.delivered.map((packet) => readPart(packet).payload)).toEqual([payload]);
    }
  });

  test("is completed here when it is neither TCP nor UDP", () => {
    const { a, b } = makePair();
    const packet = ipv4Packet(a.ipv4, b.ipv4, 101, 7);
    packet[9] = 47;
    handle(a, packet, { isUnfinished: true, checksumStart: 30, checksumOffset: 4, segmentBytes: 0 });
    carry(a, b);
    const [got] = b.world.delivered;
    if (got === undefined) throw new Error("nothing came");
    const words = new DataView(Uint8Array.of(...got.subarray(30), 0).buffer);
    let sum = 0;
    for (let at = 0; at < words.byteLength; at += 2) sum += words.getUint16(at);
    // The partial sum that was there is part of what the checksum completes: 7 7, as every other word.
    expect(((sum & 0xffff) + (sum >>> 16) + 0x0707) % 0xffff).toBe(0);
  });
});

describe("any loss, order and duplication of frames", () => {
  test("costs the payload of the lost frames, and not a byte of any other", () => {
    fc.assert(
      fc.property(
        fc.record({
          mtu: fc.integer({ min: 300, max: 1472 }),
          segmentBytes: fc.integer({ min: 64, max: 1400 }),
          more: fc.integer({ min: 1, max: 30_000 }),
          is6: fc.boolean(),
          options: fc.constantFrom(0, 12, 40),
          fates: fc.infiniteStream(fc.integer({ min: 0, max: 99 })),
          runs: fc.integer({ min: 1, max: 3 }),
          isLossy: fc.boolean(),
        }),
        ({ mtu, more, segmentBytes, is6, options, fates, runs, isLossy }) => {
          const fate = (): number => fates.next().value ?? 0;
          const { a, b } = makePair({ mtu });
          if (isLossy) tellOfHoles(b, a);
          for (let run = 0; run < runs; run++) {
            const payload = countingBytes(segmentBytes + more + run);
            send(a, {
              ...between(is6 ? "fd00:" : "100.96.0"),
              protocol: "tcp",
              payload,
              segmentBytes,
              options,
              sequence: 1_000_000 * run,
            });
            const frames = a.world.take();
            const lost = frames.map(() => fate() < 10);
            const arriving = frames.flatMap((frame, i) =>
              lost[i] === true ? [] : fate() < 5 ? [frame, frame] : [frame],
            );
            for (let i = 1; i < arriving.length; i++) {
              const [one, two] = [arriving[i - 1], arriving[i]];
              if (one !== undefined && two !== undefined && fate() < 10) [arriving[i - 1], arriving[i]] = [two, one];
            }
            carry(a, b, arriving);
            b.plane.handleTimeout(after(T0, 2));
            const got = new Uint8Array(payload.length);
            for (const part of b.world.delivered.splice(0).map(readPart)) mark(got, part, payload, 1_000_000 * run);
            const arrived = got.reduce((sum, times) => sum + times, 0);
            expect(got.every((times) => times <= 1)).toBe(true);
            if (!lost.includes(true)) expect(arrived).toBe(payload.length);
            // With the first and the last frame the headers are lost, and with them the run.
            else if (lost[0] === true && lost.at(-1) === true) expect(arrived).toBe(0);
            else {
              const most = lost.filter(Boolean).length * (mtu - FRAME_OVERHEAD);
              expect(payload.length - arrived).toBeLessThanOrEqual(most);
            }
          }
        },
      ),
      { numRuns: 100 },
    );
  });

  test.each([
    ["every other frame", (index: number) => index % 2 === 0],
    ["the first frame", (index: number) => index === 0],
  ])("costs no more where %s is lost, and the headers come last", (_, isLost) => {
    const mtu = 300;
    const { a, b } = makePair({ mtu });
    tellOfHoles(b, a);
    // The last segment leaves no room for the headers, which have the last frame for themselves.
    const payload = countingBytes(59_650);
    send(a, { ...between("fd00:"), protocol: "tcp", payload, segmentBytes: 330, sequence: 0 });
    const frames = a.world.take();
    const last = frames.length - 1;
    expect(frames.length).toBeGreaterThan(300);
    const arriving = frames.filter((_frame, index) => index === last || !isLost(index));
    carry(a, b, arriving.slice(0, -1));
    b.plane.handleTimeout(after(T0, 2));
    carry(a, b, arriving.slice(-1), after(T0, 3));
    b.plane.handleTimeout(after(T0, 5));
    const got = new Uint8Array(payload.length);
    for (const part of b.world.delivered.map(readPart)) mark(got, part, payload, 0);
    const missing = payload.length - got.reduce((sum, times) => sum + times, 0);
    expect(got.every((times) => times <= 1)).toBe(true);
    expect(missing).toBeGreaterThan(0);
    expect(missing).toBeLessThanOrEqual((frames.length - arriving.length) * (mtu - FRAME_OVERHEAD));
  });

  test("of UDP costs whole datagrams, and those that arrive are as they were sent", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 300, max: 1472 }),
        fc.integer({ min: 64, max: 1400 }),
        fc.integer({ min: 65, max: 20_000 }),
        fc.infiniteStream(fc.integer({ min: 0, max: 99 })),
        (mtu, segmentBytes, length, fates) => {
          const { a, b } = makePair({ mtu });
          const payload = countingBytes(length);
          send(a, { ...between("100.96.0"), protocol: "udp", payload, segmentBytes });
          const frames = a.world.take();
          let now = T0;
          let lost = 0;
          for (const frame of frames) {
            const fate = fates.next().value ?? 0;
            if (fate < 15) lost++;
            else carry(a, b, [frame], now);
            if (fate > 60) {
              now = after(now, 3);
              b.plane.handleTimeout(now);
            }
          }
          b.plane.handleTimeout(after(now, 3));
          // Some sizes are steps after which the bytes come again: two datagrams may be alike.
          const missing = new Map<string, number>();
          const count = (datagram: Uint8Array, times: number): number => {
            const left = (missing.get(datagram.join()) ?? 0) + times;
            missing.set(datagram.join(), left);
            return left;
          };
          for (let at = 0; at < length; at += segmentBytes) count(payload.subarray(at, at + segmentBytes), 1);
          for (const part of b.world.delivered.map(readPart)) expect(count(part.payload, -1)).toBeGreaterThanOrEqual(0);
          if (lost === 0) expect(new Set(missing.values())).toEqual(new Set([0]));
        },
      ),
      { numRuns: 200 },
    );
  });
});

describe("a hostile peer", () => {
  test("speaks in runs, too, only for itself and only to us", () => {
    const { a, b } = makePair({ mtu: MTU });
    b.plane.handleCommand({ type: "set_self", addresses: [] }, T0);
    const run = { protocol: "tcp", payload: countingBytes(5000), segmentBytes: 1228 } as const;
    send(a, { ...run, ...between("100.96.0") });
    carry(a, b);
    expect(b.world.delivered).toEqual([]);
    const { a: c, b: d } = makePair({ mtu: MTU });
    handle(c, superPacket({ ...run, source: "100.96.0.77", destination: "100.96.0.2" }).packet, {
      isUnfinished: true,
      checksumStart: 20,
      checksumOffset: 16,
      segmentBytes: 1228,
    });
    carry(c, d);
    expect(d.world.delivered).toEqual([]);
    expect(Object.keys(drops(d)).toSorted()).toEqual(["bad segment", "wrong source address"]);
  });

  test("cannot make the assembly throw, deliver outside of its buffer, or deliver nonsense", () => {
    const sound = { deliveries: 0 };
    fc.assert(
      fc.property(
        fc.array(
          fc.record({
            id: fc.integer({ min: 0, max: 5 }),
            offset: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 65_535 })),
            total: fc.oneof(fc.constantFrom(1, 100, 3000, 65_535), fc.integer({ min: 0, max: 65_535 })),
            body: fc.oneof(fc.uint8Array({ maxLength: 300 }), headerBody()),
            flushes: fc.boolean(),
          }),
          { maxLength: 30 },
        ),
        (frames) => {
          const assembly = new RunAssembly(
            {
              isWelcome: () => true,
              deliver: (bytes, start, end, headers, segmentBytes) => {
                sound.deliveries++;
                const parsed = new PacketHeaders();
                expect(start >= 0 && end <= bytes.length && end - start <= 65_535).toBe(true);
                expect(parsed.parse(bytes, start, end) && parsed.bytes === headers.bytes).toBe(true);
                expect(segmentBytes === 0 || (segmentBytes >= 64 && end - start - headers.bytes > segmentBytes)).toBe(
                  true,
                );
                expect(end - start).toBeGreaterThan(headers.bytes);
              },
            },
            T0,
          );
          for (const { id, offset, total, body, flushes } of frames) {
            const plaintext = Uint8Array.of(2, 0, 0, 0, id, offset >> 8, offset, total >> 8, total, ...body);
            assembly.add(plaintext, 0, plaintext.length, T0);
            if (flushes) assembly.flush();
          }
          assembly.flush();
        },
      ),
      { numRuns: 2000 },
    );
    expect(sound.deliveries).toBeGreaterThan(100);
  });

  test("gets no offload nonsense past us from our own kernel either", () => {
    const { a } = makePair({ mtu: MTU });
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 9, maxLength: 300, size: "max" }),
        fc.boolean(),
        fc.nat(300),
        fc.nat(300),
        fc.nat(2000),
        (packet, isUnfinished, checksumStart, checksumOffset, segmentBytes) => {
          packet.set(ipv4Packet(a.ipv4, "100.96.0.2", 20).subarray(0, Math.min(20, packet.length)));
          if (packet.length > 9) packet[9] = 6;
          handle(a, packet, { isUnfinished, checksumStart, checksumOffset, segmentBytes });
        },
      ),
      { numRuns: 1000 },
    );
    expect(a.world.datagrams.length).toBeGreaterThan(0);
  });
});

test("cutting leaves nothing out, whatever the sizes", () => {
  fc.assert(
    fc.property(fc.integer({ min: 106, max: 3000 }), fc.integer({ min: 1, max: 20_000 }), (bodyBytes, length) => {
      const isAligned = false;
      const { packet } = superPacket({
        ...between("100.96.0"),
        protocol: "tcp",
        payload: countingBytes(length),
        segmentBytes: 64,
      });
      const bytes = new Uint8Array(PACKET_ROOM_BEFORE + packet.length + PACKET_ROOM_BEHIND);
      bytes.set(packet, PACKET_ROOM_BEFORE);
      const headers = new PacketHeaders();
      headers.parse(packet, 0, packet.length);
      const end = PACKET_ROOM_BEFORE + packet.length;
      const sizes: number[] = [];
      cutRun(
        bytes,
        PACKET_ROOM_BEFORE,
        end,
        { id: 1, headers, segmentBytes: 64, bodyBytes, isAligned },
        (_from, size) => {
          sizes.push(size - SEGMENT_HEADER_BYTES);
        },
      );
      expect(sizes.slice(0, -1).every((size, i) => size === bodyBytes || i === sizes.length - 2)).toBe(true);
      expect(sizes.every((size) => size <= bodyBytes)).toBe(true);
      const headerBytes = 42;
      expect(sizes.reduce((sum, size) => sum + size, 0)).toBe(length + headerBytes * (sizes.length > 1 ? 2 : 1));
    }),
  );
});

test("cutting where segments end leaves nothing out either, and parts no segment but one that no frame has room for", () => {
  const segments = fc.integer({ min: 64, max: 1500 });
  const cases = [fc.integer({ min: 106, max: 3000 }), segments, fc.integer({ min: 1, max: 20_000 })] as const;
  fc.assert(
    fc.property(...cases, (bodyBytes, segmentBytes, length) => {
      const payload = countingBytes(length);
      const { packet } = superPacket({ ...between("100.96.0"), protocol: "tcp", payload, segmentBytes });
      const bytes = new Uint8Array(PACKET_ROOM_BEFORE + packet.length + PACKET_ROOM_BEHIND);
      bytes.set(packet, PACKET_ROOM_BEFORE);
      const headers = new PacketHeaders();
      headers.parse(packet, 0, packet.length);
      const run = { id: 1, headers, segmentBytes, bodyBytes, isAligned: true };
      const stops: number[] = [];
      let sum = 0;
      cutRun(bytes, PACKET_ROOM_BEFORE, PACKET_ROOM_BEFORE + packet.length, run, (from, size) => {
        expect(size - SEGMENT_HEADER_BYTES).toBeLessThanOrEqual(bodyBytes);
        stops.push(segmentOffset(bytes, from));
        sum += size - SEGMENT_HEADER_BYTES;
      });
      expect(sum).toBe(length + 42 * (stops.length > 1 ? 2 : 1));
      // The headers take the room of a segment in the first frame at most.
      const parted = stops.slice(bodyBytes - 42 < segmentBytes ? 2 : 1).filter((stop) => stop !== length);
      if (bodyBytes >= segmentBytes) expect(parted.filter((stop) => stop % segmentBytes !== 0)).toEqual([]);
    }),
  );
});

const between = (net: string): { source: string; destination: string } =>
  net.includes(":") ? { source: `${net}:1`, destination: `${net}:2` } : { source: `${net}.1`, destination: `${net}.2` };

/** What makes `to` take its way to `from` for one that loses. */
function tellOfHoles(from: Side, to: Side): void {
  for (let i = 0; i < 32; i++) {
    const { packet, offload } = acknowledgement("100.96.0.2", "100.96.0.1", true);
    handle(from, packet, offload);
  }
  carry(from, to);
  to.world.delivered.splice(0);
}

/** Hands a packet to a plane as the engine does: in a buffer with room around it. */
function handle(side: Side, packet: Uint8Array, offload: PacketOffload): void {
  const bytes = new Uint8Array(PACKET_ROOM_BEFORE + packet.length + PACKET_ROOM_BEHIND);
  bytes.set(packet, PACKET_ROOM_BEFORE);
  side.plane.handleOffloaded(bytes, PACKET_ROOM_BEFORE, PACKET_ROOM_BEFORE + packet.length, offload, T0);
}

function send(side: Side, options: SuperPacketOptions): ReturnType<typeof superPacket> {
  const made = superPacket(options);
  handle(side, made.packet, made.offload);
  return made;
}

/** Takes unfinished packets as a TUN device with offloads does. */
function watchUnfinished(side: Side): { packet: Uint8Array; segmentBytes: number }[] {
  const seen: { packet: Uint8Array; segmentBytes: number }[] = [];
  side.world.deliverUnfinished = (packet, _headers, segmentBytes) => {
    seen.push({ packet: packet.slice(), segmentBytes });
  };
  return seen;
}

/** Counts how often each byte of the payload came, and checks that it is the right one. */
function mark(got: Uint8Array, part: Part, payload: Uint8Array, sequence: number): void {
  const offset = part.sequence - sequence;
  const expected = payload.subarray(offset, offset + part.payload.length);
  expect(Buffer.compare(part.payload, expected)).toBe(0);
  for (let i = offset; i < offset + part.payload.length; i++) got[i] = (got[i] ?? 0) + 1;
}

/** A body that begins, as the first one of a run does, with a size and headers that may pass. */
function headerBody(): fc.Arbitrary<Uint8Array> {
  const { packet } = superPacket({
    ...between("100.96.0"),
    protocol: "tcp",
    payload: new Uint8Array(),
    segmentBytes: 64,
  });
  return fc
    .tuple(fc.constantFrom(0, 1, 63, 64, 1000, 65_535), fc.nat(60), fc.nat(255), fc.boolean(), fc.nat(400))
    .map(([size, at, value, isChanged, more]) => {
      const headers = packet.slice();
      if (isChanged) headers[at % headers.length] = value;
      return Uint8Array.of(size >> 8, size, ...headers, ...new Uint8Array(more));
    });
}
