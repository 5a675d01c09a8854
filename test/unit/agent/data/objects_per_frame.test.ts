/**
 * What a frame leaves to the garbage collector. Objects for each packet were what made the first data path slow, and no figure of
 * throughput tells a new one from a busy machine.
 */
import { heapStats } from "bun:jsc";
import { expect, test } from "vitest";
import { type AeadFactory, createNodeAead } from "../../../../agent/data/aead.ts";
import { DataPlane } from "../../../../agent/data/data_plane.ts";
import { PACKET_ROOM_BEFORE, type PlaneIo } from "../../../../agent/data/plane.ts";
import { loadLibcryptoAead } from "../../../../agent/driver/linux/libcrypto.ts";
import { FRAME_HEADER_BYTES, FRAME_TAG_BYTES } from "../../../../shared/wire/frame.ts";
import { epochKeys, PEER, T0, UDP_LEG } from "./planes.ts";
import { ipBytes, packAddress } from "../../../../shared/address.ts";

/** The heap grows by blocks of 64 KB and more: with fewer frames one block is half of what is allowed. */
const FRAMES = 4000;
const TRIES = 9;
const PACKET_BYTES = 1400;
const FRAME_BYTES = 1 + FRAME_HEADER_BYTES + PACKET_BYTES + FRAME_TAG_BYTES;
const FINISHED = { isUnfinished: false, checksumStart: 0, checksumOffset: 0, segmentBytes: 0 };
/** A view of a buffer has 64 to 96. */
const MOST_BYTES = 128;
/** What node:crypto is known to leave, and more than is allowed: so the measure measures. */
const OBJECTS_BYTES = 1000;

test("is next to nothing with libcrypto", (context) => {
  const libcrypto = loadLibcryptoAead();
  if (libcrypto === undefined) {
    context.skip("libcrypto is not there");
  } else {
    const { sent, received } = garbageOf(libcrypto);
    expect(sent).toBeLessThan(MOST_BYTES);
    expect(received).toBeLessThan(MOST_BYTES);
  }
});

test("shows by this measure when there are objects, as node:crypto makes them", () => {
  const { sent, received } = garbageOf(createNodeAead);
  expect(sent).toBeGreaterThan(OBJECTS_BYTES);
  expect(received).toBeGreaterThan(OBJECTS_BYTES);
});

/** Bytes of heap for each frame sent and received. */
function garbageOf(createAead: AeadFactory): { readonly sent: number; readonly received: number } {
  const frames = new Uint8Array(FRAMES * FRAME_BYTES);
  let length = 0;
  const sender = planeOf("a", createAead, (bytes) => {
    frames.set(bytes, length);
    length += bytes.length;
  });
  const receiver = planeOf("b", createAead, () => {});
  const header = Uint8Array.of(0x45, 0, PACKET_BYTES >> 8, PACKET_BYTES & 0xff, 0, 0, 0, 0, 64, 17, 0, 0);
  const addresses = Uint8Array.of(100, 96, 0, 1, 100, 96, 0, 2);
  const room = new Uint8Array(65_536);
  const from = packAddress({ ip: "192.0.2.1", port: 4001 });
  const send = (): void => {
    length = 0;
    for (let i = 0; i < FRAMES; i++) {
      room.set(header, PACKET_ROOM_BEFORE);
      room.set(addresses, PACKET_ROOM_BEFORE + header.length);
      sender.handleOffloaded(room, PACKET_ROOM_BEFORE, PACKET_ROOM_BEFORE + PACKET_BYTES, FINISHED, T0);
    }
  };
  const receive = (): void => receiver.handleDatagrams(UDP_LEG, from, frames, length, FRAME_BYTES, T0);
  // The first ones compile.
  for (let i = 0; i < 20; i++) {
    send();
    receive();
  }
  const sent: number[] = [];
  const received: number[] = [];
  for (let i = 0; i < TRIES; i++) {
    sent.push(grownBy(send) / FRAMES);
    received.push(grownBy(receive) / FRAMES);
  }
  return { sent: median(sent), received: median(received) };
}

function grownBy(work: () => void): number {
  Bun.gc(true);
  const before = heapStats().heapCapacity;
  work();
  return heapStats().heapCapacity - before;
}

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;

function planeOf(side: "a" | "b", createAead: AeadFactory, transmit: (bytes: Uint8Array) => void): DataPlane {
  const io: PlaneIo = {
    transmit: (_leg, _to, bytes) => {
      transmit(bytes);
      return 0;
    },
    deliver: () => {},
    report: () => {},
  };
  const plane = new DataPlane(io, { createAead });
  const [own, other] = side === "a" ? ["100.96.0.1", "100.96.0.2"] : ["100.96.0.2", "100.96.0.1"];
  const path = { leg: UDP_LEG, to: packAddress({ ip: "192.0.2.9", port: 9 }) };
  plane.handleCommand({ type: "set_self", addresses: [ipBytes(own)] }, T0);
  plane.handleCommand({ type: "set_peer", peer: PEER, addresses: [ipBytes(other)] }, T0);
  plane.handleCommand({ type: "install_epoch", peer: PEER, keys: epochKeys(0)[side], active: true }, T0);
  plane.handleCommand({ type: "select_path", peer: PEER, path, mtu: 1472, isPlanned: false }, T0);
  return plane;
}
