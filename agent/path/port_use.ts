/**
 * How many ports of our own NAT's block are taken by what we have sent ourselves?
 *
 * A mapping is taken to live for two minutes after its last packet (RFC 4787 REQ-5; most forget one without an answer sooner). So long an
 * attempt counts against the next, whoever the peer: a block that serves one destination with each port is shared by all of them, and
 * by everything else that its subscriber does.
 */
import { after, type Instant } from "../../shared/time.ts";

export const MAPPING_LIFETIME_MS = 120_000;

export class PortUse {
  /** The oldest first. */
  #taken: { readonly at: Instant; readonly count: number }[] = [];

  note(count: number, now: Instant): void {
    this.#forgetOld(now);
    if (count > 0) this.#taken.push({ at: now, count });
  }

  inUse(now: Instant): number {
    this.#forgetOld(now);
    return this.#taken.reduce((sum, { count }) => sum + count, 0);
  }

  /** Milliseconds until no more than this many are in use. */
  waitMs(most: number, now: Instant): number {
    let left = this.inUse(now);
    for (const { at, count } of this.#taken) {
      if (left <= most) return 0;
      left -= count;
      if (left <= most) return Math.max(0, after(at, MAPPING_LIFETIME_MS) - now);
    }
    return 0;
  }

  #forgetOld(now: Instant): void {
    this.#taken = this.#taken.filter(({ at }) => now < after(at, MAPPING_LIFETIME_MS));
  }
}
