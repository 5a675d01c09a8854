/**
 * The ladder: which rung carries a peer's traffic, given what works at this moment.
 *
 * A direct path wins over an SSH tunnel, an SSH tunnel over the WebSocket relay. A relayed path has two legs, each agent's own best
 * connection to the coordinator; its kind is the worse of them, and so the same on both sides.
 *
 * An operator's wish goes first. A rung that is wished and not there drops nothing for a third one that nobody asked for: for a while the
 * traffic stays where it is, since the rung may only be opening, and then the best one carries on.
 */
import { assertNever } from "../../shared/assert.ts";
import type { RelayLeg } from "../../shared/signal/messages.ts";
import type { RungWish } from "../../shared/wire/control.ts";
import type { Pair } from "../path/pair.ts";

export type PathKind = "direct" | RelayLeg;

export type Route =
  | { readonly kind: "direct"; readonly pair: Pair }
  | { readonly kind: RelayLeg; readonly legs: { readonly local: RelayLeg; readonly remote: RelayLeg } };

export interface Rungs {
  /** The proven direct pair, if any. */
  readonly pair: Pair | undefined;
  /** Our own connections to the coordinator. */
  readonly relays: Readonly<Record<RelayLeg, boolean>>;
  /** The peer's best one; null: it has none. */
  readonly remoteLeg: RelayLeg | null;
  /** The operator's choice, here or at the peer. */
  readonly wish: RungWish;
  /** Where the traffic is, while a wish that cannot be had yet may still be had soon; undefined: it is waited for no longer. */
  readonly stayOn: PathKind | undefined;
}

export function chooseRoute(rungs: Rungs): Route | undefined {
  const { pair, wish, stayOn } = rungs;
  const wished = wishedRoute(rungs);
  if (wished !== undefined) return wished;
  const direct: Route | undefined = pair === undefined ? undefined : { kind: "direct", pair };
  const relayed = relayedRoute(rungs);
  return wish !== "auto" && stayOn !== undefined && stayOn !== "direct" ? (relayed ?? direct) : (direct ?? relayed);
}

/** The rung that the operator has chosen, if it works; "auto" chooses none. */
function wishedRoute(rungs: Rungs): Route | undefined {
  const { pair, relays, remoteLeg, wish } = rungs;
  switch (wish) {
    case "auto":
      return undefined;
    case "direct":
      return pair === undefined ? undefined : { kind: "direct", pair };
    case "ssh": {
      const route = relayedRoute(rungs);
      return route?.kind === "ssh" ? route : undefined;
    }
    case "websocket":
      return relayedRoute({ relays: { ...relays, ssh: false }, remoteLeg });
    default:
      return assertNever(wish);
  }
}

/** The best route through the coordinator, if both sides have a connection to it. */
export function relayedRoute({ relays, remoteLeg }: Pick<Rungs, "relays" | "remoteLeg">): Route | undefined {
  const local = relays.ssh ? "ssh" : relays.websocket ? "websocket" : undefined;
  if (local === undefined || remoteLeg === null) return undefined;
  return { kind: worseLeg(local, remoteLeg), legs: { local, remote: remoteLeg } };
}

const worseLeg = (a: RelayLeg, b: RelayLeg): RelayLeg => (a === "websocket" || b === "websocket" ? "websocket" : "ssh");

export function isSameRoute(a: Route | undefined, b: Route | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  if (a.kind === "direct" || b.kind === "direct")
    return a.kind === "direct" && b.kind === "direct" && a.pair === b.pair;
  return a.legs.local === b.legs.local && a.legs.remote === b.legs.remote;
}
