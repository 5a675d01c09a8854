/**
 * Where does our NAT's counter stand at this moment? One question from a socket that has never sent anything, asked just before a peer
 * is to aim at the ports that come next: since discovery any traffic may have moved the counter.
 */
import type { TransportAddress } from "../../shared/address.ts";
import { equalBytes } from "../../shared/bytes.ts";
import { after, type Instant } from "../../shared/time.ts";
import type { Leg } from "../data/plane.ts";

const RETRY_MS: readonly number[] = [100, 250];
/** An attempt does not wait for longer than this: it goes on with what discovery found. */
const GIVE_UP_MS = 600;

export type Sample = "waiting" | "lost" | { readonly port: number };

export class PortSampler {
  readonly leg: Leg;
  readonly server: TransportAddress;
  readonly transactionId: Uint8Array;
  readonly #startedAt: Instant;
  #sent = 0;
  #sample: Sample = "waiting";

  constructor(options: {
    readonly leg: Leg;
    readonly server: TransportAddress;
    readonly transactionId: Uint8Array;
    readonly now: Instant;
  }) {
    this.leg = options.leg;
    this.server = options.server;
    this.transactionId = options.transactionId;
    this.#startedAt = options.now;
  }

  get sample(): Sample {
    return this.#sample;
  }

  handleResponse(transactionId: Uint8Array, mapped: TransportAddress): boolean {
    if (!equalBytes(transactionId, this.transactionId)) return false;
    this.#sample = { port: mapped.port };
    return true;
  }

  /** Is the question to be asked at this moment, for the first time or again? */
  isDue(now: Instant): boolean {
    if (this.#sample !== "waiting" || now < this.deadline()) return false;
    if (now >= after(this.#startedAt, GIVE_UP_MS)) {
      this.#sample = "lost";
      return false;
    }
    this.#sent++;
    return true;
  }

  deadline(): Instant {
    return this.#sent === 0 ? this.#startedAt : after(this.#startedAt, RETRY_MS[this.#sent - 1] ?? GIVE_UP_MS);
  }
}
