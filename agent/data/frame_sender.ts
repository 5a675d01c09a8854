/**
 * Seals packets, super-packets and control messages into frames and sends them on their way: in batches on a UDP leg, as one report a
 * turn on a relay leg.
 *
 * Packets lie in buffers with room around them (plane.ts), so that nothing is copied before it is sealed; the buffers are overwritten.
 */
import { CONTROL, FLOWS, laneOf, MARK, STREAMS } from "../../shared/relay/flow_queue.ts";
import type { Instant } from "../../shared/time.ts";
import {
  FRAGMENT_HEADER_BYTES,
  FRAME_HEADER_BYTES,
  FRAME_OVERHEAD_BYTES,
  FRAME_PACKET,
  FRAME_STREAM,
  FRAME_TAG_BYTES,
  FRAME_UNFINISHED,
  SEGMENT_HEADER_BYTES,
  writeFragmentHeader,
  writeFrameHeader,
} from "../../shared/wire/frame.ts";
import type { DataPeer, Epoch, OutgoingPacket } from "./data_peer.ts";
import type { DropCounts } from "./drop_counts.ts";
import { flowHash } from "./ip_packet.ts";
import { finishPackets, PacketHeaders } from "./packet_headers.ts";
import {
  FIRST_RELAY_LEG,
  type Leg,
  PACKET_ROOM_BEFORE,
  PACKET_ROOM_BEHIND,
  type PathRef,
  type PlaneIo,
} from "./plane.ts";
import { MIN_SEGMENT_BYTES } from "./run_assembly.ts";
import { cutRun, isRunCapacity } from "./run_cutter.ts";
import { type OwnedRun, SendBatch } from "./send_batch.ts";

/** RFC 8446 §5.5 stops AES-GCM at 2^24.5 full records for a comfortable margin; control is asked for new keys at 2^24. */
const REKEY_AFTER_FRAMES = 2 ** 24;
/** Beyond this nothing is sealed any more: new keys must have failed for a long time. */
export const REJECT_AFTER_FRAMES = 2 ** 26;
const SEND_FAILED_INTERVAL_MS = 1000;
/** Largest plaintext: one IP packet and its type byte. */
const MAX_PLAINTEXT_BYTES = 65_536;
export const MAX_FRAME_BYTES = FRAME_HEADER_BYTES + MAX_PLAINTEXT_BYTES + FRAME_TAG_BYTES;
/** A frame of a run is no larger, on a relay too: what a full queue drops there should be a small part of a window. */
const MAX_SEGMENT_BODY_BYTES = 12_000;

export interface RekeyLimits {
  readonly rekeyAfterFrames?: number;
  readonly rejectAfterFrames?: number;
}

export class FrameSender {
  readonly #io: PlaneIo;
  readonly #drops: DropCounts;
  readonly #rekeyAfterFrames: number;
  readonly #rejectAfterFrames: number;
  readonly #batch: SendBatch<DataPeer>;
  /** One packet or message with room around it, for what comes without. */
  readonly #plaintext = new Uint8Array(PACKET_ROOM_BEFORE + MAX_PLAINTEXT_BYTES + PACKET_ROOM_BEHIND);
  readonly #finished = new Uint8Array(MAX_PLAINTEXT_BYTES);
  readonly #headers = new PacketHeaders();
  readonly #relayBatches = new Map<Leg, { to: Uint8Array; frames: Uint8Array[]; lanes: number[] }[]>();
  readonly #flowKey: number;
  /** Of what is sealed next; and packets so far, of whatever flow. */
  #lane = 0;
  #packets = 0;
  #relayDueAt: Instant | undefined;
  #now: Instant | undefined;

  /** @param flowKey random: see flowHash */
  constructor(io: PlaneIo, limits: RekeyLimits, drops: DropCounts, flowKey = 0) {
    this.#io = io;
    this.#drops = drops;
    this.#flowKey = flowKey;
    this.#rekeyAfterFrames = limits.rekeyAfterFrames ?? REKEY_AFTER_FRAMES;
    this.#rejectAfterFrames = limits.rejectAfterFrames ?? REJECT_AFTER_FRAMES;
    this.#batch = new SendBatch(MAX_FRAME_BYTES, (leg, runs, count) => this.#transmit(leg, runs, count));
  }

  /** When frames for relays are to be handed on. */
  get deadline(): Instant | undefined {
    return this.#relayDueAt;
  }

  cork(): void {
    this.#batch.cork();
  }

  uncork(now: Instant): void {
    this.#now = now;
    this.#batch.uncork();
  }

  /** A packet without room around it, in a buffer that has it until the next call. */
  withRoom(packet: Uint8Array): Uint8Array {
    this.#plaintext.set(packet, PACKET_ROOM_BEFORE);
    return this.#plaintext;
  }

  /** Seals the mark of a switch, and sends it. */
  sendMark(peer: DataPeer, epoch: Epoch, path: PathRef, plaintext: Uint8Array, now: Instant): void {
    this.#lane = laneOf(MARK, this.#packets++);
    this.#seal(peer, epoch, path, plaintext, 0, plaintext.length, now);
  }

  /** Seals a body behind its type byte, and sends it. */
  sendTyped(peer: DataPeer, epoch: Epoch, path: PathRef, type: number, body: Uint8Array, now: Instant): void {
    const bytes = this.withRoom(body);
    bytes[PACKET_ROOM_BEFORE - 1] = type;
    this.#lane = laneOf(type === FRAME_STREAM ? STREAMS : CONTROL, this.#packets++);
    this.#seal(peer, epoch, path, bytes, PACKET_ROOM_BEFORE - 1, body.length + 1, now);
  }

  sendPacket(peer: DataPeer, epoch: Epoch, path: PathRef, packet: OutgoingPacket, now: Instant): void {
    const { bytes, start, end, segmentBytes } = packet;
    if (path.leg >= FIRST_RELAY_LEG) this.#noteFlow(bytes, start, end);
    const headers = this.#headers;
    const isUnfinished = segmentBytes !== undefined && headers.parse(bytes, start, end);
    const fits = end - start + FRAME_OVERHEAD_BYTES <= peer.mtu;
    if (!isUnfinished) this.#sendFinished(peer, epoch, path, bytes, start, end, now);
    else if (segmentBytes > 0) this.#sendRun(peer, epoch, path, packet, now);
    else if (fits) {
      bytes[start - 1] = FRAME_UNFINISHED;
      this.#seal(peer, epoch, path, bytes, start - 1, end - start + 1, now);
    } else {
      finishPackets(bytes, start, end, headers, 0, this.#finished, (part) => {
        this.#sendFinished(
          peer,
          epoch,
          path,
          this.withRoom(part),
          PACKET_ROOM_BEFORE,
          PACKET_ROOM_BEFORE + part.length,
          now,
        );
      });
    }
  }

  #noteFlow(bytes: Uint8Array, start: number, end: number): void {
    this.#lane = laneOf(flowHash(bytes, start, end, this.#flowKey) % FLOWS, this.#packets++);
  }

  #sendRun(peer: DataPeer, epoch: Epoch, path: PathRef, packet: OutgoingPacket, now: Instant): void {
    const { bytes, start, end, segmentBytes = 0 } = packet;
    const headers = this.#headers;
    const bodyBytes = Math.min(
      peer.mtu - FRAME_HEADER_BYTES - FRAME_TAG_BYTES - SEGMENT_HEADER_BYTES,
      MAX_SEGMENT_BODY_BYTES,
    );
    if (segmentBytes < MIN_SEGMENT_BYTES || !isRunCapacity(bodyBytes, headers)) {
      finishPackets(bytes, start, end, headers, segmentBytes, this.#finished, (part) => {
        this.#sendFinished(
          peer,
          epoch,
          path,
          this.withRoom(part),
          PACKET_ROOM_BEFORE,
          PACKET_ROOM_BEFORE + part.length,
          now,
        );
      });
      return;
    }
    const id = peer.runId++;
    const isAligned = peer.lossSigns.isLossy;
    cutRun(bytes, start, end, { id, headers, segmentBytes, bodyBytes, isAligned }, (from, length) => {
      this.#seal(peer, epoch, path, bytes, from, length, now);
    });
  }

  #sendFinished(
    peer: DataPeer,
    epoch: Epoch,
    path: PathRef,
    bytes: Uint8Array,
    start: number,
    end: number,
    now: Instant,
  ): void {
    const length = end - start;
    if (length + FRAME_OVERHEAD_BYTES <= peer.mtu) {
      bytes[start - 1] = FRAME_PACKET;
      this.#seal(peer, epoch, path, bytes, start - 1, length + 1, now);
      return;
    }
    const body = peer.mtu - FRAME_HEADER_BYTES - FRAME_TAG_BYTES - FRAGMENT_HEADER_BYTES;
    const count = Math.ceil(length / Math.max(1, body));
    if (body < 1 || count > 255) {
      this.#drops.add("path too small");
      return;
    }
    const id = peer.fragmentId++ >>> 0;
    for (let index = 0; index < count; index++) {
      const from = start + index * body;
      const size = Math.min(body, end - from);
      // Over the end of the part before, which has been sealed.
      writeFragmentHeader(bytes.subarray(from - FRAGMENT_HEADER_BYTES, from), { id, index, count });
      this.#seal(peer, epoch, path, bytes, from - FRAGMENT_HEADER_BYTES, FRAGMENT_HEADER_BYTES + size, now);
    }
  }

  /** Seals `length` bytes of plaintext from `from` on, and sends the frame or puts it to others that leave with it. */
  #seal(
    peer: DataPeer,
    epoch: Epoch,
    path: PathRef,
    plaintext: Uint8Array,
    from: number,
    length: number,
    now: Instant,
  ): void {
    this.#now = now;
    const counter = epoch.counter;
    if (counter >= this.#rekeyAfterFrames && !epoch.exhaustedReported) {
      epoch.exhaustedReported = true;
      this.#io.report({ type: "epoch_exhausted", peer: peer.slot, localIndex: epoch.keys.localIndex, at: now });
    }
    if (counter >= this.#rejectAfterFrames) {
      this.#drops.add("epoch exhausted");
      return;
    }
    epoch.counter = counter + 1;
    const frameBytes = FRAME_HEADER_BYTES + length + FRAME_TAG_BYTES;
    const batch = this.#batch;
    const at = batch.place(path, frameBytes, peer);
    const frame = batch.bytes;
    writeFrameHeader(frame, epoch.keys.remoteIndex, counter, at);
    if (!epoch.aead.seal(counter, plaintext, from, length, frame, at)) this.#drops.add("cannot seal");
    else if (path.leg >= FIRST_RELAY_LEG) this.#queueRelay(path, frame.subarray(at, at + frameBytes), this.#lane, now);
    else batch.add(frameBytes);
  }

  /** Bytes as they are: STUN, handshakes. */
  sendDatagram(path: PathRef, bytes: Uint8Array, now: Instant): void {
    if (path.leg >= FIRST_RELAY_LEG) {
      this.#queueRelay(path, bytes, laneOf(CONTROL, this.#packets++), now);
      return;
    }
    this.#batch.flush();
    if (this.#io.transmit(path.leg, path.to, bytes, bytes.length, path.hops) !== 0) this.#drops.add("send failed");
  }

  #transmit(leg: Leg, runs: readonly OwnedRun<DataPeer>[], count: number): void {
    const { bytes } = this.#batch;
    const { transmitRuns } = this.#io;
    transmitRuns?.(leg, bytes, runs, count);
    for (let i = 0; i < count; i++) {
      const run = runs[i];
      if (run === undefined) break;
      const { path, start, length, frameBytes } = run;
      if (transmitRuns === undefined) {
        run.errno = this.#io.transmit(leg, path.to, bytes.subarray(start, start + length), frameBytes, path.hops);
      }
      if (run.errno !== 0) this.#sendFailed(run.owner, path, run.errno, Math.ceil(length / frameBytes));
    }
  }

  #sendFailed(peer: DataPeer, path: PathRef, errno: number, frames: number): void {
    const now = this.#now;
    this.#drops.add("send failed", frames);
    if (now === undefined || (peer.sendFailedAt !== undefined && now - peer.sendFailedAt < SEND_FAILED_INTERVAL_MS)) {
      return;
    }
    peer.sendFailedAt = now;
    this.#io.report({ type: "send_failed", leg: path.leg, to: path.to, errno, at: now });
  }

  #queueRelay(path: PathRef, bytes: Uint8Array, lane: number, now: Instant): void {
    const batches = this.#relayBatches.get(path.leg) ?? [];
    this.#relayBatches.set(path.leg, batches);
    const last = batches.at(-1);
    if (last !== undefined && last.to === path.to) {
      last.frames.push(bytes.slice());
      last.lanes.push(lane);
    } else batches.push({ to: path.to, frames: [bytes.slice()], lanes: [lane] });
    this.#relayDueAt ??= now;
  }

  /** Runs when the engine has drained its sockets: everything of one turn leaves as one message. */
  flushRelays(): void {
    this.#relayDueAt = undefined;
    for (const [leg, batches] of this.#relayBatches) {
      for (const { to, frames, lanes } of batches) this.#io.report({ type: "relay_frames", leg, to, frames, lanes });
    }
    this.#relayBatches.clear();
  }
}
