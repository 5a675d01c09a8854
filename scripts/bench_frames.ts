/**
 * What one frame costs inside the data path, without any socket: AES-256-GCM by node:crypto and by libcrypto, and the real data plane
 * around them. Prints tables and judges nothing.
 *
 * Usage: bun scripts/bench_frames.ts
 */
import { type AeadFactory, createNodeAead } from "../agent/data/aead.ts";
import { DataPlane } from "../agent/data/data_plane.ts";
import { PACKET_ROOM_BEFORE, type PlaneIo } from "../agent/data/plane.ts";
import { loadLibcryptoAead } from "../agent/driver/linux/libcrypto.ts";
import { ipBytes, packAddress } from "../shared/address.ts";
import { instant } from "../shared/time.ts";
import { FRAME_HEADER_BYTES, FRAME_TAG_BYTES, writeFrameHeader } from "../shared/wire/frame.ts";

const SIZES = [64, 512, 1400];
const FRAMES = 100_000;
/** The fastest of several: whatever else runs on the machine only adds. */
const TRIES = 5;
const PLANE_FRAMES = 2000;
/** The first ones compile. */
const ROUNDS = 50;
const NOW = instant(1000);
const WHOLE = { isUnfinished: false, checksumStart: 0, checksumOffset: 0, segmentBytes: 0 };

const key = (fill: number): Uint8Array => new Uint8Array(32).fill(fill);
const KEYS_A = { localIndex: 1, remoteIndex: 2, sendKey: key(1), receiveKey: key(2) };
const KEYS_B = { localIndex: 2, remoteIndex: 1, sendKey: key(2), receiveKey: key(1) };

const libcrypto = loadLibcryptoAead();
const libraries: [string, AeadFactory][] = [["node:crypto", createNodeAead]];
if (libcrypto !== undefined) libraries.push(["libcrypto", libcrypto]);
else console.log("missing  libcrypto");

console.log("AES-256-GCM, microseconds a frame; sealed / opened");
for (const [name, create] of libraries) {
  const cells = SIZES.map(
    (bytes) => `${bytes} bytes: ${seal(create, bytes).toFixed(2)} / ${open(create, bytes).toFixed(2)}`,
  );
  console.log(`  ${name.padEnd(12)} ${cells.join("   ")}`);
}
console.log("the data plane, microseconds from a packet to a frame / from a frame to a packet");
for (const [name, create] of libraries) {
  for (const bytes of SIZES) {
    const { sendUs, receiveUs } = plane(create, bytes);
    console.log(`  ${name.padEnd(12)} ${`${bytes}`.padStart(4)} bytes: ${sendUs.toFixed(2)} / ${receiveUs.toFixed(2)}`);
  }
}

function fastest(work: () => void, count: number): number {
  let least = Number.POSITIVE_INFINITY;
  for (let i = 0; i < TRIES; i++) {
    const startedAt = performance.now();
    work();
    least = Math.min(least, performance.now() - startedAt);
  }
  return (least * 1000) / count;
}

function seal(create: AeadFactory, bytes: number): number {
  const aead = create(KEYS_A);
  const plaintext = new Uint8Array(65_536);
  const frame = new Uint8Array(65_536);
  let counter = 0;
  return fastest(() => {
    for (let i = 0; i < FRAMES; i++) aead.seal(counter++, plaintext, 0, bytes, frame, 0);
  }, FRAMES);
}

function open(create: AeadFactory, bytes: number): number {
  const aead = create({ ...KEYS_A, receiveKey: KEYS_A.sendKey });
  const sealed = new Uint8Array(FRAME_HEADER_BYTES + bytes + FRAME_TAG_BYTES);
  writeFrameHeader(sealed, 1, 7);
  aead.seal(7, new Uint8Array(65_536), 0, bytes, sealed, 0);
  const frame = new Uint8Array(65_536);
  return fastest(() => {
    for (let i = 0; i < FRAMES; i++) {
      frame.set(sealed);
      if (!aead.open(7, frame, 0, sealed.length)) throw new Error("A frame does not open");
    }
  }, FRAMES);
}

function plane(create: AeadFactory, packetBytes: number) {
  const address = packAddress({ ip: "192.0.2.1", port: 1 });
  const frameBytes = 1 + FRAME_HEADER_BYTES + packetBytes + FRAME_TAG_BYTES;
  const frames = new Uint8Array(PLANE_FRAMES * frameBytes);
  let sent = 0;
  let delivered = 0;
  const sender = newPlane(create, KEYS_A, "10.0.0.1", "10.0.0.2", {
    transmit: (_leg, _to, bytes) => {
      frames.set(bytes, sent);
      sent += bytes.length;
      return 0;
    },
    deliver: () => {},
    report: () => {},
  });
  const receiver = newPlane(create, KEYS_B, "10.0.0.2", "10.0.0.1", {
    transmit: () => 0,
    deliver: () => {
      delivered++;
    },
    report: () => {},
  });
  const packet = new Uint8Array(65_536);
  const send = (): void => {
    sent = 0;
    for (let i = 0; i < PLANE_FRAMES; i++) {
      packet.set([10, 0, 0, 1, 10, 0, 0, 2], 12 + PACKET_ROOM_BEFORE);
      packet.set([0x45, 0, packetBytes >> 8, packetBytes & 0xff, 0, 0, 0, 0, 64, 17, 0, 0], PACKET_ROOM_BEFORE);
      sender.handleOffloaded(packet, PACKET_ROOM_BEFORE, PACKET_ROOM_BEFORE + packetBytes, WHOLE, NOW);
    }
  };
  const receive = (): void => receiver.handleDatagrams(1, address, frames, sent, frameBytes, NOW);
  const result = { sendUs: Number.POSITIVE_INFINITY, receiveUs: Number.POSITIVE_INFINITY };
  for (let round = 0; round < ROUNDS; round++) {
    result.sendUs = Math.min(result.sendUs, measured(send));
    result.receiveUs = Math.min(result.receiveUs, measured(receive));
  }
  if (delivered !== ROUNDS * PLANE_FRAMES) throw new Error(`${delivered} packets have arrived`);
  return result;
}

function measured(work: () => void): number {
  const startedAt = performance.now();
  work();
  return ((performance.now() - startedAt) * 1000) / PLANE_FRAMES;
}

function newPlane(create: AeadFactory, keys: typeof KEYS_A, own: string, other: string, io: PlaneIo): DataPlane {
  const result = new DataPlane(io, { createAead: create });
  const path = { leg: 1, to: packAddress({ ip: "192.0.2.9", port: 9 }) };
  result.handleCommand({ type: "set_self", addresses: [ipBytes(own)] }, NOW);
  result.handleCommand({ type: "set_peer", peer: 1, addresses: [ipBytes(other)] }, NOW);
  result.handleCommand({ type: "install_epoch", peer: 1, keys, active: true }, NOW);
  result.handleCommand({ type: "select_path", peer: 1, path, mtu: 1472, isPlanned: false }, NOW);
  return result;
}
