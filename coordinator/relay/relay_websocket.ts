/**
 * Relay legs over WebSocket: opened with a one-time token, then messages of shared/wire/relay.ts in both directions.
 *
 * What may be written is taken from the relay only as the socket takes it, so that a slow reader's frames wait (and are dropped) in the
 * relay and never here.
 */
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
// @ts-types="@types/ws"
import { type RawData, WebSocket, WebSocketServer } from "ws";
import { assertNever } from "../../shared/assert.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import {
  decodeRelay,
  encodeRelay,
  MAX_RELAY_MESSAGE_BYTES,
  RELAY_BATCH_BYTES,
  type RelayFrame,
  type RelayMessage,
} from "../../shared/wire/relay.ts";
import type { Log } from "../log.ts";
import { PeerIndexes } from "./peer_indexes.ts";
import type { Addressed } from "./relay_hub.ts";
import type { LegHandle, RelayService } from "./relay_service.ts";

export const RELAY_PATH = "/v1/relay";

/** A write is begun only below this much that the kernel has not taken yet: two batches, so that it never waits for us. */
const MAX_BUFFERED_BYTES = 2 * RELAY_BATCH_BYTES;
/** Answers to challenges, and bindings, that a client which does not read may leave with us. */
const MAX_UNREAD_BYTES = 1_000_000;
/** Index and length before each frame. */
const FRAME_HEADER_BYTES = 4;
const PING_INTERVAL_MS = 15_000;
/** Pings without an answer: dead after 45 s, as an SSH leg is. */
const MAX_UNANSWERED_PINGS = 2;

export interface RelayWebSocketServer {
  onUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void;
  close(): void;
}

export interface RelayWebSocketOptions {
  readonly relay: RelayService;
  readonly log: Log;
  /** Whose token this is; it is used up by asking. */
  readonly redeem: (token: string) => PeerId | undefined;
}

export function createRelayWebSocketServer(options: RelayWebSocketOptions): RelayWebSocketServer {
  const server = new WebSocketServer({
    noServer: true,
    maxPayload: MAX_RELAY_MESSAGE_BYTES,
    perMessageDeflate: false,
    clientTracking: false,
  });
  const connections = new Set<RelayConnection>();
  const pinger = setInterval(() => {
    for (const connection of connections) connection.ping();
  }, PING_INTERVAL_MS);
  let isClosed = false;
  return {
    onUpgrade(request, socket, head) {
      socket.on("error", () => socket.destroy());
      const token = /^Bearer ([a-z2-7]{26})$/.exec(request.headers.authorization ?? "")?.[1];
      const peer = token === undefined || isClosed ? undefined : options.redeem(token);
      if (peer === undefined) {
        socket.end(
          "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        );
        return;
      }
      server.handleUpgrade(request, socket, head, (webSocket) => {
        const connection = new RelayConnection(webSocket, peer, options);
        connections.add(connection);
        webSocket.on("close", () => connections.delete(connection));
      });
    },
    close() {
      isClosed = true;
      clearInterval(pinger);
      for (const connection of connections) connection.stop();
    },
  };
}

class RelayConnection {
  readonly #socket: WebSocket;
  readonly #indexes = new PeerIndexes();
  readonly #leg: LegHandle;
  #unansweredPings = 0;
  /** Bytes of batches that the kernel has not taken. */
  #unwritten = 0;

  constructor(socket: WebSocket, peer: PeerId, { relay, log }: RelayWebSocketOptions) {
    this.#socket = socket;
    socket.binaryType = "nodebuffer";
    this.#leg = relay.leg(peer, "websocket", {
      pump: () => this.#pump(),
      unbound: (other, reason) => this.#unbound(other, reason),
      close: (reason) => socket.close(1008, reason),
    });
    socket.on("message", (data: RawData, isBinary: boolean) => {
      if (isBinary && data instanceof Uint8Array) this.#receive(data);
      else socket.close(1003, "binary messages only");
    });
    socket.on("pong", () => {
      this.#unansweredPings = 0;
    });
    socket.on("close", () => this.#leg.closed());
    // Always followed by "close".
    socket.on("error", (error) => log.debug(`Relay connection: ${error.message}`));
    this.#leg.open();
  }

  ping(): void {
    if (this.#unansweredPings++ >= MAX_UNANSWERED_PINGS) this.#socket.terminate();
    else this.#socket.ping();
  }

  stop(): void {
    this.#socket.close(1001, "coordinator stops");
  }

  #receive(bytes: Uint8Array): void {
    const message = decodeRelay(bytes);
    if (message === undefined) return this.#leg.malformed();
    switch (message.type) {
      case "frames":
        return this.#forward(message.frames);
      case "bind":
        if (this.#indexes.bind(message.index, message.peer)) this.#leg.bind(message.peer);
        else this.#send({ type: "unbound", index: message.index });
        return;
      case "challenge":
        return this.#send({ type: "answer", nonce: message.nonce });
      case "answer":
      case "unbound":
        return;
      default:
        assertNever(message);
    }
  }

  #forward(frames: readonly RelayFrame[]): void {
    const addressed: Addressed[] = [];
    for (const { index, frame } of frames) {
      const to = this.#indexes.peerOf(index);
      if (to === undefined) this.#leg.malformed();
      else addressed.push({ to, frame });
    }
    if (addressed.length > 0) this.#leg.frames(addressed);
  }

  #unbound(peer: PeerId, reason: "no_leg" | "refused"): void {
    const index = this.#indexes.indexOf(peer);
    const ended = reason === "refused" ? this.#indexes.release(peer) : index === undefined ? [] : [index];
    for (const number of ended) this.#send({ type: "unbound", index: number });
  }

  /** One batch at a time while the kernel is busy with another, so that small messages gather; see MAX_BUFFERED_BYTES. */
  #pump(): void {
    while (this.#socket.readyState === WebSocket.OPEN) {
      if (this.#unwritten > 0 && this.#leg.queuedBytes < RELAY_BATCH_BYTES) return;
      if (this.#unwritten >= MAX_BUFFERED_BYTES) return;
      const taken = this.#leg.take(RELAY_BATCH_BYTES - 1, FRAME_HEADER_BYTES);
      if (taken.length === 0) return;
      const frames: RelayFrame[] = [];
      for (const { from, frame } of taken) {
        const index = this.#indexes.indexOf(from) ?? this.#introduce(from);
        if (index !== undefined) frames.push({ index, frame });
      }
      if (frames.length > 0) this.#write(encodeRelay({ type: "frames", frames }));
    }
  }

  #introduce(peer: PeerId): number | undefined {
    const index = this.#indexes.choose(peer);
    if (index !== undefined) this.#send({ type: "bind", index, peer });
    return index;
  }

  /** Control messages go at once, but a client that lets them pile up is not listening. */
  #send(message: RelayMessage): void {
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    this.#socket.send(encodeRelay(message));
    if (this.#socket.bufferedAmount > MAX_UNREAD_BYTES) this.#socket.terminate();
  }

  #write(bytes: Uint8Array): void {
    this.#unwritten += bytes.length;
    this.#socket.send(bytes, () => {
      this.#unwritten -= bytes.length;
      this.#pump();
    });
  }
}
