/**
 * Watches the selected pair: when it has to be proven anew, when it is suspect, when it is dead.
 *
 * A path is proven by answers to probes. How often, and with how much patience, follows from what is at stake: data that moves, data
 * that nothing answers, data that the receiver does not report, a network that has changed, or nothing at all.
 */
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { PacketCounts } from "../data/plane.ts";
import { Delivery } from "./delivery.ts";
import type { Pair } from "./pair.ts";
import { SteadyFlow } from "./steady_flow.ts";

/** While the peer is in use the path is proven anew this often, so `status` shows a fresh round trip (RFC 7675 asks for 5 s). */
const CONSENT_MS = 5000;
/** Data was sent and nothing came back for this long, besides the round trip: probe, and then again at these intervals. */
const SUSPECT_AFTER_MS = 250;
const SUSPECT_PROBE_MS = 60;
/** Without traffic nothing is at stake, so a short outage should not cost the path. */
const QUIET_PROBE_MS = 300;
/**
 * Probes in a row without an answer that end a pair, once the last has had its time; five lost in a row happen once in 4000 times at 10 %
 * loss each way. Three do where the receiver's reports stay away as well: the packets that they do not tell of are as good as probes.
 */
const DEAD_AFTER_UNANSWERED = 5;
const DEAD_AFTER_UNREPORTED = 3;
const ANSWER_ROUND_TRIPS = 1.25;
const ANSWER_VARIATIONS = 4;
const ANSWER_MARGIN_MS = 50;
const QUICKEST_MARGIN_MS = 20;
/** Data that moved, either way, calls for fresh proof this often, and for this long after it has stopped: a side that only receives, or
 * hears only small packets, has no other evidence that the path has died. */
const ACTIVE_PROOF_MS = 400;
const ACTIVE_MS = 2000;
const ACTIVE_PROBE_MS = 100;
/**
 * The receiver reports each 100 ms, and at once after a pause: two packets of a class that no report tells of so long after the first,
 * besides the round trip, are reason for a probe. At ten packets a second the path is dead 150 ms, two and a quarter round trips, 120 ms
 * for three probes and 50 ms after the first packet that was lost, and carries nothing more a tenth of a second later.
 */
const LATE_MS = 150;
const LATE_PACKETS = 2;
/**
 * What counts as evidence besides unanswered probes: one report may be lost, and one or two packets anywhere. Networks that stall (a
 * wireless card that looks round, a hand-over) come back within 300 ms; no path is given up sooner than after the second of these.
 */
const SILENT_MS = 250;
const MIN_SILENT_MS = 450;
const SILENT_PACKETS = 3;
/** Two intervals of the sender's own counts: three packets that left at three moments. */
const SILENT_SPAN_MS = 150;
/** A flow that has been over for so long is not silent. */
const OVER_MS = 300;
/** The same while the path answers probes: then more is asked, since a mistake would cost a path that works. */
const DEAF_MS = 550;
const DEAF_PACKETS = 6;
/** After a planned switch the receiver holds packets for up to 400 ms (data/path_switch.ts), and reports them later. */
const MOVED_MS = 1000;
/** The sender's own counts come each 100 ms too: the last of them before the verdict may be as old. */
const COUNT_MS = 110;
/** While the peer is heard an answer may only be waiting behind a full queue: patience. */
const HEARD_MS = 500;
const HEARD_ANSWER_MS = 400;

export type Verdict = "probe" | "dead" | "deaf";

/** How long an answer takes at most, on a path that is well. */
export function usualAnswerMs({ rttMs = 0, rttVariationMs }: Pair): number {
  return Math.min(rttMs * ANSWER_ROUND_TRIPS, rttMs + ANSWER_VARIATIONS * rttVariationMs) + ANSWER_MARGIN_MS;
}

/** What an answer takes at least, whatever jitter does to the measured round trip. */
function quickestAnswerMs(pair: Pair | undefined): number {
  const { rttMs = 0, rttVariationMs = 0 } = pair ?? {};
  return Math.max(0, rttMs * (2 - ANSWER_ROUND_TRIPS), rttMs - ANSWER_VARIATIONS * rttVariationMs - QUICKEST_MARGIN_MS);
}

export class PathWatch {
  readonly #delivery = new Delivery();
  readonly #flow = new SteadyFlow();
  /** Unanswered data: when it was first sent after the newest thing we heard. */
  #waitingSince: Instant | undefined;
  /** Until when traffic counts as going on, and traffic of large packets. */
  #activeUntil: Instant | undefined;
  #largeUntil: Instant | undefined;
  /** From when on reports are compared with what was sent. */
  #countsFrom: Instant | undefined;
  /** Since when the pair has to prove itself: a network has changed. */
  #doubtedAt: Instant | undefined;

  /** Another pair carries the data from here on. */
  restart(): void {
    this.#waitingSince = undefined;
    this.#doubtedAt = undefined;
    this.#delivery.restart();
    this.#flow.restart();
  }

  /** The session has ended. */
  forget(): void {
    this.restart();
    this.#delivery.forget();
  }

  /** An answer to a probe, or anything else that shows that the peer is there and hears us. */
  onHeard(): void {
    this.#waitingSince = undefined;
  }

  /** Data moved, one way or the other. */
  onTraffic(isLarge: boolean, received: number, now: Instant): void {
    this.#activeUntil = after(now, ACTIVE_MS);
    if (isLarge) this.#largeUntil = this.#activeUntil;
    this.#flow.onReceived(received, now);
  }

  /** Something left that wants an answer. */
  onSent(now: Instant): void {
    this.#waitingSince ??= now;
  }

  onDataSent(counts: PacketCounts, now: Instant): void {
    this.onSent(now);
    if (this.#countsFrom === undefined || now >= this.#countsFrom) this.#delivery.onSent(counts, now);
  }

  /** Traffic has moved to this rung, or away, or we to another address: for a moment the receiver's reports may come late, or go astray. */
  onRungChange(now: Instant): void {
    this.#delivery.restart();
    this.#countsFrom = after(now, MOVED_MS);
  }

  onDeliveryReport(total: PacketCounts, pair: Pair | undefined, now: Instant): void {
    this.#delivery.onReport(total, (now - quickestAnswerMs(pair)) as Instant);
  }

  doubt(now: Instant): void {
    this.#doubtedAt = now;
  }

  isDoubted(pair: Pair): boolean {
    return this.#doubtedAt !== undefined && (pair.provenAt === undefined || pair.provenAt < this.#doubtedAt);
  }

  /** Doubted, and it has had its time to prove itself. */
  isOverdue(pair: Pair, now: Instant): boolean {
    return this.#doubtedAt !== undefined && this.isDoubted(pair) && now - this.#doubtedAt > usualAnswerMs(pair);
  }

  /** Have large packets moved lately, so that the next proof has to be as large? */
  wantsLarge(now: Instant): boolean {
    return this.#largeUntil !== undefined && now < this.#largeUntil;
  }

  /** Does the peer's traffic still come in, so that only our direction, or only large packets, may have died? */
  isHeard(pair: Pair, now: Instant): boolean {
    return pair.receivedAt !== undefined && now - pair.receivedAt < HEARD_MS;
  }

  /**
   * When what may have died with the path should be looked at, unless something is heard before: a report is late, a dense flow from the peer
   * has stopped, or probes go unanswered for longer than is usual. Asking costs little, and mending takes longer there than here.
   */
  suspectAt(pair: Pair): Instant | undefined {
    const { unanswered, unansweredSince } = pair;
    const overdueAt =
      unanswered < 2 || unansweredSince === undefined ? undefined : after(unansweredSince, usualAnswerMs(pair));
    return earliest(this.#lateAt(pair, undefined), this.#stoppedAt(pair), overdueAt);
  }

  /**
   * When the next probe, or the verdict, is due.
   *
   * @param keepaliveMs how long a pair that nobody uses may wait: our own NAT's memory decides (mapping_lifetime.ts), and the peer, whose
   * probes keep its NAT's mapping, has its own
   */
  dueAt(pair: Pair, isInUse: boolean, keepaliveMs: number): Instant | undefined {
    return earliest(this.#probeAt(pair, isInUse ? CONSENT_MS : keepaliveMs), this.#deafAt(pair));
  }

  /** What to do now that it is due. */
  verdict(pair: Pair, now: Instant): Verdict {
    const deafAt = this.#deafAt(pair);
    if (deafAt !== undefined && now >= deafAt) return "deaf";
    if (pair.unanswered >= DEAD_AFTER_UNANSWERED) return "dead";
    const silentAt = this.#silentAt(pair);
    const isSilent = silentAt !== undefined && now >= silentAt;
    return isSilent && pair.unanswered >= DEAD_AFTER_UNREPORTED ? "dead" : "probe";
  }

  /** Nobody gets our data, while the path answers: only then are reports believed alone. */
  #deafAt(pair: Pair): Instant | undefined {
    const since = this.#delivery.silence(DEAF_PACKETS, DEAF_MS - COUNT_MS + (pair.rttMs ?? 0))?.since;
    // The peer has answered well within the silence: it is there, and not merely slow.
    if (since === undefined || pair.provenAt === undefined || pair.provenAt < after(since, DEAF_MS / 2))
      return undefined;
    return after(since, DEAF_MS + (pair.rttMs ?? 0));
  }

  /** When reports have stayed away for long enough to be evidence. */
  #silentAt(pair: Pair): Instant | undefined {
    const since = this.#delivery.silence(SILENT_PACKETS, SILENT_SPAN_MS)?.since;
    return since === undefined ? undefined : after(since, Math.max(SILENT_MS + (pair.rttMs ?? 0), MIN_SILENT_MS));
  }

  /** When a dense flow from the peer counts as stopped; undefined once the path has been asked about it. */
  #stoppedAt({ lastProbeAt }: Pair): Instant | undefined {
    const { stopsAt } = this.#flow;
    return stopsAt === undefined || (lastProbeAt !== undefined && lastProbeAt >= stopsAt) ? undefined : stopsAt;
  }

  /** When a report is late enough to ask, at this time or later. */
  #lateAt(pair: Pair, soonest: Instant | undefined): Instant | undefined {
    const silence = this.#delivery.silence(LATE_PACKETS, 0);
    if (silence === undefined) return undefined;
    const lateAt = after(silence.since, LATE_MS + (pair.rttMs ?? 0));
    const at = soonest !== undefined && soonest > lateAt ? soonest : lateAt;
    return at <= after(silence.latest, OVER_MS) ? at : undefined;
  }

  #probeAt(pair: Pair, quietMs: number): Instant | undefined {
    const rttMs = pair.rttMs ?? 0;
    const soonest = pair.lastProbeAt === undefined ? undefined : after(pair.lastProbeAt, SUSPECT_PROBE_MS);
    const lateAt = this.#lateAt(pair, soonest);
    if (pair.unanswered > 0 && soonest !== undefined && pair.lastProbeAt !== undefined)
      return this.#againAt(pair, pair.lastProbeAt, lateAt);
    const unheardAt =
      this.#waitingSince === undefined ? undefined : after(this.#waitingSince, SUSPECT_AFTER_MS + rttMs);
    const provenAt = pair.answeredAt ?? pair.receivedAt;
    const consentAt = provenAt === undefined ? undefined : after(provenAt, quietMs);
    const activeAt = provenAt === undefined ? undefined : after(provenAt, ACTIVE_PROOF_MS);
    const isActive = activeAt !== undefined && this.#activeUntil !== undefined && activeAt <= this.#activeUntil;
    const at = earliest(unheardAt, lateAt, consentAt, isActive ? activeAt : undefined, this.#stoppedAt(pair));
    // Whatever is heard meanwhile, no faster than this.
    return at === undefined || soonest === undefined || at > soonest ? at : soonest;
  }

  /** After a probe that has had no answer yet: the next one, or the verdict. */
  #againAt(pair: Pair, lastProbeAt: Instant, lateAt: Instant | undefined): Instant {
    const usualMs = usualAnswerMs(pair);
    const silentAt = this.#silentAt(pair);
    if (pair.unanswered >= DEAD_AFTER_UNANSWERED) {
      const isHeard = pair.heardAt !== undefined && lastProbeAt - pair.heardAt < HEARD_MS;
      return after(lastProbeAt, isHeard && silentAt === undefined ? Math.max(HEARD_ANSWER_MS, usualMs) : usualMs);
    }
    // Under traffic the next probe does not wait for the answer to this one.
    const isActive = this.#activeUntil !== undefined && lastProbeAt <= this.#activeUntil;
    const quietMs = isActive ? ACTIVE_PROBE_MS : Math.max(QUIET_PROBE_MS, usualMs);
    const nextAt = after(lastProbeAt, this.#waitingSince === undefined ? quietMs : SUSPECT_PROBE_MS);
    // While reports still come the silence lies ever ahead: waiting for it instead of asking on, old losses would be held against the path
    // as soon as a few reports are lost.
    if (pair.unanswered >= DEAD_AFTER_UNREPORTED && silentAt !== undefined && silentAt <= nextAt) {
      const answerAt = after(lastProbeAt, usualMs);
      return answerAt > silentAt ? answerAt : silentAt;
    }
    return lateAt !== undefined && lateAt < nextAt ? lateAt : nextAt;
  }
}
