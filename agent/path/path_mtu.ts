/**
 * How large may a datagram be on one path? Packetization layer path MTU discovery (RFC 8899), with our sealed probes as its probe packets.
 *
 * Sizes are bytes of UDP payload, that is, of one sealed frame. A path begins with the size that every path has to carry, tries the usual
 * one at once, so that most paths are done after one round trip, and halves the distance where that does not pass. Only an answer to a
 * probe of a size proves it; ICMP is not listened to, since it is filtered as often as it is forged (§4.6.1 allows that).
 *
 * A lost probe says nothing about the path but its size: none of this counts for whether the path lives (path_watch.ts), and a size is
 * given up after three probes only. When large frames die on a path while those of the base size pass, `shrink` begins anew (§4.3).
 *
 * Departs from RFC 8899 in its timers: a probe has as long as any other probe on this path, because answers come from the peer's
 * agent at once, and waiting 15 s for them (§5.1.1) would leave the path small for a minute.
 */
import { after, earliest, type Instant } from "../../shared/time.ts";

/** What IPv6 asks of every link (RFC 8200 §5), and all IPv4 networks of our days carry: BASE_PLPMTU. */
const BASE_IP_BYTES = 1280;
/** Ethernet. */
const USUAL_IP_BYTES = 1500;
/** Ethernet with jumbo frames, within one's own network: MAX_PLPMTU there. */
const JUMBO_IP_BYTES = 9000;
/** IPv4 or IPv6 header, and UDP's. */
const IPV4_HEADERS_BYTES = 28;
const IPV6_HEADERS_BYTES = 48;
/** MAX_PROBES of RFC 8899 §5.1.2. */
const MAX_PROBES = 3;
/** The search is over when it knows the size so closely. */
const CLOSE_ENOUGH_BYTES = 4;
/** PMTU_RAISE_TIMER of RFC 8899 §5.1.1: a route that has become wider is found. */
const RAISE_MS = 600_000;
/** Probes whose answers are still waited for, both kinds. */
const MAX_OUTSTANDING = 16;

interface Search {
  readonly size: number;
  probes: number;
  dueAt: Instant;
}

export class PathMtu {
  /** Carried by every path that is one. */
  readonly base: number;
  readonly #usual: number;
  readonly #largest: number;
  #size: number;
  /** The smallest size that is known not to pass. */
  #tooLarge = Number.POSITIVE_INFINITY;
  #search: Search | undefined;
  #raiseAt: Instant | undefined;
  #baseAnsweredAt: Instant | undefined;
  readonly #outstanding = new Map<number, number>();

  /** @param isLocal within a directly connected subnet, where jumbo frames are worth a try */
  constructor(family: 4 | 6, isLocal: boolean) {
    const headers = family === 4 ? IPV4_HEADERS_BYTES : IPV6_HEADERS_BYTES;
    this.base = BASE_IP_BYTES - headers;
    this.#usual = USUAL_IP_BYTES - headers;
    this.#largest = isLocal ? JUMBO_IP_BYTES - headers : this.#usual;
    this.#size = this.base;
  }

  /** The largest datagram that is known to pass. */
  get size(): number {
    return this.#size;
  }

  get isSearching(): boolean {
    return this.#search !== undefined;
  }

  /** When a datagram of the base size, sent beside a large one, was last answered. */
  get baseAnsweredAt(): Instant | undefined {
    return this.#baseAnsweredAt;
  }

  /** The path carries traffic from here on: the search begins, unless it has been made. */
  start(now: Instant): void {
    if (this.#search === undefined && this.#raiseAt === undefined) this.#continue(now);
  }

  /** Nothing is known of the path any more: it has died. */
  reset(): void {
    this.#size = this.base;
    this.#tooLarge = Number.POSITIVE_INFINITY;
    this.#search = undefined;
    this.#raiseAt = undefined;
    this.#baseAnsweredAt = undefined;
    this.#outstanding.clear();
  }

  /** Frames of this size die on the path although smaller ones pass. */
  shrink(now: Instant): void {
    const failed = this.#size;
    this.reset();
    this.#tooLarge = failed;
    this.#continue(now);
  }

  /** @param isInUse a path that nobody uses need not grow */
  dueAt(isInUse: boolean): Instant | undefined {
    return earliest(this.#search?.dueAt, isInUse ? this.#raiseAt : undefined);
  }

  /**
   * Now that it is due: the size of the probe to send, or undefined when the search has ended.
   *
   * @param patienceMs how long an answer takes at most
   */
  takeProbe(transaction: number, patienceMs: number, now: Instant): number | undefined {
    if (this.#raiseAt !== undefined && now >= this.#raiseAt) {
      this.#tooLarge = Number.POSITIVE_INFINITY;
      this.#continue(now);
    }
    if (this.#search !== undefined && this.#search.probes >= MAX_PROBES) {
      this.#tooLarge = this.#search.size;
      this.#continue(now);
    }
    const search = this.#search;
    if (search === undefined) return undefined;
    search.probes++;
    search.dueAt = after(now, patienceMs);
    this.#remember(transaction, search.size);
    return search.size;
  }

  /** A probe of the base size leaves beside a large one that has gone unanswered: is it only the size? */
  takeBaseProbe(transaction: number): number {
    this.#remember(transaction, this.base);
    return this.base;
  }

  /** False when the answer is to none of these probes. */
  handleAnswer(transaction: number, now: Instant): boolean {
    const size = this.#outstanding.get(transaction);
    if (size === undefined) return false;
    this.#outstanding.delete(transaction);
    if (size === this.base) this.#baseAnsweredAt = now;
    if (size <= this.#size) return true;
    this.#size = size;
    // One that was given up too soon: its answer was slow, not lost.
    if (this.#tooLarge <= size) this.#tooLarge = Number.POSITIVE_INFINITY;
    this.#continue(now);
    return true;
  }

  #continue(now: Instant): void {
    const size = this.#nextSize();
    this.#search = size === undefined ? undefined : { size, probes: 0, dueAt: now };
    this.#raiseAt = size === undefined && this.#size < this.#largest ? after(now, RAISE_MS) : undefined;
  }

  /** The usual sizes first, then half of what is left in between. */
  #nextSize(): number | undefined {
    const low = this.#size;
    const high = this.#tooLarge;
    for (const likely of [this.#usual, this.#largest]) if (low < likely && likely < high) return likely;
    // Between Ethernet and jumbo frames nothing is usual enough to be searched for.
    if (low >= this.#usual || high - low <= CLOSE_ENOUGH_BYTES) return undefined;
    return Math.floor((low + Math.min(high, this.#usual)) / 2);
  }

  #remember(transaction: number, size: number): void {
    this.#outstanding.set(transaction, size);
    if (this.#outstanding.size <= MAX_OUTSTANDING) return;
    const oldest = this.#outstanding.keys().next();
    if (!oldest.done) this.#outstanding.delete(oldest.value);
  }
}
