/** Which interface addresses are worth telling peers: chosen by interface, never by address range. */
import { isIPv6, isProbeable } from "../../shared/address.ts";
import type { InterfaceAddress } from "../node/gathering.ts";
import { listInterfaceAddresses } from "./linux/interfaces.ts";

/** Host candidates per machine; a machine with hundreds of container bridges has no more to say. */
const MAX_ADDRESSES = 12;

/**
 * @param isOwnMeshAddress addresses of our own TUN device, which would be a path through itself
 * @param withLoopback the whole mesh is one machine
 */
export function usableAddresses(isOwnMeshAddress: (ip: string) => boolean, withLoopback: boolean): InterfaceAddress[] {
  const usable = listInterfaceAddresses().filter(
    (address) =>
      address.isUp &&
      !address.isTun &&
      !address.isDeprecated &&
      (withLoopback || !address.isLoopback) &&
      isProbeable(address.ip, withLoopback) &&
      !isOwnMeshAddress(address.ip),
  );
  // Bridges last: most belong to containers and lead nowhere. A privacy address is used only where there is no stable one.
  const rank = (address: (typeof usable)[number]): number => (address.isBridge ? 2 : 0) + (address.isTemporary ? 1 : 0);
  return usable
    .toSorted((a, b) => rank(a) - rank(b) || Number(isIPv6(a.ip)) - Number(isIPv6(b.ip)))
    .slice(0, MAX_ADDRESSES)
    .map(({ ip, prefix }) => ({ ip, prefixLength: prefix }));
}

/** A coordinator on this very machine: then loopback addresses are paths like any other. */
export function isLoopbackUrl(url: string): boolean {
  const { hostname } = new URL(url);
  return hostname === "localhost" || hostname === "[::1]" || hostname.startsWith("127.");
}
