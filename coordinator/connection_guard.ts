/**
 * Limits TCP connections that have not got further than HTTP yet (PRODUCT.md, "Before authentication"): 16 for each source, 256 in
 * all, and 5 s to send a whole request; and those to the SSH endpoint that have not logged in. Pure: the listeners tell it what happens and close what it says.
 *
 * A connection that becomes a WebSocket is released here and counted by the hub until it is approved.
 */
import { after, type Instant } from "../shared/time.ts";
import { sourceOf } from "./limits.ts";

const MAX_PER_SOURCE = 16;
const MAX_CONNECTIONS = 256;
const REQUEST_TIMEOUT_MS = 5000;

/** Names a connection: the client's transport address as text. */
export type ClientKey = string;

export class ConnectionGuard {
  readonly #timeoutMs: number;
  /** In the order of their deadlines, since all have the same time. */
  readonly #open = new Map<ClientKey, { readonly source: string; readonly deadline: Instant }>();
  readonly #perSource = new Map<string, number>();

  /** @param timeoutMs how long a connection may take to become one that is known */
  constructor(timeoutMs = REQUEST_TIMEOUT_MS) {
    this.#timeoutMs = timeoutMs;
  }

  get size(): number {
    return this.#open.size;
  }

  /** May it stay? */
  accept(client: ClientKey, ip: string, now: Instant): boolean {
    const source = sourceOf(ip);
    const count = this.#perSource.get(source) ?? 0;
    if (this.#open.size >= MAX_CONNECTIONS || count >= MAX_PER_SOURCE) return false;
    this.#open.set(client, { source, deadline: after(now, this.#timeoutMs) });
    this.#perSource.set(source, count + 1);
    return true;
  }

  /** It has closed, or has become a WebSocket. */
  release(client: ClientKey): void {
    const entry = this.#open.get(client);
    if (entry === undefined) return;
    this.#open.delete(client);
    const count = (this.#perSource.get(entry.source) ?? 1) - 1;
    if (count > 0) this.#perSource.set(entry.source, count);
    else this.#perSource.delete(entry.source);
  }

  /** Those whose time is over. They stay counted until they are released, that is, until they are really closed. */
  overdue(now: Instant): ClientKey[] {
    const overdue: ClientKey[] = [];
    for (const [client, { deadline }] of this.#open) {
      if (deadline > now) break;
      overdue.push(client);
    }
    return overdue;
  }
}
