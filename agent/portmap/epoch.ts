/**
 * Has the gateway lost its mappings? Its answers carry the seconds since it began; when they do not go on as our clock does, it has
 * restarted (RFC 6887 §8.5, which also suits NAT-PMP: RFC 6886 §3.6 has the same idea with a coarser rule).
 */
import type { Instant } from "../../shared/time.ts";

/** Seconds of leeway, and the share by which clocks may run apart. */
const LEEWAY = 2;
const DRIFT = 1 / 16;

export class Epoch {
  #last: { readonly seconds: number; readonly at: Instant } | undefined;

  /** Notes what an answer says. True when the gateway has restarted since the one before. */
  hasRestarted(seconds: number, now: Instant): boolean {
    const last = this.#last;
    this.#last = { seconds, at: now };
    if (last === undefined) return false;
    if (seconds < last.seconds - 1) return true;
    const ours = (now - last.at) / 1000;
    const theirs = seconds - last.seconds;
    return ours + LEEWAY < theirs * (1 - DRIFT) || theirs + LEEWAY < ours * (1 - DRIFT);
  }
}
