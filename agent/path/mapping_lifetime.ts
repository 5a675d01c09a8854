/**
 * How long does our NAT remember a mapping that nobody uses, and how often must ours be used so that it never forgets them?
 *
 * One socket at a time is left silent for a while; then the data socket has the coordinator send something to that socket's public
 * address (PROTOCOL.md, "STUN": TUNNELMESH-RETURN), and what arrives shows that the mapping still stands. To ask from the silent socket
 * itself would say nothing where ports are preserved, since the new mapping would look like the old one; RFC 5780 §4.6 does it with
 * RESPONSE-PORT, which would let anyone aim. The silences are searched by halves: three sockets for each network, and some twenty datagrams.
 *
 * A mapping that has carried traffic in both directions for two seconds lives longer on Linux (nf_conntrack_udp_timeout_stream) than one that
 * saw a single exchange. Paths are of the first kind, so the socket asks twice before it falls silent.
 *
 * Pure: the node gives it answers and time, it gives back what to send.
 */
import { sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import { equalBytes } from "../../shared/bytes.ts";
import { after, type Instant } from "../../shared/time.ts";

/**
 * Half as long again each time. Shorter ones are rare, and paths in use are proven each 5 s anyway; the longest is what the coordinator's
 * proof of an address is good for (two minutes) without the time of the test itself.
 */
export const SILENCES_S: readonly number[] = [8, 12, 18, 27, 40, 60, 90];

export interface MappingLifetime {
  /** The longest silence that a mapping has survived; 0 for none. */
  readonly stoodSeconds: number;
  /** The shortest one that it has not; undefined for none. */
  readonly fellSeconds: number | undefined;
}

/** What idle paths and the data socket's own mapping are kept open with while nothing is known: Linux forgets an unanswered flow after 30 s. */
const UNKNOWN_KEEPALIVE_MS = 15_000;
/** As often as a path in use is proven; and not seldomer than keeps the loss of a path from going unnoticed for long. */
const MIN_KEEPALIVE_MS = 5000;
const MAX_KEEPALIVE_MS = 25_000;
/** Of what a mapping is known to survive: a keepalive that is lost is sent again within a second, well before the rest is over. */
const SAFE_SHARE = 2 / 3;

/**
 * How long something that keeps a mapping open may wait.
 *
 * @param unknownMs while nothing is known
 */
export function keepaliveMs(lifetime: MappingLifetime | undefined, unknownMs = UNKNOWN_KEEPALIVE_MS): number {
  if (lifetime === undefined) return unknownMs;
  const safeMs = Math.min(MAX_KEEPALIVE_MS, lifetime.stoodSeconds * 1000 * SAFE_SHARE);
  // As long as every silence was survived, shorter ones need not be feared.
  return lifetime.fellSeconds === undefined ? Math.max(unknownMs, safeMs) : Math.max(MIN_KEEPALIVE_MS, safeMs);
}

export type LifetimeAction =
  | { readonly type: "open" }
  | { readonly type: "close" }
  /** A plain question from the silent socket. */
  | { readonly type: "ask"; readonly transactionId: Uint8Array }
  /** From the data socket: let the coordinator answer to the silent one. */
  | { readonly type: "ask_return"; readonly transactionId: Uint8Array; readonly returnTo: ReturnAddress };

export interface ReturnAddress {
  readonly address: TransportAddress;
  /** What an answer to that address brought: who has it has heard the coordinator there. */
  readonly echo: Uint8Array;
}

const TRIES_MS: readonly number[] = [0, 300, 800];
const TIMEOUT_MS = 2000;
/** Linux takes a flow for a lasting one after two seconds. */
const LASTING_MS = 2500;

interface Exchange {
  readonly transactionId: Uint8Array;
  readonly startedAt: Instant;
  sent: number;
}

type Stage =
  | { readonly name: "first" | "second" | "returning" | "verifying"; readonly exchange: Exchange }
  | { readonly name: "lasting" | "silent"; readonly until: Instant }
  | { readonly name: "done" };

export class LifetimeTest {
  readonly #random: (bytes: number) => Uint8Array;
  readonly #actions: LifetimeAction[] = [];
  /** Indexes into the silences: all below the first have stood, all from the second on have not. */
  #low = 0;
  #high = SILENCES_S.length;
  #own: ReturnAddress | undefined;
  #stage: Stage = { name: "done" };

  constructor(options: { readonly random: (bytes: number) => Uint8Array; readonly now: Instant }) {
    this.#random = options.random;
    this.#begin(options.now);
  }

  get isDone(): boolean {
    return this.#stage.name === "done";
  }

  /** As far as it is known. */
  get result(): MappingLifetime | undefined {
    if (this.#low === 0 && this.#high === SILENCES_S.length) return undefined;
    return { stoodSeconds: SILENCES_S[this.#low - 1] ?? 0, fellSeconds: SILENCES_S[this.#high] };
  }

  /** The coordinator's answer; false when it is to none of our questions. */
  handleResponse(
    transactionId: Uint8Array,
    answer: { readonly mapped: TransportAddress; readonly echo: Uint8Array | undefined },
    now: Instant,
  ): boolean {
    const stage = this.#stage;
    if (!("exchange" in stage) || !equalBytes(stage.exchange.transactionId, transactionId)) return false;
    switch (stage.name) {
      case "first":
        this.#stage = { name: "lasting", until: after(now, LASTING_MS) };
        break;
      case "second":
        // An older coordinator, or one that asks for no account, has no proof to give.
        if (answer.echo === undefined) this.#stop();
        else {
          this.#own = { address: answer.mapped, echo: answer.echo };
          this.#stage = { name: "silent", until: after(now, this.#silenceMs()) };
        }
        break;
      case "returning":
        // A coordinator that does not know the question answers to the asker, and says the asker's address.
        if (this.#own === undefined || !sameTransportAddress(answer.mapped, this.#own.address)) this.#stop();
        else {
          this.#low = this.#middle() + 1;
          this.#next(now);
        }
        break;
      case "verifying":
        // The coordinator is there and takes our account: so it was the mapping that was gone.
        this.#high = this.#middle();
        this.#next(now);
        break;
    }
    return true;
  }

  handleTimeout(now: Instant): void {
    const stage = this.#stage;
    if (stage.name === "done" || now < (this.deadline() ?? now)) return;
    if (!("exchange" in stage)) this.#exchange(stage.name === "lasting" ? "second" : "returning", now);
    else if (now >= after(stage.exchange.startedAt, TIMEOUT_MS)) {
      if (stage.name === "returning") this.#exchange("verifying", now);
      // The coordinator is away: nothing is learned, and what was learned before stays.
      else this.#stop();
    } else this.#send(stage.name, stage.exchange);
  }

  deadline(): Instant | undefined {
    const stage = this.#stage;
    if (stage.name === "done") return undefined;
    if (!("exchange" in stage)) return stage.until;
    return after(stage.exchange.startedAt, TRIES_MS[stage.exchange.sent] ?? TIMEOUT_MS);
  }

  poll(): LifetimeAction | undefined {
    return this.#actions.shift();
  }

  #begin(now: Instant): void {
    this.#own = undefined;
    this.#actions.push({ type: "open" });
    this.#exchange("first", now);
  }

  #next(now: Instant): void {
    this.#actions.push({ type: "close" });
    if (this.#low < this.#high) this.#begin(now);
    else this.#stage = { name: "done" };
  }

  #stop(): void {
    this.#actions.push({ type: "close" });
    this.#stage = { name: "done" };
  }

  #exchange(name: "first" | "second" | "returning" | "verifying", now: Instant): void {
    const exchange: Exchange = { transactionId: this.#random(12), startedAt: now, sent: 0 };
    this.#stage = { name, exchange };
    this.#send(name, exchange);
  }

  #send(name: "first" | "second" | "returning" | "verifying", exchange: Exchange): void {
    exchange.sent++;
    const { transactionId } = exchange;
    if (name !== "returning") this.#actions.push({ type: "ask", transactionId });
    else if (this.#own !== undefined) this.#actions.push({ type: "ask_return", transactionId, returnTo: this.#own });
  }

  #middle(): number {
    return (this.#low + this.#high) >> 1;
  }

  #silenceMs(): number {
    return (SILENCES_S[this.#middle()] ?? 0) * 1000;
  }
}
