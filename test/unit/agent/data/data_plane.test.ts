import * as fc from "fast-check";
import { createCipheriv } from "node:crypto";
import { describe, expect, test } from "vitest";
import { FIRST_RELAY_LEG } from "../../../../agent/data/plane.ts";
import { utf8 } from "../../../../shared/bytes.ts";
import { CONTROL, FLOWS, MARK, STREAMS } from "../../../../shared/relay/flow_queue.ts";
import { counterNonce } from "../../../../shared/session/primitives.ts";
import { after } from "../../../../shared/time.ts";
import { FRAME_HEADER_BYTES, writeFrameHeader } from "../../../../shared/wire/frame.ts";
import {
  carry,
  drops,
  epochKeys,
  introduce,
  ipv4Packet,
  ipv6Packet,
  makePair,
  makeSide,
  pathTo,
  PEER,
  selectPath,
  T0,
  UDP_LEG,
} from "./planes.ts";

describe("a packet", () => {
  test("goes in at one plane and comes out of the other, IPv4 and IPv6, both ways", () => {
    const { a, b } = makePair();
    const [four, six] = [ipv4Packet(a.ipv4, b.ipv4, 900, 7), ipv6Packet(a.ipv6, b.ipv6, 1400, 8)];
    a.plane.handlePacket(four, T0);
    a.plane.handlePacket(six, T0);
    expect(a.world.datagrams.map(({ to }) => to)).toEqual([b.address, b.address]);
    carry(a, b);
    expect(b.world.delivered).toEqual([four, six]);
    const back = ipv4Packet(b.ipv4, a.ipv4, 20);
    b.plane.handlePacket(back, T0);
    carry(b, a);
    expect(a.world.delivered).toEqual([back]);
    expect([drops(a), drops(b)]).toEqual([{}, {}]);
  });

  test("never shows its plaintext, and every frame has a counter of its own", () => {
    const { a, b } = makePair();
    const packet = ipv4Packet(a.ipv4, b.ipv4, 100, 0x55);
    for (let i = 0; i < 3; i++) a.plane.handlePacket(packet, T0);
    const frames = a.world.take().map(({ bytes }) => Buffer.from(bytes));
    expect(frames.map((frame) => Number(frame.readBigUInt64BE(5)))).toEqual([0, 1, 2]);
    expect(new Set(frames.map((frame) => frame.subarray(13).toString("hex"))).size).toBe(3);
    for (const frame of frames) expect(frame.includes(Buffer.alloc(16, 0x55))).toBe(false);
  });

  test("from an address that is not the sender's is dropped", () => {
    const { a, b } = makePair();
    a.plane.handlePacket(ipv4Packet("10.0.0.1", b.ipv4, 60), T0);
    a.plane.handlePacket(ipv4Packet(b.ipv4, b.ipv4, 60), T0);
    a.plane.handlePacket(ipv6Packet("fd00::99", b.ipv6, 60), T0);
    carry(a, b);
    expect(b.world.delivered).toEqual([]);
    expect(drops(b)).toEqual({ "wrong source address": 3 });
  });

  test("to an address of no peer is dropped, and so is what is no IP packet", () => {
    const { a } = makePair();
    a.plane.handlePacket(ipv4Packet(a.ipv4, "100.96.0.77", 60), T0);
    a.plane.handlePacket(new Uint8Array(3), T0);
    expect(a.world.datagrams).toEqual([]);
    expect(drops(a)).toEqual({ "no such mesh address": 2 });
  });

  test("is not delivered any more once the peer was removed, and its keys are gone", () => {
    const { a, b } = makePair();
    a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, 60), T0);
    b.plane.handleCommand({ type: "remove_peer", peer: PEER }, T0);
    b.plane.handleCommand({ type: "drop_epoch", peer: PEER, localIndex: 200 }, T0);
    carry(a, b);
    expect(drops(b)).toEqual({ "unknown index": 1 });
    expect(b.world.reported("counters").at(-1)?.peers).toEqual([]);
  });
});

describe("frames from the network", () => {
  test("that come a second time are dropped, in whatever order", () => {
    const { a, b } = makePair();
    for (let i = 0; i < 20; i++) a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, 60, i), T0);
    const datagrams = a.world.take();
    carry(a, b, [...datagrams].toReversed());
    expect(b.world.delivered.length).toBe(20);
    carry(a, b, datagrams);
    expect(b.world.delivered.length).toBe(20);
    expect(drops(b)).toEqual({ replay: 20 });
  });

  test("with any bit changed are dropped, and the genuine one still passes", () => {
    const { a, b } = makePair();
    const packet = ipv4Packet(a.ipv4, b.ipv4, 40);
    a.plane.handlePacket(packet, T0);
    const [genuine] = a.world.take();
    if (genuine === undefined) throw new Error("nothing was sent");
    for (let bit = 0; bit < genuine.bytes.length * 8; bit++) {
      const forged = genuine.bytes.slice();
      forged[bit >> 3] = (forged[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      b.plane.handleDatagram(UDP_LEG, a.address, forged, T0);
    }
    for (let length = 0; length < genuine.bytes.length; length++) {
      b.plane.handleDatagram(UDP_LEG, a.address, genuine.bytes.subarray(0, length), T0);
    }
    expect(b.world.delivered).toEqual([]);
    expect(b.world.reported("epoch_confirmed")).toEqual([]);
    carry(a, b, [genuine]);
    expect(b.world.delivered).toEqual([packet]);
  });

  test("with a forged counter far ahead do not move the replay window", () => {
    const { a, b } = makePair();
    a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, 60), T0);
    const [genuine] = a.world.take();
    const forged = genuine?.bytes.slice() ?? new Uint8Array();
    writeFrameHeader(forged, 200, 2 ** 50);
    b.plane.handleDatagram(UDP_LEG, a.address, forged, T0);
    carry(a, b, genuine === undefined ? [] : [genuine]);
    expect(b.world.delivered.length).toBe(1);
    expect(drops(b)).toEqual({ "not authentic": 1 });
  });

  test("of unknown types are counted and ignored; padding is not an error", () => {
    const { b } = makePair();
    for (const type of [0x08, 0x09, 0x7f, 0xfe, 0xff]) {
      b.plane.handleDatagram(UDP_LEG, makeSide("a").address, sealed(type, Uint8Array.of(type, 1, 2, 3)), T0);
    }
    b.plane.handleDatagram(UDP_LEG, makeSide("a").address, sealed(1000, new Uint8Array(60)), T0);
    expect(drops(b)).toEqual({ "unknown frame type": 5 });
    expect(b.world.delivered).toEqual([]);
  });

  test("that are handshakes or STUN go to control, at most 2000 a second; anything else is counted", () => {
    const { b } = makePair();
    const from = makeSide("a").address;
    const stun = Uint8Array.of(0, 1, 0, 0);
    for (let i = 0; i < 2100; i++) b.plane.handleDatagram(UDP_LEG, from, stun, T0);
    for (const first of [8, 0x16, 0x40, 0xff]) b.plane.handleDatagram(UDP_LEG, from, Uint8Array.of(first), T0);
    b.plane.handleDatagram(UDP_LEG, from, new Uint8Array(), T0);
    expect(b.world.reported("datagram").length).toBe(2000);
    expect(drops(b)).toEqual({ flood: 100, "unknown datagram": 5 });
    b.plane.handleDatagram(UDP_LEG, from, Uint8Array.of(5, 1), after(T0, 1000));
    expect(b.world.reported("datagram").at(-1)).toEqual({
      type: "datagram",
      leg: UDP_LEG,
      from,
      bytes: Uint8Array.of(5, 1),
      at: after(T0, 1000),
    });
  });

  test("of any content never throw", () => {
    const { b } = makePair();
    const from = makeSide("a").address;
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.boolean(), (bytes, ours) => {
        if (ours && bytes.length > 5) bytes.set([4, 0, 0, 0, 200]);
        b.plane.handleDatagram(UDP_LEG, from, bytes, T0);
        b.plane.handlePacket(bytes, T0);
      }),
    );
    let counter = 5000;
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 1, maxLength: 200 }), (plaintext) => {
        plaintext[0] = (plaintext[0] ?? 0) & 15;
        b.plane.handleDatagram(UDP_LEG, from, sealed(counter++, plaintext), T0);
      }),
    );
    expect(b.world.delivered).toEqual([]);
  });
});

describe("while there is no path", () => {
  test("packets wait, the newest sixteen of them, and leave in order when it opens", () => {
    const [a, b] = [makeSide("a"), makeSide("b")];
    introduce(a, b);
    const packets = Array.from({ length: 20 }, (_, i) => ipv4Packet(a.ipv4, b.ipv4, 60, i));
    for (const packet of packets) a.plane.handlePacket(packet, T0);
    const keys = epochKeys(0);
    b.plane.handleCommand({ type: "install_epoch", peer: PEER, keys: keys.b, active: false }, T0);
    a.plane.handleCommand({ type: "install_epoch", peer: PEER, keys: keys.a, active: true }, T0);
    expect(a.world.datagrams).toEqual([]);
    selectPath(a, b);
    carry(a, b);
    expect(b.world.delivered).toEqual(packets.slice(4));
    expect(drops(a)).toEqual({ "no path yet": 4 });
    selectPath(a, b);
    expect(a.world.datagrams).toEqual([]);
  });

  test("a path without keys keeps them waiting as well", () => {
    const [a, b] = [makeSide("a"), makeSide("b")];
    introduce(a, b);
    selectPath(a, b);
    a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, 60), T0);
    expect(a.world.datagrams).toEqual([]);
    a.plane.handleCommand({ type: "install_epoch", peer: PEER, keys: epochKeys(0).a, active: true }, T0);
    expect(a.world.datagrams.length).toBe(1);
  });

  test("`wanted` is reported at once, and then at most once a second", () => {
    const [a, b] = [makeSide("a"), makeSide("b")];
    introduce(a, b);
    for (let ms = 0; ms <= 2500; ms += 50) a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, 60), after(T0, ms));
    expect(a.world.reported("wanted").map(({ at }) => at - T0)).toEqual([0, 1000, 2000]);
  });

  test("a path that is taken away makes packets wait again", () => {
    const { a, b } = makePair();
    a.plane.handleCommand({ type: "select_path", peer: PEER, path: undefined, mtu: 0, isPlanned: false }, T0);
    a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, 60), T0);
    expect([a.world.datagrams.length, a.world.reported("wanted").length]).toEqual([0, 1]);
  });
});

describe("control frames", () => {
  test("arrive with the leg, the address and the epoch that they came by", () => {
    const { a, b } = makePair();
    a.plane.handleCommand({ type: "send_control", peer: PEER, path: pathTo(b), body: utf8("probe") }, T0);
    carry(a, b);
    expect(b.world.reported("control")).toEqual([
      {
        type: "control",
        peer: PEER,
        leg: UDP_LEG,
        from: a.address,
        localIndex: 200,
        body: Uint8Array.from(utf8("probe")),
        at: T0,
      },
    ]);
  });

  test("a responder may send them before its epoch is confirmed, but no packets", () => {
    const [a, b] = [makeSide("a"), makeSide("b")];
    introduce(a, b);
    const keys = epochKeys(0);
    b.plane.handleCommand({ type: "install_epoch", peer: PEER, keys: keys.b, active: false }, T0);
    a.plane.handleCommand({ type: "install_epoch", peer: PEER, keys: keys.a, active: true }, T0);
    selectPath(b, a);
    b.plane.handlePacket(ipv4Packet(b.ipv4, a.ipv4, 60), T0);
    expect(b.world.datagrams).toEqual([]);
    b.plane.handleCommand({ type: "send_control", peer: PEER, path: pathTo(a), body: utf8("early") }, T0);
    carry(b, a);
    expect(a.world.reported("control").map(({ body }) => body)).toEqual([Uint8Array.from(utf8("early"))]);
    // The initiator's first frame confirms the epoch, once, and control activates it.
    for (let i = 0; i < 2; i++)
      a.plane.handleCommand({ type: "send_control", peer: PEER, path: pathTo(b), body: utf8("x") }, T0);
    carry(a, b);
    expect(b.world.reported("epoch_confirmed")).toEqual([
      { type: "epoch_confirmed", peer: PEER, localIndex: 200, at: T0 },
    ]);
    b.plane.handleCommand({ type: "activate_epoch", peer: PEER, localIndex: 200 }, T0);
    carry(b, a);
    expect(a.world.delivered.length).toBe(1);
  });

  test("without any keys are dropped and counted", () => {
    const a = makeSide("a");
    a.plane.handleCommand({ type: "send_control", peer: PEER, path: pathTo(a), body: utf8("x") }, T0);
    expect(drops(a)).toEqual({ "no session": 1 });
  });
});

describe("reports", () => {
  test("count packets and bytes of the overlay", () => {
    const { a, b } = makePair();
    for (const length of [60, 100, 1000]) a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, length), T0);
    carry(a, b);
    drops(a);
    drops(b);
    const zero = { rxBytes: 0, txBytes: 0, rxPackets: 0, txPackets: 0 };
    expect(a.world.reported("counters")[0]?.peers).toEqual([{ peer: PEER, ...zero, txBytes: 1160, txPackets: 3 }]);
    expect(b.world.reported("counters")[0]?.peers).toEqual([{ peer: PEER, ...zero, rxBytes: 1160, rxPackets: 3 }]);
  });

  test("tell of activity at once, then every 100 ms while there is any, and where it came from", () => {
    const { a, b } = makePair();
    const send = (count: number): void => {
      for (let i = 0; i < count; i++) a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, 60), T0);
      carry(a, b);
    };
    const activity = (small: number, ms: number) => ({
      type: "activity",
      peer: PEER,
      sent: { small: 0, large: 0 },
      received: { small, large: 0 },
      leg: UDP_LEG,
      from: a.address,
      at: after(T0, ms),
    });
    send(5);
    expect(b.plane.deadline()).toBe(T0);
    b.plane.handleTimeout(T0);
    expect(b.world.reported("activity")).toEqual([activity(5, 0)]);
    expect(b.plane.deadline()).toBeUndefined();
    send(2);
    expect(b.plane.deadline()).toBe(after(T0, 100));
    b.plane.handleTimeout(after(T0, 99));
    b.plane.handleTimeout(after(T0, 100));
    expect(b.world.reported("activity")).toEqual([activity(5, 0), activity(2, 100)]);
    expect(b.plane.deadline()).toBeUndefined();
  });

  test("name a send that the kernel refused, at most once a second", () => {
    const { a, b } = makePair();
    a.world.errno = 101;
    for (let ms = 0; ms < 1500; ms += 100) a.plane.handlePacket(ipv4Packet(a.ipv4, b.ipv4, 60), after(T0, ms));
    expect(a.world.reported("send_failed").map(({ at, errno }) => [at - T0, errno])).toEqual([
      [0, 101],
      [1000, 101],
    ]);
    expect(drops(a)).toEqual({ "send failed": 15 });
  });
});

test("frames for a relay leave together, in order, when the turn is over; a sender there may have a name of any length", () => {
  const { a, b } = makePair();
  const relay = { leg: FIRST_RELAY_LEG, to: Uint8Array.of(7, 7) };
  a.plane.handleCommand({ type: "select_path", peer: PEER, path: relay, mtu: 1472, isPlanned: false }, T0);
  const packets = [1, 2, 3].map((fill) => ipv4Packet(a.ipv4, b.ipv4, 60, fill));
  for (const packet of packets) a.plane.handlePacket(packet, T0);
  expect([a.world.datagrams.length, a.plane.deadline()]).toEqual([0, T0]);
  a.plane.handleTimeout(T0);
  const [batch, ...others] = a.world.reported("relay_frames");
  expect([others.length, batch?.to, batch?.frames.length]).toEqual([0, relay.to, 3]);
  for (const [turn, from] of [new Uint8Array(), Uint8Array.of(1, 2), new Uint8Array(40)].entries()) {
    const [bytes] = (batch?.frames ?? []).slice(b.world.delivered.length);
    if (bytes !== undefined)
      b.plane.handleCommand({ type: "receive_frames", leg: FIRST_RELAY_LEG, from, frames: [bytes] }, T0);
    b.plane.handleTimeout(after(T0, turn * 1000));
    expect(b.world.reported("activity").at(-1)?.from).toEqual(from);
  }
  expect(b.world.delivered).toEqual(packets);
});

test("frames for a relay say of which flow they are, and of which packet, to nobody but the queue that they wait in", () => {
  const { a, b } = makePair();
  const relay = { leg: FIRST_RELAY_LEG, to: Uint8Array.of(7, 7) };
  a.plane.handleCommand({ type: "select_path", peer: PEER, path: relay, mtu: 1472, isPlanned: false }, T0);
  const packet = (port: number): Uint8Array => {
    const bytes = ipv4Packet(a.ipv4, b.ipv4, 60);
    bytes[9] = 17;
    bytes.set([port >> 8, port], 20);
    return bytes;
  };
  for (const port of [1000, 1001, 1000]) a.plane.handlePacket(packet(port), T0);
  a.plane.handleCommand({ type: "send_control", peer: PEER, path: relay, body: Uint8Array.of(1) }, T0);
  a.plane.handleCommand({ type: "send_streams", peer: PEER, batch: Uint8Array.of(0, 1, 1) }, T0);
  const other = { leg: FIRST_RELAY_LEG + 1, to: relay.to };
  a.plane.handleCommand({ type: "select_path", peer: PEER, path: other, mtu: 1472, isPlanned: true }, T0);
  a.plane.handleTimeout(T0);
  const [old, begun] = a.world.reported("relay_frames");
  const flows = (old?.lanes ?? []).map((lane) => Math.floor(lane / 2 ** 16));
  expect([old?.frames.length, flows.length]).toEqual([6, 6]);
  expect(flows[0]).toBe(flows[2]);
  expect(flows[0]).not.toBe(flows[1]);
  expect(Math.max(...flows.slice(0, 3))).toBeLessThan(FLOWS);
  expect(flows.slice(3)).toEqual([CONTROL, STREAMS, MARK]);
  expect(new Set(old?.lanes).size).toBe(6);
  expect(begun?.lanes.map((lane) => Math.floor(lane / 2 ** 16))).toEqual([MARK]);
});

/** A frame of our own making under the keys that `b` has, with any plaintext. */
function sealed(counter: number, plaintext: Uint8Array): Uint8Array {
  const { a } = epochKeys(0);
  const frame = new Uint8Array(FRAME_HEADER_BYTES + plaintext.length + 16);
  writeFrameHeader(frame, a.remoteIndex, counter);
  const cipher = createCipheriv("aes-256-gcm", a.sendKey, counterNonce(counter));
  cipher.setAAD(frame.subarray(0, FRAME_HEADER_BYTES));
  frame.set(cipher.update(plaintext), FRAME_HEADER_BYTES);
  cipher.final();
  frame.set(cipher.getAuthTag(), FRAME_HEADER_BYTES + plaintext.length);
  return frame;
}
