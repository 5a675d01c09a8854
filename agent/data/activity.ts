/** Counts what passes, and says when control has to be told: of how much, and of where the newest frame came from. */
import { after, type Instant } from "../../shared/time.ts";
import type { DataPeer } from "./data_peer.ts";
import type { PlaneIo } from "./plane.ts";

/** Between two reports of activity. The first packet after a pause is told at once: a slow flow's death would show that much later. */
const ACTIVITY_INTERVAL_MS = 100;
/** Half of the largest packet that the TUN device gives: whether such pass is worth a proof of its own. */
const LARGE_PACKET_BYTES = 640;

export class Activity {
  readonly #io: Pick<PlaneIo, "report">;
  readonly #timed: Set<DataPeer>;

  /** @param timed gets those of whom something is to be told */
  constructor(io: Pick<PlaneIo, "report">, timed: Set<DataPeer>) {
    this.#io = io;
    this.#timed = timed;
  }

  /** @param packets IP packets that the `length` bytes stand for */
  countReceived(peer: DataPeer, length: number, packets: number, now: Instant | undefined): void {
    peer.rxPackets += packets;
    peer.rxBytes += length;
    if (length >= LARGE_PACKET_BYTES) peer.received.large += packets;
    else peer.received.small += packets;
    this.#note(peer, now);
  }

  countSent(peer: DataPeer, length: number, packets: number, now: Instant): void {
    peer.txPackets += packets;
    peer.txBytes += length;
    if (length >= LARGE_PACKET_BYTES) peer.sent.large += packets;
    else peer.sent.small += packets;
    this.#note(peer, now);
  }

  reportDue(peer: DataPeer, now: Instant): void {
    if (peer.activityDueAt === undefined || now < peer.activityDueAt) return;
    const { slot, sent, received, fromLeg } = peer;
    peer.sent = { small: 0, large: 0 };
    peer.received = { small: 0, large: 0 };
    peer.activityDueAt = undefined;
    peer.activityAt = now;
    const from = peer.from.slice();
    this.#io.report({ type: "activity", peer: slot, sent, received, leg: fromLeg, from, at: now });
  }

  #note(peer: DataPeer, now: Instant | undefined): void {
    if (peer.activityDueAt !== undefined || now === undefined) return;
    const soonest = peer.activityAt === undefined ? now : after(peer.activityAt, ACTIVITY_INTERVAL_MS);
    peer.activityDueAt = soonest > now ? soonest : now;
    this.#timed.add(peer);
  }
}
