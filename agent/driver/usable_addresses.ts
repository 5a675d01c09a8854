/** Which interface addresses are worth telling peers: chosen by interface, never by address range. */
import { isIPv6, isProbeable } from "../../shared/address.ts";
import type { InterfaceAddress } from "../node/gathering.ts";
import { listInterfaceAddresses, type InterfaceAddress as OfInterface } from "./linux/interfaces.ts";

/** Host candidates per machine; a machine with hundreds of container bridges has no more to say. */
const MAX_ADDRESSES = 12;

export interface AddressRules {
  /** Mesh addresses, our own and the peers': another agent of this machine may have them. */
  readonly isMeshAddress: (ip: string) => boolean;
  /** The whole mesh is one machine. */
  readonly withLoopback: boolean;
}

export const usableAddresses = (rules: AddressRules): InterfaceAddress[] =>
  chooseAddresses(listInterfaceAddresses(), rules);

/**
 * Pure: the likeliest first, the most that are worth telling. No TUN device, ours or another program's: ours would be a path through itself, and
 * one inside another overlay looks like a LAN, wins, and carries everything twice.
 */
export function chooseAddresses(
  all: readonly OfInterface[],
  { isMeshAddress, withLoopback }: AddressRules,
): InterfaceAddress[] {
  const usable = all.filter(
    (address) =>
      address.isUp &&
      !address.isTun &&
      !address.isDeprecated &&
      (withLoopback || !address.isLoopback) &&
      isProbeable(address.ip, withLoopback) &&
      !isMeshAddress(address.ip),
  );
  return usable
    .toSorted((a, b) => rank(a) - rank(b) || Number(isIPv6(a.ip)) - Number(isIPv6(b.ip)))
    .slice(0, MAX_ADDRESSES)
    .map(({ ip, prefix }) => ({ ip, prefixLength: prefix }));
}

/** Bridges last: most belong to containers and lead nowhere. A privacy address is used only where there is no stable one. */
const rank = ({ isBridge, isTemporary }: OfInterface): number => (isBridge ? 2 : 0) + (isTemporary ? 1 : 0);

/** A coordinator on this very machine: then loopback addresses are paths like any other. */
export function isLoopbackUrl(url: string): boolean {
  const { hostname } = new URL(url);
  return hostname === "localhost" || hostname === "[::1]" || hostname.startsWith("127.");
}
