/** Real sockets around the relay: its WebSocket and SSH servers on loopback, and agents that speak the wire format and nothing more. */
import { createServer, type Server as HttpServer } from "node:http";
import type { AddressInfo } from "node:net";
// @ts-types="@types/ssh2"
import { Client, type ClientChannel } from "ssh2";
// @ts-types="@types/ws"
import { WebSocket } from "ws";
import { createRelayService, type RelayService } from "../../../../coordinator/relay/relay_service.ts";
import { createRelayWebSocketServer } from "../../../../coordinator/relay/relay_websocket.ts";
import { ChannelFrameReader, encodeChannelFrames } from "../../../../shared/relay/channel_frames.ts";
import { type HostKey, loadHostKey, opensshPrivateKey } from "../../../../coordinator/ssh/host_key.ts";
import { openSshServer, type SshServer, type SshServerOptions } from "../../../../coordinator/ssh/ssh_server.ts";
import { MemoryStore } from "../../../../coordinator/store/memory_store.ts";
import { type PeerId, peerIdOf } from "../../../../shared/session/identity.ts";
import { Ed25519Key } from "../../../../shared/session/primitives.ts";
import type { RelayLeg } from "../../../../shared/signal/messages.ts";
import { decodeRelay, encodeRelay, type RelayMessage } from "../../../../shared/wire/relay.ts";

const PATIENCE_MS = 8000;

export interface Received {
  readonly from: PeerId;
  readonly frame: Uint8Array;
}

/** An agent that is connected by one leg. */
export interface TestLeg {
  readonly id: PeerId;
  readonly received: Received[];
  bytesReceived: number;
  /** Opens the way to a peer. */
  bind(peer: PeerId): Promise<void>;
  send(to: PeerId, frames: readonly Uint8Array[]): void;
  close(): void;
}

export class RelayWorld {
  readonly members = new Set<PeerId>();
  readonly blocked = new Set<string>();
  readonly notices: { to: PeerId; peer: PeerId; leg: RelayLeg | null }[] = [];
  readonly tokens = new Map<string, PeerId>();
  readonly hostKey: HostKey = loadHostKey(new MemoryStore(), (length) => new Uint8Array(length).fill(7));
  readonly relay: RelayService;
  ssh!: SshServer;
  #http: HttpServer | undefined;
  #closers: (() => void)[] = [];
  #waiting = new Set<() => void>();
  #tokenCount = 0;

  constructor() {
    this.relay = createRelayService({
      log: quiet,
      isMember: (peer) => this.members.has(peer),
      mayTalk: (a, b) =>
        a !== b &&
        this.members.has(a) &&
        this.members.has(b) &&
        !this.blocked.has(`${a} ${b}`) &&
        !this.blocked.has(`${b} ${a}`),
      tellLeg: (to, peer, leg) => {
        this.notices.push({ to, peer, leg });
        this.changed();
      },
    });
  }

  static async start(
    options: Pick<SshServerOptions, "rekeyAfterMs" | "rekeyAfterBytes" | "keepaliveIntervalMs"> = {},
  ): Promise<RelayWorld> {
    const world = new RelayWorld();
    const webSockets = createRelayWebSocketServer({
      relay: world.relay,
      log: quiet,
      redeem(token) {
        const peer = world.tokens.get(token);
        world.tokens.delete(token);
        return peer;
      },
    });
    const http = createServer();
    http.on("upgrade", (request, socket, head) => webSockets.onUpgrade(request, socket, head));
    await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
    world.#http = http;
    world.ssh = await openSshServer({
      listen: { host: "127.0.0.1", port: 0 },
      hostKey: world.hostKey,
      relay: world.relay,
      log: quiet,
      isMember: (peer) => world.members.has(peer),
      peerOfName: () => undefined,
      ...options,
    });
    world.#closers.push(
      () => webSockets.close(),
      () => http.close(),
      () => http.closeAllConnections(),
      () => world.ssh.close(),
    );
    return world;
  }

  close(): void {
    for (const close of this.#closers) close();
  }

  /** A member with a key of its own. */
  identity(fill: number, isMember = true): TestIdentity {
    const seed = new Uint8Array(32).fill(fill);
    const key = new Ed25519Key(seed);
    const id = peerIdOf(key.publicKey);
    if (isMember) this.members.add(id);
    return { id, privateKey: opensshPrivateKey(seed, key.publicKey) };
  }

  async webSocket(identity: TestIdentity): Promise<WebSocketLeg> {
    const token = `a${"abcdefghijklmnopqrstuvwxyz"[this.#tokenCount++ % 26]}${"b".repeat(24)}`;
    this.tokens.set(token, identity.id);
    const leg = new WebSocketLeg(identity.id, this.url, token, () => this.changed());
    this.#closers.push(() => leg.close());
    await leg.opened;
    return leg;
  }

  async sshLeg(identity: TestIdentity): Promise<SshLeg> {
    const leg = new SshLeg(identity, this.ssh.bound.port, () => this.changed());
    this.#closers.push(() => leg.close());
    await leg.opened;
    return leg;
  }

  get url(): string {
    const address = this.#http?.address() as AddressInfo | undefined;
    return `ws://127.0.0.1:${address?.port}/v1/relay`;
  }

  /** Something has come that a test may wait for. */
  changed(): void {
    for (const look of this.#waiting) look();
  }

  /** Waits until `isTrue`; what it waited for is named when it does not come. */
  until(what: string, isTrue: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = (): void => {
        clearTimeout(timer);
        clearInterval(poll);
        this.#waiting.delete(look);
      };
      const timer = setTimeout(() => {
        done();
        reject(new Error(`Waited in vain for ${what}`));
      }, PATIENCE_MS);
      const look = (): void => {
        if (!isTrue()) return;
        done();
        resolve();
      };
      const poll = setInterval(look, 20);
      this.#waiting.add(look);
      look();
    });
  }
}

export interface TestIdentity {
  readonly id: PeerId;
  readonly privateKey: string;
}

export class WebSocketLeg implements TestLeg {
  readonly id: PeerId;
  readonly received: Received[] = [];
  readonly messages: RelayMessage[] = [];
  readonly socket: WebSocket;
  readonly opened: Promise<void>;
  bytesReceived = 0;
  closeReason: string | undefined;
  readonly #peers = new Map<number, PeerId>();
  readonly #indexes = new Map<PeerId, number>();
  #next = 0;

  constructor(id: PeerId, url: string, token: string, onChange: () => void) {
    this.id = id;
    this.socket = new WebSocket(url, { perMessageDeflate: false, headers: { authorization: `Bearer ${token}` } });
    this.opened = new Promise((resolve, reject) => {
      this.socket.on("open", resolve);
      this.socket.on("error", reject);
    });
    this.socket.on("close", (_code: number, reason: Buffer) => {
      this.closeReason = reason.toString();
      onChange();
    });
    this.socket.on("message", (data: Buffer) => {
      this.#receive(new Uint8Array(data.buffer, data.byteOffset, data.length));
      onChange();
    });
  }

  bind(peer: PeerId): Promise<void> {
    const index = this.#next++;
    this.#peers.set(index, peer);
    this.#indexes.set(peer, index);
    this.write({ type: "bind", index, peer });
    return Promise.resolve();
  }

  send(to: PeerId, frames: readonly Uint8Array[]): void {
    const index = this.#indexes.get(to);
    if (index === undefined) throw new Error(`${to} is not bound`);
    this.write({ type: "frames", frames: frames.map((frame) => ({ index, frame })) });
  }

  write(message: RelayMessage): void {
    this.socket.send(encodeRelay(message));
  }

  close(): void {
    this.socket.terminate();
  }

  #receive(bytes: Uint8Array): void {
    const message = decodeRelay(bytes);
    if (message === undefined) throw new Error("The relay sent something malformed");
    if (message.type === "bind") {
      this.#peers.set(message.index, message.peer);
      if (!this.#indexes.has(message.peer)) this.#indexes.set(message.peer, message.index);
    }
    if (message.type !== "frames") return void this.messages.push(message);
    for (const { index, frame } of message.frames) {
      this.bytesReceived += frame.length;
      this.received.push({ from: this.#peers.get(index) ?? ("nobody" as PeerId), frame });
    }
  }
}

export class SshLeg implements TestLeg {
  readonly id: PeerId;
  readonly received: Received[] = [];
  readonly client = new Client();
  readonly channels = new Map<PeerId, ClientChannel>();
  readonly opened: Promise<void>;
  bytesReceived = 0;
  /** Messages of SSH that brought them. */
  chunks = 0;
  isClosed = false;
  /** As the server has shown it. */
  hostKey: Uint8Array | undefined;
  readonly #onChange: () => void;

  constructor(identity: TestIdentity, port: number, onChange: () => void, user: string = identity.id) {
    this.id = identity.id;
    this.#onChange = onChange;
    this.opened = new Promise((resolve, reject) => {
      this.client.on("ready", resolve);
      this.client.on("error", reject);
    });
    this.client.on("close", () => {
      this.isClosed = true;
      onChange();
    });
    this.client.connect({
      host: "127.0.0.1",
      port,
      username: user,
      privateKey: identity.privateKey,
      hostVerifier: (key: Buffer) => {
        this.hostKey = new Uint8Array(key);
        return true;
      },
      algorithms: { cipher: ["aes256-gcm@openssh.com", "aes128-gcm@openssh.com"] },
    });
  }

  bind(peer: PeerId): Promise<void> {
    return new Promise((resolve, reject) => {
      this.client.forwardOut("", 0, `${peer}.relay`, 1, (error, channel) => {
        if (error !== undefined && error !== null) return reject(error);
        const reader = new ChannelFrameReader();
        this.channels.set(peer, channel);
        channel.on("data", (chunk: Buffer) => {
          this.chunks++;
          for (const frame of reader.push(new Uint8Array(chunk))) {
            this.bytesReceived += frame.length;
            this.received.push({ from: peer, frame });
          }
          this.#onChange();
        });
        channel.on("close", () => {
          this.channels.delete(peer);
          this.#onChange();
        });
        return resolve();
      });
    });
  }

  send(to: PeerId, frames: readonly Uint8Array[]): void {
    this.channels.get(to)?.write(encodeChannelFrames(frames));
  }

  close(): void {
    this.client.destroy();
  }
}

const quiet = { event: () => {}, debug: () => {}, info: () => {}, warn: () => {}, error: console.error };
