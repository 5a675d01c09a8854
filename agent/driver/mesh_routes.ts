/**
 * The TUN device's addresses and routes: our own mesh addresses, and one /32 and one /128 for each peer, never the whole range.
 *
 * An address that this machine already reaches in another way is left alone and reported once (routing.ts). The device goes away
 * with the process, and its addresses and routes with it, so that a crash leaves nothing behind.
 */
import type { Log } from "../log.ts";
import { Netlink } from "./linux/netlink.ts";
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
      for (const address of ownAddresses) this.#netlink.addAddress(this.#index, address);
    } catch (error) {
      this.#netlink.close();
      throw error;
    }
  }

  add(addresses: readonly string[]): void {
    const snapshot = this.#netlink.snapshot();
    for (const address of addresses) {
      const coverage = coverageOf(snapshot, address, this.#index);
      if (coverage !== undefined) {
        this.#report(address, `${coverage.kind} ${coverage.cidr} of ${coverage.interface ?? "this machine"} covers it`);
        continue;
      }
      try {
        this.#netlink.addHostRoute(this.#index, address);
      } catch (error) {
        this.#report(address, error instanceof Error ? error.message : String(error));
      }
    }
  }

  remove(addresses: readonly string[]): void {
    for (const address of addresses) {
      try {
        this.#netlink.deleteHostRoute(this.#index, address);
      } catch (error) {
        this.#report(address, error instanceof Error ? error.message : String(error));
      }
    }
  }

  close(): void {
    this.#netlink.close();
  }

  #report(address: string, why: string): void {
    if (this.#reported.has(address)) return;
    this.#reported.add(address);
    this.#log.warn(`No route to mesh address ${address}: ${why}`, { address });
  }
}
