/**
 * Bounds what may be sent to any one address that has not yet answered, over all peers ("Nobody can be aimed", PROTOCOL.md).
 *
 * A hundred peers that all name the same victim as their address still cause no more than this. Addresses that answered with an
 * authentic probe have shown that they want our packets and are not counted.
 */
import type { Instant } from "../../shared/time.ts";

/** Probes in a row, and then a second, to one ip. A punch sends about ten per pair, and two peers may share a carrier's address. */
const BURST = 60;
const PER_SECOND = 20;
/** Addresses remembered; when full, a new one is refused until a bucket has refilled. */
const MAX_DESTINATIONS = 1024;

interface Bucket {
  tokens: number;
  at: Instant;
}

export class DestinationBudget {
  readonly #buckets = new Map<string, Bucket>();

  /** Takes one packet's worth; false when this ip has had enough. */
  take(ip: string, now: Instant): boolean {
    const bucket = this.#buckets.get(ip);
    if (bucket === undefined) {
      if (this.#buckets.size >= MAX_DESTINATIONS) this.#forgetFull(now);
      if (this.#buckets.size >= MAX_DESTINATIONS) return false;
      this.#buckets.set(ip, { tokens: BURST - 1, at: now });
      return true;
    }
    bucket.tokens = refilled(bucket, now);
    bucket.at = now;
    if (bucket.tokens < 1) return false;
    bucket.tokens--;
    return true;
  }

  #forgetFull(now: Instant): void {
    for (const [ip, bucket] of this.#buckets) if (refilled(bucket, now) >= BURST) this.#buckets.delete(ip);
  }
}

const refilled = (bucket: Bucket, now: Instant): number =>
  Math.min(BURST, bucket.tokens + ((now - bucket.at) / 1000) * PER_SECOND);
