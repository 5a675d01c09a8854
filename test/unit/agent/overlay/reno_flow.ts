/** A sender of another kind on the same line: Reno, as RFC 5681 has it, with an unlimited supply and a receiver that acknowledges each packet. */
import type { Line } from "./mux_pair.ts";

const PACKET_BYTES = 1400;
const INITIAL_PACKETS = 10;

export interface RenoConditions {
  readonly delayMs: number;
  readonly rate: number;
  readonly queueBytes: number;
}

export class RenoFlow {
  readonly #line: Line;
  readonly #conditions: RenoConditions;
  #window = INITIAL_PACKETS;
  #threshold = Number.POSITIVE_INFINITY;
  #inFlight = 0;
  #next = 0;
  /** Losses of packets up to here belong to one reduction. */
  #reducedUpTo = -1;
  /** Bytes that have arrived. */
  total = 0;

  constructor(line: Line, conditions: RenoConditions) {
    this.#line = line;
    this.#conditions = conditions;
    this.#send();
  }

  #send(): void {
    const { delayMs, rate, queueBytes } = this.#conditions;
    while (this.#inFlight < Math.floor(this.#window)) {
      const number = this.#next++;
      this.#inFlight++;
      const passMs = this.#line.pass("there", PACKET_BYTES, rate, queueBytes);
      // What was lost is missed when those behind it are acknowledged, about as late.
      const backMs = 2 * delayMs + (passMs ?? queueBytes / rate);
      this.#line.clock.after(backMs, () => this.#handleEnd(number, passMs !== undefined));
    }
  }

  #handleEnd(number: number, hasArrived: boolean): void {
    this.#inFlight--;
    if (hasArrived) {
      this.total += PACKET_BYTES;
      this.#window += this.#window < this.#threshold ? 1 : 1 / this.#window;
    } else if (number > this.#reducedUpTo) {
      this.#reducedUpTo = this.#next - 1;
      this.#window = Math.max(2, this.#window / 2);
      this.#threshold = this.#window;
    }
    this.#send();
  }
}
