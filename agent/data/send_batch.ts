/**
 * Collects sealed frames that may leave in one call: frames of one size on one path, the last of them perhaps shorter (UDP_SEGMENT of
 * Linux). While the engine has work at hand it holds the batch open (`cork`); otherwise each frame leaves as it is sealed.
 */
import type { PathRef } from "./plane.ts";

/** UDP_MAX_SEGMENTS of Linux before 6.9, which every kernel takes. */
const MAX_FRAMES = 64;
/** The largest UDP payload over IPv4 is 65 507 bytes. */
const MAX_BYTES = 65_000;

export class SendBatch<Owner> {
  readonly bytes: Uint8Array;
  readonly #send: (path: PathRef, bytes: Uint8Array, frameBytes: number, frames: number, owner: Owner) => void;
  #path: PathRef | undefined;
  #owner: Owner | undefined;
  #frameBytes = 0;
  #frames = 0;
  #length = 0;
  #isCorked = false;
  /** A shorter frame ends a batch. */
  #isEnded = false;

  /** @param largest the largest frame that may come */
  constructor(
    largest: number,
    send: (path: PathRef, bytes: Uint8Array, frameBytes: number, frames: number, owner: Owner) => void,
  ) {
    this.bytes = new Uint8Array(MAX_BYTES + largest);
    this.#send = send;
  }

  cork(): void {
    this.#isCorked = true;
  }

  uncork(): void {
    this.#isCorked = false;
    this.flush();
  }

  /** Where in `bytes` the next frame is to be written. What cannot travel with it leaves now. */
  place(path: PathRef, length: number, owner: Owner): number {
    const fits =
      this.#frames > 0 &&
      !this.#isEnded &&
      length <= this.#frameBytes &&
      this.#frames < MAX_FRAMES &&
      this.#length + length <= MAX_BYTES &&
      owner === this.#owner &&
      isSamePath(path, this.#path);
    if (!fits) {
      this.flush();
      this.#path = path;
      this.#owner = owner;
      this.#frameBytes = length;
    }
    return this.#length;
  }

  /** The frame of this length has been written where `place` said. */
  add(length: number): void {
    this.#length += length;
    this.#frames++;
    if (length < this.#frameBytes) this.#isEnded = true;
    if (!this.#isCorked) this.flush();
  }

  flush(): void {
    const path = this.#path;
    const owner = this.#owner;
    const frames = this.#frames;
    if (frames === 0 || path === undefined || owner === undefined) return;
    const bytes = this.bytes.subarray(0, this.#length);
    this.#length = 0;
    this.#frames = 0;
    this.#isEnded = false;
    this.#send(path, bytes, this.#frameBytes, frames, owner);
  }
}

/** The frames of a batch, for those who send them one by one. */
export function* framesOf(bytes: Uint8Array, frameBytes: number): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += frameBytes) yield bytes.subarray(at, at + frameBytes);
}

function isSamePath(path: PathRef, other: PathRef | undefined): boolean {
  if (path === other) return true;
  if (other === undefined || path.leg !== other.leg || path.hops !== other.hops || path.to.length !== other.to.length)
    return false;
  for (let i = path.to.length - 1; i >= 0; i--) if (path.to[i] !== other.to[i]) return false;
  return true;
}
