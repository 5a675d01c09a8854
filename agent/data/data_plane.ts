/**
 * The data path: seals and opens frames, moves IP packets between the TUN device and the paths that control has selected.
 *
 * It decides nothing (plane.ts is the contract). Bytes passed in are borrowed; what goes to control is copied. Nothing from the network
 * throws: what is refused is counted by reason.
 */
import { assertNever } from "../../shared/assert.ts";
import { batchEntries } from "../../shared/batch.ts";
import type { EpochKeys } from "../../shared/session/peer_session.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
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
  SWITCH_BYTES,
  SWITCH_FENCE,
  writeSwitch,
} from "../../shared/wire/frame.ts";
import { type AeadFactory, createNodeAead } from "./aead.ts";
import { type DataPeer, deadlineOf, type Epoch, newEpoch, newPeer, type OutgoingPacket } from "./data_peer.ts";
import { FrameSender, MAX_FRAME_BYTES, REJECT_AFTER_FRAMES, type RekeyLimits } from "./frame_sender.ts";
import { AddressTable } from "./ip_packet.ts";
import { ORDERED_BY_COUNTER } from "./path_switch.ts";
import { finishChecksum, finishPackets, PacketHeaders } from "./packet_headers.ts";
import {
  type Leg,
  PACKET_ROOM_BEFORE,
  PACKET_ROOM_BEHIND,
  type PacketOffload,
  type PathRef,
  type PeerSlot,
  type Plane,
  type PlaneCommand,
  type PlaneIo,
} from "./plane.ts";
import { RunAssembly, type RunSink } from "./run_assembly.ts";
import { StreamInbox } from "./stream_inbox.ts";
import { Turnaround } from "./turnaround.ts";

/** IP packets kept per peer while a path opens. Newest win: the inner protocols retransmit the rest. */
const MAX_WAITING_PACKETS = 16;
/** An IP packet says its length in 16 bits. */
const MAX_PACKET_BYTES = 65_535;
const WANTED_INTERVAL_MS = 1000;
/** Between two reports of activity. The first packet after a pause is told at once: a slow flow's death would show that much later. */
const ACTIVITY_INTERVAL_MS = 100;
/** Frames further apart do not overtake each other: no path is slower than another by more than 200 ms, or order is not promised. */
const IN_FLIGHT_MS = 250;
/** STUN and handshake datagrams handed to control each second; more is a flood. */
const MAX_DATAGRAMS_PER_SECOND = 2000;
/** Half of the largest packet that the TUN device gives: whether such pass is worth a proof of its own. */
const LARGE_PACKET_BYTES = 640;
/** The limits are for tests of the rekey rules. */
export interface DataPlaneOptions extends RekeyLimits {
  /** Default: node:crypto. */
  readonly createAead?: AeadFactory;
}

export class DataPlane implements Plane {
  readonly #io: PlaneIo;
  readonly #createAead: AeadFactory;
  readonly #sender: FrameSender;
  readonly #peers = new Map<PeerSlot, DataPeer>();
  /** Those with a deadline, or perhaps with one: the others cost nothing while they are idle. */
  readonly #timed = new Set<DataPeer>();
  readonly #byIndex = new Map<number, { readonly peer: DataPeer; readonly epoch: Epoch }>();
  readonly #byAddress = new AddressTable<DataPeer>();
  /** Undefined until control has said which addresses are ours, which it does before there is a TUN device to deliver to. */
  #own: AddressTable<true> | undefined;
  readonly #drops: Record<string, number> = {};
  /** A copy of what is opened in place and was only lent. */
  readonly #received = new Uint8Array(MAX_FRAME_BYTES);
  readonly #finished = new Uint8Array(MAX_FRAME_BYTES);
  readonly #headers = new PacketHeaders();
  readonly #streams = new StreamInbox();
  #streamsDueAt: Instant | undefined;
  readonly #turnaround: Turnaround;
  readonly #rootless = new Set<PeerSlot>();
  #nextOrder = 0;
  #datagramSecond: Instant | undefined;
  #datagrams = 0;
  #now: Instant | undefined;

  constructor(io: PlaneIo, options: DataPlaneOptions = {}) {
    this.#io = io;
    this.#turnaround = new Turnaround(io);
    this.#createAead = options.createAead ?? createNodeAead;
    this.#sender = new FrameSender(io, options, (reason, count) => this.#drop(reason, count));
  }

  cork(): void {
    this.#sender.cork();
  }

  uncork(now: Instant): void {
    this.#sender.uncork(now);
  }

  handleCommand(command: PlaneCommand, now: Instant): void {
    this.#now = now;
    switch (command.type) {
      case "set_peer":
        this.#setPeer(command.peer, command.addresses);
        break;
      case "set_self":
        this.#own = new AddressTable();
        for (const address of command.addresses) this.#own.set(address, true);
        break;
      case "remove_peer":
        this.#removePeer(command.peer);
        break;
      case "install_epoch":
        this.#installEpoch(this.#peer(command.peer), command.keys, command.active, now);
        break;
      case "activate_epoch": {
        const peer = this.#peers.get(command.peer);
        if (peer === undefined) break;
        peer.active = peer.epochs.get(command.localIndex) ?? peer.active;
        this.#flushWaiting(peer, now);
        break;
      }
      case "drop_epoch":
        this.#dropEpoch(command.peer, command.localIndex);
        break;
      case "select_path": {
        const peer = this.#peer(command.peer);
        const before = peer.path;
        peer.path = command.path;
        peer.mtu = command.mtu;
        if (command.isPlanned) this.#markSwitch(peer, before, command.holdMs ?? 0, now);
        this.#flushWaiting(peer, now);
        break;
      }
      case "set_mtu":
        this.#peer(command.peer).mtu = command.mtu;
        break;
      case "keep_order": {
        const peer = this.#peers.get(command.peer);
        if (peer === undefined) break;
        for (const { sequencer, receivedAt } of peer.epochs.values()) {
          sequencer.start(now, receivedAt === undefined || now - receivedAt > IN_FLIGHT_MS);
        }
        this.#timed.add(peer);
        break;
      }
      case "send_control":
        this.#sendControl(this.#peers.get(command.peer), command.path, command.body, now);
        break;
      case "set_rootless":
        this.#setRootless(command.peer, command.isRootless);
        break;
      case "turn_listeners":
        this.#turnaround.setListeners(command);
        break;
      case "turn":
        this.#turnaround[command.verdict](command.flow);
        break;
      case "send_streams":
        this.#sendStreams(this.#peers.get(command.peer), command.batch, now);
        break;
      case "send_datagram":
        this.#sender.sendDatagram(command.path, command.bytes, now);
        break;
      case "receive_frames":
        for (const frame of command.frames) this.handleDatagram(command.leg, command.from, frame, now);
        break;
      case "read_counters":
        this.#reportCounters();
        break;
      default:
        assertNever(command);
    }
  }

  handleDatagram(leg: Leg, from: Uint8Array, bytes: Uint8Array, now: Instant): void {
    if (bytes.length > this.#received.length) {
      this.#drop("unknown datagram");
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

  handlePacket(packet: Uint8Array, now: Instant): void {
    if (packet.length > MAX_PACKET_BYTES) {
      this.#drop("packet too large");
      return;
    }
    const bytes = this.#sender.withRoom(packet);
    this.#route({ bytes, start: PACKET_ROOM_BEFORE, end: PACKET_ROOM_BEFORE + packet.length, parts: 1 }, now);
  }

  handleOffloaded(bytes: Uint8Array, start: number, end: number, offload: PacketOffload, now: Instant): void {
    const { isUnfinished, checksumStart, checksumOffset, segmentBytes } = offload;
    const headers = this.#headers;
    if (!isUnfinished && segmentBytes === 0) this.#route({ bytes, start, end, parts: 1 }, now);
    else if (
      headers.parse(bytes, start, end) &&
      (!isUnfinished || (checksumStart === headers.ipBytes && checksumOffset === headers.checksumOffset))
    ) {
      const parts = partsOf(end - start - headers.bytes, segmentBytes);
      this.#route({ bytes, start, end, parts, segmentBytes: parts === 1 ? 0 : segmentBytes }, now);
    } else if (segmentBytes === 0 && checksumStart + checksumOffset + 2 <= end - start) {
      // Something else than plain TCP or UDP, a tunnel in a tunnel perhaps: only our kernel knows what the checksum covers.
      finishChecksum(bytes, start + checksumStart, end, start + checksumStart + checksumOffset, false);
      this.#route({ bytes, start, end, parts: 1 }, now);
    } else this.#drop("unknown offload");
  }

  #setRootless(slot: PeerSlot, isRootless: boolean): void {
    if (!isRootless) {
      this.#rootless.delete(slot);
      return;
    }
    this.#rootless.add(slot);
    const peer = this.#peer(slot);
    // What made us look for the peer in the first place.
    for (const packet of peer.waiting.splice(0)) this.#turnRound(peer, packet);
  }

  #turnRound(peer: DataPeer, packet: OutgoingPacket): void {
    const bytes = packet.bytes.subarray(packet.start, packet.end);
    const { segmentBytes } = packet;
    const deliver = (): void => {
      if (segmentBytes !== undefined && this.#headers.parse(bytes, 0, bytes.length)) {
        this.#deliverUnfinished(bytes, this.#headers, segmentBytes);
      } else this.#io.deliver(bytes);
    };
    const isOwn = this.#own?.findSource(bytes, 0, bytes.length) === true;
    const isTurned = isOwn && this.#turnaround.handle(peer.slot, bytes, deliver, segmentBytes !== undefined);
    if (!isTurned) this.#drop("not for a rootless peer");
  }

  handleTimeout(now: Instant): void {
    this.#now = now;
    if (this.#sender.deadline !== undefined && now >= this.#sender.deadline) this.#sender.flushRelays();
    if (this.#streamsDueAt !== undefined && now >= this.#streamsDueAt) this.#flushStreams(now);
    for (const peer of this.#timed) {
      if (peer.activityDueAt !== undefined && now >= peer.activityDueAt) this.#reportActivity(peer, now);
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
      if (deadlineOf(peer) === undefined) this.#timed.delete(peer);
    }
  }

  deadline(): Instant | undefined {
    let first = earliest(this.#sender.deadline, this.#streamsDueAt);
    for (const peer of this.#timed) first = earliest(first, deadlineOf(peer));
    return first;
  }

  #peer(slot: PeerSlot): DataPeer {
    const known = this.#peers.get(slot);
    if (known !== undefined) return known;
    const peer = newPeer(slot);
    this.#peers.set(slot, peer);
    return peer;
  }

  #setPeer(slot: PeerSlot, addresses: readonly Uint8Array[]): void {
    const peer = this.#peer(slot);
    for (const address of peer.addresses) this.#byAddress.delete(address, peer);
    peer.addresses = addresses.map((address) => address.slice());
    for (const address of peer.addresses) this.#byAddress.set(address, peer);
  }

  #removePeer(slot: PeerSlot): void {
    const peer = this.#peers.get(slot);
    if (peer === undefined) return;
    for (const address of peer.addresses) this.#byAddress.delete(address, peer);
    for (const localIndex of peer.epochs.keys()) this.#dropEpoch(slot, localIndex);
    this.#timed.delete(peer);
    this.#peers.delete(slot);
  }

  #installEpoch(peer: DataPeer, keys: EpochKeys, active: boolean, now: Instant): void {
    const epoch = newEpoch(keys, this.#createAead(keys), this.#nextOrder++, active);
    peer.epochs.get(keys.localIndex)?.aead.close();
    peer.epochs.set(keys.localIndex, epoch);
    this.#byIndex.set(keys.localIndex, { peer, epoch });
    if (!active) return;
    peer.active = epoch;
    this.#flushWaiting(peer, now);
  }

  #dropEpoch(slot: PeerSlot, localIndex: number): void {
    const peer = this.#peers.get(slot);
    const epoch = peer?.epochs.get(localIndex);
    if (peer === undefined || epoch === undefined) return;
    peer.epochs.delete(localIndex);
    this.#byIndex.delete(localIndex);
    if (peer.active === epoch) peer.active = undefined;
    epoch.aead.close();
  }

  #handleFrame(leg: Leg, from: Uint8Array, bytes: Uint8Array, at: number, end: number, now: Instant): void {
    if (!isSealedFrame(bytes, at, end)) {
      this.#handleUnsealed(leg, from, bytes.subarray(at, end), now);
      return;
    }
    const entry = this.#byIndex.get(frameReceiver(bytes, at));
    if (entry === undefined) {
      this.#drop("unknown index");
      return;
    }
    const { peer, epoch } = entry;
    const counter = frameCounter(bytes, at);
    if (!epoch.window.mayAccept(counter)) {
      this.#drop("replay");
      return;
    }
    if (!epoch.aead.open(counter, bytes, at, end)) {
      this.#drop("not authentic");
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
      this.#drop("unknown datagram");
      return;
    }
    if (this.#datagramSecond === undefined || now - this.#datagramSecond >= 1000) {
      this.#datagramSecond = now;
      this.#datagrams = 0;
    }
    if (++this.#datagrams > MAX_DATAGRAMS_PER_SECOND) {
      this.#drop("flood");
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
        this.#timed.add(peer);
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
        this.#countReceived(peer, end - start - 1, 1, now);
        this.#streams.add(peer.slot, bytes.subarray(start + 1, end));
        this.#streamsDueAt ??= now;
        break;
      case FRAME_PADDING:
        break;
      default:
        this.#drop("unknown frame type");
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
        this.#timed.add(peer);
      }
      if (!peer.runs.add(bytes, start, end, now)) this.#drop("bad segment");
      return;
    }
    // What is behind a hole in a run does not overtake what is before it.
    peer.runs?.flush();
    if (type === FRAME_PACKET) this.#deliver(peer, bytes.subarray(start + 1, end), now);
    else if (type === FRAME_UNFINISHED) {
      const packet = bytes.subarray(start + 1, end);
      if (this.#headers.parse(packet, 0, packet.length)) this.#deliver(peer, packet, now, this.#headers, 0);
      else this.#drop("bad headers");
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

  /** Tells the peer where the old path ends and the new one begins. */
  #markSwitch(peer: DataPeer, before: PathRef | undefined, holdMs: number, now: Instant): void {
    const { active, path } = peer;
    if (active === undefined || before === undefined || path === undefined) return;
    const id = peer.switchId++ >>> 0;
    const plaintext = new Uint8Array(SWITCH_BYTES);
    writeSwitch(plaintext, SWITCH_FENCE, id, 0);
    this.#sender.sendPlaintext(peer, active, before, plaintext, now);
    writeSwitch(plaintext, SWITCH_BEGIN, id, holdMs);
    this.#sender.sendPlaintext(peer, active, path, plaintext, now);
  }

  #isWelcome(peer: DataPeer, bytes: Uint8Array, start: number, end: number): boolean {
    // A peer speaks for its own mesh addresses and for nobody else's.
    if (this.#byAddress.findSource(bytes, start, end) !== peer) {
      this.#drop("wrong source address");
      return false;
    }
    if (this.#own !== undefined && this.#own.findDestination(bytes, start, end) === undefined) {
      this.#drop("not our address");
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
    this.#countReceived(
      peer,
      packet.length,
      headers === undefined ? 1 : partsOf(packet.length - headers.bytes, segmentBytes),
      now,
    );
    if (headers === undefined) this.#io.deliver(packet);
    else this.#deliverUnfinished(packet, headers, segmentBytes);
  }

  #deliverUnfinished(packet: Uint8Array, headers: PacketHeaders, segmentBytes: number): void {
    const { deliverUnfinished } = this.#io;
    if (deliverUnfinished !== undefined) deliverUnfinished(packet, headers, segmentBytes);
    else {
      finishPackets(packet, 0, packet.length, headers, segmentBytes, this.#finished, (part) => this.#io.deliver(part));
    }
  }

  #countReceived(peer: DataPeer, length: number, packets: number, now: Instant | undefined): void {
    peer.rxPackets += packets;
    peer.rxBytes += length;
    if (length >= LARGE_PACKET_BYTES) peer.received.large += packets;
    else peer.received.small += packets;
    this.#noteActivity(peer, now);
  }

  #countSent(peer: DataPeer, length: number, packets: number, now: Instant): void {
    peer.txPackets += packets;
    peer.txBytes += length;
    if (length >= LARGE_PACKET_BYTES) peer.sent.large += packets;
    else peer.sent.small += packets;
    this.#noteActivity(peer, now);
  }

  #noteActivity(peer: DataPeer, now: Instant | undefined): void {
    if (peer.activityDueAt !== undefined || now === undefined) return;
    const soonest = peer.activityAt === undefined ? now : after(peer.activityAt, ACTIVITY_INTERVAL_MS);
    peer.activityDueAt = soonest > now ? soonest : now;
    this.#timed.add(peer);
  }

  #route(packet: OutgoingPacket, now: Instant): void {
    const { bytes, start, end } = packet;
    const peer = this.#byAddress.findDestination(bytes, start, end);
    if (peer === undefined) {
      this.#drop("no such mesh address");
      return;
    }
    if (this.#rootless.has(peer.slot)) {
      this.#turnRound(peer, packet);
      return;
    }
    if (peer.active !== undefined && peer.path !== undefined) {
      this.#send(peer, peer.active, peer.path, packet, now);
      return;
    }
    if (peer.waiting.length >= MAX_WAITING_PACKETS) {
      peer.waiting.shift();
      this.#drop("no path yet");
    }
    const copy = new Uint8Array(PACKET_ROOM_BEFORE + end - start + PACKET_ROOM_BEHIND);
    copy.set(bytes.subarray(start, end), PACKET_ROOM_BEFORE);
    peer.waiting.push({ ...packet, bytes: copy, start: PACKET_ROOM_BEFORE, end: PACKET_ROOM_BEFORE + end - start });
    if (peer.wantedAt === undefined || now - peer.wantedAt >= WANTED_INTERVAL_MS) {
      peer.wantedAt = now;
      this.#io.report({ type: "wanted", peer: peer.slot, at: now });
    }
  }

  #flushWaiting(peer: DataPeer, now: Instant): void {
    const { active, path } = peer;
    if (active === undefined || path === undefined || peer.waiting.length === 0) return;
    const packets = peer.waiting;
    peer.waiting = [];
    for (const packet of packets) this.#send(peer, active, path, packet, now);
  }

  #send(peer: DataPeer, epoch: Epoch, path: PathRef, packet: OutgoingPacket, now: Instant): void {
    this.#countSent(peer, packet.end - packet.start, packet.parts, now);
    this.#sender.sendPacket(peer, epoch, path, packet, now);
  }

  #sendStreams(peer: DataPeer | undefined, batch: Uint8Array, now: Instant): void {
    const { active, path } = peer ?? {};
    if (peer === undefined || active === undefined || path === undefined) {
      this.#drop("no path for streams");
      return;
    }
    this.#sender.cork();
    for (const frame of batchEntries(batch)) {
      this.#countSent(peer, frame.length, 1, now);
      this.#sender.sendTyped(peer, active, path, FRAME_STREAM, frame, now);
    }
    this.#sender.uncork(now);
  }

  #flushStreams(now: Instant): void {
    this.#streamsDueAt = undefined;
    this.#streams.flush((peer, batch) => this.#io.report({ type: "stream_frames", peer, batch, at: now }));
  }

  #sendControl(peer: DataPeer | undefined, path: PathRef, body: Uint8Array, now: Instant): void {
    // Before the first epoch is confirmed a responder may probe with it: probes are what confirms it to the initiator's NAT.
    const epoch = peer?.active ?? [...(peer?.epochs.values() ?? [])].at(-1);
    if (peer === undefined || epoch === undefined) {
      this.#drop("no session");
      return;
    }
    this.#sender.sendTyped(peer, epoch, path, FRAME_CONTROL, body, now);
  }

  #reportActivity(peer: DataPeer, now: Instant): void {
    const { slot, sent, received, fromLeg } = peer;
    peer.sent = { small: 0, large: 0 };
    peer.received = { small: 0, large: 0 };
    peer.activityDueAt = undefined;
    peer.activityAt = now;
    const from = peer.from.slice();
    this.#io.report({ type: "activity", peer: slot, sent, received, leg: fromLeg, from, at: now });
  }

  #reportCounters(): void {
    const peers = [...this.#peers.values()].map((peer) => ({
      peer: peer.slot,
      rxBytes: peer.rxBytes,
      txBytes: peer.txBytes,
      rxPackets: peer.rxPackets,
      txPackets: peer.txPackets,
    }));
    // Not dropped, but out of order: what was waited for after a move of the path did not come in time.
    let unordered = 0;
    for (const { pathSwitch, epochs } of this.#peers.values()) {
      unordered += pathSwitch.lateFences;
      for (const { sequencer } of epochs.values()) unordered += sequencer.gapsGivenUp;
    }
    const drops = unordered === 0 ? this.#drops : { ...this.#drops, "order given up": unordered };
    this.#io.report({ type: "counters", peers, drops: { ...drops } });
  }

  #drop(reason: string, count = 1): void {
    this.#drops[reason] = (this.#drops[reason] ?? 0) + count;
  }
}

const isData = (type: number): boolean =>
  type === FRAME_PACKET || type === FRAME_SEGMENT || type === FRAME_FRAGMENT || type === FRAME_UNFINISHED;

/** IP packets that a packet with so much payload stands for. */
const partsOf = (payload: number, segmentBytes: number): number =>
  segmentBytes === 0 ? 1 : Math.max(1, Math.ceil(payload / segmentBytes));

/** Names the path that the newest frame came along, for as long as a switch lasts. */
const sourceName = (peer: DataPeer): string => `${peer.fromLeg}|${peer.from.join()}`;
