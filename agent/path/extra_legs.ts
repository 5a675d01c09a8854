/**
 * The sockets of one peer beside the two data sockets: those of the attempt that is running (volley.ts), and those on which such an
 * attempt has found the peer. One is kept as long as the peer is heard there; each side selects for itself, so what we send on and what
 * we hear on may be two of them.
 */
import { after, type Instant } from "../../shared/time.ts";
import type { Leg } from "../data/plane.ts";
import type { Pair } from "./pair.ts";
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
  #chosenBy: Instant | undefined;

  has(leg: Leg): boolean {
    return this.#kept.has(leg) || this.volley?.hasLeg(leg) === true;
  }

  /** The volley is over. Returns the sockets that it has no more use for: any on which the peer was heard may be the one it selects. */
  endVolley(pairs: readonly Pair[], now: Instant): readonly Leg[] {
    const { volley } = this;
    this.volley = undefined;
    const isHeard = (leg: Leg): boolean => pairs.some((pair) => pair.leg === leg && pair.receivedAt !== undefined);
    const [heard, others] = partition(volley?.legs() ?? [], isHeard);
    for (const leg of heard) this.#kept.add(leg);
    if (heard.length > 0) this.#chosenBy = after(now, CHOICE_MS);
    return others;
  }

  /**
   * The sockets on which the peer has fallen silent, and of too many those where it was last heard longest ago. From here on they are no
   * longer ours.
   */
  takeSilent(pairs: readonly Pair[], selected: Pair | undefined, now: Instant): readonly Leg[] {
    if (this.#kept.size === 0) return [];
    const unheardMs = (leg: Leg): number => {
      if (selected?.leg === leg) return 0;
      return Math.min(...pairs.map((pair) => (pair.leg === leg ? now - (pair.receivedAt ?? -Infinity) : Infinity)));
    };
    const [silent, heard] = partition([...this.#kept], (leg) => unheardMs(leg) > SILENT_MS);
    const isChosen = this.#chosenBy !== undefined && now >= this.#chosenBy;
    const spare = isChosen ? heard.toSorted((a, b) => unheardMs(a) - unheardMs(b)).slice(MAX_KEPT) : [];
    if (isChosen) this.#chosenBy = undefined;
    for (const leg of [...silent, ...spare]) this.#kept.delete(leg);
    return [...silent, ...spare];
  }
}

function partition<T>(values: readonly T[], fits: (value: T) => boolean): [T[], T[]] {
  return [values.filter(fits), values.filter((value) => !fits(value))];
}
