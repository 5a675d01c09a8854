/**
 * The sockets of one peer beside the two data sockets: those of the attempt that is running (volley.ts), and those on which such an
 * attempt has found the peer. One is kept as long as the peer is heard there; each side selects for itself, so what we send on and what
 * we hear on may be two of them.
 */
import type { Instant } from "../../shared/time.ts";
import type { Leg } from "../data/plane.ts";
import type { Pair } from "./pair.ts";
import type { Volley } from "./volley.ts";

/** Sockets kept of one peer; one is the rule. */
const MAX_KEPT = 8;
/** Linux forgets a flow that is not answered after 30 s. */
const SILENT_MS = 30_000;

export class ExtraLegs {
  volley: Volley | undefined;
  readonly #kept = new Set<Leg>();

  has(leg: Leg): boolean {
    return this.#kept.has(leg) || this.volley?.hasLeg(leg) === true;
  }

  /** The volley is over. Returns the sockets that it has no more use for. */
  endVolley(pairs: readonly Pair[]): readonly Leg[] {
    const { volley } = this;
    this.volley = undefined;
    const isHeard = (leg: Leg): boolean => pairs.some((pair) => pair.leg === leg && pair.receivedAt !== undefined);
    const [heard, others] = partition(volley?.legs() ?? [], isHeard);
    const room = Math.max(0, MAX_KEPT - this.#kept.size);
    for (const leg of heard.slice(0, room)) this.#kept.add(leg);
    return [...others, ...heard.slice(room)];
  }

  /** The sockets on which the peer has fallen silent, which from here on are no longer ours. */
  takeSilent(pairs: readonly Pair[], selected: Pair | undefined, now: Instant): readonly Leg[] {
    if (this.#kept.size === 0) return [];
    const isSilent = (leg: Leg): boolean =>
      pairs.every(
        (pair) =>
          pair.leg !== leg ||
          (pair !== selected && (pair.receivedAt === undefined || now - pair.receivedAt > SILENT_MS)),
      );
    const silent = [...this.#kept].filter(isSilent);
    for (const leg of silent) this.#kept.delete(leg);
    return silent;
  }
}

function partition<T>(values: readonly T[], fits: (value: T) => boolean): [T[], T[]] {
  return [values.filter(fits), values.filter((value) => !fits(value))];
}
