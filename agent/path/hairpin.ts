/**
 * Does our NAT turn packets back (hairpin, RFC 4787 §6): can two machines behind it meet at their public addresses?
 *
 * A second socket learns its own public address from the coordinator; then it and the data socket send to each other's, at the same time,
 * so that a filter that wants to have been sent to first is open (RFC 5780 §4.5 sends one way only, and takes such a NAT for one without
 * hairpin). What is sent is a STUN indication with a random id: nobody answers it, nobody who has not seen it can forge it, and
 * it goes nowhere but to ourselves.
 *
 * Pure: the node gives it what has arrived and time, it gives back what to send.
 */
import { equalBytes } from "../../shared/bytes.ts";
import type { TransportAddress } from "../../shared/address.ts";
import { after, type Instant } from "../../shared/time.ts";

export type HairpinRequest =
  /** The second socket asks the coordinator for its address. */
  | { readonly type: "ask"; readonly transactionId: Uint8Array }
  /** An indication from one of our two sockets to the public address of the other. */
  | {
      readonly type: "cross";
      readonly from: "data" | "second";
      readonly to: TransportAddress;
      readonly transactionId: Uint8Array;
    };

const ASK_MS: readonly number[] = [0, 100, 250, 500];
const ASK_TIMEOUT_MS = 1000;
/** The first ones may meet a filter that the other side opens a moment later, and one may be lost. */
const CROSS_MS: readonly number[] = [0, 30, 100, 250];
/** So long after the first crossing silence means no. A home router turns packets within a millisecond, a carrier's within a round trip. */
const SILENCE_MS = 400;
const SILENCE_ROUND_TRIPS = 2;

type Stage =
  | { readonly name: "asking"; sent: number }
  | { readonly name: "crossing"; readonly startedAt: Instant; readonly second: TransportAddress; sent: number }
  | { readonly name: "done"; readonly works: boolean | undefined };

export class HairpinTest {
  readonly #data: TransportAddress;
  readonly #startedAt: Instant;
  readonly #askId: Uint8Array;
  readonly #crossIds: readonly [Uint8Array, Uint8Array];
  readonly #requests: HairpinRequest[] = [];
  #roundTripMs = 0;
  #stage: Stage = { name: "asking", sent: 0 };

  /** @param data the public address of the data socket */
  constructor(options: {
    readonly data: TransportAddress;
    readonly random: (bytes: number) => Uint8Array;
    readonly now: Instant;
  }) {
    this.#data = options.data;
    this.#startedAt = options.now;
    this.#askId = options.random(12);
    this.#crossIds = [options.random(12), options.random(12)];
    this.handleTimeout(options.now);
  }

  get isDone(): boolean {
    return this.#stage.name === "done";
  }

  /** Undefined: not known yet, or not to be found out since the coordinator did not answer. */
  get works(): boolean | undefined {
    return this.#stage.name === "done" ? this.#stage.works : undefined;
  }

  /** The coordinator's answer; false when it is to none of our questions. */
  handleResponse(transactionId: Uint8Array, mapped: TransportAddress, now: Instant): boolean {
    if (!equalBytes(transactionId, this.#askId)) return false;
    if (this.#stage.name !== "asking") return true;
    this.#roundTripMs = now - this.#startedAt;
    this.#stage = { name: "crossing", startedAt: now, second: mapped, sent: 0 };
    this.handleTimeout(now);
    return true;
  }

  /** An indication has arrived at one of our sockets; false when it is none of ours. */
  handleIndication(transactionId: Uint8Array): boolean {
    if (!this.#crossIds.some((id) => equalBytes(id, transactionId))) return false;
    if (this.#stage.name === "crossing") this.#stage = { name: "done", works: true };
    return true;
  }

  handleTimeout(now: Instant): void {
    const stage = this.#stage;
    if (stage.name === "done" || now < (this.deadline() ?? now)) return;
    if (stage.name === "asking") {
      if (now >= after(this.#startedAt, ASK_TIMEOUT_MS)) {
        this.#stage = { name: "done", works: undefined };
        return;
      }
      stage.sent++;
      this.#requests.push({ type: "ask", transactionId: this.#askId });
      return;
    }
    if (now >= this.#silentAt(stage.startedAt)) {
      this.#stage = { name: "done", works: false };
      return;
    }
    stage.sent++;
    const [fromSecond, fromData] = this.#crossIds;
    this.#requests.push({ type: "cross", from: "second", to: this.#data, transactionId: fromSecond });
    this.#requests.push({ type: "cross", from: "data", to: stage.second, transactionId: fromData });
  }

  deadline(): Instant | undefined {
    const stage = this.#stage;
    if (stage.name === "asking") return after(this.#startedAt, ASK_MS[stage.sent] ?? ASK_TIMEOUT_MS);
    if (stage.name === "done") return undefined;
    const next = CROSS_MS[stage.sent];
    return next === undefined ? this.#silentAt(stage.startedAt) : after(stage.startedAt, next);
  }

  poll(): HairpinRequest | undefined {
    return this.#requests.shift();
  }

  #silentAt(startedAt: Instant): Instant {
    return after(startedAt, SILENCE_MS + SILENCE_ROUND_TRIPS * this.#roundTripMs);
  }
}
