/**
 * Estimates an agent's clock from request and reply, as NTP does (RFC 5905 §8), so that two agents can be told one instant.
 *
 *   coordinator   sentAt ------------.                 .----> repliedAt
 *   agent                             receivedAt ... sentAt
 *
 * Of the newest samples the one with the shortest round trip counts: queues only ever add delay, so it is the least wrong.
 */
import { type Instant, instant } from "../../shared/time.ts";

/** RFC 5905 keeps eight. At one each ten seconds their clocks drift apart by less than 8 ms even at 100 ppm. */
const SAMPLES = 8;

export interface ClockSample {
  /** Coordinator clock. */
  readonly requestSentAt: Instant;
  readonly replyReceivedAt: Instant;
  /** Agent clock, plain milliseconds. */
  readonly agentReceivedAt: number;
  readonly agentSentAt: number;
}

export class AgentClock {
  #samples: { readonly offsetMs: number; readonly rttMs: number }[] = [];

  /** Takes a sample unless it is impossible: an agent that lies only shifts its own start. */
  add(sample: ClockSample): void {
    const waited = sample.replyReceivedAt - sample.requestSentAt;
    const held = sample.agentSentAt - sample.agentReceivedAt;
    if (held < 0 || held > waited) return;
    const offsetMs =
      (sample.agentReceivedAt - sample.requestSentAt + (sample.agentSentAt - sample.replyReceivedAt)) / 2;
    this.#samples = [...this.#samples.slice(1 - SAMPLES), { offsetMs, rttMs: waited - held }];
  }

  get isKnown(): boolean {
    return this.#samples.length > 0;
  }

  /** Round trip of the best sample; 0 while there is none. */
  get rttMs(): number {
    return this.#best()?.rttMs ?? 0;
  }

  /** The longest round trip among the newest samples: what a message may take on a bad day. */
  get worstRttMs(): number {
    return Math.max(0, ...this.#samples.map((sample) => sample.rttMs));
  }

  toAgent(at: Instant): number {
    return at + (this.#best()?.offsetMs ?? 0);
  }

  toCoordinator(agentAt: number): Instant {
    return instant(agentAt - (this.#best()?.offsetMs ?? 0));
  }

  #best(): { readonly offsetMs: number; readonly rttMs: number } | undefined {
    let best = this.#samples[0];
    for (const sample of this.#samples) if (best !== undefined && sample.rttMs < best.rttMs) best = sample;
    return best;
  }
}
