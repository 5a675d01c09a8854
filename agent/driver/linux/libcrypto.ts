/**
 * AES-256-GCM of the machine's own libcrypto: half the cost per frame of node:crypto, which makes six objects for each.
 *
 * One context per direction is kept with its key expanded; a frame sets only the nonce. The library is trusted only after it has sealed
 * a frame to the same bytes as node:crypto and opened it again; where it is missing, or answers otherwise, node:crypto does the work.
 */
import { dlopen, type Pointer, ptr } from "bun:ffi";
import { type AeadFactory, createNodeAead, type FrameAead } from "../../data/aead.ts";
import { equalBytes } from "../../../shared/bytes.ts";
import { counterNonce } from "../../../shared/session/primitives.ts";
import type { EpochKeys } from "../../../shared/session/peer_session.ts";
import { FRAME_HEADER_BYTES, FRAME_TAG_BYTES, writeFrameHeader } from "../../../shared/wire/frame.ts";

/** OpenSSL 3, then 1.1: the calls below are the same in both. */
const CANDIDATES = ["libcrypto.so.3", "libcrypto.so.1.1"];

/** openssl/evp.h */
const EVP_CTRL_AEAD_GET_TAG = 0x10;
const EVP_CTRL_AEAD_SET_TAG = 0x11;
const ENCRYPT = 1;
const DECRYPT = 0;

/** Addresses travel as numbers, so that no view has to be made for a place inside a buffer. */
const SYMBOLS = {
  EVP_aes_256_gcm: { args: [], returns: "ptr" },
  EVP_CIPHER_CTX_new: { args: [], returns: "ptr" },
  EVP_CIPHER_CTX_free: { args: ["u64"], returns: "void" },
  EVP_CIPHER_CTX_ctrl: { args: ["u64", "i32", "i32", "u64"], returns: "i32" },
  EVP_CipherInit_ex: { args: ["u64", "u64", "u64", "u64", "u64", "i32"], returns: "i32" },
  EVP_CipherUpdate: { args: ["u64", "u64", "u64", "u64", "i32"], returns: "i32" },
  EVP_CipherFinal_ex: { args: ["u64", "u64", "u64"], returns: "i32" },
} as const;

type Calls = ReturnType<typeof dlopen<typeof SYMBOLS>>["symbols"];

/** The factory of this machine, with its name for counters and logs. */
export interface ChosenAead {
  readonly name: "libcrypto" | "node:crypto";
  readonly create: AeadFactory;
}

/** @param useLibcrypto false: node:crypto even where libcrypto is there */
export function chooseAead(useLibcrypto = true): ChosenAead {
  const create = useLibcrypto ? loadLibcryptoAead() : undefined;
  return create === undefined ? { name: "node:crypto", create: createNodeAead } : { name: "libcrypto", create };
}

/** Undefined when there is no libcrypto here, or none that can be believed. */
export function loadLibcryptoAead(): AeadFactory | undefined {
  if (process.platform !== "linux") return undefined;
  for (const name of CANDIDATES) {
    try {
      const { symbols } = dlopen(name, SYMBOLS);
      const create: AeadFactory = (keys) => new LibcryptoAead(symbols, keys);
      if (isSound(create)) return create;
    } catch {
      // The next name, and in the end node:crypto.
    }
  }
  return undefined;
}

/** Seals as node:crypto does, opens what it sealed, refuses what was changed. */
function isSound(create: AeadFactory): boolean {
  const key = Uint8Array.from({ length: 32 }, (_, i) => i * 7);
  const keys = { localIndex: 1, remoteIndex: 2, sendKey: key, receiveKey: key };
  const plaintext = Uint8Array.from({ length: 100 }, (_, i) => i);
  const [expected, sealed] = [createNodeAead(keys), create(keys)].map((aead) => {
    const frame = new Uint8Array(FRAME_HEADER_BYTES + plaintext.length + FRAME_TAG_BYTES);
    writeFrameHeader(frame, keys.remoteIndex, 2 ** 33 + 5);
    aead.seal(2 ** 33 + 5, plaintext, 0, plaintext.length, frame, 0);
    aead.close();
    return frame;
  });
  if (expected === undefined || sealed === undefined || !equalBytes(expected, sealed)) return false;
  const aead = create(keys);
  const forged = sealed.slice();
  forged[FRAME_HEADER_BYTES] = (forged[FRAME_HEADER_BYTES] ?? 0) ^ 1;
  const refuses = !aead.open(2 ** 33 + 5, forged, 0, forged.length);
  const opens = aead.open(2 ** 33 + 5, sealed, 0, sealed.length);
  aead.close();
  const opened = sealed.subarray(FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + plaintext.length);
  return refuses && opens && equalBytes(opened, plaintext);
}

class LibcryptoAead implements FrameAead {
  readonly #calls: Calls;
  /** Over buffers of their own, so that they stay where they are. */
  readonly #nonce = new Uint8Array(new ArrayBuffer(12));
  readonly #nonceAt: Pointer = ptr(this.#nonce);
  readonly #written = new Int32Array(new ArrayBuffer(4));
  readonly #writtenAt: Pointer = ptr(this.#written);
  #sealing: number;
  #opening: number;

  constructor(calls: Calls, keys: EpochKeys) {
    this.#calls = calls;
    this.#sealing = newContext(calls, keys.sendKey, ENCRYPT);
    this.#opening = newContext(calls, keys.receiveKey, DECRYPT);
  }

  seal(counter: number, plaintext: Uint8Array, from: number, length: number, frame: Uint8Array, at: number): boolean {
    const calls = this.#calls;
    const context = this.#sealing;
    if (context === 0) return false;
    const header = addressOf(frame) + at;
    const body = header + FRAME_HEADER_BYTES;
    counterNonce(counter, this.#nonce);
    return (
      calls.EVP_CipherInit_ex(context, 0, 0, 0, this.#nonceAt, ENCRYPT) === 1 &&
      calls.EVP_CipherUpdate(context, 0, this.#writtenAt, header, FRAME_HEADER_BYTES) === 1 &&
      calls.EVP_CipherUpdate(context, body, this.#writtenAt, addressOf(plaintext) + from, length) === 1 &&
      calls.EVP_CipherFinal_ex(context, body + length, this.#writtenAt) === 1 &&
      calls.EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, FRAME_TAG_BYTES, body + length) === 1
    );
  }

  open(counter: number, frame: Uint8Array, at: number, end: number): boolean {
    const calls = this.#calls;
    const context = this.#opening;
    const header = addressOf(frame) + at;
    const body = header + FRAME_HEADER_BYTES;
    const length = end - at - FRAME_HEADER_BYTES - FRAME_TAG_BYTES;
    if (context === 0 || length < 0) return false;
    counterNonce(counter, this.#nonce);
    return (
      calls.EVP_CipherInit_ex(context, 0, 0, 0, this.#nonceAt, DECRYPT) === 1 &&
      calls.EVP_CipherUpdate(context, 0, this.#writtenAt, header, FRAME_HEADER_BYTES) === 1 &&
      calls.EVP_CipherUpdate(context, body, this.#writtenAt, body, length) === 1 &&
      calls.EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, FRAME_TAG_BYTES, body + length) === 1 &&
      calls.EVP_CipherFinal_ex(context, body + length, this.#writtenAt) === 1
    );
  }

  close(): void {
    // Wipes the expanded keys as well.
    for (const context of [this.#sealing, this.#opening]) if (context !== 0) this.#calls.EVP_CIPHER_CTX_free(context);
    this.#sealing = 0;
    this.#opening = 0;
  }
}

function newContext(calls: Calls, key: Uint8Array, direction: number): number {
  const context = Number(calls.EVP_CIPHER_CTX_new() ?? 0);
  const cipher = Number(calls.EVP_aes_256_gcm() ?? 0);
  if (context === 0 || cipher === 0 || calls.EVP_CipherInit_ex(context, cipher, 0, ptr(key), 0, direction) !== 1) {
    if (context !== 0) calls.EVP_CIPHER_CTX_free(context);
    throw new Error("Cannot set up AES-256-GCM: libcrypto refuses it");
  }
  return context;
}

/** JavaScriptCore moves the bytes of an array up to 1000 bytes long when its `buffer` is first asked for; those of longer ones stay. */
const STAYS_BYTES = 4096;

/** The data path works in a handful of buffers that live as long as it does: the two used last are remembered. */
let newest: Uint8Array | undefined;
let newestAt = 0;
let older: Uint8Array | undefined;
let olderAt = 0;

function addressOf(bytes: Uint8Array): number {
  if (bytes === newest) return newestAt;
  if (bytes === older) return olderAt;
  if (bytes.length < STAYS_BYTES) return ptr(bytes);
  older = newest;
  olderAt = newestAt;
  newest = bytes;
  newestAt = ptr(bytes);
  return newestAt;
}
