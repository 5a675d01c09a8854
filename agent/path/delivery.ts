/**
 * Does what we send arrive? What the receiver's reports say, for each class of size.
 *
 * The sender of a one-way flow hears nothing, and probes may pass where data does not: a filter by size, a broken queue. So whoever
 * receives data says every 100 ms how much it has got, and the sender looks whether that number grows while it sends.
 */
import type { Instant } from "../../shared/time.ts";
import type { PacketCounts } from "../data/plane.ts";

/** Counts come every 100 ms while packets leave; after so long without any of a class its next one begins another flow. */
const PAUSE_MS = 300;

/** Counts kept apart: more than a verdict ever takes. */
const MAX_COUNTS = 32;

interface Count {
  at: Instant;
  packets: number;
}

interface Class {
  /** The newest number that the receiver has reported. */
  reported: number;
  /** What has left since what the newest report tells of, oldest first. */
  unsettled: Count[];
}

export interface Silence {
  /** When the oldest packet left that no report can have followed. */
  readonly since: Instant;
  /** And the newest. */
  readonly latest: Instant;
}

const unused = (): Class => ({ reported: 0, unsettled: [] });

export class Delivery {
  readonly #small = unused();
  readonly #large = unused();
  /** A receiver that has never reported says nothing by silence. */
  #hasReported = false;

  /** Packets have left on the selected path. */
  onSent(counts: PacketCounts, now: Instant): void {
    count(this.#small, counts.small, now);
    count(this.#large, counts.large, now);
  }

  /**
   * The receiver's numbers, which only grow; one that comes late says nothing new.
   *
   * @param until what has left by then is settled by it; what has left later may still be on its way
   */
  onReport(total: PacketCounts, until: Instant): void {
    this.#hasReported = true;
    settle(this.#small, total.small, until);
    settle(this.#large, total.large, until);
  }

  /** Another path carries the data from here on. */
  restart(): void {
    for (const size of [this.#small, this.#large]) size.unsettled = [];
  }

  /** The receiver may be another process that counts anew. */
  forget(): void {
    this.restart();
    this.#hasReported = false;
    for (const size of [this.#small, this.#large]) size.reported = 0;
  }

  /**
   * The longest silence about a class of which so many packets have left over so long a time. The time is what tells a path that swallows
   * packets from a flow that has ended: the report about its last ones may come before they are counted here.
   */
  silence(packets: number, milliseconds: number): Silence | undefined {
    if (!this.#hasReported) return undefined;
    const [first, second] = [this.#small, this.#large].map((size) => silenceOf(size, packets, milliseconds));
    return first === undefined || (second !== undefined && second.since < first.since) ? second : first;
  }
}

function silenceOf({ unsettled }: Class, packets: number, milliseconds: number): Silence | undefined {
  const since = unsettled[0]?.at;
  const latest = unsettled.at(-1)?.at;
  if (since === undefined || latest === undefined || latest - since < milliseconds) return undefined;
  return unsettled.reduce((sum, left) => sum + left.packets, 0) < packets ? undefined : { since, latest };
}

function count(size: Class, packets: number, now: Instant): void {
  if (packets === 0) return;
  const last = size.unsettled.at(-1);
  // What was left over from before a pause was most likely reported before it was counted, and no later report will tell of it.
  if (last !== undefined && now - last.at > PAUSE_MS) size.unsettled = [];
  if (last === undefined || size.unsettled.length < MAX_COUNTS) size.unsettled.push({ at: now, packets });
  else {
    last.at = now;
    last.packets += packets;
  }
}

function settle(size: Class, total: number, until: Instant): void {
  if (total <= size.reported) return;
  size.reported = total;
  size.unsettled = size.unsettled.filter(({ at }) => at > until);
}
