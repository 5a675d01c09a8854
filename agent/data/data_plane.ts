/**
 * The data path: seals and opens frames, moves IP packets between the TUN device and the paths that control has selected.
 *
 * It decides nothing (plane.ts is the contract). Bytes passed in are borrowed; what goes to control is copied. Nothing from the network
 * throws: what is refused is counted by reason.
 */
import { assertNever } from "../../shared/assert.ts";
import { batchEntries } from "../../shared/batch.ts";
import { earliest, type Instant } from "../../shared/time.ts";
import {
  FRAME_CONTROL,
  FRAME_STREAM,
  SWITCH_BEGIN,
  SWITCH_BYTES,
  SWITCH_FENCE,
  writeSwitch,
} from "../../shared/wire/frame.ts";
import { Activity } from "./activity.ts";
import { type AeadFactory, createNodeAead } from "./aead.ts";
import { type DataPeer, deadlineOf, type Epoch, type OutgoingPacket } from "./data_peer.ts";
import { DropCounts } from "./drop_counts.ts";
import { FrameReceiver } from "./frame_receiver.ts";
import { FrameSender, type RekeyLimits } from "./frame_sender.ts";
import { finishChecksum, PacketHeaders, partsOf } from "./packet_headers.ts";
import { PeerTable } from "./peer_table.ts";
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
import { Turnaround } from "./turnaround.ts";

/** IP packets kept per peer while a path opens. Newest win: the inner protocols retransmit the rest. */
const MAX_WAITING_PACKETS = 16;
/** An IP packet says its length in 16 bits. */
const MAX_PACKET_BYTES = 65_535;
const WANTED_INTERVAL_MS = 1000;
/** Frames further apart do not overtake each other: no path is slower than another by more than 200 ms, or order is not promised. */
const IN_FLIGHT_MS = 250;

/** The limits are for tests of the rekey rules. */
export interface DataPlaneOptions extends RekeyLimits {
  /** Default: node:crypto. */
  readonly createAead?: AeadFactory;
  /** Random, and told to nobody: by it packets are put to flows. */
  readonly flowKey?: number;
}

export class DataPlane implements Plane {
  readonly #io: PlaneIo;
  readonly #peers: PeerTable;
  readonly #sender: FrameSender;
  readonly #receiver: FrameReceiver;
  readonly #activity: Activity;
  readonly #drops = new DropCounts();
  readonly #headers = new PacketHeaders();
  readonly #turnaround: Turnaround;
  readonly #rootless = new Set<PeerSlot>();

  constructor(io: PlaneIo, options: DataPlaneOptions = {}) {
    this.#io = io;
    this.#turnaround = new Turnaround(io);
    this.#peers = new PeerTable(options.createAead ?? createNodeAead);
    this.#activity = new Activity(io, this.#peers.timed);
    this.#sender = new FrameSender(io, options, this.#drops, options.flowKey);
    this.#receiver = new FrameReceiver(io, this.#peers, this.#activity, this.#drops);
  }

  cork(): void {
    this.#sender.cork();
  }

  uncork(now: Instant): void {
    this.#sender.uncork(now);
  }

  handleCommand(command: PlaneCommand, now: Instant): void {
    switch (command.type) {
      case "set_peer":
        this.#peers.setAddresses(command.peer, command.addresses);
        break;
      case "set_self":
        this.#peers.setOwnAddresses(command.addresses);
        break;
      case "remove_peer":
        this.#peers.remove(command.peer);
        break;
      case "install_epoch": {
        const peer = this.#peers.take(command.peer);
        this.#peers.installEpoch(peer, command.keys, command.active);
        if (command.active) this.#flushWaiting(peer, now);
        break;
      }
      case "activate_epoch": {
        const peer = this.#peers.find(command.peer);
        if (peer === undefined) break;
        peer.active = peer.epochs.get(command.localIndex) ?? peer.active;
        this.#flushWaiting(peer, now);
        break;
      }
      case "drop_epoch":
        this.#peers.dropEpoch(command.peer, command.localIndex);
        break;
      case "select_path": {
        const peer = this.#peers.take(command.peer);
        const before = peer.path;
        peer.path = command.path;
        peer.mtu = command.mtu;
        if (command.isPlanned) this.#markSwitch(peer, before, command.holdMs ?? 0, now);
        this.#flushWaiting(peer, now);
        break;
      }
      case "set_mtu":
        this.#peers.take(command.peer).mtu = command.mtu;
        break;
      case "keep_order": {
        const peer = this.#peers.find(command.peer);
        if (peer === undefined) break;
        for (const { sequencer, receivedAt } of peer.epochs.values()) {
          sequencer.start(now, receivedAt === undefined || now - receivedAt > IN_FLIGHT_MS);
        }
        this.#peers.timed.add(peer);
        break;
      }
      case "send_control":
        this.#sendControl(this.#peers.find(command.peer), command.path, command.body, now);
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
        this.#sendStreams(this.#peers.find(command.peer), command.batch, now);
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
    this.#receiver.handleDatagram(leg, from, bytes, now);
  }

  handleDatagrams(
    leg: Leg,
    from: Uint8Array,
    bytes: Uint8Array,
    length: number,
    frameBytes: number,
    now: Instant,
  ): void {
    this.#receiver.handleDatagrams(leg, from, bytes, length, frameBytes, now);
  }

  handlePacket(packet: Uint8Array, now: Instant): void {
    if (packet.length > MAX_PACKET_BYTES) {
      this.#drops.add("packet too large");
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
    } else this.#drops.add("unknown offload");
  }

  #setRootless(slot: PeerSlot, isRootless: boolean): void {
    if (!isRootless) {
      this.#rootless.delete(slot);
      return;
    }
    this.#rootless.add(slot);
    const peer = this.#peers.take(slot);
    // What made us look for the peer in the first place.
    for (const packet of peer.waiting.splice(0)) this.#turnRound(peer, packet);
  }

  #turnRound(peer: DataPeer, packet: OutgoingPacket): void {
    const bytes = packet.bytes.subarray(packet.start, packet.end);
    const { segmentBytes } = packet;
    const deliver = (): void => {
      if (segmentBytes !== undefined && this.#headers.parse(bytes, 0, bytes.length)) {
        this.#receiver.deliverUnfinished(bytes, this.#headers, segmentBytes);
      } else this.#io.deliver(bytes);
    };
    const isTurned =
      this.#peers.isFromUs(bytes) && this.#turnaround.handle(peer.slot, bytes, deliver, segmentBytes !== undefined);
    if (!isTurned) this.#drops.add("not for a rootless peer");
  }

  handleTimeout(now: Instant): void {
    if (this.#sender.deadline !== undefined && now >= this.#sender.deadline) this.#sender.flushRelays();
    this.#receiver.handleTimeout(now);
    const { timed } = this.#peers;
    for (const peer of timed) {
      this.#activity.reportDue(peer, now);
      this.#receiver.handlePeerTimeout(peer, now);
      if (deadlineOf(peer) === undefined) timed.delete(peer);
    }
  }

  deadline(): Instant | undefined {
    let first = earliest(this.#sender.deadline, this.#receiver.deadline);
    for (const peer of this.#peers.timed) first = earliest(first, deadlineOf(peer));
    return first;
  }

  /** Tells the peer where the old path ends and the new one begins. */
  #markSwitch(peer: DataPeer, before: PathRef | undefined, holdMs: number, now: Instant): void {
    const { active, path } = peer;
    if (active === undefined || before === undefined || path === undefined) return;
    const id = peer.switchId++ >>> 0;
    const plaintext = new Uint8Array(SWITCH_BYTES);
    writeSwitch(plaintext, SWITCH_FENCE, id, 0);
    this.#sender.sendMark(peer, active, before, plaintext, now);
    writeSwitch(plaintext, SWITCH_BEGIN, id, holdMs);
    this.#sender.sendMark(peer, active, path, plaintext, now);
  }

  #route(packet: OutgoingPacket, now: Instant): void {
    const { bytes, start, end } = packet;
    const peer = this.#peers.destinationOf(bytes, start, end);
    if (peer === undefined) {
      this.#drops.add("no such mesh address");
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
      this.#drops.add("no path yet");
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
    this.#activity.countSent(peer, packet.end - packet.start, packet.parts, now);
    this.#sender.sendPacket(peer, epoch, path, packet, now);
  }

  #sendStreams(peer: DataPeer | undefined, batch: Uint8Array, now: Instant): void {
    const { active, path } = peer ?? {};
    if (peer === undefined || active === undefined || path === undefined) {
      this.#drops.add("no path for streams");
      return;
    }
    this.#sender.cork();
    for (const frame of batchEntries(batch)) {
      this.#activity.countSent(peer, frame.length, 1, now);
      this.#sender.sendTyped(peer, active, path, FRAME_STREAM, frame, now);
    }
    this.#sender.uncork(now);
  }

  #sendControl(peer: DataPeer | undefined, path: PathRef, body: Uint8Array, now: Instant): void {
    // Before the first epoch is confirmed a responder may probe with it: probes are what confirms it to the initiator's NAT.
    const epoch = peer?.active ?? [...(peer?.epochs.values() ?? [])].at(-1);
    if (peer === undefined || epoch === undefined) {
      this.#drops.add("no session");
      return;
    }
    this.#sender.sendTyped(peer, epoch, path, FRAME_CONTROL, body, now);
  }

  #reportCounters(): void {
    const peers = [...this.#peers.all].map((peer) => ({
      peer: peer.slot,
      rxBytes: peer.rxBytes,
      txBytes: peer.txBytes,
      rxPackets: peer.rxPackets,
      txPackets: peer.txPackets,
    }));
    // Not dropped, but out of order: what was waited for after a move of the path did not come in time.
    let unordered = 0;
    for (const { pathSwitch, epochs } of this.#peers.all) {
      unordered += pathSwitch.lateFences;
      for (const { sequencer } of epochs.values()) unordered += sequencer.gapsGivenUp;
    }
    const { counts } = this.#drops;
    const drops = unordered === 0 ? counts : { ...counts, "order given up": unordered };
    this.#io.report({ type: "counters", peers, drops });
  }
}
