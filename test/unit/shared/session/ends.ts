/** Two ends of a session with a deterministic world: keys, randomness, timestamps and indexes all follow from a seed. */
import { compareBytes, equalBytes, utf8 } from "../../../../shared/bytes.ts";
import { HandshakeGuard, mac1Of } from "../../../../shared/session/handshake_guard.ts";
import {
  type EpochKeys,
  openInitiation,
  PeerSession,
  type SessionAction,
  type SessionEnvironment,
} from "../../../../shared/session/peer_session.ts";
import { sha256, X25519Key } from "../../../../shared/session/primitives.ts";
import { type Instant, instant } from "../../../../shared/time.ts";
import { type CandidateList, UNKNOWN_NAT } from "../../../../shared/wire/candidates.ts";
import { decodeHandshake, encodeHandshake } from "../../../../shared/wire/handshake.ts";

export const START = instant(1_000_000);
export const LIST: CandidateList = {
  generation: 7,
  nat: UNKNOWN_NAT,
  candidates: [{ kind: "server-reflexive", address: { ip: "203.0.113.9", port: 4500 } }],
};

/** A stream of bytes that follows from its seed. */
export function randomOf(seed: string): (bytes: number) => Uint8Array {
  let counter = 0;
  return (bytes) => {
    const out = new Uint8Array(bytes);
    for (let at = 0; at < bytes; at += 32) {
      out.set(sha256(utf8(`${seed} ${counter++}`)).subarray(0, Math.min(32, bytes - at)), at);
    }
    return out;
  };
}

export function environmentOf(seed: string, firstIndex: number): SessionEnvironment {
  let timestamp = 1_700_000_000_000;
  let index = firstIndex;
  return { random: randomOf(seed), timestamp: () => ++timestamp, newIndex: () => ++index };
}

/** One end: the session, and what its actions have made of the world around it. */
export class End {
  readonly key: X25519Key;
  readonly session: PeerSession;
  readonly guard: HandshakeGuard;
  readonly epochs = new Map<number, EpochKeys>();
  readonly actions: SessionAction["type"][] = [];
  active: EpochKeys | undefined;
  /** Handshake bytes that wait to be delivered. */
  outbox: Uint8Array[] = [];
  readonly #random: (bytes: number) => Uint8Array;

  constructor(key: X25519Key, remote: X25519Key, seed: string, firstIndex: number, greatestTimestamp = 0) {
    this.key = key;
    this.#random = randomOf(`${seed} responder`);
    this.guard = new HandshakeGuard(key.publicKey, randomOf(`${seed} guard`));
    this.session = new PeerSession({
      staticKey: key,
      remoteStatic: remote.publicKey,
      environment: environmentOf(seed, firstIndex),
      greatestTimestamp,
    });
  }

  initiate(now: Instant): void {
    this.session.initiate(LIST, now);
    this.drain();
  }

  /** Takes in one handshake packet as the node does: guard first, X25519 afterwards. True when it moved the session. */
  receive(bytes: Uint8Array, now: Instant, source?: string): boolean {
    const packet = decodeHandshake(bytes);
    if (packet === undefined) return false;
    if (packet.type === "cookie") {
      this.session.handleCookie(packet, now);
      this.drain();
      return false;
    }
    const admission = this.guard.admit(bytes, source, packet.senderIndex, now);
    if (!admission.admitted) {
      if (admission.cookieReply !== undefined) this.outbox.push(admission.cookieReply);
      return false;
    }
    let moved = false;
    if (packet.type === "response") moved = this.session.handleResponse(packet, now);
    else {
      const opened = openInitiation(this.key, packet, this.#random);
      moved = opened !== undefined && this.session.respond(opened, LIST, now);
    }
    this.drain();
    return moved;
  }

  confirm(localIndex: number, now: Instant): void {
    this.session.handleEpochConfirmed(localIndex, now);
    this.drain();
  }

  timeout(now: Instant): void {
    this.session.handleTimeout(now);
    this.drain();
  }

  /** The only packet that waits. */
  take(): Uint8Array {
    const [bytes, ...rest] = this.outbox;
    if (bytes === undefined || rest.length > 0) throw new Error(`${this.outbox.length} packets wait, not one`);
    this.outbox = [];
    return bytes;
  }

  drain(): void {
    for (let action = this.session.poll(); action !== undefined; action = this.session.poll()) {
      this.actions.push(action.type);
      if (action.type === "send_handshake") this.outbox.push(action.bytes);
      if (action.type === "install_epoch") {
        this.epochs.set(action.keys.localIndex, action.keys);
        if (action.active) this.active = action.keys;
      }
      if (action.type === "activate_epoch") this.active = this.epochs.get(action.localIndex) ?? this.active;
      if (action.type === "drop_epoch") {
        this.epochs.delete(action.localIndex);
        if (this.active?.localIndex === action.localIndex) this.active = undefined;
      }
    }
  }

  /** Everything about this end that can be seen from outside. */
  snapshot(): unknown {
    const { isEstablished, isHandshaking, greatestTimestamp } = this.session;
    return {
      isEstablished,
      isHandshaking,
      greatestTimestamp,
      deadline: this.session.deadline(),
      epochs: [...this.epochs.keys()],
      active: this.active?.localIndex,
      actions: this.actions.length,
      outbox: this.outbox.length,
    };
  }
}

/** `smaller` wins crossing initiations. */
export function makeEnds(seed = "ends"): { smaller: End; larger: End } {
  const random = randomOf(seed);
  const [one, two] = [new X25519Key(random(32)), new X25519Key(random(32))];
  const [low, high] = compareBytes(one.publicKey, two.publicKey) < 0 ? [one, two] : [two, one];
  return {
    smaller: new End(low, high, `${seed} smaller`, 1000),
    larger: new End(high, low, `${seed} larger`, 2000),
  };
}

/** Would what `from` seals be opened by `to`? */
export function opens(from: End, to: End): boolean {
  const sent = from.active;
  const received = sent === undefined ? undefined : to.epochs.get(sent.remoteIndex);
  return sent !== undefined && received !== undefined && equalBytes(sent.sendKey, received.receiveKey);
}

/** A whole handshake without loss, confirmed by the initiator's first frame. */
export function establish(initiator: End, responder: End, now: Instant): void {
  initiator.initiate(now);
  responder.receive(initiator.take(), now);
  initiator.receive(responder.take(), now);
  responder.confirm(initiator.active?.remoteIndex ?? 0, now);
}

/** As many handshakes as the guard lets through in one second without asking for a cookie. */
export function flood(target: End, now: Instant): void {
  const noise = new Uint8Array(48);
  const bytes = encodeHandshake({ type: "initiation", senderIndex: 1, noise }, mac1Of(target.key.publicKey));
  for (let i = 0; i < 100; i++) target.guard.admit(bytes, `198.51.100.${i}`, 1, now);
}

export function flipped(bytes: Uint8Array, bit: number): Uint8Array {
  const copy = Uint8Array.from(bytes);
  copy[bit >> 3] = (copy[bit >> 3] ?? 0) ^ (1 << (bit & 7));
  return copy;
}
