/**
 * The agent's signalling connection in virtual time: what agent/driver/signal_client.ts does with a WebSocket, done on a simulated
 * stream, with the same Noise channel and the same bytes.
 *
 * A stream keeps its order. A lost segment comes late, a dead mapping on the way swallows everything without telling anybody.
 */
import type { ChallengeTimes } from "../../agent/driver/challenge_times.ts";
import { AgentChannel } from "../../shared/signal/channel.ts";
import {
  type AgentMessage,
  type CoordinatorMessage,
  decodeCoordinatorMessage,
  encodeMessage,
  type Hello,
} from "../../shared/signal/messages.ts";
import { X25519Key } from "../../shared/session/primitives.ts";
import type { VirtualClock } from "./clock.ts";
import type { Host, Network } from "./network.ts";
import type { SeededRandom } from "./random.ts";

/** One client as the coordinator's end sees it. */
export interface SignalClient {
  readonly source: string;
  receive(bytes: Uint8Array): void;
  closed(reason: string): void;
}

/** The coordinator's end of all streams: the hub, or an actor that stands before it. */
export interface SignalEndpoint {
  readonly isUp: boolean;
  open(client: SignalClient): number;
  receive(connection: number, bytes: Uint8Array): void;
  closed(connection: number): void;
}

/** As signal_client.ts. */
const FIRST_RETRY_MS = 250;
const MAX_RETRY_MS = 3500;
const OPEN_TIMEOUT_MS = 8000;
/** TCP and the upgrade. */
const WEBSOCKET_ROUND_TRIPS = 2;
const SILENCE_TIMEOUT_MS = 25_000;
/** When TCP on Linux repeats a first segment. */
const SYN_MS = [1000, 3000, 7000];
/** TCP's smallest retransmission timeout on Linux: how much later a lost segment comes, besides its round trip. */
const RETRANSMIT_MS = 200;

export interface SignalLinkOptions {
  readonly clock: VirtualClock;
  readonly network: Network;
  readonly random: SeededRandom;
  readonly host: Host;
  readonly endpoint: SignalEndpoint;
  readonly sessionKey: X25519Key;
  readonly hello: Hello;
  readonly fingerprint: string;
  /** The agent's own clock. */
  readonly now: () => number;
  readonly onMessage: (message: CoordinatorMessage) => void;
  readonly onLost: () => void;
  /** As in signal_client.ts; what is alive has answered by the time of the question. */
  readonly areOthersSilent: () => boolean;
}

/** One TCP connection. */
interface Stream {
  connection: number | undefined;
  channel: AgentChannel;
  isOpen: boolean;
  /** Nothing passes any more, and nobody is told. */
  isDead: boolean;
  upAt: number;
  downAt: number;
}

export class SignalLink {
  readonly #options: SignalLinkOptions;
  #stream: Stream | undefined;
  #retryMs = FIRST_RETRY_MS;
  #watchdog = 0;
  #isStopped = false;

  constructor(options: SignalLinkOptions) {
    this.#options = options;
  }

  get isOpen(): boolean {
    return this.#stream?.isOpen === true;
  }

  /** @param hasSpare a WebSocket is open already, on which nothing has been said */
  start(hasSpare = false): void {
    const { clock, host, endpoint, sessionKey, hello, random, fingerprint } = this.#options;
    const stream: Stream = {
      connection: undefined,
      channel: new AgentChannel({
        staticKey: sessionKey,
        ephemeral: new X25519Key(random.bytes(32)),
        hello,
        accept: (seen) => seen === fingerprint,
      }),
      isOpen: false,
      isDead: false,
      upAt: 0,
      downAt: 0,
    };
    this.#stream = stream;
    this.#watch(OPEN_TIMEOUT_MS);
    // TCP's and WebSocket's own handshakes: two round trips before the first byte of ours.
    const roundTripMs = host.delay.upMs + host.delay.downMs;
    const arrive = (): void => {
      if (this.#stream !== stream || stream.isDead) return;
      if (!endpoint.isUp) {
        clock.after(host.delay.downMs, () => this.#lost(stream));
        return;
      }
      stream.connection = endpoint.open({
        source: host.publicIp,
        receive: (bytes) => this.#down(stream, () => this.#receive(stream, bytes)),
        closed: () => this.#down(stream, () => this.#lost(stream)),
      });
      if (hasSpare) this.#up(stream, stream.channel.start());
      else this.#down(stream, () => this.#up(stream, stream.channel.start()));
    };
    // TCP repeats its first segment where nothing gets out.
    const send = (): void => {
      if (!host.isOffline) clock.after(roundTripMs + host.delay.upMs, arrive);
    };
    if (hasSpare && endpoint.isUp) arrive();
    else if (host.isOffline) for (const delayMs of SYN_MS) clock.after(delayMs, () => stream.connection ?? send());
    else send();
  }

  /** Dropped when there is no connection, as the driver does. */
  send(message: AgentMessage): void {
    const stream = this.#stream;
    if (stream?.isOpen === true) this.#up(stream, stream.channel.seal(encodeMessage(message)));
  }

  /** The process ends: its kernel closes the connection. */
  stop(): void {
    this.#isStopped = true;
    const stream = this.#stream;
    this.#stream = undefined;
    if (stream === undefined || stream.isDead) return;
    const { clock, host, endpoint } = this.#options;
    clock.after(host.delay.upMs, () => {
      if (stream.connection !== undefined) endpoint.closed(stream.connection);
    });
  }

  /** Asks for a sign of life; a dead connection is opened anew when none has come. */
  challenge({ timeoutMs, usualMs }: ChallengeTimes): void {
    const { clock, host, endpoint, areOthersSilent } = this.#options;
    const stream = this.#stream;
    const isDead = (): boolean => stream?.isDead === true && this.#stream === stream;
    const spareMs = usualMs + WEBSOCKET_ROUND_TRIPS * (host.delay.upMs + host.delay.downMs);
    const canOpen = (): boolean => endpoint.isUp && !host.isOffline;
    clock.after(spareMs, () => {
      if (isDead() && canOpen() && areOthersSilent()) this.#giveUp(true);
    });
    clock.after(timeoutMs, () => {
      if (isDead()) this.#giveUp(canOpen() && spareMs <= timeoutMs);
    });
  }

  /** The driver sees that the connection's own address is gone. */
  reopen(): void {
    this.#giveUp(false);
  }

  /** The mapping that the connection ran through is gone: from here on its bytes reach nobody. */
  blackhole(): void {
    if (this.#stream !== undefined) this.#stream.isDead = true;
  }

  #up(stream: Stream, bytes: Uint8Array): void {
    const { clock, host, endpoint } = this.#options;
    stream.upAt = Math.max(stream.upAt, clock.now + host.delay.upMs + this.#lateness());
    clock.after(stream.upAt - clock.now, () => {
      if (!stream.isDead && stream.connection !== undefined) endpoint.receive(stream.connection, bytes);
    });
  }

  #down(stream: Stream, run: () => void): void {
    const { clock, host } = this.#options;
    stream.downAt = Math.max(stream.downAt, clock.now + host.delay.downMs + this.#lateness());
    clock.after(stream.downAt - clock.now, () => {
      if (!stream.isDead && this.#stream === stream) run();
    });
  }

  #lateness(): number {
    const { network, random, host } = this.#options;
    const jitterMs = network.jitterMs === 0 ? 0 : random.next() * network.jitterMs;
    return random.chance(network.lossPercent)
      ? jitterMs + RETRANSMIT_MS + host.delay.upMs + host.delay.downMs
      : jitterMs;
  }

  #receive(stream: Stream, bytes: Uint8Array): void {
    const outcome = stream.channel.handle(bytes);
    this.#watch(SILENCE_TIMEOUT_MS);
    switch (outcome.type) {
      case "reply":
        stream.isOpen = outcome.isOpen;
        this.#up(stream, outcome.bytes);
        return;
      case "message": {
        const message = decodeCoordinatorMessage(outcome.plaintext);
        if (message?.type === "clock_request") {
          const at = this.#options.now();
          this.send({ type: "clock_reply", id: message.id, receivedAt: at, sentAt: at });
        }
        if (message?.type === "welcome") this.#retryMs = FIRST_RETRY_MS;
        if (message !== undefined) this.#options.onMessage(message);
        return;
      }
      default:
        this.#lost(stream);
    }
  }

  #watch(milliseconds: number): void {
    const number = ++this.#watchdog;
    const stream = this.#stream;
    this.#options.clock.after(milliseconds, () => {
      if (number === this.#watchdog && stream !== undefined) this.#lost(stream);
    });
  }

  #giveUp(hasSpare: boolean): void {
    const stream = this.#stream;
    this.#retryMs = FIRST_RETRY_MS;
    if (stream !== undefined) this.#lost(stream, 0, hasSpare);
  }

  #lost(stream: Stream, retryMs = this.#retryMs * (0.5 + this.#options.random.next()), hasSpare = false): void {
    if (this.#stream !== stream) return;
    const { clock, endpoint } = this.#options;
    this.#stream = undefined;
    if (!stream.isDead && stream.connection !== undefined) endpoint.closed(stream.connection);
    this.#options.onLost();
    this.#retryMs = Math.min(this.#retryMs * 2, MAX_RETRY_MS);
    clock.after(retryMs, () => {
      if (!this.#isStopped && this.#stream === undefined) this.start(hasSpare);
    });
  }
}
