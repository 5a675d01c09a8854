/**
 * Has a dense flow of the peer's packets stopped from one moment to the next? It may have ended, or the path has died: whoever only receives
 * has no other evidence, and one probe tells.
 */
import { after, type Instant } from "../../shared/time.ts";

/** The data path tells each 100 ms what has come: so many packets in one of these are a flow whose end shows at once. */
const DENSE_PACKETS = 5;
/** Rows of such reports with no longer pause than this are one flow; a shorter one is a burst, whose end says nothing. */
const PAUSE_MS = 150;
const STEADY_MS = 500;

export class SteadyFlow {
  #since: Instant | undefined;
  #latest: Instant | undefined;

  onReceived(packets: number, now: Instant): void {
    if (packets < DENSE_PACKETS) return;
    if (this.#latest === undefined || now - this.#latest > PAUSE_MS) this.#since = now;
    this.#latest = now;
  }

  /** When the flow that came last counts as stopped, unless more of it comes before; undefined: there was none. */
  get stopsAt(): Instant | undefined {
    if (this.#since === undefined || this.#latest === undefined) return undefined;
    return this.#latest - this.#since < STEADY_MS ? undefined : after(this.#latest, PAUSE_MS);
  }

  /** Another path carries the data. */
  restart(): void {
    this.#since = undefined;
    this.#latest = undefined;
  }
}
