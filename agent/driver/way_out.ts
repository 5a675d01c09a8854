/**
 * The address that a connection leaves this machine from, remembered so that a change can be seen: a TCP connection does not survive the
 * loss of its own address, and nobody tells it.
 */
import { lookup } from "node:dns/promises";
import { canonicalIp } from "../../shared/address.ts";
import { sourceAddressFor } from "./linux/interfaces.ts";

export class WayOut {
  #remoteIp: string | undefined;
  #sourceIp: string | undefined;

  /** @param url of the server, or of the proxy in front of it: whatever the connection really goes to */
  constructor(url: string) {
    const host = new URL(url).hostname.replace(/^\[|\]$/g, "");
    const ip = canonicalIp(host);
    if (ip !== undefined) this.#remember(ip);
    // Without an answer a change is not seen here, but by a challenge.
    else
      void lookup(host).then(
        ({ address }) => this.#remember(address),
        () => undefined,
      );
  }

  /** Would a new connection leave from another address? False while there is no way out at all: the old one may come back. */
  get hasChanged(): boolean {
    if (this.#remoteIp === undefined || this.#sourceIp === undefined) return false;
    const now = sourceAddressFor(this.#remoteIp);
    return now !== undefined && now !== this.#sourceIp;
  }

  #remember(ip: string): void {
    this.#remoteIp = canonicalIp(ip);
    this.#sourceIp = this.#remoteIp === undefined ? undefined : sourceAddressFor(this.#remoteIp);
  }
}
