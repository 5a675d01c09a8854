/** What goes into the signalling hub (hub.ts) and what comes out of it. */
import type { PeerId } from "../../shared/session/identity.ts";
import type { RelayLeg } from "../../shared/signal/messages.ts";
import type { Instant } from "../../shared/time.ts";
import type { LogEvent } from "../log.ts";
import type { CoordinatorIdentity } from "../registry/coordinator_identity.ts";
import type { Store } from "../store/store.ts";
import type { StunObservation } from "../stun/stun_server.ts";
import type { Reachable } from "./advertised.ts";

/** Chosen by the driver, never used again. */
export type ConnectionId = number;

export type HubInput =
  /** `source` is the client's limit group (limits.ts), `host` the Host header of its request. */
  | {
      readonly type: "opened";
      readonly connection: ConnectionId;
      readonly source: string;
      readonly host?: string | undefined;
    }
  | { readonly type: "message"; readonly connection: ConnectionId; readonly bytes: Uint8Array }
  | { readonly type: "closed"; readonly connection: ConnectionId }
  | { readonly type: "observed"; readonly observation: StunObservation }
  /** Another process has written to the store. */
  | { readonly type: "store_changed" }
  /** The relay tells an agent what relay leg a peer has. */
  | {
      readonly type: "peer_leg";
      readonly to: PeerId;
      readonly peer: PeerId;
      readonly leg: RelayLeg | null;
    }
  | { readonly type: "timeout" };

export type HubAction =
  | { readonly type: "send"; readonly connection: ConnectionId; readonly bytes: Uint8Array }
  | { readonly type: "close"; readonly connection: ConnectionId; readonly code: number; readonly reason: string }
  /** The client has proven who it is: larger messages may come from it. */
  | { readonly type: "authenticated"; readonly connection: ConnectionId }
  | { readonly type: "add_token"; readonly id: string; readonly secret: Uint8Array }
  | { readonly type: "remove_token"; readonly id: string }
  /** An agent is there, perhaps again: what the relay told it before is lost. */
  | { readonly type: "joined"; readonly peer: PeerId }
  /** The agent has no such relay leg any more. */
  | { readonly type: "leg_lost"; readonly peer: PeerId; readonly leg: RelayLeg }
  /** Who may talk to whom has changed: for this peer, or for anybody. */
  | { readonly type: "rules_changed"; readonly peer?: PeerId }
  | { readonly type: "event"; readonly event: LogEvent }
  | { readonly type: "failed"; readonly message: string };

export interface HubOptions {
  readonly identity: CoordinatorIdentity;
  readonly store: Store;
  readonly reachable: Reachable;
  readonly random: (length: number) => Uint8Array;
  readonly unixMs: (now: Instant) => number;
}
