/**
 * One-time tokens by which a relay connection proves to belong to an agent: handed out inside the signalling channel, used once, within
 * seconds. Pure.
 */
import { toBase32 } from "../../shared/bytes.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { after, type Instant } from "../../shared/time.ts";

const TOKEN_BYTES = 16;
const LIFETIME_MS = 10_000;
/** For each agent: a connection and its replacement, each tried again once. The oldest gives way. */
const MAX_OUTSTANDING = 4;

export class RelayTokens {
  readonly #random: (length: number) => Uint8Array;
  /** Oldest first. */
  readonly #tokens = new Map<string, { readonly peer: PeerId; readonly expiresAt: Instant }>();

  constructor(random: (length: number) => Uint8Array) {
    this.#random = random;
  }

  get size(): number {
    return this.#tokens.size;
  }

  issue(peer: PeerId, now: Instant): string {
    for (const [token, { expiresAt }] of this.#tokens) {
      if (expiresAt > now) break;
      this.#tokens.delete(token);
    }
    const own = [...this.#tokens].filter(([, entry]) => entry.peer === peer);
    if (own.length >= MAX_OUTSTANDING && own[0] !== undefined) this.#tokens.delete(own[0][0]);
    const token = toBase32(this.#random(TOKEN_BYTES));
    this.#tokens.set(token, { peer, expiresAt: after(now, LIFETIME_MS) });
    return token;
  }

  /** Whose token this is. It is good for nothing afterwards. */
  redeem(token: string, now: Instant): PeerId | undefined {
    const entry = this.#tokens.get(token);
    this.#tokens.delete(token);
    return entry !== undefined && entry.expiresAt > now ? entry.peer : undefined;
  }
}
