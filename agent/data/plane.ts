/**
 * The contract of the data path: what the control thread tells the data worker, and what the worker reports.
 *
 * The data path is the one place that is not built of actions: it seals, opens, and moves bytes at line rate in its own worker
 * (ARCHITECTURE.md, "The data path"). It decides nothing. Control hands it tables (peers, keys, selected path) and gets reports.
 *
 * A **leg** is one way for a sealed frame to leave this machine: a UDP socket, the SSH connection, the relay WebSocket. Legs are
 * small numbers that control chooses. UDP legs live in the worker; frames for a relay leg are handed back to control in batches.
 */
import type { EpochKeys } from "../../shared/session/peer_session.ts";
import type { Instant } from "../../shared/time.ts";
import type { PacketHeaders } from "./packet_headers.ts";

/** A peer as the data path knows it: a small number chosen by control, never reused while the agent runs. */
export type PeerSlot = number;
export type Leg = number;

/** Legs from here on are relays: their frames go to control as `relay_frames` instead of to a UDP socket. */
export const FIRST_RELAY_LEG = 1_000_000;

/** Where a frame goes: a leg, and on a UDP leg the packed remote address (shared/address.ts). */
export interface PathRef {
  readonly leg: Leg;
  readonly to: Uint8Array;
  /** Routers that the packet may pass, on IPv4: it is to open our own NAT and not to arrive. Default: as many as it takes. */
  readonly hops?: number;
}

export const pathRef = (leg: Leg, to: Uint8Array, hops: number | undefined): PathRef =>
  hops === undefined ? { leg, to } : { leg, to, hops };

export type PlaneCommand =
  /** Installs an epoch. It receives at once; it sends once `active`, which is at once for the side that initiated (PROTOCOL.md, "Epochs"). */
  | { readonly type: "install_epoch"; readonly peer: PeerSlot; readonly keys: EpochKeys; readonly active: boolean }
  /** From here on frames to this peer are sealed with this epoch; older ones still open until dropped. */
  | { readonly type: "activate_epoch"; readonly peer: PeerSlot; readonly localIndex: number }
  | { readonly type: "drop_epoch"; readonly peer: PeerSlot; readonly localIndex: number }
  /** The path that carries this peer's IP packets. Undefined: none; packets are reported as `wanted` and the newest few are kept. */
  | {
      readonly type: "select_path";
      readonly peer: PeerSlot;
      readonly path: PathRef | undefined;
      readonly mtu: number;
      /** The old path still works: mark its end, so that the peer can keep the order (path_switch.ts). */
      readonly isPlanned: boolean;
      /** How long the peer should wait for the last frames of the old path; default as long as it likes. */
      readonly holdMs?: number | undefined;
    }
  /** The largest frame that the selected path carries. */
  | { readonly type: "set_mtu"; readonly peer: PeerSlot; readonly mtu: number }
  /** Our own receiving leg for this peer is about to change: for a while frames are put in the order of their counters. */
  | { readonly type: "keep_order"; readonly peer: PeerSlot }
  /** Seal one control frame and send it along a path that need not be the selected one. */
  | { readonly type: "send_control"; readonly peer: PeerSlot; readonly path: PathRef; readonly body: Uint8Array }
  /** Seal stream frames (shared/batch.ts) and send them along the selected path; without one they are dropped, and repeated by the streams. */
  | { readonly type: "send_streams"; readonly peer: PeerSlot; readonly batch: Uint8Array }
  /** Send bytes as they are: STUN, handshake. */
  | { readonly type: "send_datagram"; readonly path: PathRef; readonly bytes: Uint8Array }
  /** What came in on a relay leg from one peer, in order. `from` is the `to` of the way back. */
  | {
      readonly type: "receive_frames";
      readonly leg: Leg;
      readonly from: Uint8Array;
      readonly frames: readonly Uint8Array[];
    }
  /** The mesh addresses (16 bytes each, IPv4-mapped for IPv4) that are this peer's: packets to them go there, packets from elsewhere are dropped. */
  | { readonly type: "set_peer"; readonly peer: PeerSlot; readonly addresses: readonly Uint8Array[] }
  /** Has this peer a network device? Without one its packets are not sealed but turned round (turnaround.ts). */
  | { readonly type: "set_rootless"; readonly peer: PeerSlot; readonly isRootless: boolean }
  /** Where connections to rootless peers end: ports of our own mesh addresses. */
  | { readonly type: "turn_listeners"; readonly ipv4: number | undefined; readonly ipv6: number | undefined }
  /** What becomes of a `turned` connection: it is let through to the listener, refused by a reset, or over and forgotten. */
  | { readonly type: "turn"; readonly flow: number; readonly verdict: "admit" | "refuse" | "drop" }
  /** Our own mesh addresses: what peers send to any other address is dropped, so that nobody uses this machine as a router. */
  | { readonly type: "set_self"; readonly addresses: readonly Uint8Array[] }
  | { readonly type: "remove_peer"; readonly peer: PeerSlot }
  /** Ask for a `counters` report. */
  | { readonly type: "read_counters" };

/** IP packets by size: up to half of the largest, and larger. */
export interface PacketCounts {
  readonly small: number;
  readonly large: number;
}

export interface PeerCounters {
  readonly peer: PeerSlot;
  /** Bytes and IP packets of the overlay, not of the wire. */
  readonly rxBytes: number;
  readonly txBytes: number;
  readonly rxPackets: number;
  readonly txPackets: number;
}

export type PlaneReport =
  /** A datagram that is not a sealed frame of a known session: STUN, handshake, or noise. */
  | {
      readonly type: "datagram";
      readonly leg: Leg;
      readonly from: Uint8Array;
      readonly bytes: Uint8Array;
      readonly at: Instant;
    }
  /** An authenticated control frame. `localIndex` names the epoch that it came in under. */
  | {
      readonly type: "control";
      readonly peer: PeerSlot;
      readonly leg: Leg;
      readonly from: Uint8Array;
      readonly localIndex: number;
      readonly body: Uint8Array;
      readonly at: Instant;
    }
  /** Authenticated stream frames of one peer, in the order in which they came (shared/batch.ts). */
  | { readonly type: "stream_frames"; readonly peer: PeerSlot; readonly batch: Uint8Array; readonly at: Instant }
  /** A program here connects to this port of a rootless peer; the listener will see it come from the peer's address and port `alias`. */
  | {
      readonly type: "turned";
      readonly peer: PeerSlot;
      readonly flow: number;
      readonly port: number;
      readonly alias: number;
      readonly family: 4 | 6;
    }
  /** First authenticated frame of any type under an epoch that is not active yet: the peer has the keys. */
  | { readonly type: "epoch_confirmed"; readonly peer: PeerSlot; readonly localIndex: number; readonly at: Instant }
  /** An IP packet wants to go to a peer without an active epoch or a path. At most one each second per peer. */
  | { readonly type: "wanted"; readonly peer: PeerSlot; readonly at: Instant }
  /** Data moved since the last report, at most every 100 ms per peer: sent, received, or both, and along which path it came. */
  | {
      readonly type: "activity";
      readonly peer: PeerSlot;
      readonly sent: PacketCounts;
      readonly received: PacketCounts;
      readonly leg: Leg;
      readonly from: Uint8Array;
      readonly at: Instant;
    }
  /** The active epoch has sealed as many frames as it may; control must rekey. */
  | { readonly type: "epoch_exhausted"; readonly peer: PeerSlot; readonly localIndex: number; readonly at: Instant }
  /** The kernel refused a send on a path. */
  | {
      readonly type: "send_failed";
      readonly leg: Leg;
      readonly to: Uint8Array;
      readonly errno: number;
      readonly at: Instant;
    }
  /** Sealed frames for a relay leg, in order, and the lane of each (shared/relay/flow_queue.ts), which never leaves this machine. */
  | {
      readonly type: "relay_frames";
      readonly leg: Leg;
      readonly to: Uint8Array;
      readonly frames: readonly Uint8Array[];
      readonly lanes: readonly number[];
    }
  | {
      readonly type: "counters";
      readonly peers: readonly PeerCounters[];
      readonly drops: Readonly<Record<string, number>>;
    };

/** Frames of one size that go the same way, one behind the other, the last perhaps shorter. */
export interface SealedRun {
  readonly path: PathRef;
  /** Where in the buffer they lie. */
  readonly start: number;
  readonly length: number;
  readonly frameBytes: number;
  /** What became of them, told by who sends them: 0 or the error number. */
  errno: number;
}

/** What the data path needs of the world. Bytes are borrowed: valid only during the call. */
export interface PlaneIo {
  /**
   * Sends frames on a UDP leg, each in a datagram of its own: they lie one behind the other, `frameBytes` each, the last perhaps shorter;
   * past so many routers at most. Returns 0 or the errno.
   */
  transmit(leg: Leg, to: Uint8Array, bytes: Uint8Array, frameBytes: number, hops?: number): number;
  /** The same with the first `count` of several runs on one leg, all in `bytes`. Without it they are sent one after the other. */
  readonly transmitRuns?: (leg: Leg, bytes: Uint8Array, runs: readonly SealedRun[], count: number) => void;
  /** Hands one IP packet to the machine's network stack (TUN). */
  deliver(packet: Uint8Array): void;
  /**
   * The same with a packet whose checksum is missing, and with a super-packet of which each part has `segmentBytes` of payload (0: a single
   * packet). Without it everything is cut and completed before `deliver`.
   */
  readonly deliverUnfinished?: (packet: Uint8Array, headers: PacketHeaders, segmentBytes: number) => void;
  report(report: PlaneReport): void;
}

/** What the kernel has left to be done to a packet from the TUN device. */
export interface PacketOffload {
  /** The checksum is missing: it covers everything from `checksumStart` on and belongs `checksumOffset` behind that. */
  readonly isUnfinished: boolean;
  readonly checksumStart: number;
  readonly checksumOffset: number;
  /** Payload of each part of a super-packet; 0 for a single packet. */
  readonly segmentBytes: number;
}

/** Free bytes that `handleOffloaded` needs before and behind a packet. */
export const PACKET_ROOM_BEFORE = 64;
export const PACKET_ROOM_BEHIND = 192;

/** The data path itself, a synchronous machine: the worker drives it on real sockets, the simulator in virtual time. */
export interface Plane {
  handleCommand(command: PlaneCommand, now: Instant): void;
  /** A datagram arrived on a UDP leg. */
  handleDatagram(leg: Leg, from: Uint8Array, bytes: Uint8Array, now: Instant): void;
  /** Datagrams of one sender arrived, `frameBytes` each, one behind the other, the last perhaps shorter. The bytes are overwritten. */
  handleDatagrams(
    leg: Leg,
    from: Uint8Array,
    bytes: Uint8Array,
    length: number,
    frameBytes: number,
    now: Instant,
  ): void;
  /** An IP packet came out of the TUN device. */
  handlePacket(packet: Uint8Array, now: Instant): void;
  /** The same with work left to do, between `start` and `end` of a buffer with room around it. The bytes are overwritten. */
  handleOffloaded(bytes: Uint8Array, start: number, end: number, offload: PacketOffload, now: Instant): void;
  handleTimeout(now: Instant): void;
  deadline(): Instant | undefined;
  /** More input is at hand: from here to `uncork` frames may wait for others that can leave with them. */
  cork(): void;
  uncork(now: Instant): void;
}
