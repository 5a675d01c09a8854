/**
 * The Noise channel around signalling: `Noise_XX_25519_AESGCM_SHA256`, one binary WebSocket message per Noise message.
 *
 * It makes signalling private and authenticated over plain HTTP and through proxies that open TLS. The agent checks the
 * coordinator's static key against the fingerprint that it has pinned (from the join key, or from its first visit); the coordinator
 * learns the agent's session key, which the identity in the `Hello` payload must have signed.
 *
 *   agent                                   coordinator
 *     e                                 ->
 *                                       <-  e, ee, s, es
 *     s, se, payload Hello              ->
 *     sealed JSON messages              <-> sealed JSON messages
 *
 * Pure: bytes in, an outcome out. Whoever owns the socket closes it on `failed`.
 */
import { utf8 } from "../bytes.ts";
import { keyFingerprint } from "../session/identity.ts";
import { NoiseHandshake } from "../session/noise.ts";
import { aeadOpen, aeadSeal, counterNonce, type X25519Key } from "../session/primitives.ts";
import { decodeHello, encodeMessage, type Hello } from "./messages.ts";

const PROLOGUE = utf8("TunnelMesh signalling 1");
const EMPTY = new Uint8Array(0);

export type ChannelOutcome =
  /** Send these bytes as one message; on the agent's side the channel is then open. */
  | { readonly type: "reply"; readonly bytes: Uint8Array; readonly isOpen: boolean }
  /** Coordinator only: the agent's last handshake message. The channel is open. */
  | { readonly type: "hello"; readonly hello: Hello; readonly sessionKey: Uint8Array }
  /** A message of the open channel, decrypted. */
  | { readonly type: "message"; readonly plaintext: Uint8Array }
  | {
      readonly type: "failed";
      readonly reason: "not authentic" | "wrong fingerprint" | "malformed hello";
      readonly fingerprint?: string;
    };

class TransportState {
  #sendCounter = 0;
  #receiveCounter = 0;
  readonly #send: Uint8Array;
  readonly #receive: Uint8Array;

  constructor(keys: { readonly send: Uint8Array; readonly receive: Uint8Array }) {
    this.#send = keys.send;
    this.#receive = keys.receive;
  }

  seal(plaintext: Uint8Array): Uint8Array {
    return aeadSeal(this.#send, counterNonce(this.#sendCounter++), EMPTY, plaintext);
  }

  /** WebSocket messages come in order, so the counter is implied. */
  open(sealed: Uint8Array): ChannelOutcome {
    const plaintext = aeadOpen(this.#receive, counterNonce(this.#receiveCounter), EMPTY, sealed);
    if (plaintext === undefined) return { type: "failed", reason: "not authentic" };
    this.#receiveCounter++;
    return { type: "message", plaintext };
  }
}

/** The agent's end. */
export class AgentChannel {
  readonly #handshake: NoiseHandshake;
  readonly #accept: (fingerprint: string) => boolean;
  readonly #hello: Hello;
  #transport: TransportState | undefined;

  /** @param accept decides on the coordinator's fingerprint, by pin or as a first visit */
  constructor(options: {
    readonly staticKey: X25519Key;
    readonly ephemeral: X25519Key;
    readonly hello: Hello;
    readonly accept: (fingerprint: string) => boolean;
  }) {
    this.#handshake = new NoiseHandshake({
      pattern: "XX",
      initiator: true,
      prologue: PROLOGUE,
      staticKey: options.staticKey,
      ephemeral: options.ephemeral,
    });
    this.#accept = options.accept;
    this.#hello = options.hello;
  }

  /** The first message, to be sent when the WebSocket opens. */
  start(): Uint8Array {
    return this.#handshake.writeMessage(EMPTY) ?? EMPTY;
  }

  handle(bytes: Uint8Array): ChannelOutcome {
    if (this.#transport !== undefined) return this.#transport.open(bytes);
    if (this.#handshake.isOurTurn || this.#handshake.readMessage(bytes) === undefined) {
      return { type: "failed", reason: "not authentic" };
    }
    const fingerprint = keyFingerprint(this.#handshake.remoteStatic ?? EMPTY);
    if (!this.#accept(fingerprint)) return { type: "failed", reason: "wrong fingerprint", fingerprint };
    const reply = this.#handshake.writeMessage(encodeMessage(this.#hello));
    if (reply === undefined) return { type: "failed", reason: "not authentic" };
    this.#transport = new TransportState(this.#handshake.split());
    return { type: "reply", bytes: reply, isOpen: true };
  }

  /** Only once the channel is open. */
  seal(plaintext: Uint8Array): Uint8Array {
    if (this.#transport === undefined) throw new Error("Signalling channel is not open");
    return this.#transport.seal(plaintext);
  }
}

/** The coordinator's end. */
export class CoordinatorChannel {
  readonly #handshake: NoiseHandshake;
  #transport: TransportState | undefined;

  constructor(options: { readonly staticKey: X25519Key; readonly ephemeral: X25519Key }) {
    this.#handshake = new NoiseHandshake({ pattern: "XX", initiator: false, prologue: PROLOGUE, ...options });
  }

  handle(bytes: Uint8Array): ChannelOutcome {
    if (this.#transport !== undefined) return this.#transport.open(bytes);
    const payload = this.#handshake.readMessage(bytes);
    if (payload === undefined) return { type: "failed", reason: "not authentic" };
    if (this.#handshake.isOurTurn) {
      const reply = this.#handshake.writeMessage(EMPTY);
      return reply === undefined
        ? { type: "failed", reason: "not authentic" }
        : { type: "reply", bytes: reply, isOpen: false };
    }
    this.#transport = new TransportState(this.#handshake.split());
    const hello = decodeHello(payload);
    return hello === undefined
      ? { type: "failed", reason: "malformed hello" }
      : { type: "hello", hello, sessionKey: this.#handshake.remoteStatic ?? EMPTY };
  }

  seal(plaintext: Uint8Array): Uint8Array {
    if (this.#transport === undefined) throw new Error("Signalling channel is not open");
    return this.#transport.seal(plaintext);
  }
}
