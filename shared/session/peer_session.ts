/**
 * The session with one peer: Noise IK handshakes, the epochs that they make, and when to make the next one.
 *
 * An epoch is one generation of keys. The initiator may send under a new epoch as soon as it has the response; the responder waits
 * for the first authentic frame under it, which proves that the peer has the keys (WireGuard §5.4.3). The epoch before stays open for
 * receiving for a while, so that rekeying loses nothing that is in flight.
 *
 * Crossing initiations: the side with the smaller static key keeps its own for a while; the other side answers, and keeps its own
 * until the epoch that it answered with is confirmed. Whichever response arrives, both sides then share that epoch: two sides that
 * both answer and both forget would each wait for the other.
 *
 * Pure. The node decides when to begin and along which way handshake bytes travel; the data path holds the keys.
 */
import { compareBytes, utf8 } from "../bytes.ts";
import { after, earliest, type Instant } from "../time.ts";
import { type CandidateList, readCandidates, writeCandidates } from "../wire/candidates.ts";
import { Reader, Writer } from "../wire/cursor.ts";
import {
  type CookiePacket,
  encodeHandshake,
  handshakeMacs,
  type InitiationPacket,
  type ResponsePacket,
} from "../wire/handshake.ts";
import { mac1Of, mac2Of, openCookie } from "./handshake_guard.ts";
import { NoiseHandshake } from "./noise.ts";
import { X25519Key } from "./primitives.ts";

const PROLOGUE = utf8("TunnelMesh session 1");
/** What this build can do; bits of later versions. Sent inside the handshake, so that nobody can strip them. */
export const FEATURES = 0;

/** WireGuard's lifetimes (§6.1): new keys after two minutes, none older than three. */
export const REKEY_AFTER_MS = 120_000;
export const REJECT_AFTER_MS = 180_000;
/** The responder of the current epoch takes over the rekey when the initiator has not done it by then. */
const RESPONDER_REKEY_AFTER_MS = 140_000;
/** Frames under an older epoch may still be in flight on the slowest relay. */
const RETIRED_EPOCH_MS = 15_000;
/** The epoch before, and what crossing initiations leave over. */
const MAX_RETIRED = 3;
/** Signalling takes a round trip or two; a lost UDP handshake should not cost more than a second. */
const RETRY_MS = 1000;
const MAX_RETRY_MS = 8000;
/** After this long without an answer the attempt has failed; the next use begins another. */
const ATTEMPT_MS = 30_000;
/** An own initiation older than this no longer wins against the peer's: it was probably lost. */
const CROSSING_MS = 1500;
const COOKIE_LIFETIME_MS = 120_000;

/** Keys of one epoch, as the handshake derived them. */
export interface EpochKeys {
  /** Our receiver index: in the header of every frame that comes in under these keys. */
  readonly localIndex: number;
  /** The peer's receiver index. */
  readonly remoteIndex: number;
  readonly sendKey: Uint8Array;
  readonly receiveKey: Uint8Array;
}

/** What each side tells the other inside the handshake. */
export interface HandshakePayload {
  readonly features: number;
  /** Initiation only: Unix milliseconds that only grow, against replays. */
  readonly timestamp: number;
  readonly list: CandidateList;
}

export type SessionAction =
  | { readonly type: "send_handshake"; readonly bytes: Uint8Array }
  | { readonly type: "install_epoch"; readonly keys: EpochKeys; readonly active: boolean }
  | { readonly type: "activate_epoch"; readonly localIndex: number }
  | { readonly type: "drop_epoch"; readonly localIndex: number }
  /** Both sides have keys, as far as this side knows. `initiator`: this side began. */
  | { readonly type: "established"; readonly initiator: boolean; readonly payload: HandshakePayload }
  | { readonly type: "handshake_failed" };

export interface SessionEnvironment {
  random(bytes: number): Uint8Array;
  /** Unix milliseconds that only grow, across restarts too. */
  timestamp(): number;
  /** A receiver index that no other session of this agent uses. */
  newIndex(): number;
}

interface Pending {
  readonly noise: NoiseHandshake;
  readonly localIndex: number;
  readonly startedAt: Instant;
  readonly sentAt: Instant;
  readonly mac1: Uint8Array;
}

interface Epoch {
  readonly localIndex: number;
  readonly initiator: boolean;
  readonly createdAt: Instant;
}

/** An initiation that has been authenticated, before it is given to the session of the peer that sent it. */
export interface OpenedInitiation {
  readonly noise: NoiseHandshake;
  readonly remoteStatic: Uint8Array;
  readonly senderIndex: number;
  readonly payload: HandshakePayload;
}

/** Authenticates an initiation. The result says which static key sent it; whether that key is a peer is the caller's question. */
export function openInitiation(
  staticKey: X25519Key,
  packet: InitiationPacket,
  random: (bytes: number) => Uint8Array,
): OpenedInitiation | undefined {
  const ephemeral = new X25519Key(random(32));
  const noise = new NoiseHandshake({ pattern: "IK", initiator: false, prologue: PROLOGUE, staticKey, ephemeral });
  const plaintext = noise.readMessage(packet.noise);
  const payload = plaintext === undefined ? undefined : decodePayload(plaintext, packet.senderIndex);
  const remoteStatic = noise.remoteStatic;
  if (payload === undefined || remoteStatic === undefined) return undefined;
  return { noise, remoteStatic, senderIndex: packet.senderIndex, payload };
}

export class PeerSession {
  readonly #staticKey: X25519Key;
  readonly #remoteStatic: Uint8Array;
  readonly #environment: SessionEnvironment;
  readonly #wins: boolean;
  readonly #actions: SessionAction[] = [];
  #pending: Pending | undefined;
  #attemptStartedAt: Instant | undefined;
  #retryMs = RETRY_MS;
  #cookie: { readonly value: Uint8Array; readonly expiresAt: Instant } | undefined;
  #payload: CandidateList | undefined;
  #retired: (Epoch & { readonly dropAt: Instant })[] = [];
  #current: Epoch | undefined;
  #next: Epoch | undefined;
  #greatestTimestamp: number;

  /** @param greatestTimestamp the newest initiation timestamp ever accepted from this peer, 0 for none */
  constructor(options: {
    readonly staticKey: X25519Key;
    readonly remoteStatic: Uint8Array;
    readonly environment: SessionEnvironment;
    readonly greatestTimestamp: number;
  }) {
    this.#staticKey = options.staticKey;
    this.#remoteStatic = options.remoteStatic;
    this.#environment = options.environment;
    this.#greatestTimestamp = options.greatestTimestamp;
    this.#wins = compareBytes(options.staticKey.publicKey, options.remoteStatic) < 0;
  }

  get greatestTimestamp(): number {
    return this.#greatestTimestamp;
  }

  /** Can frames be sealed and will the peer open them? */
  get isEstablished(): boolean {
    return this.#current !== undefined || this.#next !== undefined;
  }

  get isHandshaking(): boolean {
    return this.#pending !== undefined;
  }

  /** Does this receiver index belong to one of this session's epochs or to its pending handshake? */
  ownsIndex(index: number): boolean {
    return [this.#pending, this.#current, this.#next, ...this.#retired].some((epoch) => epoch?.localIndex === index);
  }

  /** Should a peer in use get new keys by now? Also when it has never confirmed the epoch that we answered with. */
  isRekeyDue(now: Instant): boolean {
    const epoch = this.#current;
    if (this.#pending !== undefined) return false;
    if (this.#next !== undefined) return now - this.#next.createdAt >= ATTEMPT_MS;
    if (epoch === undefined) return false;
    return now - epoch.createdAt >= (epoch.initiator ? REKEY_AFTER_MS : RESPONDER_REKEY_AFTER_MS);
  }

  /** Begins a handshake, or begins it anew with fresh candidates. */
  initiate(list: CandidateList, now: Instant): void {
    this.#payload = list;
    this.#attemptStartedAt = now;
    this.#retryMs = RETRY_MS;
    this.#sendInitiation(now);
  }

  /**
   * Answers an initiation that `openInitiation` has authenticated as this peer's. False when it is a replay, or loses against our own.
   * @param list candidates for the response: the peer is authenticated by now, so host candidates may be among them
   */
  respond(opened: OpenedInitiation, list: CandidateList, now: Instant): boolean {
    if (opened.payload.timestamp <= this.#greatestTimestamp) return false;
    if (this.#pending !== undefined && this.#wins && now - this.#pending.startedAt < CROSSING_MS) return false;
    const localIndex = this.#environment.newIndex();
    const message = opened.noise.writeMessage(encodePayload({ features: FEATURES, timestamp: 0, list }, localIndex));
    if (message === undefined) return false;
    this.#greatestTimestamp = opened.payload.timestamp;
    if (this.#wins) this.#endAttempt();

    if (this.#next !== undefined) this.#retire(this.#next, now);
    this.#next = { localIndex, initiator: false, createdAt: now };
    this.#install(opened.noise, localIndex, opened.senderIndex, false);
    const packet: ResponsePacket = {
      type: "response",
      senderIndex: localIndex,
      receiverIndex: opened.senderIndex,
      noise: message,
    };
    this.#actions.push({ type: "send_handshake", bytes: encodeHandshake(packet, mac1Of(this.#remoteStatic)) });
    this.#actions.push({ type: "established", initiator: false, payload: opened.payload });
    return true;
  }

  /** False when the response is not the answer to our pending initiation. */
  handleResponse(packet: ResponsePacket, now: Instant): boolean {
    const pending = this.#pending;
    if (pending === undefined || packet.receiverIndex !== pending.localIndex) return false;
    const decode = (plaintext: Uint8Array): HandshakePayload | undefined =>
      decodePayload(plaintext, packet.senderIndex);
    const plaintext = pending.noise.readMessage(packet.noise, (bytes) => decode(bytes) !== undefined);
    const payload = plaintext === undefined ? undefined : decode(plaintext);
    // A forged response changes nothing: the genuine one may still come.
    if (payload === undefined) return false;
    this.#endAttempt();
    if (this.#next !== undefined) this.#retire(this.#next, now);
    this.#next = undefined;
    this.#install(pending.noise, pending.localIndex, packet.senderIndex, true);
    this.#advance({ localIndex: pending.localIndex, initiator: true, createdAt: now }, now);
    this.#actions.push({ type: "established", initiator: true, payload });
    return true;
  }

  /** The peer asks us to prove our address: the next initiation carries the cookie. */
  handleCookie(packet: CookiePacket, now: Instant): void {
    const pending = this.#pending;
    if (pending === undefined || packet.receiverIndex !== pending.localIndex) return;
    const value = openCookie(this.#remoteStatic, packet.nonce, pending.mac1, packet.sealed);
    if (value !== undefined)
      this.#cookie = { value: Uint8Array.from(value), expiresAt: after(now, COOKIE_LIFETIME_MS) };
  }

  /** The data path has opened the first frame under this epoch. */
  handleEpochConfirmed(localIndex: number, now: Instant): void {
    const next = this.#next;
    if (next === undefined || next.localIndex !== localIndex) return;
    this.#next = undefined;
    this.#endAttempt();
    this.#actions.push({ type: "activate_epoch", localIndex });
    this.#advance(next, now);
  }

  /** Forgets all keys: the peer has restarted, is blocked, or the session is idle. */
  reset(): void {
    for (const epoch of [...this.#retired, this.#current, this.#next]) if (epoch !== undefined) this.#drop(epoch);
    this.#retired = [];
    this.#current = undefined;
    this.#next = undefined;
    this.#endAttempt();
  }

  handleTimeout(now: Instant): void {
    if (this.#attemptStartedAt !== undefined && now >= after(this.#attemptStartedAt, ATTEMPT_MS)) {
      this.#endAttempt();
      this.#actions.push({ type: "handshake_failed" });
    }
    const retryAt = this.#retryAt();
    if (retryAt !== undefined && now >= retryAt) {
      this.#retryMs = Math.min(this.#retryMs * 2, MAX_RETRY_MS);
      this.#sendInitiation(now);
    }
    for (const epoch of this.#retired) if (now >= epoch.dropAt) this.#drop(epoch);
    this.#retired = this.#retired.filter((epoch) => now < epoch.dropAt);
    if (this.#current !== undefined && now >= after(this.#current.createdAt, REJECT_AFTER_MS)) {
      this.#drop(this.#current);
      this.#current = undefined;
    }
    if (this.#next !== undefined && now >= after(this.#next.createdAt, REJECT_AFTER_MS)) {
      this.#drop(this.#next);
      this.#next = undefined;
    }
  }

  deadline(): Instant | undefined {
    return earliest(
      this.#retryAt(),
      this.#attemptStartedAt === undefined ? undefined : after(this.#attemptStartedAt, ATTEMPT_MS),
      ...this.#retired.map((epoch) => epoch.dropAt),
      this.#current === undefined ? undefined : after(this.#current.createdAt, REJECT_AFTER_MS),
      this.#next === undefined ? undefined : after(this.#next.createdAt, REJECT_AFTER_MS),
    );
  }

  poll(): SessionAction | undefined {
    return this.#actions.shift();
  }

  #retryAt(): Instant | undefined {
    return this.#pending === undefined ? undefined : after(this.#pending.sentAt, this.#retryMs);
  }

  /** Every transmission is a fresh handshake with its own ephemeral key and timestamp: a repeat would look like a replay. */
  #sendInitiation(now: Instant): void {
    const environment = this.#environment;
    const noise = new NoiseHandshake({
      pattern: "IK",
      initiator: true,
      prologue: PROLOGUE,
      staticKey: this.#staticKey,
      ephemeral: new X25519Key(environment.random(32)),
      remoteStatic: this.#remoteStatic,
    });
    const list = this.#payload;
    if (list === undefined) return;
    const localIndex = environment.newIndex();
    const payload = { features: FEATURES, timestamp: environment.timestamp(), list };
    const message = noise.writeMessage(encodePayload(payload, localIndex));
    if (message === undefined) return;
    const cookie = this.#cookie !== undefined && now < this.#cookie.expiresAt ? this.#cookie.value : undefined;
    const bytes = encodeHandshake(
      { type: "initiation", senderIndex: localIndex, noise: message },
      mac1Of(this.#remoteStatic),
      cookie === undefined ? undefined : mac2Of(cookie),
    );
    const mac1 = Uint8Array.from(handshakeMacs(bytes)?.mac1 ?? []);
    this.#pending = { noise, localIndex, startedAt: this.#pending?.startedAt ?? now, sentAt: now, mac1 };
    this.#actions.push({ type: "send_handshake", bytes });
  }

  #install(noise: NoiseHandshake, localIndex: number, remoteIndex: number, active: boolean): void {
    const { send, receive } = noise.split();
    const keys = { localIndex, remoteIndex, sendKey: send, receiveKey: receive };
    this.#actions.push({ type: "install_epoch", keys, active });
  }

  #advance(epoch: Epoch, now: Instant): void {
    if (this.#current !== undefined) this.#retire(this.#current, now);
    this.#current = epoch;
  }

  /** Sends nothing more, but opens what is still on its way. */
  #retire(epoch: Epoch, now: Instant): void {
    this.#retired.push({ ...epoch, dropAt: after(now, RETIRED_EPOCH_MS) });
    if (this.#retired.length <= MAX_RETIRED) return;
    const oldest = this.#retired.shift();
    if (oldest !== undefined) this.#drop(oldest);
  }

  #endAttempt(): void {
    this.#pending = undefined;
    this.#attemptStartedAt = undefined;
  }

  #drop(epoch: Epoch): void {
    this.#actions.push({ type: "drop_epoch", localIndex: epoch.localIndex });
  }
}

/**
 * Handshake payload: sender index 4, features 4, timestamp 8, candidate list. Trailing bytes are ignored.
 *
 * The index repeats the packet's header, which anybody who knows the receiver's public key could change: an index that is not the
 * authenticated one would make us send every frame to nobody.
 */
function encodePayload(payload: HandshakePayload, senderIndex: number): Uint8Array {
  const writer = new Writer(256).u32(senderIndex).u32(payload.features).u64(payload.timestamp);
  writeCandidates(writer, payload.list);
  return writer.finish();
}

function decodePayload(bytes: Uint8Array, senderIndex: number): HandshakePayload | undefined {
  const reader = new Reader(bytes);
  if (reader.u32() !== senderIndex) return undefined;
  const features = reader.u32();
  const timestamp = reader.u64();
  const list = readCandidates(reader);
  return reader.failed || list === undefined ? undefined : { features, timestamp, list };
}
