/**
 * Does what we send arrive? What the receiver's reports say, for each class of size.
 *
 * The sender of a one-way flow hears nothing, and probes may pass where data does not: a filter by size, a broken queue. So whoever
 * receives data says every 100 ms how much it has got, and the sender looks whether that number grows while it sends.
 */
import { earliest, type Instant } from "../../shared/time.ts";
import type { PacketCounts } from "../data/plane.ts";

/** Counts come every 100 ms while packets leave; after so long without any of a class its next one begins another flow. */
const PAUSE_MS = 300;

interface Class {
  /** The newest number that the receiver has reported. */
  reported: number;
  /** When the oldest packet left that no report has followed, and how many have left since. */
  since: Instant | undefined;
  latest: Instant;
  packets: number;
}

const unused = (): Class => ({ reported: 0, since: undefined, latest: 0 as Instant, packets: 0 });

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

  /** The receiver's numbers, which only grow; one that comes late says nothing new. */
  onReport(total: PacketCounts): void {
    this.#hasReported = true;
    settle(this.#small, total.small);
    settle(this.#large, total.large);
  }

  /** Another path carries the data from here on. */
  restart(): void {
    for (const size of [this.#small, this.#large]) {
      size.since = undefined;
      size.packets = 0;
    }
  }

  /** The receiver may be another process that counts anew. */
  forget(): void {
    this.restart();
    this.#hasReported = false;
    for (const size of [this.#small, this.#large]) size.reported = 0;
  }

  /**
   * Since when a class has not been reported, the longest, although so many packets of it have left over so long a time. The time is what
   * tells a path that swallows packets from a flow that has ended: the report about its last ones may come before they are counted here.
   */
  silentSince(packets: number, milliseconds: number): Instant | undefined {
    if (!this.#hasReported) return undefined;
    const silent = [this.#small, this.#large].filter(
      (size) => size.packets >= packets && size.since !== undefined && size.latest - size.since >= milliseconds,
    );
    return earliest(...silent.map(({ since }) => since));
  }
}

function count(size: Class, packets: number, now: Instant): void {
  if (packets === 0) return;
  // What was left over from before a pause was most likely reported before it was counted, and no later report will tell of it.
  if (now - size.latest > PAUSE_MS) {
    size.since = undefined;
    size.packets = 0;
  }
  size.since ??= now;
  size.latest = now;
  size.packets += packets;
}

function settle(size: Class, total: number): void {
  if (total <= size.reported) return;
  size.reported = total;
  size.since = undefined;
  size.packets = 0;
}
