/**
 * The timestamps of handshakes, Unix milliseconds that only grow: file `handshake_clock.json`.
 *
 * Ours grow also when the wall clock jumps back by hours and across restarts, or peers would refuse us as a replay. Time is
 * reserved on disk in blocks, ahead of its use, so a handshake costs no write and a kill costs at most one block.
 *
 * The greatest timestamp of each peer is kept as well, and written when the driver says so: what a kill loses is the memory of the
 * last seconds, in which a replayed initiation opens a session that nobody can use.
 */
import { join } from "node:path";
import * as v from "valibot";
import { isPeerId, type PeerId } from "../../shared/session/identity.ts";
import { readJsonIfPresent, writeAtomically } from "./atomic_file.ts";

const FILE = "handshake_clock.json";
/** Reserved ahead per write. A restart loses what is left of it, so an agent that restarts often runs ahead by this much each time. */
const BLOCK_MS = 60_000;
/** Peers that are remembered; beyond it the one with the oldest timestamp goes. */
export const MAX_PEERS = 4096;
/** After a failed write the next attempt waits this long, on the clock that `next` is given: a full disk must not be hammered. */
const RETRY_MS = 5000;

const Timestamp = v.pipe(v.number(), v.integer(), v.minValue(0));
const Schema = v.object({
  schema: v.literal(1),
  reservedUntil: Timestamp,
  peers: v.pipe(
    v.array(
      v.tuple([
        v.pipe(
          v.string(),
          v.check((text) => isPeerId(text)),
          v.transform((text) => text as PeerId),
        ),
        Timestamp,
      ]),
    ),
    v.maxLength(MAX_PEERS),
  ),
});

export class HandshakeClock {
  readonly path: string;
  readonly #peers: Map<PeerId, number>;
  readonly #onWriteError: (error: unknown) => void;
  /** Greatest timestamp that was given out or may have been. */
  #last: number;
  #reservedUntil: number;
  #dirty = false;
  #failedAt: number | undefined;

  /** @param onWriteError told of writes that fail while the agent runs; the first one, here, throws instead */
  constructor(stateDir: string, nowUnixMs: number, onWriteError: (error: unknown) => void) {
    this.path = join(stateDir, FILE);
    this.#onWriteError = onWriteError;
    const saved = readJsonIfPresent(
      this.path,
      Schema,
      "restore it from a backup, or remove it: peers then accept this machine as long as its clock is right",
    );
    this.#peers = new Map(saved?.peers);
    this.#last = saved?.reservedUntil ?? 0;
    this.#reservedUntil = this.#last;
    this.#reserve(Math.max(Math.floor(nowUnixMs), this.#last + 1));
  }

  /** A timestamp greater than every one before, equal to the wall clock where that is possible. */
  next(nowUnixMs: number): number {
    const timestamp = Math.max(Math.floor(nowUnixMs), this.#last + 1);
    this.#last = timestamp;
    if (timestamp > this.#reservedUntil) this.#attempt(nowUnixMs, () => this.#reserve(timestamp));
    return timestamp;
  }

  /** Greatest timestamp seen of this peer, 0 if none. */
  greatestOf(peer: PeerId): number {
    return this.#peers.get(peer) ?? 0;
  }

  /** An authenticated handshake of `peer` carried `timestamp`. False when it is not newer than every one before: a replay. */
  accept(peer: PeerId, timestamp: number): boolean {
    if (timestamp <= this.greatestOf(peer)) return false;
    if (!this.#peers.has(peer) && this.#peers.size >= MAX_PEERS) this.#forgetOldest();
    this.#peers.set(peer, timestamp);
    this.#dirty = true;
    return true;
  }

  /** Writes what peers' handshakes have changed, if anything. The driver calls it every few seconds and at the end. */
  flush(nowUnixMs: number): void {
    if (this.#dirty) this.#attempt(nowUnixMs, () => this.#reserve(this.#last));
  }

  #attempt(nowUnixMs: number, write: () => void): void {
    if (this.#failedAt !== undefined && Math.abs(nowUnixMs - this.#failedAt) < RETRY_MS) return;
    try {
      write();
      this.#failedAt = undefined;
    } catch (error) {
      this.#failedAt = nowUnixMs;
      this.#onWriteError(error);
    }
  }

  #reserve(from: number): void {
    // What was reserved stays so: a flush must not shorten it.
    const reservedUntil = Math.max(this.#reservedUntil, from + BLOCK_MS);
    const content = { schema: 1, reservedUntil, peers: [...this.#peers] };
    writeAtomically(this.path, `${JSON.stringify(content)}\n`);
    this.#reservedUntil = reservedUntil;
    this.#dirty = false;
  }

  #forgetOldest(): void {
    let oldest: [PeerId, number] | undefined;
    for (const entry of this.#peers) if (oldest === undefined || entry[1] < oldest[1]) oldest = entry;
    if (oldest !== undefined) this.#peers.delete(oldest[0]);
  }
}
