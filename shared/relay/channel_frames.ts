/**
 * Frames in the byte stream of an SSH channel: length 2, frame, repeated. A channel belongs to one peer, so no index is needed. Pure.
 */
const LENGTH_BYTES = 2;

export function encodeChannelFrames(frames: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(frames.reduce((sum, frame) => sum + LENGTH_BYTES + frame.length, 0));
  let at = 0;
  for (const frame of frames) {
    out[at] = frame.length >>> 8;
    out[at + 1] = frame.length;
    out.set(frame, at + LENGTH_BYTES);
    at += LENGTH_BYTES + frame.length;
  }
  return out;
}

/** Puts frames together again from whatever pieces arrive; it never keeps more than one unfinished frame. */
export class ChannelFrameReader {
  #rest: Uint8Array = new Uint8Array(0);

  /** The frames that `chunk` completes, as views into it where possible. Empty frames are left out. */
  push(chunk: Uint8Array): Uint8Array[] {
    let bytes = chunk;
    if (this.#rest.length > 0) {
      bytes = new Uint8Array(this.#rest.length + chunk.length);
      bytes.set(this.#rest);
      bytes.set(chunk, this.#rest.length);
    }
    const frames: Uint8Array[] = [];
    let at = 0;
    while (at + LENGTH_BYTES <= bytes.length) {
      const length = ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
      const end = at + LENGTH_BYTES + length;
      if (end > bytes.length) break;
      if (length > 0) frames.push(bytes.subarray(at + LENGTH_BYTES, end));
      at = end;
    }
    this.#rest = bytes.slice(at);
    return frames;
  }
}
