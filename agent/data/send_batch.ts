/**
 * Collects sealed frames that may leave together. Frames of one size on one path, the last of them perhaps shorter, are a **run** and leave
 * as one message (UDP_SEGMENT of Linux); several runs on one leg leave in one call (sendmmsg). While the engine has work at hand it holds
 * the batch open (`cork`); otherwise each frame leaves as it is sealed.
 */
import type { Leg, PathRef, SealedRun } from "./plane.ts";

/** Of a run. UDP_MAX_SEGMENTS of Linux before 6.9, which every kernel takes. */
const MAX_FRAMES = 64;
/** Of a batch, and so of a run: the largest UDP payload over IPv4 is 65 507 bytes. More would only keep the receiver waiting. */
const MAX_BYTES = 65_000;
const MAX_RUNS = 64;

/** A run, and whose it is. Those of a batch are used again for the next. */
export interface OwnedRun<Owner> extends SealedRun {
  path: PathRef;
  start: number;
  length: number;
  frameBytes: number;
  owner: Owner;
}

export class SendBatch<Owner> {
  readonly bytes: Uint8Array;
  readonly #send: (leg: Leg, runs: readonly OwnedRun<Owner>[], count: number) => void;
  readonly #runs: OwnedRun<Owner>[] = [];
  #count = 0;
  /** The newest one; undefined after it has been sent, or when nothing fits behind its last frame. */
  #open: OwnedRun<Owner> | undefined;
  #frames = 0;
  #length = 0;
  #isCorked = false;

  /** @param largest the largest frame that may come */
  constructor(largest: number, send: (leg: Leg, runs: readonly OwnedRun<Owner>[], count: number) => void) {
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
    if (this.#count > 0 && (this.#length + length > MAX_BYTES || path.leg !== this.#runs[0]?.path.leg)) this.flush();
    const open = this.#open;
    const fits =
      open !== undefined &&
      this.#frames > 0 &&
      this.#frames < MAX_FRAMES &&
      length <= open.frameBytes &&
      owner === open.owner &&
      isSamePath(path, open.path);
    if (!fits) this.#begin(path, length, owner);
    return this.#length;
  }

  /** The frame of this length has been written where `place` said. */
  add(length: number): void {
    const open = this.#open;
    if (open === undefined) return;
    this.#length += length;
    this.#frames++;
    open.length += length;
    // A shorter frame ends a run.
    if (length < open.frameBytes) this.#open = undefined;
    if (!this.#isCorked) this.flush();
  }

  flush(): void {
    const leg = this.#runs[0]?.path.leg;
    // One that has been begun may have no frame: it could not be sealed.
    const count = this.#frames === 0 ? this.#count - 1 : this.#count;
    this.#length = 0;
    this.#frames = 0;
    this.#count = 0;
    this.#open = undefined;
    if (leg !== undefined && count > 0) this.#send(leg, this.#runs, count);
  }

  #begin(path: PathRef, frameBytes: number, owner: Owner): void {
    if (this.#count === MAX_RUNS) this.flush();
    if (this.#count === 0 || this.#frames > 0) this.#count++;
    this.#frames = 0;
    const start = this.#length;
    let run = this.#runs[this.#count - 1];
    if (run === undefined) {
      run = { path, owner, start, length: 0, frameBytes, errno: 0 };
      this.#runs.push(run);
    } else {
      run.path = path;
      run.owner = owner;
      run.start = start;
      run.length = 0;
      run.frameBytes = frameBytes;
      run.errno = 0;
    }
    this.#open = run;
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
