/**
 * What one relay connection has still to send: a bounded queue for each peer, served in turn, the oldest dropped first, of which no more is
 * under way than the line carries (send_window.ts). So a loud peer neither pushes out nor holds up a quiet one. Told the time.
 */
import type { PeerId } from "../../shared/session/identity.ts";
import { FairQueue, type TakenFrame } from "../../shared/relay/fair_queue.ts";
import { after, type Instant } from "../../shared/time.ts";
import { RELAY_BATCH_BYTES } from "../../shared/wire/relay.ts";
import { SendWindow } from "./send_window.ts";

/**
 * A TCP connection that has been idle begins with 14 KB, and at 200 ms round trip takes over a second to carry the 8 Mbit/s of somebody who
 * has just come down the ladder: what it sends meanwhile may wait, or the switch would lose it.
 */
export const MAX_PEER_BYTES = 1024 * 1024;
export const MAX_UPLINK_BYTES = 4 * 1024 * 1024;
/** What waits all the time is another matter: the TCP inside has to slow down. */
const STANDING = { targetMs: 50, intervalMs: 500 } as const;
/** A frame that has waited for longer is of no use: whoever waits for it has asked again by then. As at the coordinator. */
export const MAX_WAIT_MS = 1000;

/** Since the agent started, over all connections of a kind. */
export interface UplinkCounters {
  sentFrames: number;
  /** Queue full: the oldest went. */
  droppedOverflow: number;
  /** Waited too long, or in a queue that stood. */
  droppedLate: number;
}

export const noUplinkCounters = (): UplinkCounters => ({ sentFrames: 0, droppedOverflow: 0, droppedLate: 0 });

export class RelayUplink {
  readonly #queue = new FairQueue({ maxSourceBytes: MAX_PEER_BYTES, maxBytes: MAX_UPLINK_BYTES, standing: STANDING });
  readonly #window = new SendWindow();
  readonly #counters: UplinkCounters;

  constructor(counters: UplinkCounters) {
    this.#counters = counters;
  }

  /**
   * Keeps the frames themselves and no copies.
   *
   * @param lanes one for each frame (shared/relay/flow_queue.ts); without them all are of one flow
   */
  push(peer: PeerId, frames: readonly Uint8Array[], lanes: readonly number[], now: Instant): void {
    for (const [i, frame] of frames.entries()) {
      this.#counters.droppedOverflow += this.#queue.push(peer, frame, now, lanes[i]);
    }
  }

  /** This peer is let go. */
  clear(peer: PeerId): void {
    this.#queue.clear(peer);
  }

  /**
   * The next batch; empty when nothing waits or the window is full.
   *
   * @param perFrame bytes that each frame takes besides itself
   * @param isReady false for a peer whose frames cannot be sent at this moment
   */
  take(perFrame: number, now: Instant, isReady?: (peer: PeerId) => boolean): TakenFrame[] {
    const room = this.#window.room(now);
    if (room <= 0) return [];
    this.#counters.droppedLate += this.#queue.dropBefore(after(now, -MAX_WAIT_MS)) + this.#queue.dropStanding(now);
    const taken = this.#queue.take(Math.min(room, RELAY_BATCH_BYTES - 1), perFrame, isReady);
    this.#counters.sentFrames += taken.length;
    return taken;
  }

  /** So many bytes have been written. True: a mark has to follow. */
  onSent(bytes: number, now: Instant): boolean {
    return this.#window.onSent(bytes, now);
  }

  /** Nothing may be sent, and no answer is awaited that would change this. */
  isStuck(now: Instant): boolean {
    return this.#window.isStuck(now);
  }

  onMarked(now: Instant): void {
    this.#window.onMarked(now);
  }

  onAnswered(now: Instant): void {
    this.#window.onAnswered(now);
  }
}
