/**
 * Punches that agents have asked for: both sides are told one instant (punch_schedule.ts) and each other's attested addresses. One asked
 * for before an agent's clock is known waits for the first sample.
 */
import type { TransportAddress } from "../../shared/address.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import type { CoordinatorMessage } from "../../shared/signal/messages.ts";
import { after, type Instant } from "../../shared/time.ts";
import type { AgentClock } from "./clock.ts";
import type { Observations } from "./observations.ts";
import { PunchSchedule } from "./punch_schedule.ts";

/** A punch waits this long for the first clock sample of an agent that has just joined. */
const CLOCK_WAIT_MS = 2000;
const MAX_WAITING_PUNCHES = 1000;

/** One side of a punch, as the hub knows it. */
export interface PunchSide {
  readonly id: PeerId;
  readonly clock: AgentClock;
  readonly observations: Observations;
}

export interface PunchesOptions {
  /** Both sides, if both are connected and neither refuses the other. */
  readonly sides: (a: PeerId, b: PeerId) => readonly [PunchSide, PunchSide] | undefined;
  readonly tell: (to: PeerId, message: Extract<CoordinatorMessage, { type: "punch" }>) => void;
}

interface WaitingPunch {
  readonly from: PeerId;
  readonly to: PeerId;
  readonly round: number;
  readonly until: Instant;
}

export class Punches {
  readonly #options: PunchesOptions;
  readonly #schedule = new PunchSchedule();
  #waiting: WaitingPunch[] = [];

  constructor(options: PunchesOptions) {
    this.#options = options;
  }

  request(from: PeerId, to: PeerId, round: number, now: Instant): void {
    this.#punch({ from, to, round, until: after(now, CLOCK_WAIT_MS) }, now);
  }

  /** A clock sample of this agent has come. */
  onClockSample(id: PeerId, now: Instant): void {
    const due = this.#waiting.filter(({ from, to }) => from === id || to === id);
    if (due.length === 0) return;
    this.#waiting = this.#waiting.filter((punch) => !due.includes(punch));
    for (const punch of due) this.#punch(punch, now);
  }

  /** An agent says when it fired, on its own clock. Returns how far apart the two were once both have said so. */
  fired(side: PunchSide, peer: PeerId, round: number, firedAtAgentMs: number): number | undefined {
    return this.#schedule.fired(side.id, peer, round, side.clock.toCoordinator(firedAtAgentMs));
  }

  /** Forgets what has waited for too long. */
  onTime(now: Instant): void {
    this.#waiting = this.#waiting.filter((punch) => punch.until > now);
  }

  #punch(punch: WaitingPunch, now: Instant): void {
    const sides = this.#options.sides(punch.from, punch.to);
    if (sides === undefined || now >= punch.until) return;
    const [a, b] = sides;
    if (!a.clock.isKnown || !b.clock.isKnown) {
      if (this.#waiting.length >= MAX_WAITING_PUNCHES) this.#waiting.shift();
      this.#waiting.push(punch);
      return;
    }
    const fireAt = this.#schedule.schedule(a.id, b.id, punch.round, [a.clock, b.clock], now);
    if (fireAt === undefined) return;
    this.#tell(a, b.id, b.observations.addresses(now), punch.round, fireAt);
    this.#tell(b, a.id, a.observations.addresses(now), punch.round, fireAt);
  }

  #tell(side: PunchSide, peer: PeerId, attested: readonly TransportAddress[], round: number, fireAt: Instant): void {
    const fireAtAgentMs = side.clock.toAgent(fireAt);
    this.#options.tell(side.id, { type: "punch", peer, round, fireAt: fireAtAgentMs, attested: [...attested] });
  }
}
