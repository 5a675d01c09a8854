/**
 * The TUN device's addresses and routes: our own mesh addresses, and one /32 and one /128 for each peer, never the whole range.
 *
 * An address that this machine already reaches in another way is left alone and reported once (routing.ts). The device goes away
 * with the process, and its addresses and routes with it, so that a crash leaves nothing behind.
 */
import { isIPv6 } from "../../shared/address.ts";
import type { Log } from "../log.ts";
import { Netlink, type NetworkSnapshot } from "./linux/netlink.ts";
import { coverageOf, withoutRoutesOf } from "./linux/routing.ts";

/**
 * What goes through the widest path there is, one of jumbo frames, in one frame. How large packets to a peer really are its route says: a
 * device has one MTU, and each peer has a path of its own.
 */
const TUN_MTU = 8942;
/**
 * For a peer whose path nothing is known of, and for IPv6 on the smallest ones: the least that IPv6 asks of a link (RFC 8200 §5).
 * What does not fit a frame goes as fragments.
 */
const LEAST_MTU = 1280;

export class MeshRoutes {
  readonly #log: Log;
  readonly #netlink = new Netlink();
  readonly #index: number;
  readonly #reported = new Set<string>();
  /** Routes of ours, and how large packets to there may be. */
  readonly #mtus = new Map<string, number>();

  /** Brings the device up with our own addresses. Throws a NetlinkError with words for people. */
  constructor(device: string, ownAddresses: readonly string[], log: Log) {
    this.#log = log;
    try {
      this.#index = this.#netlink.linkIndex(device);
      this.#netlink.linkUp(this.#index, TUN_MTU);
      const snapshot = this.#netlink.snapshot();
      for (const address of ownAddresses) {
        const covered = this.#whatCovers(snapshot, address);
        // Taken all the same, it would cut this machine off from whoever has that address on the other network.
        if (covered === undefined) this.#netlink.addAddress(this.#index, address);
        else this.#report(`Own mesh address ${address} is not installed: ${covered}`, address);
      }
    } catch (error) {
      this.#netlink.close();
      throw error;
    }
  }

  add(addresses: readonly string[]): void {
    const snapshot = withoutRoutesOf(this.#netlink.snapshot(), this.#index);
    for (const address of addresses) {
      const covered = this.#whatCovers(snapshot, address);
      if (covered !== undefined) {
        this.#report(`No route to mesh address ${address}: ${covered}`, address);
        continue;
      }
      try {
        if (this.#netlink.addHostRoute(this.#index, address, LEAST_MTU)) this.#mtus.set(address, LEAST_MTU);
      } catch (error) {
        this.#report(`No route to mesh address ${address}: ${reasonOf(error)}`, address);
      }
    }
  }

  /** Packets of so many bytes pass the path to a peer in one frame: its routes, and TCP's segment size with them, follow. */
  setMtu(addresses: readonly string[], packetBytes: number): void {
    for (const address of addresses) {
      const mtu = isIPv6(address) ? Math.max(packetBytes, LEAST_MTU) : packetBytes;
      const known = this.#mtus.get(address);
      if (known === undefined || known === mtu) continue;
      try {
        this.#netlink.setHostRouteMtu(this.#index, address, mtu);
        this.#mtus.set(address, mtu);
      } catch (error) {
        this.#report(`Packets to mesh address ${address} stay at ${known} bytes: ${reasonOf(error)}`, `${address} mtu`);
      }
    }
  }

  remove(addresses: readonly string[]): void {
    for (const address of addresses) {
      this.#mtus.delete(address);
      try {
        this.#netlink.deleteHostRoute(this.#index, address);
      } catch (error) {
        this.#report(`Cannot remove the route to mesh address ${address}: ${reasonOf(error)}`, address);
      }
    }
  }

  close(): void {
    this.#netlink.close();
  }

  /** In words: what on this machine reaches that address already. */
  #whatCovers(snapshot: NetworkSnapshot, address: string): string | undefined {
    const coverage = coverageOf(snapshot, address, this.#index);
    if (coverage === undefined) return undefined;
    return `${coverage.kind} ${coverage.cidr} of ${coverage.interface ?? "this machine"} covers it`;
  }

  #report(message: string, address: string): void {
    if (this.#reported.has(address)) return;
    this.#reported.add(address);
    this.#log.warn(message, { address });
  }
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
