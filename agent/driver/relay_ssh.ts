/**
 * The SSH tunnel: one SSH connection to the coordinator, one channel per peer, sealed frames on it with a length of two bytes.
 *
 * Works where UDP is blocked and TCP 2222 is not. The host key is the one that signalling told, which came through the Noise channel, so a
 * man in the middle of the SSH connection alone is found out. New keys (RFC 4253 §9) are the coordinator's business: ssh2 lets only a
 * server ask for them.
 */
import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { Client, type ClientChannel } from "ssh2";
import { formatTransportAddress } from "../../shared/address.ts";
import { equalBytes } from "../../shared/bytes.ts";
import { ChannelFrameReader, encodeChannelFrames } from "../../shared/relay/channel_frames.ts";
import { bySource } from "../../shared/relay/fair_queue.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { type Instant, instant } from "../../shared/time.ts";
import type { JumpDoor } from "./jump/jump_door.ts";
import type { RelayEvents } from "./relay_socket.ts";
import { RelayUplink, type UplinkCounters } from "./relay_uplink.ts";

/**
 * By preference. Deno's AES-GCM is slow, and what the coordinator is bound by: AES-CTR with an HMAC costs it less than half. Bun's crypto has
 * no ChaCha20-Poly1305, which ssh2 would otherwise offer first.
 */
const CIPHERS = ["aes256-ctr", "aes256-gcm@openssh.com", "aes128-gcm@openssh.com"] as const;
/** Encrypt-then-MAC (RFC 4253 §6.4 has it the other way round, OpenSSH since 6.2 this one). GCM does without. */
const HMACS = ["hmac-sha2-256-etm@openssh.com"] as const;
const OPEN_TIMEOUT_MS = 10_000;
/** Where packets to the port are dropped, trying anew finds out sooner that they pass than TCP's own, ever rarer, repetitions. */
const CONNECT_TIMEOUT_MS = 2500;
const KEEPALIVE_MS = 15_000;
const KEEPALIVE_MISSES = 2;
/** Before each frame on a channel. */
const LENGTH_BYTES = 2;
/** What an agent asks the coordinator to forward when it admits jumps. Both are names, not places. */
const JUMP_ADDRESS = "jump";
const JUMP_PORT = 1;
/** Asked in the same way for the sake of the answer, a refusal: the mark of send_window.ts. */
const MARK_ADDRESS = "mark";

export interface SshEndpoint {
  readonly host: string;
  readonly port: number;
  readonly hostKey: Uint8Array;
}

interface Channel {
  stream: ClientChannel | undefined;
  isBlocked: boolean;
  readonly reader: ChannelFrameReader;
}

export interface RelaySshOptions {
  readonly endpoint: SshEndpoint;
  readonly account: { readonly id: PeerId; readonly stateDir: string };
  readonly counters: UplinkCounters;
  /** Asks for the channels of people who come by plain OpenSSH. */
  readonly jumpDoor: JumpDoor | undefined;
  /** What the user should know: somebody else answers there. */
  readonly onProblem: (problem: string) => void;
  /** A dead connection is given up at the third of these. */
  readonly keepaliveMs?: number;
}

export class RelaySsh {
  readonly #events: RelayEvents;
  readonly #uplink: RelayUplink;
  readonly #client = new Client();
  readonly #socket: Socket;
  readonly #channels = new Map<PeerId, Channel>();
  #challenge: ReturnType<typeof setTimeout> | undefined;
  /** Since when a challenge has waited for its answer; undefined: none does. */
  #silentSince: Instant | undefined;
  #isUp = false;
  #isClosed = false;

  constructor(options: RelaySshOptions, events: RelayEvents) {
    const { endpoint, account, jumpDoor } = options;
    this.#events = events;
    this.#uplink = new RelayUplink(options.counters);
    const connecting = setTimeout(() => this.close(), CONNECT_TIMEOUT_MS);
    this.#client
      .on("connect", () => {
        clearTimeout(connecting);
        // Or the kernel may keep a small frame back until what was sent before is acknowledged.
        this.#socket.setNoDelay(true);
      })
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
    this.#socket = connect(endpoint.port, endpoint.host);
    this.#client.connect({
      sock: this.#socket,
      username: account.id,
      privateKey: readFileSync(join(account.stateDir, "identity")),
      hostVerifier: (key: Buffer) => {
        const isOurs = equalBytes(new Uint8Array(key), endpoint.hostKey);
        if (!isOurs) options.onProblem(wrongHostKey(endpoint));
        return isOurs;
      },
      algorithms: { cipher: [...CIPHERS], hmac: [...HMACS], serverHostKey: ["ssh-ed25519"] },
      readyTimeout: OPEN_TIMEOUT_MS,
      keepaliveInterval: options.keepaliveMs ?? KEEPALIVE_MS,
      keepaliveCountMax: KEEPALIVE_MISSES,
    });
  }

  get silentSince(): Instant | undefined {
    return this.#silentSince;
  }

  /** Asks for a sign of life: a channel that nobody offers, whose refusal is one. Without it in time the connection is given up. */
  challenge(timeoutMs: number): void {
    if (!this.#isUp || this.#challenge !== undefined) return;
    this.#silentSince = now();
    this.#challenge = setTimeout(() => this.close(), timeoutMs);
    this.#client.forwardOut("127.0.0.1", 0, "challenge.relay", 1, (_error, stream: ClientChannel | undefined) => {
      clearTimeout(this.#challenge);
      this.#challenge = undefined;
      this.#silentSince = undefined;
      stream?.end();
    });
  }

  /** Opens this peer's channel, so that its frames come in and the coordinator tells of its legs. */
  bind(peer: PeerId): void {
    if (this.#channels.has(peer)) return;
    this.#channels.set(peer, {
      stream: undefined,
      isBlocked: false,
      reader: new ChannelFrameReader(),
    });
    if (this.#isUp) this.#openChannel(peer);
  }

  unbind(peer: PeerId): void {
    const channel = this.#channels.get(peer);
    this.#channels.delete(peer);
    this.#uplink.clear(peer);
    channel?.stream?.end();
  }

  /** Frames wait for their channel to open, and for their turn. */
  send(peer: PeerId, frames: readonly Uint8Array[], lanes: readonly number[] = []): void {
    if (!this.#isUp) return;
    this.bind(peer);
    this.#uplink.push(peer, frames, lanes, now());
    this.#flush();
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
        else {
          this.#channels.delete(peer);
          this.#uplink.clear(peer);
        }
        return;
      }
      channel.stream = stream;
      stream.on("data", (data: Buffer) => {
        const frames = channel.reader.push(data);
        if (frames.length > 0) this.#events.onFrames(peer, frames);
      });
      stream.on("drain", () => {
        channel.isBlocked = false;
        this.#flush();
      });
      stream.on("close", () => {
        if (this.#channels.get(peer) === channel) this.#channels.delete(peer);
      });
      stream.on("error", () => stream.destroy());
      this.#flush();
    });
  }

  /** Each batch goes to one channel per peer, as one write. ssh2 writes each packet in pieces: all leave in one call. */
  #flush(): void {
    this.#socket.cork();
    this.#send();
    this.#socket.uncork();
  }

  #send(): void {
    while (this.#isUp) {
      const taken = this.#uplink.take(LENGTH_BYTES, now(), (peer) => this.#isReady(peer));
      if (taken.length === 0) break;
      let bytes = 0;
      for (const [peer, frames] of bySource(taken)) {
        const channel = this.#channels.get(peer);
        const written = encodeChannelFrames(frames);
        if (channel?.stream?.write(written) === false) channel.isBlocked = true;
        bytes += written.length;
      }
      if (this.#uplink.onSent(bytes, now())) this.#mark();
    }
    if (this.#isUp && this.#uplink.isStuck(now())) this.#mark();
  }

  #isReady(peer: PeerId): boolean {
    const channel = this.#channels.get(peer);
    return channel?.stream?.writable === true && !channel.isBlocked;
  }

  #mark(): void {
    this.#uplink.onMarked(now());
    this.#client.forwardIn(MARK_ADDRESS, JUMP_PORT, () => {
      this.#uplink.onAnswered(now());
      this.#flush();
    });
  }
}

const wrongHostKey = ({ host, port }: SshEndpoint): string =>
  `The SSH server at ${formatTransportAddress({ ip: host, port })} is not the coordinator's: its host key is another one. SSH is not used there; ` +
  `look for a proxy or a redirection of that port on the way, or for an address in --public-host that leads elsewhere`;

const now = (): Instant => instant(performance.now());
