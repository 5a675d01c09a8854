/**
 * The relay WebSocket: carries sealed frames to and from the coordinator, many in one message (shared/wire/relay.ts).
 *
 * Separate from signalling, so that small urgent messages never wait behind data. Opened with a one-time token that signalling gives.
 * What waits to be sent waits in relay_uplink.ts; challenges, which the coordinator answers in their order, are its marks too.
 */
import { randomInt } from "node:crypto";
import type { PeerId } from "../../shared/session/identity.ts";
import {
  decodeRelay,
  encodeRelay,
  FIRST_COORDINATOR_INDEX,
  type RelayFrame,
  relayedBytes,
} from "../../shared/wire/relay.ts";
import { type Instant, instant } from "../../shared/time.ts";
import { openWebSocket, owned, type WebSocketOptions } from "./bun_websocket.ts";
import { RelayUplink, type UplinkCounters } from "./relay_uplink.ts";

export const RELAY_PATH = "/v1/relay";

/** Proof that the connection lives, and how long its answer may take. */
const CHALLENGE_INTERVAL_MS = 15_000;
const CHALLENGE_TIMEOUT_MS = 6000;
const OPEN_TIMEOUT_MS = 8000;
/** Questions whose answer is due at some time; a further one would only be due later than these. */
const MAX_DUE_CHALLENGES = 16;
/** Index and length before each frame. */
const FRAME_HEADER_BYTES = 4;

export interface RelayEvents {
  readonly onState: (isUp: boolean) => void;
  /** Sealed frames of one peer, in order. Views: copy what is kept. */
  readonly onFrames: (peer: PeerId, frames: readonly Uint8Array[]) => void;
}

interface Asked {
  readonly nonce: number;
  readonly at: Instant;
  /** Gives the connection up; undefined for a mark, which only measures. */
  readonly due: ReturnType<typeof setTimeout> | undefined;
}

export interface RelaySocketOptions {
  readonly token: string;
  readonly webSocket: WebSocketOptions;
  readonly counters: UplinkCounters;
  /** Between two proofs that the connection lives. */
  readonly challengeIntervalMs?: number;
}

export class RelaySocket {
  readonly #events: RelayEvents;
  readonly #socket: WebSocket;
  /** The index that we write for each peer: ours, or the coordinator's where that was first. */
  readonly #byPeer = new Map<PeerId, number>();
  /** Those of our own choice: each peer keeps its number. */
  readonly #chosen = new Map<PeerId, number>();
  readonly #byIndex = new Map<number, PeerId>();
  readonly #uplink: RelayUplink;
  /** In the order of their answers. */
  #asked: Asked[] = [];
  #isFlushDue = false;
  #isUp = false;
  #isClosed = false;
  #challenge: ReturnType<typeof setInterval> | undefined;
  readonly #opening: ReturnType<typeof setTimeout>;

  constructor(url: string, options: RelaySocketOptions, events: RelayEvents) {
    this.#events = events;
    this.#uplink = new RelayUplink(options.counters);
    this.#socket = openWebSocket(url.replace(/^http/, "ws") + RELAY_PATH, {
      ...options.webSocket,
      headers: { authorization: `Bearer ${options.token}` },
    });
    this.#socket.binaryType = "arraybuffer";
    this.#opening = setTimeout(() => this.close(), OPEN_TIMEOUT_MS);
    this.#socket.onopen = () => this.#onOpen(options.challengeIntervalMs ?? CHALLENGE_INTERVAL_MS);
    this.#socket.onmessage = (event: MessageEvent<unknown>) => {
      if (event.data instanceof ArrayBuffer) this.#receive(new Uint8Array(event.data));
    };
    this.#socket.onclose = () => this.close();
  }

  /**
   * Makes this peer known to the connection, so that its frames come in and the coordinator tells of its legs. Said again it does no harm,
   * and is needed when a binding was ended by a rule that is no more.
   */
  bind(peer: PeerId): void {
    const index = this.#chosen.get(peer) ?? this.#chosen.size;
    if (index >= FIRST_COORDINATOR_INDEX) return;
    this.#chosen.set(peer, index);
    this.#learn(index, peer);
    if (this.#isUp) this.#socket.send(owned(encodeRelay({ type: "bind", index, peer })));
  }

  send(peer: PeerId, frames: readonly Uint8Array[], lanes: readonly number[] = []): void {
    if (!this.#isUp) return;
    this.#uplink.push(peer, frames, lanes, now());
    if (this.#isFlushDue) return;
    this.#isFlushDue = true;
    // Frames of several peers that come in one tick leave as one message.
    queueMicrotask(() => {
      this.#isFlushDue = false;
      this.#flush();
    });
  }

  /** Asks for a sign of life; without one in time the connection is given up, whatever else is asked meanwhile. */
  challenge(timeoutMs: number): void {
    if (!this.#isUp || this.#asked.filter(({ due }) => due !== undefined).length >= MAX_DUE_CHALLENGES) return;
    this.#ask(setTimeout(() => this.close(), timeoutMs));
  }

  /** Since when a challenge has waited for its answer; undefined: none does. */
  get silentSince(): Instant | undefined {
    return this.#asked.find(({ due }) => due !== undefined)?.at;
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearInterval(this.#challenge);
    clearTimeout(this.#opening);
    for (const { due } of this.#asked) clearTimeout(due);
    const wasUp = this.#isUp;
    this.#isUp = false;
    this.#socket.close();
    if (wasUp) this.#events.onState(false);
    else queueMicrotask(() => this.#events.onState(false));
  }

  #onOpen(challengeIntervalMs: number): void {
    clearTimeout(this.#opening);
    this.#isUp = true;
    for (const [peer, index] of this.#chosen) this.#socket.send(owned(encodeRelay({ type: "bind", index, peer })));
    this.#challenge = setInterval(() => this.challenge(CHALLENGE_TIMEOUT_MS), challengeIntervalMs);
    this.#events.onState(true);
  }

  #receive(bytes: Uint8Array): void {
    const message = decodeRelay(bytes);
    switch (message?.type) {
      case "frames":
        this.#deliver(message.frames);
        break;
      case "bind":
        if (message.index >= FIRST_COORDINATOR_INDEX) this.#learn(message.index, message.peer);
        break;
      case "challenge":
        this.#socket.send(owned(encodeRelay({ type: "answer", nonce: message.nonce })));
        break;
      case "answer":
        this.#onAnswer(message.nonce);
        break;
      case "unbound": {
        // Nobody is there, or a rule has ended the binding: the next frame, or the next session, binds anew.
        const peer = this.#byIndex.get(message.index);
        if (peer !== undefined && this.#byPeer.get(peer) === message.index) this.#byPeer.delete(peer);
        break;
      }
      case undefined:
        break;
    }
  }

  /** Runs of frames of one peer go on together. */
  #deliver(frames: readonly RelayFrame[]): void {
    for (let at = 0; at < frames.length; ) {
      const index = frames[at]?.index;
      const run: Uint8Array[] = [];
      for (; at < frames.length && frames[at]?.index === index; at++) run.push(frames[at]?.frame ?? new Uint8Array());
      const peer = index === undefined ? undefined : this.#byIndex.get(index);
      if (peer !== undefined) this.#events.onFrames(peer, run);
    }
  }

  #learn(index: number, peer: PeerId): void {
    this.#byIndex.set(index, peer);
    if (!this.#byPeer.has(peer)) this.#byPeer.set(peer, index);
  }

  #ask(due: Asked["due"]): void {
    const nonce = randomInt(2 ** 32);
    this.#asked.push({ nonce, at: now(), due });
    this.#uplink.onMarked(now());
    this.#socket.send(owned(encodeRelay({ type: "challenge", nonce })));
  }

  /** What was asked before has arrived too, since a stream keeps the order. */
  #onAnswer(nonce: number): void {
    const at = this.#asked.findIndex((asked) => asked.nonce === nonce);
    for (const { due } of this.#asked.splice(0, at + 1)) {
      clearTimeout(due);
      this.#uplink.onAnswered(now());
    }
    this.#flush();
  }

  #flush(): void {
    while (this.#isUp) {
      const taken = this.#uplink.take(FRAME_HEADER_BYTES, now());
      if (taken.length === 0) break;
      const frames: RelayFrame[] = [];
      let bytes = 0;
      for (const { from: peer, frame } of taken) {
        if (!this.#byPeer.has(peer)) this.bind(peer);
        const index = this.#byPeer.get(peer);
        if (index === undefined) continue;
        frames.push({ index, frame });
        bytes += relayedBytes(frame);
      }
      if (frames.length === 0) continue;
      this.#socket.send(owned(encodeRelay({ type: "frames", frames })));
      if (this.#uplink.onSent(bytes, now())) this.#ask(undefined);
    }
    if (this.#isUp && this.#uplink.isStuck(now())) this.#ask(undefined);
  }
}

const now = (): Instant => instant(performance.now());
