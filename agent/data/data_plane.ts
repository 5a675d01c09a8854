/**
 * The data path: seals and opens frames, moves IP packets between the TUN device and the paths that control has selected.
 *
 * It decides nothing (plane.ts is the contract). Bytes passed in are borrowed; what goes to control is copied. Nothing from the network
 * throws: what is refused is counted by reason.
 */
import { createCipheriv, createDecipheriv } from "node:crypto";
import { assertNever } from "../../shared/assert.ts";
import { batchEntries } from "../../shared/batch.ts";
import { counterNonce } from "../../shared/session/primitives.ts";
import { ReplayWindow } from "../../shared/session/replay_window.ts";
import type { EpochKeys } from "../../shared/session/peer_session.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import { datagramKind } from "../../shared/wire/demux.ts";
import {
  FRAGMENT_HEADER_BYTES,
  FRAME_CONTROL,
  FRAME_FRAGMENT,
  FRAME_HEADER_BYTES,
  FRAME_OVERHEAD_BYTES,
  FRAME_PACKET,
  FRAME_PADDING,
  FRAME_STREAM,
  FRAME_SWITCH,
  FRAME_TAG_BYTES,
  frameCounter,
  frameReceiver,
  isSealedFrame,
  readSwitch,
  SWITCH_BEGIN,
  SWITCH_BYTES,
  SWITCH_FENCE,
  writeFragmentHeader,
  writeFrameHeader,
  writeSwitch,
} from "../../shared/wire/frame.ts";
import { CounterOrder, PathSwitch } from "./path_switch.ts";
import { addressKey, destinationKey, sourceKey } from "./ip_packet.ts";
import {
  FIRST_RELAY_LEG,
  type Leg,
  type PathRef,
  type PeerSlot,
  type Plane,
  type PlaneCommand,
  type PlaneIo,
} from "./plane.ts";
import { Reassembly } from "./reassembly.ts";
import { StreamInbox } from "./stream_inbox.ts";
import { Turnaround } from "./turnaround.ts";

/** RFC 8446 §5.5 stops AES-GCM at 2^24.5 full records for a comfortable margin; control is asked for new keys at 2^24. */
const REKEY_AFTER_FRAMES = 2 ** 24;
/** Beyond this nothing is sealed any more: new keys must have failed for a long time. */
const REJECT_AFTER_FRAMES = 2 ** 26;
/** IP packets kept per peer while a path opens. Newest win: the inner protocols retransmit the rest. */
const MAX_WAITING_PACKETS = 16;
const WANTED_INTERVAL_MS = 1000;
const ACTIVITY_INTERVAL_MS = 100;
const SEND_FAILED_INTERVAL_MS = 1000;
/** STUN and handshake datagrams handed to control each second; more is a flood. */
const MAX_DATAGRAMS_PER_SECOND = 2000;
/** Half of the largest packet that the TUN device gives: whether such pass is worth a proof of its own. */
const LARGE_PACKET_BYTES = 640;
/** Largest plaintext: one IP packet and its type byte. */
const MAX_PLAINTEXT_BYTES = 65_536;

interface Epoch {
  readonly keys: EpochKeys;
  /** Epochs of all peers are numbered as they come: a later one's frames are newer. */
  readonly order: number;
  readonly window: ReplayWindow;
  readonly sequencer: CounterOrder;
  counter: number;
  confirmed: boolean;
  exhaustedReported: boolean;
}

interface Peer {
  readonly slot: PeerSlot;
  readonly epochs: Map<number, Epoch>;
  readonly reassembly: Reassembly;
  addresses: readonly string[];
  active: Epoch | undefined;
  path: PathRef | undefined;
  mtu: number;
  waiting: Uint8Array[];
  wantedAt: Instant | undefined;
  sendFailedAt: Instant | undefined;
  fragmentId: number;
  readonly pathSwitch: PathSwitch;
  switchId: number;
  /** Activity since the last report, and where the newest frame came from. */
  sent: { small: number; large: number };
  received: { small: number; large: number };
  activityDueAt: Instant | undefined;
  fromLeg: Leg;
  from: Uint8Array;
  rxBytes: number;
  txBytes: number;
  rxPackets: number;
  txPackets: number;
}

export class DataPlane implements Plane {
  readonly #io: PlaneIo;
  readonly #rekeyAfterFrames: number;
  readonly #rejectAfterFrames: number;
  readonly #peers = new Map<PeerSlot, Peer>();
  readonly #byIndex = new Map<number, { readonly peer: Peer; readonly epoch: Epoch }>();
  readonly #byAddress = new Map<string, Peer>();
  /** Undefined until control has said which addresses are ours, which it does before there is a TUN device to deliver to. */
  #own: ReadonlySet<string> | undefined;
  readonly #drops: Record<string, number> = {};
  readonly #nonce = new Uint8Array(12);
  readonly #plaintext = new Uint8Array(MAX_PLAINTEXT_BYTES);
  readonly #frame = new Uint8Array(FRAME_HEADER_BYTES + MAX_PLAINTEXT_BYTES + FRAME_TAG_BYTES);
  readonly #relayBatches = new Map<Leg, { to: Uint8Array; frames: Uint8Array[] }[]>();
  #relayDueAt: Instant | undefined;
  readonly #streams = new StreamInbox();
  #streamsDueAt: Instant | undefined;
  readonly #turnaround: Turnaround;
  readonly #rootless = new Set<PeerSlot>();
  #nextOrder = 0;
  #datagramSecond: Instant | undefined;
  #datagrams = 0;

  /** @param limits for tests of the rekey rules */
  constructor(io: PlaneIo, limits: { readonly rekeyAfterFrames?: number; readonly rejectAfterFrames?: number } = {}) {
    this.#io = io;
    this.#turnaround = new Turnaround(io);
    this.#rekeyAfterFrames = limits.rekeyAfterFrames ?? REKEY_AFTER_FRAMES;
    this.#rejectAfterFrames = limits.rejectAfterFrames ?? REJECT_AFTER_FRAMES;
  }

  handleCommand(command: PlaneCommand, now: Instant): void {
    switch (command.type) {
      case "set_peer":
        this.#setPeer(command.peer, command.addresses.map(addressKey));
        break;
      case "set_self":
        this.#own = new Set(command.addresses.map(addressKey));
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
        if (command.isPlanned) this.#markSwitch(peer, before, now);
        this.#flushWaiting(peer, now);
        break;
      }
      case "keep_order":
        for (const epoch of this.#peers.get(command.peer)?.epochs.values() ?? []) {
          epoch.sequencer.start(epoch.window.newest + 1, now);
        }
        break;
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
        this.#transmit(undefined, command.path, command.bytes, now);
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
    if (!isSealedFrame(bytes)) {
      this.#handleUnsealed(leg, from, bytes, now);
      return;
    }
    const entry = this.#byIndex.get(frameReceiver(bytes));
    if (entry === undefined) {
      this.#drop("unknown index");
      return;
    }
    const { peer, epoch } = entry;
    const counter = frameCounter(bytes);
    if (!epoch.window.mayAccept(counter)) {
      this.#drop("replay");
      return;
    }
    const plaintext = this.#open(epoch, counter, bytes);
    if (plaintext === undefined) {
      this.#drop("not authentic");
      return;
    }
    epoch.window.accept(counter);
    if (!epoch.confirmed) {
      epoch.confirmed = true;
      this.#io.report({ type: "epoch_confirmed", peer: peer.slot, localIndex: epoch.keys.localIndex, at: now });
    }
    peer.fromLeg = leg;
    // A relay leg names its sender in fewer bytes than an address.
    if (from.length === peer.from.length) peer.from.set(from);
    else peer.from = from.slice();
    this.#handlePlaintext(peer, epoch, counter, plaintext, leg, from, now);
  }

  handlePacket(packet: Uint8Array, now: Instant): void {
    const key = destinationKey(packet);
    const peer = key === undefined ? undefined : this.#byAddress.get(key);
    if (peer === undefined) {
      this.#drop("no such mesh address");
      return;
    }
    if (this.#rootless.has(peer.slot)) {
      this.#turnRound(peer, packet);
      return;
    }
    if (peer.active === undefined || peer.path === undefined) {
      if (peer.waiting.length >= MAX_WAITING_PACKETS) {
        peer.waiting.shift();
        this.#drop("no path yet");
      }
      peer.waiting.push(packet.slice());
      if (peer.wantedAt === undefined || now - peer.wantedAt >= WANTED_INTERVAL_MS) {
        peer.wantedAt = now;
        this.#io.report({ type: "wanted", peer: peer.slot, at: now });
      }
      return;
    }
    this.#sendPacket(peer, peer.active, peer.path, packet, now);
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

  #turnRound(peer: Peer, packet: Uint8Array): void {
    const source = sourceKey(packet);
    const isOwn = source !== undefined && this.#own?.has(source) === true;
    const isTurned = isOwn && this.#turnaround.handle(peer.slot, packet, () => this.#io.deliver(packet));
    if (!isTurned) this.#drop("not for a rootless peer");
  }

  handleTimeout(now: Instant): void {
    if (this.#relayDueAt !== undefined && now >= this.#relayDueAt) this.#flushRelays();
    if (this.#streamsDueAt !== undefined && now >= this.#streamsDueAt) this.#flushStreams(now);
    for (const peer of this.#peers.values()) {
      if (peer.activityDueAt !== undefined && now >= peer.activityDueAt) this.#reportActivity(peer, now);
      if (peer.pathSwitch.deadline !== undefined) this.#handleAll(peer, peer.pathSwitch.overdue(now), now);
      for (const { sequencer } of peer.epochs.values()) {
        if (sequencer.isActive) this.#handleAll(peer, sequencer.overdue(now), now);
      }
    }
  }

  deadline(): Instant | undefined {
    let first = earliest(this.#relayDueAt, this.#streamsDueAt);
    for (const peer of this.#peers.values()) {
      first = earliest(first, peer.activityDueAt, peer.pathSwitch.deadline);
      for (const { sequencer } of peer.epochs.values())
        if (sequencer.isActive) first = earliest(first, sequencer.deadline);
    }
    return first;
  }

  #peer(slot: PeerSlot): Peer {
    const known = this.#peers.get(slot);
    if (known !== undefined) return known;
    const peer: Peer = {
      slot,
      epochs: new Map(),
      reassembly: new Reassembly(),
      addresses: [],
      active: undefined,
      path: undefined,
      mtu: 0,
      waiting: [],
      wantedAt: undefined,
      sendFailedAt: undefined,
      fragmentId: 0,
      pathSwitch: new PathSwitch(),
      switchId: 0,
      sent: { small: 0, large: 0 },
      received: { small: 0, large: 0 },
      activityDueAt: undefined,
      fromLeg: 0,
      from: new Uint8Array(18),
      rxBytes: 0,
      txBytes: 0,
      rxPackets: 0,
      txPackets: 0,
    };
    this.#peers.set(slot, peer);
    return peer;
  }

  #setPeer(slot: PeerSlot, addresses: readonly string[]): void {
    const peer = this.#peer(slot);
    this.#forgetAddresses(peer);
    peer.addresses = addresses;
    for (const address of addresses) this.#byAddress.set(address, peer);
  }

  #removePeer(slot: PeerSlot): void {
    const peer = this.#peers.get(slot);
    if (peer === undefined) return;
    this.#forgetAddresses(peer);
    for (const localIndex of peer.epochs.keys()) this.#byIndex.delete(localIndex);
    this.#peers.delete(slot);
  }

  #forgetAddresses(peer: Peer): void {
    for (const address of peer.addresses) {
      if (this.#byAddress.get(address) === peer) this.#byAddress.delete(address);
    }
  }

  #installEpoch(peer: Peer, keys: EpochKeys, active: boolean, now: Instant): void {
    const epoch: Epoch = {
      keys,
      order: this.#nextOrder++,
      window: new ReplayWindow(),
      sequencer: new CounterOrder(),
      counter: 0,
      confirmed: active,
      exhaustedReported: false,
    };
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
    peer: Peer,
    epoch: Epoch,
    counter: number,
    plaintext: Uint8Array,
    leg: Leg,
    from: Uint8Array,
    now: Instant,
  ): void {
    const isData = plaintext[0] === FRAME_PACKET || plaintext[0] === FRAME_FRAGMENT;
    if (!isData && epoch.sequencer.isActive) {
      this.#handleAll(peer, epoch.sequencer.accept(counter, undefined, now), now);
    }
    switch (plaintext[0]) {
      case FRAME_PACKET:
      case FRAME_FRAGMENT: {
        if (epoch.sequencer.isActive) {
          this.#handleAll(peer, epoch.sequencer.accept(counter, plaintext, now), now);
          break;
        }
        const { pathSwitch } = peer;
        const isHeld =
          pathSwitch.deadline !== undefined &&
          pathSwitch.holds(sourceName(leg, from), epoch.order * REJECT_AFTER_FRAMES * 2 + counter, plaintext);
        if (!isHeld) this.#handleData(peer, plaintext, now);
        else this.#handleAll(peer, pathSwitch.overdue(now), now);
        break;
      }
      case FRAME_SWITCH: {
        const mark = readSwitch(plaintext);
        if (mark?.mark === SWITCH_BEGIN) {
          this.#handleAll(peer, peer.pathSwitch.begin(mark.id, sourceName(leg, from), now), now);
        } else if (mark?.mark === SWITCH_FENCE) this.#handleAll(peer, peer.pathSwitch.fence(mark.id), now);
        break;
      }
      case FRAME_CONTROL:
        this.#io.report({
          type: "control",
          peer: peer.slot,
          leg,
          from: from.slice(),
          localIndex: epoch.keys.localIndex,
          body: plaintext.slice(1),
          at: now,
        });
        break;
      case FRAME_STREAM:
        this.#countReceived(peer, plaintext.length - 1, now);
        this.#streams.add(peer.slot, plaintext.subarray(1));
        this.#streamsDueAt ??= now;
        break;
      case FRAME_PADDING:
        break;
      default:
        this.#drop("unknown frame type");
    }
  }

  #handleAll(peer: Peer, plaintexts: readonly Uint8Array[], now: Instant): void {
    for (const plaintext of plaintexts) this.#handleData(peer, plaintext, now);
  }

  #handleData(peer: Peer, plaintext: Uint8Array, now: Instant): void {
    const packet = plaintext[0] === FRAME_PACKET ? plaintext.subarray(1) : peer.reassembly.add(plaintext, now);
    if (packet !== undefined) this.#deliver(peer, packet, now);
  }

  /** Tells the peer where the old path ends and the new one begins. */
  #markSwitch(peer: Peer, before: PathRef | undefined, now: Instant): void {
    const { active, path } = peer;
    if (active === undefined || before === undefined || path === undefined) return;
    const id = peer.switchId++ >>> 0;
    writeSwitch(this.#plaintext, SWITCH_FENCE, id);
    this.#sealAndSend(peer, active, before, SWITCH_BYTES, now);
    writeSwitch(this.#plaintext, SWITCH_BEGIN, id);
    this.#sealAndSend(peer, active, path, SWITCH_BYTES, now);
  }

  #deliver(peer: Peer, packet: Uint8Array, now: Instant): void {
    const key = sourceKey(packet);
    // A peer speaks for its own mesh addresses and for nobody else's.
    if (key === undefined || !peer.addresses.includes(key)) {
      this.#drop("wrong source address");
      return;
    }
    const destination = destinationKey(packet);
    if (destination === undefined || (this.#own !== undefined && !this.#own.has(destination))) {
      this.#drop("not our address");
      return;
    }
    this.#countReceived(peer, packet.length, now);
    this.#io.deliver(packet);
  }

  #countReceived(peer: Peer, length: number, now: Instant): void {
    peer.rxPackets++;
    peer.rxBytes += length;
    if (length >= LARGE_PACKET_BYTES) peer.received.large++;
    else peer.received.small++;
    peer.activityDueAt ??= after(now, ACTIVITY_INTERVAL_MS);
  }

  #countSent(peer: Peer, length: number, now: Instant): void {
    peer.txPackets++;
    peer.txBytes += length;
    if (length >= LARGE_PACKET_BYTES) peer.sent.large++;
    else peer.sent.small++;
    peer.activityDueAt ??= after(now, ACTIVITY_INTERVAL_MS);
  }

  #sendStreams(peer: Peer | undefined, batch: Uint8Array, now: Instant): void {
    const { active, path } = peer ?? {};
    if (peer === undefined || active === undefined || path === undefined) {
      this.#drop("no path for streams");
      return;
    }
    for (const frame of batchEntries(batch)) {
      this.#countSent(peer, frame.length, now);
      this.#plaintext[0] = FRAME_STREAM;
      this.#plaintext.set(frame, 1);
      this.#sealAndSend(peer, active, path, frame.length + 1, now);
    }
  }

  #flushStreams(now: Instant): void {
    this.#streamsDueAt = undefined;
    this.#streams.flush((peer, batch) => this.#io.report({ type: "stream_frames", peer, batch, at: now }));
  }

  #sendPacket(peer: Peer, epoch: Epoch, path: PathRef, packet: Uint8Array, now: Instant): void {
    this.#countSent(peer, packet.length, now);
    if (packet.length + FRAME_OVERHEAD_BYTES <= peer.mtu) {
      this.#plaintext[0] = FRAME_PACKET;
      this.#plaintext.set(packet, 1);
      this.#sealAndSend(peer, epoch, path, packet.length + 1, now);
      return;
    }
    const body = peer.mtu - FRAME_HEADER_BYTES - FRAME_TAG_BYTES - FRAGMENT_HEADER_BYTES;
    const count = Math.ceil(packet.length / Math.max(1, body));
    if (body < 1 || count > 255) {
      this.#drop("path too small");
      return;
    }
    const id = peer.fragmentId++ >>> 0;
    for (let index = 0; index < count; index++) {
      const part = packet.subarray(index * body, (index + 1) * body);
      writeFragmentHeader(this.#plaintext, { id, index, count });
      this.#plaintext.set(part, FRAGMENT_HEADER_BYTES);
      this.#sealAndSend(peer, epoch, path, FRAGMENT_HEADER_BYTES + part.length, now);
    }
  }

  #sendControl(peer: Peer | undefined, path: PathRef, body: Uint8Array, now: Instant): void {
    // Before the first epoch is confirmed a responder may probe with it: probes are what confirms it to the initiator's NAT.
    const epoch = peer?.active ?? [...(peer?.epochs.values() ?? [])].at(-1);
    if (peer === undefined || epoch === undefined) {
      this.#drop("no session");
      return;
    }
    this.#plaintext[0] = FRAME_CONTROL;
    this.#plaintext.set(body, 1);
    this.#sealAndSend(peer, epoch, path, body.length + 1, now);
  }

  #flushWaiting(peer: Peer, now: Instant): void {
    const { active, path } = peer;
    if (active === undefined || path === undefined || peer.waiting.length === 0) return;
    const packets = peer.waiting;
    peer.waiting = [];
    for (const packet of packets) this.#sendPacket(peer, active, path, packet, now);
  }

  /** Seals the first `length` bytes of the plaintext scratch. */
  #sealAndSend(peer: Peer, epoch: Epoch, path: PathRef, length: number, now: Instant): void {
    const counter = epoch.counter;
    if (counter >= this.#rekeyAfterFrames && !epoch.exhaustedReported) {
      epoch.exhaustedReported = true;
      this.#io.report({ type: "epoch_exhausted", peer: peer.slot, localIndex: epoch.keys.localIndex, at: now });
    }
    if (counter >= this.#rejectAfterFrames) {
      this.#drop("epoch exhausted");
      return;
    }
    epoch.counter = counter + 1;
    const frame = this.#frame;
    writeFrameHeader(frame, epoch.keys.remoteIndex, counter);
    const cipher = createCipheriv("aes-256-gcm", epoch.keys.sendKey, counterNonce(counter, this.#nonce));
    cipher.setAAD(frame.subarray(0, FRAME_HEADER_BYTES));
    frame.set(cipher.update(this.#plaintext.subarray(0, length)), FRAME_HEADER_BYTES);
    cipher.final();
    frame.set(cipher.getAuthTag(), FRAME_HEADER_BYTES + length);
    this.#transmit(peer, path, frame.subarray(0, FRAME_HEADER_BYTES + length + FRAME_TAG_BYTES), now);
  }

  #open(epoch: Epoch, counter: number, bytes: Uint8Array): Uint8Array | undefined {
    const end = bytes.length - FRAME_TAG_BYTES;
    const decipher = createDecipheriv("aes-256-gcm", epoch.keys.receiveKey, counterNonce(counter, this.#nonce));
    decipher.setAAD(bytes.subarray(0, FRAME_HEADER_BYTES));
    decipher.setAuthTag(bytes.subarray(end));
    const plaintext = decipher.update(bytes.subarray(FRAME_HEADER_BYTES, end));
    try {
      decipher.final();
      // Not the Buffer itself: its `slice` would be a view where a Uint8Array's is a copy.
      return new Uint8Array(plaintext.buffer, plaintext.byteOffset, plaintext.length);
    } catch {
      return undefined;
    }
  }

  #transmit(peer: Peer | undefined, path: PathRef, bytes: Uint8Array, now: Instant): void {
    if (path.leg >= FIRST_RELAY_LEG) {
      this.#queueRelay(path, bytes, now);
      return;
    }
    const errno = this.#io.transmit(path.leg, path.to, bytes, path.hops);
    if (errno === 0) return;
    this.#drop("send failed");
    if (peer === undefined || (peer.sendFailedAt !== undefined && now - peer.sendFailedAt < SEND_FAILED_INTERVAL_MS)) {
      return;
    }
    peer.sendFailedAt = now;
    this.#io.report({ type: "send_failed", leg: path.leg, to: path.to, errno, at: now });
  }

  #queueRelay(path: PathRef, bytes: Uint8Array, now: Instant): void {
    const batches = this.#relayBatches.get(path.leg) ?? [];
    this.#relayBatches.set(path.leg, batches);
    const last = batches.at(-1);
    if (last !== undefined && last.to === path.to) last.frames.push(bytes.slice());
    else batches.push({ to: path.to, frames: [bytes.slice()] });
    this.#relayDueAt ??= now;
  }

  /** Runs when the engine has drained its sockets: everything of one turn leaves as one message. */
  #flushRelays(): void {
    this.#relayDueAt = undefined;
    for (const [leg, batches] of this.#relayBatches) {
      for (const { to, frames } of batches) this.#io.report({ type: "relay_frames", leg, to, frames });
    }
    this.#relayBatches.clear();
  }

  #reportActivity(peer: Peer, now: Instant): void {
    const { slot, sent, received, fromLeg } = peer;
    peer.sent = { small: 0, large: 0 };
    peer.received = { small: 0, large: 0 };
    peer.activityDueAt = undefined;
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
    this.#io.report({ type: "counters", peers, drops: { ...this.#drops } });
  }

  #drop(reason: string): void {
    this.#drops[reason] = (this.#drops[reason] ?? 0) + 1;
  }
}

/** Names the path that a frame came along, for as long as a switch lasts. */
const sourceName = (leg: Leg, from: Uint8Array): string => `${leg}|${from.join()}`;
