/**
 * Seals and opens frames under the keys of one epoch (PROTOCOL.md, "Sealed frames"): AES-256-GCM with the counter as nonce and the
 * frame's header as associated data.
 *
 * Behind one small interface, because two libraries do it: node:crypto here, everywhere, and libcrypto by FFI where the machine has it
 * (driver/linux/libcrypto.ts), at half the cost per frame. Neither allocates what the caller keeps; both work in place.
 */
import { createCipheriv, createDecipheriv } from "node:crypto";
import { counterNonce } from "../../shared/session/primitives.ts";
import { FRAME_HEADER_BYTES, FRAME_TAG_BYTES } from "../../shared/wire/frame.ts";
import type { EpochKeys } from "../../shared/session/peer_session.ts";

export interface FrameAead {
  /**
   * Seals `length` bytes of `plaintext` from `from` on into the frame that begins at `at` of `frame`, whose header is written already.
   * The frame ends 29 bytes behind the plaintext's length. False, and nothing to send, when the library fails.
   */
  seal(counter: number, plaintext: Uint8Array, from: number, length: number, frame: Uint8Array, at: number): boolean;
  /**
   * Opens the frame between `at` and `end` in place: its plaintext then stands between header and tag. False when it is not authentic;
   * what stands there is then worth nothing.
   */
  open(counter: number, frame: Uint8Array, at: number, end: number): boolean;
  /** Forgets the keys. */
  close(): void;
}

export type AeadFactory = (keys: EpochKeys) => FrameAead;

export const createNodeAead: AeadFactory = (keys) => new NodeAead(keys);

class NodeAead implements FrameAead {
  readonly #keys: EpochKeys;
  readonly #nonce = new Uint8Array(12);

  constructor(keys: EpochKeys) {
    this.#keys = keys;
  }

  seal(counter: number, plaintext: Uint8Array, from: number, length: number, frame: Uint8Array, at: number): boolean {
    const body = at + FRAME_HEADER_BYTES;
    const cipher = createCipheriv("aes-256-gcm", this.#keys.sendKey, counterNonce(counter, this.#nonce));
    cipher.setAAD(frame.subarray(at, body));
    frame.set(cipher.update(plaintext.subarray(from, from + length)), body);
    cipher.final();
    frame.set(cipher.getAuthTag(), body + length);
    return true;
  }

  open(counter: number, frame: Uint8Array, at: number, end: number): boolean {
    const body = at + FRAME_HEADER_BYTES;
    const tag = end - FRAME_TAG_BYTES;
    const decipher = createDecipheriv("aes-256-gcm", this.#keys.receiveKey, counterNonce(counter, this.#nonce));
    decipher.setAAD(frame.subarray(at, body));
    decipher.setAuthTag(frame.subarray(tag, end));
    const plaintext = decipher.update(frame.subarray(body, tag));
    try {
      decipher.final();
    } catch {
      return false;
    }
    frame.set(plaintext, body);
    return true;
  }

  close(): void {}
}
