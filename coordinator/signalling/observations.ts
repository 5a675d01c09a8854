/**
 * The server-reflexive addresses of one agent, as the coordinator itself has seen them in signed Binding requests. Only these are
 * attested to peers (PROTOCOL.md, "Nobody can be aimed").
 */
import { formatTransportAddress, type TransportAddress } from "../../shared/address.ts";
import { MAX_ATTESTED } from "../../shared/signal/messages.ts";
import { after, type Instant } from "../../shared/time.ts";

/** RFC 4787 REQ-5 promises a mapping two minutes; one that was not seen for longer may be somebody else's by now. */
const OBSERVATION_LIFETIME_MS = 120_000;

export class Observations {
  /** By address, the one seen longest ago first. */
  readonly #seen = new Map<string, { readonly address: TransportAddress; readonly at: Instant }>();

  /** Returns whether the list of addresses has changed. */
  add(address: TransportAddress, now: Instant): boolean {
    const key = formatTransportAddress(address);
    const isNew = !this.#seen.delete(key);
    this.#seen.set(key, { address, at: now });
    const [oldest] = this.#seen.keys();
    if (this.#seen.size > MAX_ATTESTED && oldest !== undefined) this.#seen.delete(oldest);
    return isNew;
  }

  /** Newest first. */
  addresses(now: Instant): TransportAddress[] {
    for (const [key, { at }] of this.#seen) if (after(at, OBSERVATION_LIFETIME_MS) <= now) this.#seen.delete(key);
    return [...this.#seen.values()].reverse().map(({ address }) => address);
  }
}
