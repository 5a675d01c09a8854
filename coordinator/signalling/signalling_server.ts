/**
 * Drives the hub: WebSocket messages and the time in, actions out. Nothing is decided here but what belongs to sockets: how much may
 * wait to be sent, and whether anybody is still there before the hub can ask.
 */
import { randomBytes } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
// @ts-types="@types/ws"
import { type RawData, WebSocket, WebSocketServer } from "ws";
import { assertNever } from "../../shared/assert.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { MAX_SIGNAL_BYTES, MAX_UNAUTHENTICATED_BYTES, type RelayLeg } from "../../shared/signal/messages.ts";
import { type Instant, instant } from "../../shared/time.ts";
import { sourceOf } from "../limits.ts";
import type { Log } from "../log.ts";
import type { CoordinatorIdentity } from "../registry/coordinator_identity.ts";
import type { Store } from "../store/store.ts";
import type { StunObservation } from "../stun/stun_server.ts";
import type { Reachable } from "./advertised.ts";
import { Hub } from "./hub.ts";
import type { ConnectionId, HubAction, HubInput } from "./hub_contract.ts";

export const SIGNALLING_PATH = "/v1/signal";

/** The tag that the channel adds to each message. */
const SEAL_BYTES = 16;
/** An agent that does not read this much is closed, so that it costs nobody else anything. */
const MAX_QUEUED_BYTES = 1_000_000;
/** For connections that wait for approval, which the hub never asks anything. */
const PING_INTERVAL_MS = 15_000;

export interface SignallingServer {
  onUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void;
  onObserved(observation: StunObservation): void;
  onStoreChanged(): void;
  isMember(peer: PeerId): boolean;
  mayTalk(a: PeerId, b: PeerId): boolean;
  redeemRelayToken(token: string): PeerId | undefined;
  /** Tells an agent, if it is there, what relay leg a peer has. */
  tellLeg(to: PeerId, peer: PeerId, leg: RelayLeg | null): void;
  close(): void;
}

export interface SignallingOptions {
  readonly identity: CoordinatorIdentity;
  readonly store: Store;
  readonly reachable: Reachable;
  readonly log: Log;
  readonly addToken: (id: string, secret: Uint8Array) => void;
  readonly removeToken: (id: string) => void;
  readonly onJoined: (peer: PeerId) => void;
  readonly onLegLost: (peer: PeerId, leg: RelayLeg) => void;
  /** Who may talk to whom has changed: for this peer, or for anybody. */
  readonly onRulesChanged: (peer: PeerId | undefined) => void;
}

interface Client {
  readonly socket: WebSocket;
  /** Since the last round of pings. */
  isHeard: boolean;
  hasAnswered: boolean;
}

export function createSignallingServer(options: SignallingOptions): SignallingServer {
  const { log } = options;
  // performance.now() never jumps; the wall clock may.
  const hub = new Hub({
    ...options,
    random: (length) => new Uint8Array(randomBytes(length)),
    unixMs: () => Date.now(),
  });
  const server = new WebSocketServer({
    noServer: true,
    maxPayload: MAX_UNAUTHENTICATED_BYTES,
    perMessageDeflate: false,
    clientTracking: false,
  });
  const clients = new Map<ConnectionId, Client>();
  let nextConnection: ConnectionId = 1;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let isClosed = false;

  function step(input: HubInput): void {
    if (isClosed) return;
    try {
      hub.handle(input, now());
    } catch (error) {
      // A bug of ours. It costs the client that brought it up its connection, and nobody else theirs.
      log.error(
        `Signalling failed on "${input.type}": ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
      );
      if ("connection" in input) clients.get(input.connection)?.socket.terminate();
    }
    for (let action = hub.poll(); action !== undefined; action = hub.poll()) perform(action);
    clearTimeout(timer);
    const deadline = hub.deadline();
    // Rounded up: a timer that fires a fraction early would find nothing to do and spin.
    if (deadline !== undefined)
      timer = setTimeout(() => step({ type: "timeout" }), Math.max(0, Math.ceil(deadline - now())));
  }

  function perform(action: HubAction): void {
    switch (action.type) {
      case "send": {
        const client = clients.get(action.connection);
        if (client === undefined || client.socket.readyState !== WebSocket.OPEN) return;
        client.socket.send(action.bytes);
        if (client.socket.bufferedAmount > MAX_QUEUED_BYTES) client.socket.terminate();
        return;
      }
      case "close": {
        const client = clients.get(action.connection);
        clients.delete(action.connection);
        client?.socket.close(action.code, action.reason);
        return;
      }
      case "authenticated": {
        const client = clients.get(action.connection);
        if (client !== undefined) raiseMaxPayload(client.socket, MAX_SIGNAL_BYTES + SEAL_BYTES);
        return;
      }
      case "add_token":
        return options.addToken(action.id, action.secret);
      case "remove_token":
        return options.removeToken(action.id);
      case "joined":
        return options.onJoined(action.peer);
      case "leg_lost":
        return options.onLegLost(action.peer, action.leg);
      case "rules_changed":
        return options.onRulesChanged(action.peer);
      case "event":
        return log.event(action.event);
      case "failed":
        return log.error(action.message);
      default:
        assertNever(action);
    }
  }

  function accept(socket: WebSocket, source: string, host: string | undefined): void {
    const connection = nextConnection++;
    const client: Client = { socket, isHeard: true, hasAnswered: true };
    clients.set(connection, client);
    socket.binaryType = "nodebuffer";
    socket.on("message", (data: RawData, isBinary: boolean) => {
      client.isHeard = true;
      client.hasAnswered = true;
      if (isBinary) step({ type: "message", connection, bytes: bytesOf(data) });
      else socket.close(1003, "binary messages only");
    });
    socket.on("pong", () => {
      client.hasAnswered = true;
    });
    socket.on("close", () => {
      clients.delete(connection);
      step({ type: "closed", connection });
    });
    // Always followed by "close".
    socket.on("error", (error) => log.debug(`Signalling connection ${connection}: ${error.message}`));
    step({ type: "opened", connection, source, host });
  }

  const pinger = setInterval(() => {
    for (const client of clients.values()) {
      // The hub's questions have been answered: there is no need for another.
      if (client.isHeard) {
        client.isHeard = false;
        continue;
      }
      if (!client.hasAnswered) {
        client.socket.terminate();
        continue;
      }
      client.hasAnswered = false;
      client.socket.ping();
    }
  }, PING_INTERVAL_MS);

  return {
    onUpgrade(request, socket, head) {
      socket.on("error", () => socket.destroy());
      const path = request.url?.split("?")[0];
      const source = sourceOf(request.socket.remoteAddress ?? "");
      if (isClosed || path !== SIGNALLING_PATH) return rejectUpgrade(socket, "404 Not Found");
      if (!hub.mayOpen(source)) return rejectUpgrade(socket, "503 Service Unavailable");
      server.handleUpgrade(request, socket, head, (webSocket) => accept(webSocket, source, request.headers.host));
    },
    onObserved: (observation) => step({ type: "observed", observation }),
    onStoreChanged: () => step({ type: "store_changed" }),
    isMember: (peer) => hub.isMember(peer),
    mayTalk: (a, b) => hub.mayTalk(a, b),
    redeemRelayToken: (token) => hub.redeemRelayToken(token, now()),
    tellLeg: (to, peer, leg) => step({ type: "peer_leg", to, peer, leg }),
    close() {
      isClosed = true;
      clearTimeout(timer);
      clearInterval(pinger);
      for (const { socket } of clients.values()) socket.close(1001, "coordinator stops");
      clients.clear();
    },
  };
}

const now = (): Instant => instant(performance.now());

function rejectUpgrade(socket: Duplex, status: string): void {
  socket.end(`HTTP/1.1 ${status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`);
}

const bytesOf = (data: RawData): Uint8Array =>
  Array.isArray(data) ? Buffer.concat(data) : data instanceof ArrayBuffer ? new Uint8Array(data) : data;

/**
 * Lets larger messages in once a client has proven who it is. `ws` has no public way to change its limit on an open connection, so
 * this sets the receiver's field of the pinned version; a test watches that it works.
 */
function raiseMaxPayload(socket: WebSocket, bytes: number): void {
  const receiver = (socket as unknown as { _receiver?: { _maxPayload?: number } })._receiver;
  if (receiver?._maxPayload !== undefined) receiver._maxPayload = bytes;
}
