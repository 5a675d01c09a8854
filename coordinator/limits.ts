/** Token buckets: how often something may happen, per source or in all. Told the time, never asks for it. */
import { canonicalIp, ipBytes, isIPv6 } from "../shared/address.ts";
import { toHex } from "../shared/bytes.ts";
import type { Instant } from "../shared/time.ts";

export interface Rate {
  readonly perSecond: number;
  /** How many may come at once after a quiet time. */
  readonly burst: number;
}

export class TokenBucket {
  readonly #rate: Rate;
  #tokens: number;
  #filledAt: Instant;

  constructor(rate: Rate, now: Instant) {
    this.#rate = rate;
    this.#tokens = rate.burst;
    this.#filledAt = now;
  }

  take(now: Instant, count = 1): boolean {
    this.#fill(now);
    if (this.#tokens < count) return false;
    this.#tokens -= count;
    return true;
  }

  /** A full bucket holds no memory of anything, so it may be forgotten. */
  isFull(now: Instant): boolean {
    this.#fill(now);
    return this.#tokens >= this.#rate.burst;
  }

  #fill(now: Instant): void {
    const elapsed = Math.max(0, now - this.#filledAt);
    this.#tokens = Math.min(this.#rate.burst, this.#tokens + (elapsed * this.#rate.perSecond) / 1000);
    this.#filledAt = now;
  }
}

/** How many sources share the table's last places when it is full, in units of one source's rate. */
const OVERFLOW_SHARE = 10;

/**
 * One bucket per source, in a table that cannot grow past `maxSources`.
 *
 * When the table is full of sources that are still active, new ones share a single bucket. Evicting an active source instead would
 * let an attacker with many forged sources reset the limit of the one that he aims at.
 */
export class SourceLimits {
  readonly #rate: Rate;
  readonly #maxSources: number;
  readonly #buckets = new Map<string, TokenBucket>();
  #overflow: TokenBucket | undefined;

  constructor(rate: Rate, maxSources: number) {
    this.#rate = rate;
    this.#maxSources = maxSources;
  }

  get size(): number {
    return this.#buckets.size;
  }

  take(source: string, now: Instant): boolean {
    let bucket = this.#buckets.get(source);
    if (bucket === undefined) {
      if (this.#buckets.size >= this.#maxSources && !this.#forgetOldest(now)) {
        const { perSecond, burst } = this.#rate;
        this.#overflow ??= new TokenBucket(
          { perSecond: perSecond * OVERFLOW_SHARE, burst: burst * OVERFLOW_SHARE },
          now,
        );
        return this.#overflow.take(now);
      }
      bucket = new TokenBucket(this.#rate, now);
    } else this.#buckets.delete(source);
    // Inserted again, so that the order of the map is the order of last use.
    this.#buckets.set(source, bucket);
    return bucket.take(now);
  }

  #forgetOldest(now: Instant): boolean {
    for (const [source, bucket] of this.#buckets) {
      if (!bucket.isFull(now)) return false;
      this.#buckets.delete(source);
      return true;
    }
    return false;
  }
}

/** The name under which an ip is limited: one IPv4 address, or the /64 that an IPv6 host owns as a matter of course. */
export function sourceOf(ip: string): string {
  const canonical = canonicalIp(ip);
  if (canonical === undefined || !isIPv6(canonical)) return canonical ?? ip;
  return toHex(ipBytes(canonical).subarray(0, 8));
}
