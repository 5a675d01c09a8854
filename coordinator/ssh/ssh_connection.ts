/**
 * One SSH connection after the handshake: who it is, what it may open, and the relay leg that its channels make up.
 *
 * An agent opens one `direct-tcpip` channel for each peer, to `<peer id>.relay` port 1; frames go through it in both directions
 * (shared/relay/channel_frames.ts). A person who logs in gets one line of text, and one who jumps to a peer that admits them a connection to it
 * (jump_board.ts). Everything else is refused, with the reason.
 */
import type { Socket } from "node:net";
// @ts-types="@types/ssh2"
import type { AuthContext, Connection, PublicKeyAuthContext, ServerChannel, Session } from "ssh2";
import { isPeerId, type PeerId } from "../../shared/session/identity.ts";
import { RELAY_BATCH_BYTES } from "../../shared/wire/relay.ts";
import { bySource } from "../../shared/relay/fair_queue.ts";
import { MAX_BOUND_PEERS } from "../relay/relay_hub.ts";
import type { LegHandle, RelayService } from "../relay/relay_service.ts";
import { decideLogin } from "./authentication.ts";
import { ChannelFrameReader, encodeChannelFrames } from "../../shared/relay/channel_frames.ts";
import { JUMP_ADDRESS, JUMP_PORT, type JumpBoard, type JumpProof } from "./jump_board.ts";
import { explainRefusals, isExchangingKeys } from "./ssh2_internals.ts";

const NO_SHELL =
  "TunnelMesh carries tunnels between agents here; there is no shell. To join a machine, see: tunnelmesh-agent --help";
const NO_FORWARDING = "TunnelMesh carries tunnels between its agents only; it forwards nothing else";
const REFUSED_PEER = "That peer is unknown, was removed, or one of the two refuses the other";
const TOO_MANY = "Too many channels";

const RELAY_DOMAIN = ".relay";
const RELAY_PORT = 1;
/** OpenSSH's own limit is 6; a person's SSH agent may hold more keys than that. */
const MAX_LOGIN_ATTEMPTS = 10;
const MAX_SESSIONS = 4;
/** A write is begun only below this much that the kernel has not taken yet. */
const MAX_BUFFERED_BYTES = 2 * RELAY_BATCH_BYTES;
/** What may wait in one channel for its client's window. */
const MAX_CHANNEL_BYTES = RELAY_BATCH_BYTES;
const FRAME_HEADER_BYTES = 2;

/** RFC 4253 §9: keys change after an hour or a gigabyte, whichever comes first. ssh2 never does it by itself. */
export const REKEY_AFTER_MS = 3_600_000;
export const REKEY_AFTER_BYTES = 2 ** 30;

export interface SshConnectionOptions {
  readonly relay: RelayService;
  readonly isMember: (peer: PeerId) => boolean;
  readonly peerOfName: (name: string) => PeerId | undefined;
  readonly jumps: JumpBoard;
  readonly rekeyAfterMs: number;
  readonly rekeyAfterBytes: number;
}

export class SshConnection {
  readonly #connection: Connection;
  readonly #socket: Socket;
  readonly #options: SshConnectionOptions;
  readonly #channels = new Map<PeerId, ServerChannel>();
  #peer: PeerId | undefined;
  #leg: LegHandle | undefined;
  /** The peer that this client has proven to it that it may jump to. */
  #jump: { readonly peer: PeerId; readonly name: string; readonly proof: JumpProof } | undefined;
  #refusal = NO_FORWARDING;
  #attempts = 0;
  #sessions = 0;
  #keyedAt: number;
  #keyedBytes = 0;
  #isOver = false;
  #isGathering = false;

  /** @param onLogin called once when the client has proven who it is */
  constructor(connection: Connection, socket: Socket, options: SshConnectionOptions, onLogin: () => void) {
    this.#connection = connection;
    this.#socket = socket;
    this.#options = options;
    this.#keyedAt = performance.now();
    explainRefusals(connection, () => this.#refusal);
    connection.on("authentication", (context) => this.#authenticate(context));
    connection.on("ready", onLogin);
    connection.on("session", (accept, reject) => {
      this.#refusal = TOO_MANY;
      if (this.#sessions >= MAX_SESSIONS) reject();
      else this.#session(accept());
    });
    connection.on("request", (accept, reject, name, info) => {
      const isDoor = name === "tcpip-forward" && info.bindAddr === JUMP_ADDRESS && info.bindPort === JUMP_PORT;
      if (!isDoor || this.#peer === undefined || this.#leg === undefined) return reject?.();
      options.jumps.register(this.#peer, connection);
      accept?.();
    });
    connection.on("tcpip", (accept, reject, { destIP, destPort }) => {
      if (this.#jump !== undefined) {
        void this.#openJump(accept, reject, destIP, destPort);
        return;
      }
      const channel = this.#mayOpen(destIP, destPort) ? accept() : undefined;
      if (channel === undefined) reject();
      else this.#openChannel(destIP.slice(0, -RELAY_DOMAIN.length) as PeerId, channel);
    });
    connection.on("rekey", () => {
      this.#keyedAt = performance.now();
      this.#keyedBytes = this.#transferred();
      this.#pump();
    });
    socket.on("drain", () => this.#pump());
  }

  get isLoggedIn(): boolean {
    return this.#peer !== undefined || this.#jump !== undefined;
  }

  /** Called now and then. */
  tick(): void {
    if (!this.isLoggedIn || this.#isOver || isExchangingKeys(this.#connection)) return;
    const isDue =
      performance.now() - this.#keyedAt >= this.#options.rekeyAfterMs ||
      this.#transferred() - this.#keyedBytes >= this.#options.rekeyAfterBytes;
    if (isDue) this.#connection.rekey();
  }

  /** An agent that is no member any more may not stay, even if it has no leg. */
  applyRules(): void {
    const peer = this.#peer ?? this.#jump?.peer;
    if (peer !== undefined && !this.#options.isMember(peer)) this.end();
  }

  end(): void {
    this.#connection.end();
    // A client that does not read would keep us waiting for our last words.
    setTimeout(() => this.#socket.destroy(), 500);
  }

  /** The socket is gone. */
  closed(): void {
    this.#isOver = true;
    this.#leg?.closed();
    this.#leg = undefined;
    if (this.#peer !== undefined) this.#options.jumps.unregister(this.#peer, this.#connection);
    this.#channels.clear();
  }

  #transferred(): number {
    return this.#socket.bytesRead + this.#socket.bytesWritten;
  }

  #authenticate(context: AuthContext): void {
    const key = context.method === "publickey" ? context : undefined;
    const decision = decideLogin(
      {
        user: context.username,
        method: context.method,
        keyType: key?.key.algo,
        keyBlob: key === undefined ? undefined : new Uint8Array(key.key.data),
        signature: key?.signature,
        signed: key?.blob,
      },
      this.#options.isMember,
    );
    if (decision === "refused" || (decision === "sign" && !isPeerId(context.username))) {
      const peer = key === undefined ? undefined : this.#options.peerOfName(context.username.toLowerCase());
      if (key !== undefined && peer !== undefined) void this.#loginToJump(key, peer);
      else if (decision === "sign") context.accept();
      else this.#refuseLogin(context);
      return;
    }
    context.accept();
    if (decision === "sign") return;
    this.#peer = decision;
    // An agent is a leg from the start; a person with the agent's key must not replace it by looking in.
    if (decision === context.username) this.#ensureLeg(decision);
  }

  #refuseLogin(context: AuthContext): void {
    context.reject(["publickey"]);
    if (++this.#attempts >= MAX_LOGIN_ATTEMPTS) this.end();
  }

  /** The name of a peer as the user: its agent decides whether this key may jump to it. */
  async #loginToJump(context: PublicKeyAuthContext, peer: PeerId): Promise<void> {
    const name = context.username.toLowerCase();
    const { signature, blob, hashAlgo } = context as PublicKeyAuthContext & { readonly hashAlgo?: string };
    const proof =
      signature === undefined || blob === undefined
        ? undefined
        : { signed: blob.toString("base64"), signature: signature.toString("base64"), hash: hashAlgo ?? null };
    const answer = await this.#options.jumps.ask(
      peer,
      name,
      proof === undefined ? { ask: "key", key: context.key.data.toString("base64") } : { ask: "login", ...proof },
    );
    if (this.#isOver) return;
    if (!answer.ok) {
      this.#refuseLogin(context);
      return;
    }
    if (proof !== undefined) this.#jump = { peer, name, proof };
    context.accept();
  }

  async #openJump(accept: () => ServerChannel, reject: () => void, host: string, port: number): Promise<void> {
    const { peer, name, proof } = this.#jump ?? {};
    const target = host.toLowerCase().replace(/\.mesh$/, "");
    if (peer === undefined || name === undefined || proof === undefined || target !== name) {
      this.#refusal = `This login is for "${name ?? ""}" only; to reach "${target}", run: ssh -J ${target}@... ${target}`;
      return reject();
    }
    const answer = await this.#options.jumps.ask(peer, name, { ask: "open", port, ...proof });
    if (!answer.ok) {
      this.#refusal = answer.reason;
      return reject();
    }
    if (this.#isOver) {
      answer.channel.destroy();
      return;
    }
    const client = accept();
    client.on("error", () => client.destroy());
    // Each direction ends by itself, and a connection that is gone takes the other one along.
    client.on("close", () => answer.channel.close());
    answer.channel.on("close", () => client.close());
    client.pipe(answer.channel).pipe(client);
  }

  #ensureLeg(peer: PeerId): LegHandle {
    if (this.#leg === undefined) {
      this.#leg = this.#options.relay.leg(peer, "ssh", {
        pump: () => this.#pump(),
        unbound: (other, reason) => {
          if (reason === "refused") this.#channels.get(other)?.close();
        },
        close: () => this.end(),
      });
      this.#leg.open();
    }
    return this.#leg;
  }

  #mayOpen(host: string, port: number): boolean {
    this.#refusal = NO_FORWARDING;
    const to = host.slice(0, -RELAY_DOMAIN.length);
    if (!host.endsWith(RELAY_DOMAIN) || port !== RELAY_PORT || !isPeerId(to) || this.#peer === undefined) return false;
    this.#refusal = REFUSED_PEER;
    if (!this.#ensureLeg(this.#peer).mayBind(to)) return false;
    this.#refusal = TOO_MANY;
    return this.#channels.size < MAX_BOUND_PEERS;
  }

  #openChannel(peer: PeerId, channel: ServerChannel): void {
    const leg = this.#leg;
    if (leg === undefined) return channel.close();
    // The agent may open a new one before it has closed the old one.
    this.#channels.get(peer)?.close();
    this.#channels.set(peer, channel);
    const reader = new ChannelFrameReader();
    channel.on("data", (chunk: Buffer) => {
      const frames = reader.push(chunk).map((frame) => ({ to: peer, frame }));
      if (frames.length > 0) leg.frames(frames);
    });
    channel.on("end", () => channel.end());
    channel.on("error", () => channel.close());
    channel.on("close", () => {
      if (this.#channels.get(peer) !== channel) return;
      this.#channels.delete(peer);
      leg.release(peer);
    });
    leg.bind(peer);
    this.#pump();
  }

  #session(session: Session): void {
    this.#sessions++;
    session.on("close", () => this.#sessions--);
    // A terminal changes nothing, and a client that asks for one should not complain before it reads our line.
    session.on("pty", (accept) => accept?.());
    const explain = (accept: () => ServerChannel): void => {
      const channel = accept();
      channel.stderr.write(`${NO_SHELL}\r\n`);
      channel.exit(1);
      channel.end();
    };
    session.on("shell", (accept) => explain(accept));
    session.on("exec", (accept) => explain(accept));
  }

  /** See relay_websocket.ts; here each batch goes to one channel per source, as far as their windows are open. */
  #pump(): void {
    const leg = this.#leg;
    if (leg === undefined) return;
    this.#gather();
    while (!this.#isOver && !this.#socket.destroyed && !isExchangingKeys(this.#connection)) {
      const { writableLength, writableNeedDrain } = this.#socket;
      // Only if "drain" will come.
      if (writableNeedDrain && (writableLength >= MAX_BUFFERED_BYTES || leg.queuedBytes < RELAY_BATCH_BYTES)) return;
      const taken = leg.take(RELAY_BATCH_BYTES, FRAME_HEADER_BYTES, (source) => this.#isReady(source));
      if (taken.length === 0) return;
      for (const [source, frames] of bySource(taken))
        this.#channels.get(source)?.write(encodeChannelFrames(frames), () => this.#pump());
    }
  }

  /** ssh2 writes each packet in pieces, and what comes at once may be many packets: all that leaves for it does so in one call. */
  #gather(): void {
    if (this.#isGathering) return;
    this.#isGathering = true;
    this.#socket.cork();
    queueMicrotask(() => {
      this.#isGathering = false;
      this.#socket.uncork();
    });
  }

  #isReady(source: PeerId): boolean {
    const channel = this.#channels.get(source);
    return channel?.writable === true && channel.writableLength < MAX_CHANNEL_BYTES;
  }
}
