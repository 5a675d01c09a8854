/** What the data path knows of one peer and of one generation of its keys. */
import { ReplayWindow } from "../../shared/session/replay_window.ts";
import type { EpochKeys } from "../../shared/session/peer_session.ts";
import { earliest, type Instant } from "../../shared/time.ts";
import type { FrameAead } from "./aead.ts";
import { LossSigns } from "./loss_signs.ts";
import type { Leg, PathRef, PeerSlot } from "./plane.ts";
import { FlowOrder } from "./flow_order.ts";
import { PathSwitch } from "./path_switch.ts";
import { Reassembly } from "./reassembly.ts";
import type { RunAssembly } from "./run_assembly.ts";

export interface Epoch {
  readonly keys: EpochKeys;
  readonly aead: FrameAead;
  /** Epochs of all peers are numbered as they come: a later one's frames are newer. */
  readonly order: number;
  readonly window: ReplayWindow;
  readonly sequencer: FlowOrder;
  counter: number;
  confirmed: boolean;
  /** The newest authentic frame. */
  receivedAt: Instant | undefined;
  exhaustedReported: boolean;
}

/** A packet on its way out, in a buffer with room around it. */
export interface OutgoingPacket {
  readonly bytes: Uint8Array;
  readonly start: number;
  readonly end: number;
  /** IP packets that it stands for. */
  readonly parts: number;
  /** Of a super-packet; 0 of a single packet whose checksum is missing; undefined of a finished packet. */
  readonly segmentBytes?: number;
}

export interface DataPeer {
  readonly slot: PeerSlot;
  readonly epochs: Map<number, Epoch>;
  readonly reassembly: Reassembly;
  /** Allocated with the first segment, given back when none come any more. */
  runs: RunAssembly | undefined;
  addresses: readonly Uint8Array[];
  active: Epoch | undefined;
  path: PathRef | undefined;
  mtu: number;
  waiting: OutgoingPacket[];
  wantedAt: Instant | undefined;
  sendFailedAt: Instant | undefined;
  fragmentId: number;
  runId: number;
  readonly lossSigns: LossSigns;
  readonly pathSwitch: PathSwitch;
  switchId: number;
  /** Activity since the last report, and where the newest frame came from. */
  sent: { small: number; large: number };
  received: { small: number; large: number };
  activityDueAt: Instant | undefined;
  activityAt: Instant | undefined;
  fromLeg: Leg;
  from: Uint8Array;
  rxBytes: number;
  txBytes: number;
  rxPackets: number;
  txPackets: number;
}

export const newPeer = (slot: PeerSlot): DataPeer => ({
  slot,
  epochs: new Map(),
  reassembly: new Reassembly(),
  runs: undefined,
  addresses: [],
  active: undefined,
  path: undefined,
  mtu: 0,
  waiting: [],
  wantedAt: undefined,
  sendFailedAt: undefined,
  fragmentId: 0,
  runId: 0,
  lossSigns: new LossSigns(),
  pathSwitch: new PathSwitch(),
  switchId: 0,
  sent: { small: 0, large: 0 },
  received: { small: 0, large: 0 },
  activityDueAt: undefined,
  activityAt: undefined,
  fromLeg: 0,
  from: new Uint8Array(18),
  rxBytes: 0,
  txBytes: 0,
  rxPackets: 0,
  txPackets: 0,
});

export function newEpoch(keys: EpochKeys, aead: FrameAead, order: number, isActive: boolean): Epoch {
  const window = new ReplayWindow();
  const sequencer = new FlowOrder(window);
  return {
    keys,
    aead,
    order,
    window,
    sequencer,
    counter: 0,
    confirmed: isActive,
    receivedAt: undefined,
    exhaustedReported: false,
  };
}

/** When anything of this peer is due next. */
export function deadlineOf(peer: DataPeer): Instant | undefined {
  let first = earliest(peer.activityDueAt, peer.pathSwitch.deadline, peer.runs?.deadline);
  for (const { sequencer } of peer.epochs.values()) {
    if (sequencer.isActive) first = earliest(first, sequencer.deadline);
  }
  return first;
}
