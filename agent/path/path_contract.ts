/** What goes into and comes out of the paths of one peer (peer_paths.ts). */
import type { TransportAddress } from "../../shared/address.ts";
import type { Instant } from "../../shared/time.ts";
import type { ControlMessage } from "../../shared/wire/control.ts";
import type { Leg } from "../data/plane.ts";
import type { DestinationBudget } from "./destination_budget.ts";
import type { Pair } from "./pair.ts";

export type PathAction =
  /** Send a sealed control message on a pair. */
  | {
      readonly type: "send";
      readonly leg: Leg;
      readonly to: Uint8Array;
      readonly message: ControlMessage;
      /** Padded to this size of the sealed frame; undefined: as it is. */
      readonly frameBytes: number | undefined;
      /** Routers that it may pass; undefined: all. */
      readonly hops: number | undefined;
    }
  /** The pair that carries data from here on; undefined: none works. */
  | { readonly type: "selected"; readonly pair: Pair | undefined; readonly reason: string }
  /** How large frames on the selected pair may be has changed, or is settled. */
  | { readonly type: "mtu_changed" }
  /** Ask the coordinator for an instant at which both sides fire. */
  | { readonly type: "request_round" }
  /** Probes on the selected pair go unanswered: what else may have died with it? Told once, until it answers. */
  | { readonly type: "suspect" }
  /** The peer has seen our packets on this leg come from here. */
  | { readonly type: "seen"; readonly leg: Leg; readonly address: TransportAddress }
  /** The first probes of a round have left. */
  | { readonly type: "fired"; readonly round: number; readonly at: Instant }
  /** A socket that a volley has found the peer with, and on which it is heard no more. */
  | { readonly type: "close_leg"; readonly leg: Leg };

/** The sockets that probes may leave from. */
export interface LocalLegs {
  readonly ipv4: Leg | undefined;
  readonly ipv6: Leg | undefined;
}

export interface PeerPathsOptions {
  readonly random: (bytes: number) => Uint8Array;
  readonly budget: DestinationBudget;
  /** Is this ip in a subnet of one of our interfaces, and what is never to be probed: our own and mesh addresses? */
  readonly isDirectlyConnected: (ip: string) => boolean;
  readonly isForbidden: (address: TransportAddress) => boolean;
  readonly allowLoopback: boolean;
  /** How long a pair over IPv4 that nobody uses may be left silent. Others have the usual time, since their firewall is not measured. */
  readonly keepaliveMs?: () => number;
}
