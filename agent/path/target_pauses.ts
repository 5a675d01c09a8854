/**
 * How long each address is left alone after attempts with many packets that found nothing there, over all peers.
 *
 * A peer and a coordinator in league can name and attest a stranger's address, and a peer can change what it says of its network as often
 * as it likes. So this is counted by ip, and only a path that opened resets it: a stranger gets one volley, another after 5 s, 20 s, a
 * minute, 5 minutes, and then one each 10 minutes. Rounds, which are so small that one each two minutes is no more than that, keep to two
 * minutes as long as there are not too many of them.
 */
import { after, type Instant } from "../../shared/time.ts";
import { MAPPING_LIFETIME_MS } from "./port_use.ts";
import { PUNCH_ROUNDS } from "./punch_plan.ts";

export const PAUSES_MS: readonly number[] = [5000, 20_000, 60_000, 300_000, 600_000];
/** Addresses remembered; when full, a new one waits until the oldest has been left alone for long enough. */
const MAX_TARGETS = 256;

interface Target {
  readonly failures: number;
  readonly notBefore: Instant;
}

export class TargetPauses {
  /** The one that failed longest ago first. */
  readonly #targets = new Map<string, Target>();

  /** Milliseconds until this ip may be tried; 0: at once. */
  waitMs(ip: string, now: Instant): number {
    const target = this.#targets.get(ip);
    if (target !== undefined) return Math.max(0, target.notBefore - now);
    if (this.#targets.size < MAX_TARGETS) return 0;
    const [oldest] = this.#targets.values();
    return Math.max(0, (oldest?.notBefore ?? now) - now);
  }

  /** @param isRound one of several small attempts, which need that the mappings of the last are gone */
  failed(ip: string, now: Instant, isRound = false): void {
    const failures = (this.#targets.get(ip)?.failures ?? 0) + 1;
    const step = PAUSES_MS[Math.min(failures, PAUSES_MS.length) - 1] ?? 0;
    const pauseMs = isRound && failures < PUNCH_ROUNDS ? MAPPING_LIFETIME_MS : step;
    this.#targets.delete(ip);
    this.#targets.set(ip, { failures, notBefore: after(now, pauseMs) });
    const [oldest] = this.#targets.keys();
    if (this.#targets.size > MAX_TARGETS && oldest !== undefined) this.#targets.delete(oldest);
  }

  opened(ip: string): void {
    this.#targets.delete(ip);
  }
}
