/** `--socks`: SOCKS5 and HTTP CONNECT on one local port, for peers by name or mesh address and for nothing else. */
import type { Socket } from "bun";
import type { Log } from "../../log.ts";
import type { CloseCode } from "../../overlay/contract.ts";
import { ProxyRequest, type ProxyOutcome } from "../../overlay/proxy_request.ts";
import type { ListenSpec } from "../../state/forward_spec.ts";
import { closeWords, proxyOutcome } from "./close_words.ts";
import { openStream, type PeerStreams } from "./peer_streams.ts";
import { SocketStream } from "./socket_stream.ts";
import { type Listening, listenTcp } from "./tcp_listener.ts";

/** A client has this long to say what it wants. */
const REQUEST_TIMEOUT_MS = 10_000;

/** Throws UserError 1 when the port cannot be had. */
export function startProxy(streams: PeerStreams, spec: ListenSpec, log: Log): Listening {
  return listenTcp<ProxyConnection>(spec.bind, spec.port, "--socks", {
    opened(socket) {
      socket.data = new ProxyConnection(streams, socket, log);
    },
    data: (socket, bytes) => socket.data.handleData(bytes),
    drain: (socket) => socket.data.pump.handleSocketDrain(),
    end: (socket) => socket.data.handleEnd(),
    close: (socket, error) => socket.data.handleClose(error),
  });
}

class ProxyConnection {
  readonly #streams: PeerStreams;
  readonly #socket: Socket<ProxyConnection>;
  readonly #log: Log;
  readonly #request = new ProxyRequest();
  readonly #timer: ReturnType<typeof setTimeout>;
  readonly pump: SocketStream;
  #state: "requesting" | "connecting" | "connected" | "over" = "requesting";
  #host = "";
  #port = 0;

  constructor(streams: PeerStreams, socket: Socket<ProxyConnection>, log: Log) {
    this.#streams = streams;
    this.#socket = socket;
    this.#log = log;
    this.#timer = setTimeout(() => this.#finish(), REQUEST_TIMEOUT_MS);
    const hooks = { accepted: () => this.#onAccepted(), closed: (code: CloseCode) => this.#onClosed(code) };
    this.pump = new SocketStream(hooks, true);
    this.pump.setSocket(socket);
  }

  handleData(bytes: Uint8Array): void {
    if (this.#state === "over") return;
    if (this.#state !== "requesting") {
      this.pump.handleSocketData(bytes);
      return;
    }
    let step = this.#request.handle(bytes);
    while (step.type === "reply") {
      this.#socket.write(step.bytes);
      step = this.#request.handle(new Uint8Array());
    }
    if (step.type === "refuse") {
      this.#socket.write(step.bytes);
      this.#finish();
    } else if (step.type === "connect") this.#connect(step.host, step.port, step.rest);
  }

  handleEnd(): void {
    if (this.#state === "requesting") this.#finish();
    else this.pump.handleSocketEnd();
  }

  handleClose(error: unknown): void {
    clearTimeout(this.#timer);
    this.pump.handleSocketClose(error);
  }

  #connect(host: string, port: number, rest: Uint8Array): void {
    clearTimeout(this.#timer);
    this.#state = "connecting";
    this.#host = host.toLowerCase();
    this.#port = port;
    try {
      openStream(this.#streams, this.#host, port, this.pump);
      if (rest.length > 0) this.pump.handleSocketData(rest);
    } catch (error) {
      this.#answer("no_such_peer", error instanceof Error ? error.message : String(error));
      this.#finish();
    }
  }

  #onAccepted(): void {
    this.#answer("connected", "");
    this.#state = "connected";
    // What the peer's program says comes behind the answer.
    this.pump.release();
  }

  /** True: the client has been told, and the socket is closed in an orderly way. */
  #onClosed(code: CloseCode): boolean {
    if (this.#state !== "connecting") return false;
    this.#answer(proxyOutcome(code), closeWords(code, this.#host, this.#port));
    this.#finish();
    return true;
  }

  #answer(outcome: ProxyOutcome, words: string): void {
    if (words !== "") this.#log.debug(words);
    this.#socket.write(this.#request.answer(outcome, words));
  }

  #finish(): void {
    clearTimeout(this.#timer);
    this.#state = "over";
    this.pump.giveUp();
    this.#socket.end();
  }
}
