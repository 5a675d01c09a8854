/**
 * Opens what comes in, and hands it to whom it is for: packets to the machine's network stack, everything else to control.
 *
 * Nothing is believed before it is authentic, and nothing from the network throws: what is refused is counted by reason.
 */
import type { Instant } from "../../shared/time.ts";
import { datagramKind } from "../../shared/wire/demux.ts";
import {
  FRAME_CONTROL,
  FRAME_FRAGMENT,
  FRAME_HEADER_BYTES,
  FRAME_PACKET,
  FRAME_PADDING,
  FRAME_SEGMENT,
  FRAME_STREAM,
  FRAME_SWITCH,
  FRAME_TAG_BYTES,
  FRAME_UNFINISHED,
  frameCounter,
  frameReceiver,
  isSealedFrame,
  readSwitch,
  SWITCH_BEGIN,
  SWITCH_FENCE,
} from "../../shared/wire/frame.ts";
import type { Activity } from "./activity.ts";
import type { DataPeer, Epoch } from "./data_peer.ts";
import type { DropCounts } from "./drop_counts.ts";
import { MAX_FRAME_BYTES, REJECT_AFTER_FRAMES } from "./frame_sender.ts";
import { finishPackets, PacketHeaders, partsOf } from "./packet_headers.ts";
import { ORDERED_BY_COUNTER } from "./path_switch.ts";
import type { PeerTable } from "./peer_table.ts";
import type { Leg, PlaneIo } from "./plane.ts";
import { RunAssembly, type RunSink } from "./run_assembly.ts";
import { StreamInbox } from "./stream_inbox.ts";

/** STUN and handshake datagrams handed to control each second; more is a flood. */
const MAX_DATAGRAMS_PER_SECOND = 2000;

export class FrameReceiver {
  readonly #io: PlaneIo;
  readonly #peers: PeerTable;
  readonly #activity: Activity;
  readonly #drops: DropCounts;
  /** A copy of what is opened in place and was only lent. */
  readonly #received = new Uint8Array(MAX_FRAME_BYTES);
  readonly #finished = new Uint8Array(MAX_FRAME_BYTES);
  readonly #headers = new PacketHeaders();
  readonly #streams = new StreamInbox();
  #streamsDueAt: Instant | undefined;
  #datagramSecond: Instant | undefined;
  #datagrams = 0;
  #now: Instant | undefined;

  constructor(io: PlaneIo, peers: PeerTable, activity: Activity, drops: DropCounts) {
    this.#io = io;
    this.#peers = peers;
    this.#activity = activity;
    this.#drops = drops;
  }

  /** When streams are to be handed on; deadlines of peers are their own (data_peer.ts). */
  get deadline(): Instant | undefined {
    return this.#streamsDueAt;
  }

  handleDatagram(leg: Leg, from: Uint8Array, bytes: Uint8Array, now: Instant): void {
    if (bytes.length > this.#received.length) {
      this.#drops.add("unknown datagram");
      return;
    }
    // Opening overwrites, and these bytes are only lent.
    this.#now = now;
    this.#received.set(bytes);
    this.#handleFrame(leg, from, this.#received, 0, bytes.length, now);
  }

  handleDatagrams(
    leg: Leg,
    from: Uint8Array,
    bytes: Uint8Array,
    length: number,
    frameBytes: number,
    now: Instant,
  ): void {
    this.#now = now;
    for (let at = 0; at < length; at += frameBytes) {
      this.#handleFrame(leg, from, bytes, at, Math.min(at + frameBytes, length), now);
    }
  }

  handleTimeout(now: Instant): void {
    this.#now = now;
    if (this.#streamsDueAt === undefined || now < this.#streamsDueAt) return;
    this.#streamsDueAt = undefined;
    this.#streams.flush((peer, batch) => this.#io.report({ type: "stream_frames", peer, batch, at: now }));
  }

  /** What has waited for others of this peer long enough. */
  handlePeerTimeout(peer: DataPeer, now: Instant): void {
    this.#now = now;
    if (peer.pathSwitch.deadline !== undefined) this.#handleAll(peer, peer.pathSwitch.overdue(now), now);
    for (const { sequencer } of peer.epochs.values()) {
      if (!sequencer.isActive) continue;
      if (peer.pathSwitch.deadline === undefined) this.#handleAll(peer, sequencer.handleFence(), now);
      this.#handleAll(peer, sequencer.overdue(now), now);
    }
    if (peer.runs !== undefined && now >= peer.runs.deadline) {
      if (peer.runs.isIdle(now)) peer.runs = undefined;
      else peer.runs.flush();
    }
  }

  #handleFrame(leg: Leg, from: Uint8Array, bytes: Uint8Array, at: number, end: number, now: Instant): void {
    if (!isSealedFrame(bytes, at, end)) {
      this.#handleUnsealed(leg, from, bytes.subarray(at, end), now);
      return;
    }
    const entry = this.#peers.byIndex(frameReceiver(bytes, at));
    if (entry === undefined) {
      this.#drops.add("unknown index");
      return;
    }
    const { peer, epoch } = entry;
    const counter = frameCounter(bytes, at);
    if (!epoch.window.mayAccept(counter)) {
      this.#drops.add("replay");
      return;
    }
    if (!epoch.aead.open(counter, bytes, at, end)) {
      this.#drops.add("not authentic");
      return;
    }
    epoch.window.accept(counter);
    epoch.receivedAt = now;
    if (!epoch.confirmed) {
      epoch.confirmed = true;
      this.#io.report({ type: "epoch_confirmed", peer: peer.slot, localIndex: epoch.keys.localIndex, at: now });
    }
    peer.fromLeg = leg;
    // A relay leg names its sender in fewer bytes than an address.
    if (from.length === peer.from.length) peer.from.set(from);
    else peer.from = from.slice();
    this.#handlePlaintext(peer, epoch, counter, bytes, at + FRAME_HEADER_BYTES, end - FRAME_TAG_BYTES, now);
  }

  #handleUnsealed(leg: Leg, from: Uint8Array, bytes: Uint8Array, now: Instant): void {
    const kind = datagramKind(bytes);
    if (kind !== "stun" && kind !== "handshake") {
      this.#drops.add("unknown datagram");
      return;
    }
    if (this.#datagramSecond === undefined || now - this.#datagramSecond >= 1000) {
      this.#datagramSecond = now;
      this.#datagrams = 0;
    }
    if (++this.#datagrams > MAX_DATAGRAMS_PER_SECOND) {
      this.#drops.add("flood");
      return;
    }
    this.#io.report({ type: "datagram", leg, from: from.slice(), bytes: bytes.slice(), at: now });
  }

  #handlePlaintext(
    peer: DataPeer,
    epoch: Epoch,
    counter: number,
    bytes: Uint8Array,
    start: number,
    end: number,
    now: Instant,
  ): void {
    const type = bytes[start] ?? FRAME_PADDING;
    const { pathSwitch } = peer;
    const { sequencer } = epoch;
    if (isData(type)) {
      const ordered = sequencer.accept(counter, peer.fromLeg, bytes, start, end, now);
      if (ordered !== undefined) this.#handleAll(peer, ordered, now);
      else if (
        pathSwitch.deadline !== undefined &&
        pathSwitch.holds(sourceName(peer), epoch.order * REJECT_AFTER_FRAMES * 2 + counter, bytes.subarray(start, end))
      ) {
        this.#handleAll(peer, pathSwitch.overdue(now), now);
      } else this.#handleData(peer, bytes, start, end, now);
      return;
    }
    this.#handleAll(peer, sequencer.handleOther(), now);
    switch (type) {
      case FRAME_SWITCH: {
        const mark = readSwitch(bytes.subarray(start, end));
        this.#peers.timed.add(peer);
        if (mark?.mark === SWITCH_BEGIN) {
          const source = sequencer.isActive ? ORDERED_BY_COUNTER : sourceName(peer);
          this.#handleAll(peer, pathSwitch.begin(mark.id, source, mark.holdMs, now), now);
          if (pathSwitch.deadline !== undefined) sequencer.awaitFence(counter);
        } else if (mark?.mark === SWITCH_FENCE) this.#handleAll(peer, pathSwitch.fence(mark.id), now);
        this.#handleAll(peer, sequencer.accept(counter, peer.fromLeg, bytes, end, end, now) ?? [], now);
        if (pathSwitch.deadline === undefined) this.#handleAll(peer, sequencer.handleFence(), now);
        break;
      }
      case FRAME_CONTROL:
        this.#io.report({
          type: "control",
          peer: peer.slot,
          leg: peer.fromLeg,
          from: peer.from.slice(),
          localIndex: epoch.keys.localIndex,
          body: bytes.slice(start + 1, end),
          at: now,
        });
        break;
      case FRAME_STREAM:
        this.#activity.countReceived(peer, end - start - 1, 1, now);
        this.#streams.add(peer.slot, bytes.subarray(start + 1, end));
        this.#streamsDueAt ??= now;
        break;
      case FRAME_PADDING:
        break;
      default:
        this.#drops.add("unknown frame type");
    }
  }

  #handleAll(peer: DataPeer, plaintexts: readonly Uint8Array[], now: Instant): void {
    for (const plaintext of plaintexts) this.#handleData(peer, plaintext, 0, plaintext.length, now);
  }

  #handleData(peer: DataPeer, bytes: Uint8Array, start: number, end: number, now: Instant): void {
    const type = bytes[start];
    if (type === FRAME_SEGMENT) {
      if (peer.runs === undefined) {
        peer.runs = new RunAssembly(this.#sinkOf(peer), now);
        this.#peers.timed.add(peer);
      }
      if (!peer.runs.add(bytes, start, end, now)) this.#drops.add("bad segment");
      return;
    }
    // What is behind a hole in a run does not overtake what is before it.
    peer.runs?.flush();
    if (type === FRAME_PACKET) this.#deliver(peer, bytes.subarray(start + 1, end), now);
    else if (type === FRAME_UNFINISHED) {
      const packet = bytes.subarray(start + 1, end);
      if (this.#headers.parse(packet, 0, packet.length)) this.#deliver(peer, packet, now, this.#headers, 0);
      else this.#drops.add("bad headers");
    } else {
      const packet = peer.reassembly.add(bytes.subarray(start, end), now);
      if (packet !== undefined) this.#deliver(peer, packet, now);
    }
  }

  #sinkOf(peer: DataPeer): RunSink {
    return {
      isWelcome: (bytes, start, end) => this.#isWelcome(peer, bytes, start, end),
      deliver: (bytes, start, end, headers, segmentBytes) =>
        this.#deliver(peer, bytes.subarray(start, end), this.#now, headers, segmentBytes),
    };
  }

  #isWelcome(peer: DataPeer, bytes: Uint8Array, start: number, end: number): boolean {
    if (!this.#peers.isFrom(peer, bytes, start, end)) {
      this.#drops.add("wrong source address");
      return false;
    }
    if (!this.#peers.isForUs(bytes, start, end)) {
      this.#drops.add("not our address");
      return false;
    }
    return true;
  }

  /** @param headers of a packet that is not finished */
  #deliver(
    peer: DataPeer,
    packet: Uint8Array,
    now: Instant | undefined,
    headers?: PacketHeaders,
    segmentBytes = 0,
  ): void {
    if (!this.#isWelcome(peer, packet, 0, packet.length)) return;
    if (segmentBytes === 0) peer.lossSigns.note(packet);
    this.#activity.countReceived(
      peer,
      packet.length,
      headers === undefined ? 1 : partsOf(packet.length - headers.bytes, segmentBytes),
      now,
    );
    if (headers === undefined) this.#io.deliver(packet);
    else this.deliverUnfinished(packet, headers, segmentBytes);
  }

  /** Hands a packet that is not finished to the machine's network stack. */
  deliverUnfinished(packet: Uint8Array, headers: PacketHeaders, segmentBytes: number): void {
    const { deliverUnfinished } = this.#io;
    if (deliverUnfinished !== undefined) deliverUnfinished(packet, headers, segmentBytes);
    else {
      finishPackets(packet, 0, packet.length, headers, segmentBytes, this.#finished, (part) => this.#io.deliver(part));
    }
  }
}

const isData = (type: number): boolean =>
  type === FRAME_PACKET || type === FRAME_SEGMENT || type === FRAME_FRAGMENT || type === FRAME_UNFINISHED;

/** Names the path that the newest frame came along, for as long as a switch lasts. */
const sourceName = (peer: DataPeer): string => `${peer.fromLeg}|${peer.from.join()}`;
