/**
 * Has a relayed path died in silence? While data moves, something of the peer comes by the relay all the time: its data, or its reports of
 * what it has got. When nothing does, a connection to the coordinator may be dead, ours or the peer's, and ours are asked.
 *
 * A direct path is watched by its probes (path/path_watch.ts); a relay is a stream with a server at its end that can be asked itself.
 */
import { after, type Instant } from "../../shared/time.ts";

/** The receiver reports each 100 ms, and TCP repeats what was lost after 200 ms and a round trip. */
const QUIET_MS = 600;
/** Without a measurement yet. */
const USUAL_ROUND_TRIP_MS = 200;
/** So long after data has moved its absence means something. */
const ACTIVE_MS = 3000;
/** Between two questions in one silence. */
const AGAIN_MS = 2000;

export class RelayWatch {
  #quietSince: Instant | undefined;
  #activeUntil: Instant | undefined;

  /** Data moved by a relay, one way or the other. */
  onMoved(now: Instant): void {
    this.#quietSince ??= now;
    this.#activeUntil = after(now, ACTIVE_MS);
  }

  /** Something of the peer came by a relay. */
  onHeard(now: Instant): void {
    if (this.#quietSince !== undefined) this.#quietSince = now;
  }

  /** Another rung carries the traffic. */
  reset(): void {
    this.#quietSince = undefined;
    this.#activeUntil = undefined;
  }

  /** When the connections should be asked; undefined: no reason. */
  dueAt(roundTripMs = USUAL_ROUND_TRIP_MS): Instant | undefined {
    if (this.#quietSince === undefined || this.#activeUntil === undefined) return undefined;
    const at = after(this.#quietSince, QUIET_MS + roundTripMs);
    return at <= this.#activeUntil ? at : undefined;
  }

  /** They are being asked: not again for a while. */
  onAsked(now: Instant): void {
    this.#quietSince = after(now, AGAIN_MS - QUIET_MS);
  }
}
