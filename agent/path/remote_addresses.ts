/** What is said of a peer's addresses: by itself, under seal, and by the coordinator that has seen them. Only both together are trusted. */
import { isIPv6, sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import type { CandidateList, WireCandidate } from "../../shared/wire/candidates.ts";

export class RemoteAddresses {
  attested: readonly TransportAddress[] = [];
  #list: CandidateList | undefined;

  get generation(): number | undefined {
    return this.#list?.generation;
  }

  get candidates(): readonly WireCandidate[] {
    return this.#list?.candidates ?? [];
  }

  get hasMapped(): boolean {
    return this.candidates.some(({ kind }) => kind === "port-mapped");
  }

  /** False, and ignored, when it is older than the one we have. */
  setList(list: CandidateList): boolean {
    if (this.#list !== undefined && list.generation < this.#list.generation) return false;
    this.#list = list;
    return true;
  }

  forgetList(): void {
    this.#list = undefined;
  }

  isNamed(address: TransportAddress): boolean {
    return this.candidates.some((candidate) => sameTransportAddress(candidate.address, address));
  }

  isAttested(address: TransportAddress): boolean {
    return this.attested.some((attested) => sameTransportAddress(attested, address));
  }

  /** The public IPv4 address that both vouch for. */
  target(isAllowed: (address: TransportAddress) => boolean): TransportAddress | undefined {
    return this.candidates.find(
      ({ kind, address }) =>
        kind === "server-reflexive" && !isIPv6(address.ip) && isAllowed(address) && this.isAttested(address),
    )?.address;
  }
}
