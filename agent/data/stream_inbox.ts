/** Stream frames on their way up: what one turn of the engine brings goes to control as one batch per peer. */
import { BatchWriter } from "../../shared/batch.ts";
import type { PeerSlot } from "./plane.ts";

const FIRST_CAPACITY_BYTES = 16 * 1024;

export class StreamInbox {
  readonly #batches = new Map<PeerSlot, BatchWriter>();

  get isEmpty(): boolean {
    return this.#batches.size === 0;
  }

  /** @param body the frame behind its type byte; copied */
  add(peer: PeerSlot, body: Uint8Array): void {
    let batch = this.#batches.get(peer);
    if (batch === undefined) {
      batch = new BatchWriter(FIRST_CAPACITY_BYTES);
      this.#batches.set(peer, batch);
    }
    batch.push(body);
  }

  /** Hands on everything that waits. */
  flush(report: (peer: PeerSlot, batch: Uint8Array) => void): void {
    for (const [peer, batch] of this.#batches) report(peer, batch.take());
    this.#batches.clear();
  }
}
