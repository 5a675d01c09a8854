/**
 * The signalling connection: a WebSocket to the coordinator with the Noise channel inside, opened again and again while the agent runs.
 *
 * Answers the coordinator's clock questions itself, at once, since they are about this machine's clock. Everything else is for the node.
 */
import { randomBytes } from "node:crypto";
import { AgentChannel } from "../../shared/signal/channel.ts";
import {
  type AgentMessage,
  type CoordinatorMessage,
  decodeCoordinatorMessage,
  encodeMessage,
  type Hello,
} from "../../shared/signal/messages.ts";
import { X25519Key } from "../../shared/session/primitives.ts";
import type { Instant } from "../../shared/time.ts";
import { Backoff } from "./backoff.ts";
import type { ChallengeTimes } from "./challenge_times.ts";
import { SpareSocket } from "./spare_socket.ts";
import { WayOut } from "./way_out.ts";
import { openWebSocket, owned, proxyProblem, type WebSocketOptions } from "./bun_websocket.ts";

/** Where the coordinator takes signalling. */
export const SIGNAL_PATH = "/v1/signal";
export const signalUrl = (coordinatorUrl: string): string => coordinatorUrl.replace(/^http/, "ws") + SIGNAL_PATH;

/** Opening the WebSocket and the handshake inside it. */
const OPEN_TIMEOUT_MS = 8000;
/** The coordinator asks for our clock every ten seconds: silence for longer than two of these means that the connection is dead. */
const SILENCE_TIMEOUT_MS = 25_000;

/** Why the connection was given up, for those who hold others beside it. */
const NETWORK_CHANGED = "the network has changed";
const NO_ANSWER = "the coordinator did not answer a challenge";
const SILENT = "the coordinator fell silent";
/** What kills one connection without a word kills the others too. */
export const killsOthers = (problem: string): boolean => [NETWORK_CHANGED, NO_ANSWER, SILENT].includes(problem);

export interface SignalClientOptions {
  /** http or https URLs of the coordinator, the user's own first: the next is tried when one fails. */
  readonly urls: () => readonly string[];
  readonly webSocket: (url: string) => WebSocketOptions;
  readonly sessionKey: X25519Key;
  readonly hello: () => Hello;
  readonly accept: (fingerprint: string) => boolean;
  readonly now: () => Instant;
  readonly onMessage: (message: CoordinatorMessage) => void;
  /** The channel is open (before `welcome`), or gone; `problem` says why for people. */
  readonly onState: (connected: boolean, problem: string | undefined) => void;
  /** The coordinator's key is not the one we expect: retrying is of no use. */
  readonly onWrongFingerprint: (fingerprint: string) => void;
  /** Have the relay connections been asked too, and all been silent for so long? False where there is none. */
  readonly areOthersSilent: (milliseconds: number) => boolean;
}

export class SignalClient {
  readonly #options: SignalClientOptions;
  #socket: WebSocket | undefined;
  #channel: AgentChannel | undefined;
  #isOpen = false;
  #isWelcome = false;
  #isStopped = false;
  readonly #backoff = new Backoff();
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #watchdog: ReturnType<typeof setTimeout> | undefined;
  #challengeTimer: ReturnType<typeof setTimeout> | undefined;
  #problem: string | undefined;
  /** The WebSocket has been opened. */
  #wasFound = false;
  #attempts = 0;
  #url = "";
  #wayOut: WayOut | undefined;
  readonly #spare = new SpareSocket();

  constructor(options: SignalClientOptions) {
    this.#options = options;
  }

  start(): void {
    this.#connect();
  }

  /** The URL that is in use or was tried last. */
  get url(): string {
    return this.#url;
  }

  /** Dropped when there is no connection: whatever matters is said again when there is one. */
  send(message: AgentMessage): void {
    if (!this.#isOpen || this.#channel === undefined) return;
    this.#socket?.send(owned(this.#channel.seal(encodeMessage(message))));
  }

  /**
   * Something has happened that may have killed the connection without a word: ask, and take another one when no answer comes in time. The
   * other is opened beside it. When it is there before any answer, on this connection or on the relays, that is evidence enough: one lost
   * segment would delay one of them.
   */
  challenge({ timeoutMs, usualMs }: ChallengeTimes): void {
    if (!this.#isOpen || this.#challengeTimer !== undefined) return;
    const { webSocket, areOthersSilent } = this.#options;
    const url = this.#url;
    this.send({ type: "ping", id: 0 });
    this.#challengeTimer = setTimeout(() => this.#giveUp(NO_ANSWER), timeoutMs);
    this.#spare.openAfter(
      usualMs,
      signalUrl(url),
      () => webSocket(url),
      () => {
        if (areOthersSilent(usualMs)) this.#giveUp(NO_ANSWER);
      },
    );
  }

  /** Does the machine send from another address than when this connection was opened? Then it is dead, whatever it looks like. */
  get hasMoved(): boolean {
    return this.#wayOut?.hasChanged === true;
  }

  reopen(): void {
    this.#fail(NETWORK_CHANGED);
    this.retryNow();
  }

  /** Whatever delays a retry is over: the network has changed. */
  retryNow(): void {
    if (this.#isStopped || this.#socket !== undefined) return;
    clearTimeout(this.#retryTimer);
    this.#backoff.reset();
    this.#connect();
  }

  stop(): void {
    this.#isStopped = true;
    this.#spare.close();
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#watchdog);
    clearTimeout(this.#challengeTimer);
    this.#socket?.close(1000);
    this.#socket = undefined;
  }

  /** The challenge was not passed: goes on with the connection that was opened meanwhile, if there is one. */
  #giveUp(problem: string): void {
    const spare = this.#spare.take();
    this.#fail(problem);
    clearTimeout(this.#retryTimer);
    this.#backoff.reset();
    this.#connect(spare);
  }

  #connect(spare?: WebSocket): void {
    const { urls, webSocket, sessionKey, accept } = this.#options;
    const choices = urls();
    const url = choices[this.#attempts % choices.length] ?? "";
    const options = webSocket(url);
    this.#url = url;
    this.#wayOut = new WayOut(options.proxy ?? url);
    const channel = new AgentChannel({
      staticKey: sessionKey,
      ephemeral: new X25519Key(new Uint8Array(randomBytes(32))),
      hello: this.#options.hello(),
      accept,
    });
    const socket = spare ?? openWebSocket(signalUrl(url), options);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#channel = channel;
    this.#problem = undefined;
    this.#wasFound = false;
    this.#watch(OPEN_TIMEOUT_MS, "the coordinator did not answer in time");
    const start = (): void => {
      this.#wasFound = true;
      socket.send(owned(channel.start()));
    };
    if (socket.readyState === WebSocket.OPEN) start();
    else socket.onopen = start;
    socket.onmessage = (event: MessageEvent<unknown>) => {
      if (this.#socket === socket && event.data instanceof ArrayBuffer) this.#receive(new Uint8Array(event.data));
    };
    // What went wrong is told by `close`, which always follows; Bun's `error` carries the words.
    socket.onerror = (event: Event) => {
      const message = "message" in event && typeof event.message === "string" ? event.message : undefined;
      // The URL is in our own sentence already.
      const words = message?.replace(/^WebSocket connection to '[^']*' failed: (.)/, (_all, first: string) =>
        first.toLowerCase(),
      );
      if (words !== undefined)
        this.#problem ??= options.proxy === undefined ? words : proxyProblem(options.proxy, words);
    };
    socket.onclose = (event: CloseEvent) => {
      if (this.#socket !== socket) return;
      const problem = this.#problem ?? (event.reason === "" ? "connection closed" : event.reason);
      // The coordinator, or a router on the way, does not know this connection any more: the answer to the challenge.
      if (this.#challengeTimer === undefined) this.#lost(problem);
      else this.#giveUp(problem);
    };
  }

  #receive(bytes: Uint8Array): void {
    const channel = this.#channel;
    if (channel === undefined) return;
    const receivedAt = this.#options.now();
    const outcome = channel.handle(bytes);
    switch (outcome.type) {
      case "reply":
        this.#socket?.send(owned(outcome.bytes));
        this.#isOpen = outcome.isOpen;
        this.#watch(SILENCE_TIMEOUT_MS, SILENT);
        if (outcome.isOpen) this.#options.onState(true, undefined);
        break;
      case "message": {
        this.#watch(SILENCE_TIMEOUT_MS, SILENT);
        const message = decodeCoordinatorMessage(outcome.plaintext);
        if (message === undefined) break;
        if (message.type === "clock_request") {
          this.send({ type: "clock_reply", id: message.id, receivedAt, sentAt: this.#options.now() });
        }
        if (message.type === "pong") {
          clearTimeout(this.#challengeTimer);
          this.#challengeTimer = undefined;
          this.#spare.close();
        }
        // Not before: a coordinator that accepts and then drops us is not one to come back to at once.
        if (message.type === "welcome") {
          this.#isWelcome = true;
          this.#backoff.reset();
        }
        this.#options.onMessage(message);
        break;
      }
      case "failed":
        if (outcome.reason === "wrong fingerprint") {
          this.stop();
          this.#options.onWrongFingerprint(outcome.fingerprint ?? "");
          return;
        }
        this.#fail(`signalling failed: ${outcome.reason}`);
        break;
      case "hello":
        break;
    }
  }

  #watch(milliseconds: number, problem: string): void {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#fail(problem), milliseconds);
  }

  #fail(problem: string): void {
    const socket = this.#socket;
    this.#lost(problem);
    socket?.close();
  }

  #lost(problem: string): void {
    if (this.#socket === undefined) return;
    this.#socket = undefined;
    this.#channel = undefined;
    // One that worked is tried again first; one that never opened gives way to the next.
    if (!this.#isOpen) this.#attempts++;
    // One that worked until now says nothing of what the next attempt finds.
    const wasFound = this.#wasFound && !this.#isWelcome;
    this.#isOpen = false;
    this.#isWelcome = false;
    clearTimeout(this.#watchdog);
    clearTimeout(this.#challengeTimer);
    this.#challengeTimer = undefined;
    this.#spare.close();
    this.#options.onState(false, problem);
    if (this.#isStopped) return;
    this.#retryTimer = setTimeout(() => this.#connect(), this.#backoff.next(wasFound, Math.random()));
  }
}
