/**
 * Puts IP packets together again that were cut to fit a small path (PROTOCOL.md, "Fragments").
 *
 * Everything here has been authenticated, so the caps protect against a hostile or broken peer, not against strangers.
 */
import { after, type Instant } from "../../shared/time.ts";
import { FRAGMENT_HEADER_BYTES, readFragmentHeader } from "../../shared/wire/frame.ts";

/** Packets in the making per peer: enough for reordering over two paths. */
const MAX_PARTIAL = 32;
/** The last fragment follows the first within a path's jitter; later ones are of a packet that the inner protocol has given up on. */
const LIFETIME_MS = 1000;
const MAX_PACKET_BYTES = 65_535;

interface Partial {
  readonly parts: (Uint8Array | undefined)[];
  readonly expiresAt: Instant;
  missing: number;
  bytes: number;
}

export class Reassembly {
  readonly #partials = new Map<number, Partial>();

  /** Adds one fragment frame (type byte included, borrowed); returns the whole packet once its last part has come. */
  add(plaintext: Uint8Array, now: Instant): Uint8Array | undefined {
    const header = readFragmentHeader(plaintext);
    if (header === undefined) return undefined;
    let partial = this.#partials.get(header.id);
    if (partial !== undefined && now >= partial.expiresAt) {
      this.#partials.delete(header.id);
      partial = undefined;
    }
    if (partial === undefined) {
      this.#makeRoom(now);
      partial = {
        parts: Array.from({ length: header.count }),
        expiresAt: after(now, LIFETIME_MS),
        missing: header.count,
        bytes: 0,
      };
      this.#partials.set(header.id, partial);
    }
    if (partial.parts.length !== header.count || partial.parts[header.index] !== undefined) return undefined;
    const body = plaintext.slice(FRAGMENT_HEADER_BYTES);
    partial.bytes += body.length;
    if (partial.bytes > MAX_PACKET_BYTES) {
      this.#partials.delete(header.id);
      return undefined;
    }
    partial.parts[header.index] = body;
    partial.missing--;
    if (partial.missing > 0) return undefined;
    this.#partials.delete(header.id);
    const packet = new Uint8Array(partial.bytes);
    let at = 0;
    for (const part of partial.parts) {
      if (part === undefined) continue;
      packet.set(part, at);
      at += part.length;
    }
    return packet;
  }

  /** Drops what has expired, and the oldest when the table is still full. */
  #makeRoom(now: Instant): void {
    if (this.#partials.size < MAX_PARTIAL) return;
    for (const [id, partial] of this.#partials) if (now >= partial.expiresAt) this.#partials.delete(id);
    const oldest = this.#partials.keys().next();
    if (this.#partials.size >= MAX_PARTIAL && !oldest.done) this.#partials.delete(oldest.value);
  }
}
