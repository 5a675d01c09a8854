/**
 * Counts the probes that each address has got which only the peer vouches for. It outlives pairs: an address does not get another five
 * because its pair was forgotten meanwhile.
 */
import type { TransportAddress } from "../../shared/address.ts";

/** Addresses whose probes are counted. A symmetric NAT shows a new one per probe, so it is generous. */
const MAX_ADDRESSES = 1024;

export class UntrustedProbes {
  /** The one counted longest ago first. */
  readonly #counts = new Map<string, number>();

  of(address: TransportAddress): number {
    return this.#counts.get(keyOf(address)) ?? 0;
  }

  add(address: TransportAddress): void {
    const key = keyOf(address);
    const count = (this.#counts.get(key) ?? 0) + 1;
    this.#counts.delete(key);
    this.#counts.set(key, count);
    const oldest = this.#counts.keys().next();
    if (this.#counts.size > MAX_ADDRESSES && !oldest.done) this.#counts.delete(oldest.value);
  }

  /** It has shown that it wants our packets. */
  forget(address: TransportAddress): void {
    this.#counts.delete(keyOf(address));
  }
}

const keyOf = ({ ip, port }: TransportAddress): string => `${ip}|${port}`;
