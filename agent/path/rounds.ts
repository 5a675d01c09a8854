/**
 * Rounds of probes to one peer: when the coordinator lets one begin, when it is over, how many have failed, and when to ask for the next.
 * Which pairs are probed, and how often within a round, is decided elsewhere (peer_paths.ts).
 */
import { after, earliest, type Instant } from "../../shared/time.ts";

/** A round is over when its last probe has had this long for an answer. */
const ROUND_END_MS = 4000;
/** A synchronised round asked of the coordinator while there is still no direct path: first soon, then seldom. */
const ROUND_REQUEST_MS: readonly number[] = [3000, 8000, 20_000, 60_000];
/** News do not interrupt a round that is younger than this: its first probes may be about to be answered. */
const MIN_ROUND_MS = 200;

export class Rounds {
  #newest = 0;
  #scheduled: { readonly round: number; readonly fireAt: Instant } | undefined;
  #endsAt: Instant | undefined;
  /** Rounds that ended without a path, since the last one or since probing began. */
  #failed = 0;
  #requests = 0;
  #nextRequestAt: Instant | undefined;
  /** A request for which there is a reason, besides those that come of themselves. */
  #hurryAt: Instant | undefined;

  /** The greatest number of a round so far; 0 before the first. */
  get newest(): number {
    return this.#newest;
  }

  get failed(): number {
    return this.#failed;
  }

  /** A round is running, and no synchronised one is about to replace it. */
  get isRunning(): boolean {
    return this.#endsAt !== undefined && this.#scheduled === undefined;
  }

  /** Probing has become possible. */
  start(now: Instant): void {
    this.#failed = 0;
    this.#restartRequests(now);
  }

  stop(): void {
    this.#scheduled = undefined;
    this.#endsAt = undefined;
    this.#nextRequestAt = undefined;
    this.#hurryAt = undefined;
  }

  /**
   * The coordinator has named an instant. The round may be lower than ours: the side that asked for it may have missed some while it had
   * no coordinator, and the peer fires whatever we think of the number.
   */
  schedule(round: number, fireAt: Instant): void {
    this.#newest = Math.max(this.#newest, round);
    this.#scheduled = { round, fireAt };
  }

  /** The number of the scheduled round, once its instant has come. */
  takeDue(now: Instant): number | undefined {
    const scheduled = this.#scheduled;
    if (scheduled === undefined || now < scheduled.fireAt) return undefined;
    this.#scheduled = undefined;
    return scheduled.round;
  }

  begin(now: Instant): void {
    this.#endsAt = after(now, ROUND_END_MS);
  }

  /** @param hasPath then the round has not failed */
  endIfDue(hasPath: boolean, now: Instant): void {
    if (this.#endsAt === undefined || now < this.#endsAt) return;
    this.#endsAt = undefined;
    this.#failed = hasPath ? 0 : this.#failed + 1;
  }

  /** Something has changed that may let a round succeed: one shall be asked for by then. */
  hurry(at: Instant): void {
    this.#hurryAt = earliest(this.#hurryAt, at);
  }

  /** As `hurry`, but not sooner either: what there is has until then to prove itself. */
  hurryNotBefore(at: Instant): void {
    this.#hurryAt = at;
  }

  /** The peer is used again. */
  requestNow(now: Instant): void {
    this.#nextRequestAt = now;
  }

  onPath(): void {
    this.#hurryAt = undefined;
    this.#requests = 0;
  }

  /** The path has died. @param hasAsked a request has just been made for it */
  onDeath(hasAsked: boolean, now: Instant): void {
    this.#requests = 0;
    this.#nextRequestAt = now;
    if (!hasAsked) return;
    this.#restartRequests(now);
    this.#requests = 1;
  }

  /** When to ask the coordinator for a round, as long as one is wanted. */
  requestAt(): Instant | undefined {
    if (this.#scheduled !== undefined) return undefined;
    if (this.#endsAt === undefined) return earliest(this.#nextRequestAt, this.#hurryAt);
    if (this.#hurryAt === undefined) return undefined;
    const soonest = after(this.#endsAt, MIN_ROUND_MS - ROUND_END_MS);
    return this.#hurryAt > soonest ? this.#hurryAt : soonest;
  }

  onRequested(now: Instant): void {
    const wait = ROUND_REQUEST_MS[Math.min(this.#requests, ROUND_REQUEST_MS.length - 1)] ?? 0;
    this.#requests++;
    this.#nextRequestAt = after(now, wait);
    this.#hurryAt = undefined;
  }

  /** Of what happens whether or not anything is wanted. */
  deadline(): Instant | undefined {
    return earliest(this.#scheduled?.fireAt, this.#endsAt);
  }

  #restartRequests(now: Instant): void {
    this.#requests = 0;
    this.#nextRequestAt = after(now, ROUND_REQUEST_MS[0] ?? 0);
  }
}
