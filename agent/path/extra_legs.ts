/**
 * The sockets of one peer beside the two data sockets: those of the attempt that is running (volley.ts), and those on which such an
 * attempt has found the peer. One is kept as long as the peer is heard there; each side selects for itself, so what we send on and what
 * we hear on may be two of them.
 */
import { after, type Instant } from "../../shared/time.ts";
import type { Leg } from "../data/plane.ts";
import type { Volley } from "./volley.ts";

/** Sockets kept of one peer, once it is clear which of them carry something; one is the rule. */
const MAX_KEPT = 8;
/** Until then it has selected one and has been heard there again, three times over: a path in use is asked each five seconds. */
const CHOICE_MS = 15_000;
/** Linux forgets a flow that is not answered after 30 s. */
const SILENT_MS = 30_000;

export class ExtraLegs {
  volley: Volley | undefined;
  readonly #kept = new Set<Leg>();
  /** By socket of the volley, or kept. Not to be read off the pairs: more sockets may be heard than there is room for pairs. */
  readonly #heardAt = new Map<Leg, Instant>();
  #chosenBy: Instant | undefined;

  has(leg: Leg): boolean {
    return this.#kept.has(leg) || this.volley?.hasLeg(leg) === true;
  }

  /** An authentic frame of the peer has come. */
  noteHeard(leg: Leg, now: Instant): void {
    if (this.has(leg)) this.#heardAt.set(leg, now);
  }

  /** The volley is over. Returns the sockets that it has no more use for: any on which the peer was heard may be the one it selects. */
  endVolley(now: Instant): readonly Leg[] {
    const legs = this.volley?.legs() ?? [];
    this.volley = undefined;
    const heard = legs.filter((leg) => this.#heardAt.has(leg));
    for (const leg of heard) this.#kept.add(leg);
    if (heard.length > 0) this.#chosenBy = after(now, CHOICE_MS);
    return legs.filter((leg) => !this.#kept.has(leg));
  }

  /**
   * The sockets on which the peer has fallen silent, and of too many those where it was last heard longest ago. From here on they are no
   * longer ours.
   *
   * @param selected the socket of the selected pair, which is always kept
   */
  takeSilent(selected: Leg | undefined, now: Instant): readonly Leg[] {
    if (this.#kept.size === 0) return [];
    const heardAt = (leg: Leg): number => (leg === selected ? Infinity : (this.#heardAt.get(leg) ?? -Infinity));
    const byAge = [...this.#kept].toSorted((a, b) => heardAt(b) - heardAt(a));
    const isChosen = this.#chosenBy !== undefined && now >= this.#chosenBy;
    if (isChosen) this.#chosenBy = undefined;
    const room = isChosen ? MAX_KEPT : byAge.length;
    const closed = byAge.filter((leg, index) => index >= room || now - heardAt(leg) > SILENT_MS);
    for (const leg of closed) {
      this.#kept.delete(leg);
      this.#heardAt.delete(leg);
    }
    return closed;
  }
}
