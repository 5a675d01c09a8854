/**
 * The SSH tunnel: one SSH connection to the coordinator, one channel per peer, sealed frames on it with a length of two bytes.
 *
 * Works where UDP is blocked and TCP 2222 is not. The host key is the one that signalling told, which came through the Noise channel, so a
 * man in the middle of the SSH connection alone is found out. New keys (RFC 4253 §9) are the coordinator's business: ssh2 lets only a
 * server ask for them.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Client, type ClientChannel } from "ssh2";
import { equalBytes } from "../../shared/bytes.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import type { JumpDoor } from "./jump/jump_door.ts";
import type { RelayEvents } from "./relay_socket.ts";

/** Bun's crypto has no ChaCha20-Poly1305, which ssh2 would otherwise offer first. */
const CIPHERS = ["aes256-gcm@openssh.com", "aes128-gcm@openssh.com"] as const;
const OPEN_TIMEOUT_MS = 10_000;
/** Where packets to the port are dropped, trying anew finds out sooner that they pass than TCP's own, ever rarer, repetitions. */
const CONNECT_TIMEOUT_MS = 2500;
const KEEPALIVE_MS = 15_000;
const KEEPALIVE_MISSES = 2;
/** Frames of one peer that wait for its channel to open or to drain; the oldest go first. */
const MAX_QUEUED_BYTES = 512 * 1024;
const LENGTH_BYTES = 2;
/** What an agent asks the coordinator to forward when it admits jumps. Both are names, not places. */
const JUMP_ADDRESS = "jump";
const JUMP_PORT = 1;

export interface SshEndpoint {
  readonly host: string;
  readonly port: number;
  readonly hostKey: Uint8Array;
}

interface Channel {
  stream: ClientChannel | undefined;
  isBlocked: boolean;
  queue: Uint8Array[];
  queuedBytes: number;
  /** The beginning of a frame whose end has not come. */
  rest: Uint8Array;
}

export class RelaySsh {
  readonly #events: RelayEvents;
  readonly #client = new Client();
  readonly #channels = new Map<PeerId, Channel>();
  #challenge: ReturnType<typeof setTimeout> | undefined;
  #isUp = false;
  #isClosed = false;

  /** @param jumpDoor asks for the channels of people who come by plain OpenSSH */
  constructor(
    endpoint: SshEndpoint,
    account: { readonly id: PeerId; readonly stateDir: string },
    events: RelayEvents,
    jumpDoor?: JumpDoor,
  ) {
    this.#events = events;
    const connecting = setTimeout(() => this.close(), CONNECT_TIMEOUT_MS);
    this.#client
      .on("connect", () => clearTimeout(connecting))
      .on("ready", () => {
        this.#isUp = true;
        for (const peer of this.#channels.keys()) this.#openChannel(peer);
        // An older coordinator refuses it, and then nobody comes.
        if (jumpDoor !== undefined) this.#client.forwardIn(JUMP_ADDRESS, JUMP_PORT, () => {});
        events.onState(true);
      })
      .on("tcp connection", (_details, accept, reject) => {
        if (jumpDoor === undefined) reject();
        else jumpDoor.handle(accept());
      })
      .on("close", () => {
        clearTimeout(connecting);
        this.close();
      })
      // What went wrong is of no use to anybody: `close` follows, and the ladder has another rung.
      .on("error", () => this.close());
    this.#client.connect({
      host: endpoint.host,
      port: endpoint.port,
      username: account.id,
      privateKey: readFileSync(join(account.stateDir, "identity")),
      hostVerifier: (key: Buffer) => equalBytes(new Uint8Array(key), endpoint.hostKey),
      algorithms: { cipher: [...CIPHERS], serverHostKey: ["ssh-ed25519"] },
      readyTimeout: OPEN_TIMEOUT_MS,
      keepaliveInterval: KEEPALIVE_MS,
      keepaliveCountMax: KEEPALIVE_MISSES,
    });
  }

  /** Asks for a sign of life: a channel that nobody offers, whose refusal is one. Without it in time the connection is given up. */
  challenge(timeoutMs: number): void {
    if (!this.#isUp || this.#challenge !== undefined) return;
    this.#challenge = setTimeout(() => this.close(), timeoutMs);
    this.#client.forwardOut("127.0.0.1", 0, "challenge.relay", 1, (_error, stream: ClientChannel | undefined) => {
      clearTimeout(this.#challenge);
      this.#challenge = undefined;
      stream?.end();
    });
  }

  /** Opens this peer's channel, so that its frames come in and the coordinator tells of its legs. */
  bind(peer: PeerId): void {
    if (this.#channels.has(peer)) return;
    this.#channels.set(peer, {
      stream: undefined,
      isBlocked: false,
      queue: [],
      queuedBytes: 0,
      rest: new Uint8Array(),
    });
    if (this.#isUp) this.#openChannel(peer);
  }

  unbind(peer: PeerId): void {
    const channel = this.#channels.get(peer);
    this.#channels.delete(peer);
    channel?.stream?.end();
  }

  send(peer: PeerId, frames: readonly Uint8Array[]): void {
    if (!this.#isUp) return;
    this.bind(peer);
    const channel = this.#channels.get(peer);
    if (channel === undefined) return;
    for (const frame of frames) {
      channel.queue.push(frame);
      channel.queuedBytes += frame.length;
    }
    while (channel.queuedBytes > MAX_QUEUED_BYTES) {
      const oldest = channel.queue.shift();
      if (oldest === undefined) break;
      channel.queuedBytes -= oldest.length;
    }
    this.#flush(channel);
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#isUp = false;
    clearTimeout(this.#challenge);
    this.#channels.clear();
    // `end` alone waits for a connection that may never come.
    this.#client.destroy();
    queueMicrotask(() => this.#events.onState(false));
  }

  #openChannel(peer: PeerId): void {
    this.#client.forwardOut("127.0.0.1", 0, `${peer}.relay`, 1, (error, stream) => {
      const channel = this.#channels.get(peer);
      if (error !== undefined || channel === undefined) {
        // The coordinator refuses this peer, or it was let go meanwhile; the next use asks again.
        if (error === undefined) stream.end();
        else this.#channels.delete(peer);
        return;
      }
      channel.stream = stream;
      stream.on("data", (data: Buffer) => this.#receive(peer, channel, data));
      stream.on("drain", () => {
        channel.isBlocked = false;
        this.#flush(channel);
      });
      stream.on("close", () => {
        if (this.#channels.get(peer) === channel) this.#channels.delete(peer);
      });
      stream.on("error", () => stream.destroy());
      this.#flush(channel);
    });
  }

  /** Everything that waits leaves as one write. */
  #flush(channel: Channel): void {
    const { stream, queue } = channel;
    if (stream === undefined || channel.isBlocked || queue.length === 0) return;
    const bytes = Buffer.alloc(channel.queuedBytes + queue.length * LENGTH_BYTES);
    let at = 0;
    for (const frame of queue) {
      bytes.writeUInt16BE(frame.length, at);
      bytes.set(frame, at + LENGTH_BYTES);
      at += LENGTH_BYTES + frame.length;
    }
    channel.queue = [];
    channel.queuedBytes = 0;
    channel.isBlocked = !stream.write(bytes);
  }

  #receive(peer: PeerId, channel: Channel, data: Buffer): void {
    const bytes =
      channel.rest.length === 0 ? new Uint8Array(data) : new Uint8Array(Buffer.concat([channel.rest, data]));
    const frames: Uint8Array[] = [];
    let at = 0;
    while (at + LENGTH_BYTES <= bytes.length) {
      const end = at + LENGTH_BYTES + (((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0));
      if (end > bytes.length) break;
      frames.push(bytes.subarray(at + LENGTH_BYTES, end));
      at = end;
    }
    channel.rest = bytes.slice(at);
    if (frames.length > 0) this.#events.onFrames(peer, frames);
  }
}
