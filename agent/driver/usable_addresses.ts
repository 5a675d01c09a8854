/** Which interface addresses are worth telling peers: chosen by interface, never by address range. */
import { isIPv6, isProbeable } from "../../shared/address.ts";
import type { InterfaceAddress } from "../node/gathering.ts";
import { listInterfaceAddresses, type InterfaceAddress as OfInterface } from "./linux/interfaces.ts";

/** Host candidates per machine; a machine with hundreds of container bridges has no more to say. */
const MAX_ADDRESSES = 12;

export interface AddressRules {
  /** Our own TUN device, which would be a path through itself. */
  readonly ownTun: string | undefined;
  /** Mesh addresses, our own and the peers': another agent of this machine may have them. */
  readonly isMeshAddress: (ip: string) => boolean;
  /** The whole mesh is one machine. */
  readonly withLoopback: boolean;
}

export const usableAddresses = (rules: AddressRules): InterfaceAddress[] =>
  chooseAddresses(listInterfaceAddresses(), rules);

/** Pure: the likeliest first, the most that are worth telling. */
export function chooseAddresses(
  all: readonly OfInterface[],
  { ownTun, isMeshAddress, withLoopback }: AddressRules,
): InterfaceAddress[] {
  const usable = all.filter(
    (address) =>
      address.isUp &&
      address.name !== ownTun &&
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

/**
 * Bridges and other programs' tunnels last: most bridges belong to containers and lead nowhere, and a path inside another overlay carries
 * everything twice. A privacy address is used only where there is no stable one.
 */
const rank = ({ isBridge, isTun, isTemporary }: OfInterface): number =>
  (isTun ? 4 : 0) + (isBridge ? 2 : 0) + (isTemporary ? 1 : 0);

/** A coordinator on this very machine: then loopback addresses are paths like any other. */
export function isLoopbackUrl(url: string): boolean {
  const { hostname } = new URL(url);
  return hostname === "localhost" || hostname === "[::1]" || hostname.startsWith("127.");
}
