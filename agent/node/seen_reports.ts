/**
 * What peers say that they see of us: each answer to a probe tells from which address the probe came. One peer's word is worth little, since it
 * may lie; what follows from the words of several is decided here.
 */
import { isPrivate, isProbeable, sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import type { Instant } from "../../shared/time.ts";

/** Peers whose word on our address is kept. */
const MAX_REPORTS = 8;
/** So many must contradict STUN before our NAT is taken for another than that has shown. */
const CONTRADICTING_PEERS = 2;

interface Report {
  readonly address: TransportAddress;
  readonly at: Instant;
}

/** What STUN has shown of us, and what the router has promised. */
export interface KnownAddresses {
  readonly seen: readonly TransportAddress[];
  readonly mapped: TransportAddress | undefined;
}

export class SeenReports {
  /** By the peer that said so, the newest last. */
  readonly #reports = new Map<string, Report>();

  note(peer: string, address: TransportAddress, now: Instant): void {
    this.#reports.delete(peer);
    this.#reports.set(peer, { address, at: now });
    const oldest = this.#reports.keys().next();
    if (this.#reports.size > MAX_REPORTS && !oldest.done) this.#reports.delete(oldest.value);
  }

  clear(): void {
    this.#reports.clear();
  }

  /** The public address that all name who name one: a NAT that shows each another port has none to offer. */
  agreed(): TransportAddress | undefined {
    const reports = [...this.#reports.values()].map(({ address }) => address);
    const [first, ...others] = reports.filter(({ ip }) => isProbeable(ip) && !isPrivate(ip));
    if (first === undefined) return undefined;
    return others.every((other) => sameTransportAddress(other, first)) ? first : undefined;
  }

  /** Do more peers than not see other ports than STUN has shown? Only what they said between these two moments counts. */
  contradict(known: KnownAddresses, from: Instant, until: Instant): boolean {
    const timely = [...this.#reports.values()].filter(({ at }) => at >= from && at <= until);
    const against = timely.filter(({ address }) => contradicts(address, known)).length;
    return against >= CONTRADICTING_PEERS && against > timely.length - against;
  }
}

/** The public ip that STUN shows, and another port, which is not the one that the router has mapped. */
export function contradicts({ ip, port }: TransportAddress, { seen, mapped }: KnownAddresses): boolean {
  if (mapped !== undefined && mapped.ip === ip && mapped.port === port) return false;
  return seen.some((address) => address.ip === ip) && !seen.some((address) => address.port === port);
}
