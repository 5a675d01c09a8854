/**
 * Decides when two agents fire, so that their first probes cross in flight, and how far apart they really did.
 *
 * Both get one instant: far enough away that the message reaches the slower of them first, and no further, because until then
 * nothing happens on the direct path.
 */
import type { PeerId } from "../../shared/session/identity.ts";
import { after, type Instant } from "../../shared/time.ts";
import type { AgentClock } from "./clock.ts";

/** For the agents' event loops and the jitter that the samples did not show. */
const MARGIN_MS = 10;
/** A bad sample must not put the punch off for ever. */
const MAX_LEAD_MS = 1500;
/** How long reports of having fired are waited for. */
const REPORT_TIMEOUT_MS = 10_000;
/** Punches whose reports are outstanding, over all agents. */
const MAX_OUTSTANDING = 2000;

interface Outstanding {
  readonly fireAt: Instant;
  readonly firedAt: Map<PeerId, Instant>;
}

export class PunchSchedule {
  /** By pair and round, oldest first. */
  readonly #outstanding = new Map<string, Outstanding>();

  /** The instant for both, or undefined when a punch of this pair is still ahead: the two may ask at the same time. */
  schedule(
    a: PeerId,
    b: PeerId,
    round: number,
    clocks: readonly [AgentClock, AgentClock],
    now: Instant,
  ): Instant | undefined {
    this.#forget(now);
    const prefix = pairOf(a, b);
    for (const [key, punch] of this.#outstanding) if (key.startsWith(prefix) && punch.fireAt > now) return undefined;
    const oneWayMs = Math.max(...clocks.map((clock) => clock.worstRttMs / 2));
    const fireAt = after(now, Math.min(oneWayMs + MARGIN_MS, MAX_LEAD_MS));
    this.#outstanding.set(`${prefix} ${round}`, { fireAt, firedAt: new Map() });
    return fireAt;
  }

  /** An agent says when it fired, on the coordinator's clock. Returns the skew in ms once both have said so. */
  fired(by: PeerId, peer: PeerId, round: number, firedAt: Instant): number | undefined {
    const key = `${pairOf(by, peer)} ${round}`;
    const punch = this.#outstanding.get(key);
    if (punch === undefined) return undefined;
    punch.firedAt.set(by, firedAt);
    const own = punch.firedAt.get(by);
    const other = punch.firedAt.get(peer);
    if (own === undefined || other === undefined) return undefined;
    this.#outstanding.delete(key);
    return Math.abs(own - other);
  }

  #forget(now: Instant): void {
    for (const [key, punch] of this.#outstanding) {
      if (after(punch.fireAt, REPORT_TIMEOUT_MS) > now && this.#outstanding.size < MAX_OUTSTANDING) return;
      this.#outstanding.delete(key);
    }
  }
}

const pairOf = (a: PeerId, b: PeerId): string => (a < b ? `${a} ${b}` : `${b} ${a}`);
