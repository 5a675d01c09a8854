/**
 * The relay WebSocket: carries sealed frames to and from the coordinator, many in one message (shared/wire/relay.ts).
 *
 * Separate from signalling, so that small urgent messages never wait behind data. Opened with a one-time token that signalling gives.
 * What waits to be sent is bounded, oldest dropped first: an inner TCP must see loss, not seconds of queue.
 */
import { randomInt } from "node:crypto";
import type { PeerId } from "../../shared/session/identity.ts";
import {
  decodeRelay,
  encodeRelay,
  FIRST_COORDINATOR_INDEX,
  RELAY_BATCH_BYTES,
  type RelayFrame,
  relayedBytes,
} from "../../shared/wire/relay.ts";
import { openWebSocket, owned, type WebSocketOptions } from "./bun_websocket.ts";

export const RELAY_PATH = "/v1/relay";

/** Proof that the connection lives, and how long its answer may take. */
const CHALLENGE_INTERVAL_MS = 15_000;
const CHALLENGE_TIMEOUT_MS = 6000;
const OPEN_TIMEOUT_MS = 8000;
/** Bytes that may wait in the kernel and in Bun before frames are kept here instead, and how many of those. */
const MAX_BUFFERED_BYTES = 256 * 1024;
const MAX_QUEUED_BYTES = 1024 * 1024;
/** Bun's WebSocket has no drain event: look again this soon. */
const DRAIN_POLL_MS = 2;

export interface RelayEvents {
  readonly onState: (isUp: boolean) => void;
  /** Sealed frames of one peer, in order. Views: copy what is kept. */
  readonly onFrames: (peer: PeerId, frames: readonly Uint8Array[]) => void;
}

export class RelaySocket {
  readonly #events: RelayEvents;
  readonly #socket: WebSocket;
  /** The index that we write for each peer: ours, or the coordinator's where that was first. */
  readonly #byPeer = new Map<PeerId, number>();
  /** Those of our own choice: each peer keeps its number. */
  readonly #chosen = new Map<PeerId, number>();
  readonly #byIndex = new Map<number, PeerId>();
  #queue: RelayFrame[] = [];
  #queuedBytes = 0;
  #isFlushing = false;
  #isUp = false;
  #isClosed = false;
  #challenge: ReturnType<typeof setInterval> | undefined;
  #watchdog: ReturnType<typeof setTimeout> | undefined;

  constructor(url: string, token: string, options: WebSocketOptions, events: RelayEvents) {
    this.#events = events;
    this.#socket = openWebSocket(url.replace(/^http/, "ws") + RELAY_PATH, {
      ...options,
      headers: { authorization: `Bearer ${token}` },
    });
    this.#socket.binaryType = "arraybuffer";
    this.#watchdog = setTimeout(() => this.close(), OPEN_TIMEOUT_MS);
    this.#socket.onopen = () => this.#onOpen();
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

  send(peer: PeerId, frames: readonly Uint8Array[]): void {
    if (!this.#isUp) return;
    if (!this.#byPeer.has(peer)) this.bind(peer);
    const index = this.#byPeer.get(peer);
    if (index === undefined) return;
    for (const frame of frames) {
      this.#queue.push({ index, frame });
      this.#queuedBytes += relayedBytes(frame);
    }
    while (this.#queuedBytes > MAX_QUEUED_BYTES) {
      const oldest = this.#queue.shift();
      if (oldest === undefined) break;
      this.#queuedBytes -= relayedBytes(oldest.frame);
    }
    if (this.#isFlushing) return;
    this.#isFlushing = true;
    // Frames of several peers that come in one tick leave as one message.
    queueMicrotask(() => this.#flush());
  }

  /** Asks for a sign of life; without one in time the connection is given up. */
  challenge(timeoutMs: number): void {
    if (!this.#isUp) return;
    this.#socket.send(owned(encodeRelay({ type: "challenge", nonce: randomInt(2 ** 32) })));
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.close(), timeoutMs);
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearInterval(this.#challenge);
    clearTimeout(this.#watchdog);
    const wasUp = this.#isUp;
    this.#isUp = false;
    this.#socket.close();
    if (wasUp) this.#events.onState(false);
    else queueMicrotask(() => this.#events.onState(false));
  }

  #onOpen(): void {
    clearTimeout(this.#watchdog);
    this.#isUp = true;
    for (const [peer, index] of this.#chosen) this.#socket.send(owned(encodeRelay({ type: "bind", index, peer })));
    this.#challenge = setInterval(() => this.challenge(CHALLENGE_TIMEOUT_MS), CHALLENGE_INTERVAL_MS);
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
        clearTimeout(this.#watchdog);
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

  #flush(): void {
    while (this.#queue.length > 0 && this.#isUp) {
      if (this.#socket.bufferedAmount > MAX_BUFFERED_BYTES) {
        setTimeout(() => this.#flush(), DRAIN_POLL_MS);
        return;
      }
      let bytes = 0;
      let count = 0;
      while (count < this.#queue.length && (count === 0 || bytes < RELAY_BATCH_BYTES)) {
        const size = relayedBytes(this.#queue[count]?.frame ?? new Uint8Array());
        if (count > 0 && bytes + size > RELAY_BATCH_BYTES) break;
        bytes += size;
        count++;
      }
      const frames = this.#queue.slice(0, count);
      this.#queue = this.#queue.slice(count);
      this.#queuedBytes -= bytes;
      this.#socket.send(owned(encodeRelay({ type: "frames", frames })));
    }
    this.#isFlushing = false;
  }
}
