/**
 * The Noise handshake (Noise Protocol Framework, revision 34) with 25519, AESGCM and SHA256: patterns IK (agent to agent) and XX
 * (agent to coordinator). Takes keys as arguments, makes no randomness.
 *
 * A handshake object is consumed by its messages in order. A message that fails to authenticate leaves it as it was, so that a
 * forged answer cannot spoil a handshake whose genuine answer is still on its way.
 */
import { concatBytes, utf8 } from "../bytes.ts";
import {
  aeadOpen,
  aeadSeal,
  counterNonce,
  HASH_BYTES,
  hmacSha256,
  KEY_BYTES,
  sha256,
  TAG_BYTES,
  X25519Key,
} from "./primitives.ts";

type Token = "e" | "s" | "ee" | "es" | "se" | "ss";
export type NoisePattern = "IK" | "XX";

/** Message tokens, and whether the responder's static key is known beforehand (Noise §7.4, §7.5). */
const PATTERNS: Readonly<
  Record<NoisePattern, { preResponderStatic: boolean; messages: readonly (readonly Token[])[] }>
> = {
  IK: {
    preResponderStatic: true,
    messages: [
      ["e", "es", "s", "ss"],
      ["e", "ee", "se"],
    ],
  },
  XX: { preResponderStatic: false, messages: [["e"], ["e", "ee", "s", "es"], ["s", "se"]] },
};

/** HKDF of Noise §4.3 with two outputs. */
export function noiseHkdf(chainingKey: Uint8Array, material: Uint8Array): [Uint8Array, Uint8Array] {
  const temporary = hmacSha256(chainingKey, material);
  const first = hmacSha256(temporary, Uint8Array.of(1));
  return [first, hmacSha256(temporary, concatBytes(first, Uint8Array.of(2)))];
}

/** Keys of the two directions after the handshake (Noise §5.2 Split), and its hash for channel binding. */
export interface NoiseKeys {
  readonly send: Uint8Array;
  readonly receive: Uint8Array;
  readonly handshakeHash: Uint8Array;
}

export interface NoiseOptions {
  readonly pattern: NoisePattern;
  readonly initiator: boolean;
  readonly prologue: Uint8Array;
  readonly staticKey: X25519Key;
  /** Fresh for each handshake. */
  readonly ephemeral: X25519Key;
  /** The responder's static key: required of an IK initiator, otherwise absent. */
  readonly remoteStatic?: Uint8Array;
}

export class NoiseHandshake {
  readonly #options: NoiseOptions;
  readonly #messages: readonly (readonly Token[])[];
  #hash: Uint8Array;
  #chainingKey: Uint8Array;
  #key: Uint8Array | undefined;
  #nonce = 0;
  #next = 0;
  #remoteStatic: Uint8Array | undefined;
  #remoteEphemeral: Uint8Array | undefined;

  constructor(options: NoiseOptions) {
    this.#options = options;
    const pattern = PATTERNS[options.pattern];
    this.#messages = pattern.messages;
    const name = utf8(`Noise_${options.pattern}_25519_AESGCM_SHA256`);
    // Names of at most 32 bytes are padded, longer ones hashed (Noise §5.2 InitializeSymmetric).
    this.#hash = name.length <= HASH_BYTES ? concatBytes(name, new Uint8Array(HASH_BYTES - name.length)) : sha256(name);
    this.#chainingKey = this.#hash;
    this.#remoteStatic = options.remoteStatic;
    this.#mixHash(options.prologue);
    if (pattern.preResponderStatic) {
      const responder = options.initiator ? options.remoteStatic : options.staticKey.publicKey;
      if (responder === undefined) throw new Error("IK needs the responder's static key");
      this.#mixHash(responder);
    }
  }

  /** The peer's static key, once a message has shown it. */
  get remoteStatic(): Uint8Array | undefined {
    return this.#remoteStatic;
  }

  get isComplete(): boolean {
    return this.#next === this.#messages.length;
  }

  /** Is it our turn to write? */
  get isOurTurn(): boolean {
    return !this.isComplete && (this.#next % 2 === 0) === this.#options.initiator;
  }

  /** Undefined only when a key of the peer's is a low-order point. */
  writeMessage(payload: Uint8Array): Uint8Array | undefined {
    if (!this.isOurTurn) throw new Error("Not our turn to write");
    const parts: Uint8Array[] = [];
    for (const token of this.#messages[this.#next] ?? []) {
      if (token === "e") {
        parts.push(this.#options.ephemeral.publicKey);
        this.#mixHash(this.#options.ephemeral.publicKey);
      } else if (token === "s") {
        parts.push(this.#encryptAndHash(this.#options.staticKey.publicKey));
      } else if (!this.#mixDh(token)) {
        return undefined;
      }
    }
    parts.push(this.#encryptAndHash(payload));
    this.#next++;
    return concatBytes(...parts);
  }

  /**
   * The payload, or undefined when the message is not authentic; the object is then as it was before.
   * @param accept judges the payload of an authentic message; when it says no, the message counts as not authentic
   */
  readMessage(message: Uint8Array, accept: (payload: Uint8Array) => boolean = () => true): Uint8Array | undefined {
    if (this.isComplete || this.isOurTurn) return undefined;
    const before = [
      this.#hash,
      this.#chainingKey,
      this.#key,
      this.#nonce,
      this.#remoteStatic,
      this.#remoteEphemeral,
    ] as const;
    const payload = this.#readTokens(message);
    if (payload === undefined || !accept(payload)) {
      [this.#hash, this.#chainingKey, this.#key, this.#nonce, this.#remoteStatic, this.#remoteEphemeral] = before;
      return undefined;
    }
    this.#next++;
    return payload;
  }

  #readTokens(message: Uint8Array): Uint8Array | undefined {
    let at = 0;
    const take = (length: number): Uint8Array | undefined => {
      const part = message.slice(at, at + length);
      at += length;
      return part.length === length ? part : undefined;
    };
    for (const token of this.#messages[this.#next] ?? []) {
      if (token === "e") {
        this.#remoteEphemeral = take(KEY_BYTES);
        if (this.#remoteEphemeral === undefined) return undefined;
        this.#mixHash(this.#remoteEphemeral);
      } else if (token === "s") {
        const sealed = take(KEY_BYTES + TAG_BYTES);
        const opened = sealed === undefined ? undefined : this.#decryptAndHash(sealed);
        if (opened === undefined) return undefined;
        this.#remoteStatic = Uint8Array.from(opened);
      } else if (!this.#mixDh(token)) {
        return undefined;
      }
    }
    return this.#decryptAndHash(message.subarray(at));
  }

  /** Transport keys (Noise §5.2 Split). Only after the last message. */
  split(): NoiseKeys {
    if (!this.isComplete) throw new Error("Handshake is not complete");
    const [first, second] = noiseHkdf(this.#chainingKey, new Uint8Array(0));
    const handshakeHash = this.#hash;
    return this.#options.initiator
      ? { send: first, receive: second, handshakeHash }
      : { send: second, receive: first, handshakeHash };
  }

  #mixHash(data: Uint8Array): void {
    this.#hash = sha256(this.#hash, data);
  }

  #mixDh(token: "ee" | "es" | "se" | "ss"): boolean {
    const { initiator, ephemeral, staticKey } = this.#options;
    // The first letter names the initiator's key, the second the responder's (Noise §5.3).
    const [initiatorKind, responderKind] = [token[0], token[1]];
    const ours = (initiator ? initiatorKind : responderKind) === "e" ? ephemeral : staticKey;
    const theirs = (initiator ? responderKind : initiatorKind) === "e" ? this.#remoteEphemeral : this.#remoteStatic;
    const secret = theirs === undefined ? undefined : ours.dh(theirs);
    if (secret === undefined) return false;
    [this.#chainingKey, this.#key] = noiseHkdf(this.#chainingKey, secret);
    this.#nonce = 0;
    return true;
  }

  #encryptAndHash(plaintext: Uint8Array): Uint8Array {
    const sealed =
      this.#key === undefined ? plaintext : aeadSeal(this.#key, counterNonce(this.#nonce++), this.#hash, plaintext);
    this.#mixHash(sealed);
    return sealed;
  }

  #decryptAndHash(sealed: Uint8Array): Uint8Array | undefined {
    const plaintext =
      this.#key === undefined ? sealed : aeadOpen(this.#key, counterNonce(this.#nonce++), this.#hash, sealed);
    if (plaintext !== undefined) this.#mixHash(sealed);
    return plaintext;
  }
}
