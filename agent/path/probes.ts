/**
 * Sends the probes of one peer's pairs and the answers to its own: sealed, numbered by random transactions, within the budgets that keep
 * anybody from being aimed at, and of the size that is to be proven.
 */
import type { TransportAddress } from "../../shared/address.ts";
import type { Instant } from "../../shared/time.ts";
import type { ControlMessage } from "../../shared/wire/control.ts";
import type { ExtraLegs } from "./extra_legs.ts";
import type { Pair } from "./pair.ts";
import type { PathAction, PeerPathsOptions } from "./path_contract.ts";
import { usualAnswerMs } from "./path_watch.ts";
import type { Rounds } from "./rounds.ts";
import type { UntrustedProbes } from "./untrusted_probes.ts";

/** With all but the first of the three probes whose silence may end a path (path_watch.ts): the answer comes before the verdict. */
const BASE_PROBE_AFTER_UNANSWERED = 1;

export class Probes {
  readonly #options: Pick<PeerPathsOptions, "random" | "budget">;
  readonly #untrusted: UntrustedProbes;
  readonly #extraLegs: ExtraLegs;
  readonly #rounds: Rounds;
  readonly #emit: (action: PathAction) => void;

  constructor(
    options: Pick<PeerPathsOptions, "random" | "budget">,
    parts: { readonly untrusted: UntrustedProbes; readonly extraLegs: ExtraLegs; readonly rounds: Rounds },
    emit: (action: PathAction) => void,
  ) {
    this.#options = options;
    this.#untrusted = parts.untrusted;
    this.#extraLegs = parts.extraLegs;
    this.#rounds = parts.rounds;
    this.#emit = emit;
  }

  /** Asks the budgets, which then count the probe as sent. */
  maySend(pair: Pair, now: Instant): boolean {
    return pair.mayProbe && (pair.isValid || this.takeFromBudget(pair, now));
  }

  /** A volley that both agents have agreed to has a little of its own, for the one address that it is about. */
  takeFromBudget({ remote }: Pair, now: Instant): boolean {
    return this.#options.budget.take(remote.ip, now) || this.#extraLegs.volley?.takeExtra(remote.ip) === true;
  }

  /**
   * One that asks whether the pair works.
   *
   * @param isLarge whether it asks so of packets of the largest size
   * @param hops routers that it passes at most
   */
  send(pair: Pair, isLarge: boolean, now: Instant, hops?: number): void {
    const { mtu } = pair;
    pair.isProvingLarge = isLarge;
    // Large probes that are lost may have been too large, and nothing else: one that every path carries tells.
    if (isLarge && mtu.size > mtu.base && pair.unanswered >= BASE_PROBE_AFTER_UNANSWERED) {
      const transaction = this.newTransaction();
      this.#send(pair, this.#message(pair, transaction), mtu.takeBaseProbe(transaction));
    }
    const transaction = this.newTransaction();
    pair.onProbeSent(transaction, now);
    if (!pair.isTrusted) this.#untrusted.add(pair.remote);
    this.#send(pair, this.#message(pair, transaction), isLarge ? mtu.size : undefined, hops);
  }

  /** The next one that asks for the largest frames of a pair (RFC 8899). False: all is known. */
  sendForSize(pair: Pair, now: Instant): boolean {
    const transaction = this.newTransaction();
    const frameBytes = pair.mtu.takeProbe(transaction, usualAnswerMs(pair), now);
    if (frameBytes === undefined) return false;
    this.#send(pair, this.#message(pair, transaction), frameBytes);
    return true;
  }

  /** On the pair that the probe came in on, never on the selected one: only a reply that retraces the path tells that this pair works. */
  answer(pair: Pair, transaction: number, from: TransportAddress): void {
    this.#send(pair, {
      type: "probe_answer",
      transaction,
      answered: pair.isValid,
      seenFrom: from,
      ...(pair.isTrusted || pair.challenge === undefined ? {} : { echo: pair.challenge }),
    });
  }

  newTransaction(): number {
    const [a = 0, b = 0, c = 0, d = 0] = this.#options.random(4);
    return ((a << 24) | (b << 16) | (c << 8) | d) >>> 0;
  }

  #message(pair: Pair, transaction: number): ControlMessage {
    const { isValid: answered, echo } = pair;
    return {
      type: "probe",
      transaction,
      round: this.#rounds.newest,
      answered,
      ...(echo === undefined ? {} : { echo }),
    };
  }

  #send(pair: Pair, message: ControlMessage, frameBytes?: number, hops?: number): void {
    this.#emit({ type: "send", leg: pair.leg, to: pair.packedRemote, message, frameBytes, hops });
  }
}
