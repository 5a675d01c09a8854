/**
 * The TUN device's addresses and routes: our own mesh addresses, and one /32 and one /128 for each peer, never the whole range.
 *
 * An address that this machine already reaches in another way is left alone and reported once (routing.ts). The device goes away
 * with the process, and its addresses and routes with it, so that a crash leaves nothing behind.
 */
import type { Log } from "../log.ts";
import { Netlink, type NetworkSnapshot } from "./linux/netlink.ts";
import { coverageOf } from "./linux/routing.ts";

/** The least that IPv6 asks of a link (RFC 8200 §5): with sealing it fits every path of 1358 bytes, and smaller ones get fragments. */
const TUN_MTU = 1280;

export class MeshRoutes {
  readonly #log: Log;
  readonly #netlink = new Netlink();
  readonly #index: number;
  readonly #reported = new Set<string>();

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
    const snapshot = this.#netlink.snapshot();
    for (const address of addresses) {
      const covered = this.#whatCovers(snapshot, address);
      if (covered !== undefined) {
        this.#report(`No route to mesh address ${address}: ${covered}`, address);
        continue;
      }
      try {
        this.#netlink.addHostRoute(this.#index, address);
      } catch (error) {
        this.#report(`No route to mesh address ${address}: ${reasonOf(error)}`, address);
      }
    }
  }

  remove(addresses: readonly string[]): void {
    for (const address of addresses) {
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
