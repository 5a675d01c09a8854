/** What goes into and comes out of the node (node.ts). */
import type { TransportAddress } from "../../shared/address.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import type { X25519Key } from "../../shared/session/primitives.ts";
import type { AgentMessage, PeerEntry, RelayLeg } from "../../shared/signal/messages.ts";
import type { NatReport } from "../../shared/wire/candidates.ts";
import type { PunchRole } from "../../shared/wire/control.ts";
import type { Leg, PlaneCommand } from "../data/plane.ts";
import type { NatLabel } from "../path/nat_behavior.ts";
import type { PunchLimits } from "../path/punch_plan.ts";
import type { PathKind, Route } from "./ladder.ts";
import type { PathChange, PeerTrust } from "./peer.ts";
import type { BetterRung } from "./why_not_better.ts";

export interface NodeEnvironment {
  random(bytes: number): Uint8Array;
  /** Unix milliseconds that only grow, across restarts too: handshake timestamps. */
  timestamp(): number;
  /** The newest handshake timestamp ever accepted from this peer; 0 for none. */
  greatestTimestamp(id: PeerId): number;
  rememberTimestamp(id: PeerId, timestamp: number): void;
  /** For people only. */
  wallClockUnixMs(): number;
}

/** Which id a name belongs to. `pin` is called for a name that is new. */
export interface Trust {
  check(name: string, id: PeerId): "new" | "pinned" | "changed" | "blocked";
  pin(name: string, id: PeerId): void;
}

export interface NodeOptions {
  readonly id: PeerId;
  readonly staticKey: X25519Key;
  readonly environment: NodeEnvironment;
  readonly trust: Trust;
  /** False: `--no-direct`. */
  readonly useDirect: boolean;
  /** The operator has named the port of the data sockets: `--udp-port`. */
  readonly isPortChosen?: boolean;
  /** What attempts with many packets may take; default: what the protocol allows. */
  readonly punchLimits?: PunchLimits;
  /** Why this machine has no SSH connection to the coordinator at this moment, in words that may follow a colon. */
  readonly whyNoSsh?: () => string;
  /** The whole mesh is one machine: loopback addresses may be probed. */
  readonly allowLoopback: boolean;
  /** Is this one of the mesh's own addresses, which are never probed? */
  readonly isMeshAddress: (ip: string) => boolean;
}

export type NodeAction =
  | { readonly type: "signal"; readonly message: AgentMessage }
  | { readonly type: "plane"; readonly command: PlaneCommand }
  | { readonly type: "open_leg"; readonly leg: Leg; readonly family: 4 | 6 }
  | { readonly type: "close_leg"; readonly leg: Leg }
  /** Bind, or let go, this peer on a relay connection. */
  | { readonly type: "relay_open"; readonly kind: RelayLeg; readonly peer: PeerId }
  | { readonly type: "relay_close"; readonly kind: RelayLeg; readonly peer: PeerId }
  | {
      readonly type: "relay_send";
      readonly kind: RelayLeg;
      readonly peer: PeerId;
      readonly frames: readonly Uint8Array[];
      /** One for each frame: shared/relay/flow_queue.ts. */
      readonly lanes: readonly number[];
    }
  | { readonly type: "event"; readonly event: NodeEvent };

export type NodeEvent =
  | { readonly type: "peer_online"; readonly id: PeerId; readonly name: string }
  | { readonly type: "peer_offline"; readonly id: PeerId; readonly name: string }
  /** The key of a name is another than the pinned one: the peer is refused. */
  | { readonly type: "key_changed"; readonly id: PeerId; readonly name: string }
  | {
      readonly type: "nat_detected";
      readonly label: NatLabel;
      readonly nat: NatReport;
      readonly publicAddress: TransportAddress | undefined;
    }
  | {
      readonly type: "path_changed";
      readonly id: PeerId;
      readonly name: string;
      readonly from: PathKind | null;
      readonly to: PathKind | null;
      readonly reason: string;
      readonly remote: TransportAddress | undefined;
      readonly leg: Leg | undefined;
      readonly rttMs: number | undefined;
      /** The largest stream frame for this path. */
      readonly streamFrameBytes: number;
    }
  /** How large a packet, or a stream frame, may be on the direct path to this peer so that it goes in one frame. */
  | {
      readonly type: "mtu_changed";
      readonly id: PeerId;
      readonly name: string;
      readonly packetBytes: number;
      /** Nothing larger is being tried at this moment. */
      readonly isSettled: boolean;
    }
  /** The path to this peer may be dying: the driver asks whether the connections to the coordinator still live. */
  | { readonly type: "path_suspect"; readonly id: PeerId }
  /** An attempt with many packets, by consent of both, has ended. */
  | {
      readonly type: "punched";
      readonly id: PeerId;
      readonly name: string;
      readonly role: PunchRole;
      readonly outcome: "direct" | "failed" | "refused" | "stopped";
      readonly sockets: number;
      readonly packets: number;
      readonly milliseconds: number;
    }
  /** Mesh addresses that should, or should no longer, lead into the TUN device. */
  | { readonly type: "route_added"; readonly id: PeerId; readonly meshIPv4: string; readonly meshIPv6: string }
  | { readonly type: "route_removed"; readonly id: PeerId; readonly meshIPv4: string; readonly meshIPv6: string }
  | {
      readonly type: "echo_answer";
      readonly id: PeerId;
      readonly sequence: number;
      readonly roundTripMs: number;
      readonly path: PathKind;
    };

/** A peer as `status` shows it. */
export interface PeerView {
  readonly id: PeerId;
  readonly entry: PeerEntry;
  readonly trust: PeerTrust;
  readonly route: Route | undefined;
  readonly rttMs: number | undefined;
  readonly selectedAtUnixMs: number | undefined;
  readonly nat: NatReport | undefined;
  readonly inUse: boolean;
  readonly why: string;
  /** Rungs above the one in use, and what stands against each. */
  readonly better: readonly BetterRung[];
  readonly rxBytes: number;
  readonly txBytes: number;
  readonly history: readonly PathChange[];
}
