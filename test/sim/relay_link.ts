/**
 * An agent's two relay connections in virtual time: what agent/driver/relays.ts and its two kinds of socket do, done on simulated streams
 * that keep their order, come late when a segment is lost, and may die without a word.
 */
import type { PeerId } from "../../shared/session/identity.ts";
import type { RelayLeg } from "../../shared/signal/messages.ts";
import type { VirtualClock } from "./clock.ts";
import type { Host, Network } from "./network.ts";
import type { SeededRandom } from "./random.ts";

/** The coordinator's end. */
export interface RelayEndpoint {
  readonly isUp: boolean;
  openRelay(peer: PeerId, kind: RelayLeg, client: RelayClient): number;
  bindRelay(leg: number, peer: PeerId): void;
  releaseRelay(leg: number, peer: PeerId): void;
  sendRelay(leg: number, frames: readonly { readonly to: PeerId; readonly frame: Uint8Array }[]): void;
  closeRelay(leg: number): void;
}

export interface RelayClient {
  receive(from: PeerId, frame: Uint8Array): void;
  closed(): void;
}

/** As relays.ts and relay_ssh.ts. */
const CLOSE_DELAY_MS = 250;
const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 15_000;
const MAX_WANTED_RETRY_MS = 1500;
const WANTED_POLL_MS = 1000;
const CONNECT_TIMEOUT_MS = 2500;
/** Until the first frame can pass, in round trips: TCP and the upgrade; TCP, versions, keys, service, login, channel. */
const OPEN_ROUND_TRIPS: Readonly<Record<RelayLeg, number>> = { websocket: 2, ssh: 6 };
/** The token for a WebSocket comes with `welcome`; later it has to be asked for. */
const TOKEN_ROUND_TRIPS: Readonly<Record<RelayLeg, number>> = { websocket: 1, ssh: 0 };
/** A connection that has died in silence and is not challenged is found out by its keepalives. */
const KEEPALIVE_MS: Readonly<Record<RelayLeg, number>> = { websocket: 21_000, ssh: 45_000 };
/** TCP's smallest retransmission timeout on Linux. */
const RETRANSMIT_MS = 200;

export interface RelayLinkOptions {
  readonly clock: VirtualClock;
  readonly network: Network;
  readonly random: SeededRandom;
  readonly host: Host;
  readonly endpoint: RelayEndpoint;
  readonly id: PeerId;
  readonly isSignalling: () => boolean;
  readonly tellLost: (kind: RelayLeg) => void;
  readonly isWanted: (kind: RelayLeg) => boolean;
  readonly onState: (kind: RelayLeg, isUp: boolean) => void;
  readonly onFrame: (kind: RelayLeg, from: PeerId, frame: Uint8Array) => void;
}

interface Stream {
  leg: number | undefined;
  isUp: boolean;
  isDead: boolean;
  upAt: number;
  downAt: number;
}

export class RelayLinks {
  readonly #options: RelayLinkOptions;
  readonly #streams = new Map<RelayLeg, Stream>();
  readonly #bound: Record<RelayLeg, Set<PeerId>> = { ssh: new Set(), websocket: new Set() };
  /** About to be let go. */
  readonly #closing: Record<RelayLeg, Set<PeerId>> = { ssh: new Set(), websocket: new Set() };
  readonly #waits: Record<RelayLeg, number> = { ssh: FIRST_RETRY_MS, websocket: FIRST_RETRY_MS };
  #isStopped = false;

  constructor(options: RelayLinkOptions) {
    this.#options = options;
  }

  /** Opens what is not open: with `welcome`, and when the network has changed. */
  connectAll(): void {
    for (const kind of ["ssh", "websocket"] as const) {
      this.#waits[kind] = FIRST_RETRY_MS;
      if (this.#streams.get(kind)?.isUp !== true) this.#options.tellLost(kind);
      this.#connect(kind, OPEN_ROUND_TRIPS[kind]);
    }
  }

  /** Those that are up have died, and there are some. */
  get areSilent(): boolean {
    const up = [...this.#streams.values()].filter(({ isUp }) => isUp);
    return up.length > 0 && up.every(({ isDead }) => isDead);
  }

  bind(kind: RelayLeg, peer: PeerId): void {
    this.#closing[kind].delete(peer);
    this.#bound[kind].add(peer);
    const stream = this.#streams.get(kind);
    if (stream?.isUp === true) this.#up(stream, (leg) => this.#options.endpoint.bindRelay(leg, peer));
  }

  unbind(kind: RelayLeg, peer: PeerId): void {
    if (!this.#bound[kind].has(peer) || this.#closing[kind].has(peer)) return;
    this.#closing[kind].add(peer);
    this.#options.clock.after(CLOSE_DELAY_MS, () => {
      if (!this.#closing[kind].delete(peer)) return;
      this.#bound[kind].delete(peer);
      const stream = this.#streams.get(kind);
      if (stream?.isUp === true) this.#up(stream, (leg) => this.#options.endpoint.releaseRelay(leg, peer));
    });
  }

  send(kind: RelayLeg, to: PeerId, frames: readonly Uint8Array[]): void {
    const stream = this.#streams.get(kind);
    if (stream?.isUp !== true) return;
    if (!this.#bound[kind].has(to)) this.bind(kind, to);
    const copies = frames.map((frame) => ({ to, frame: frame.slice() }));
    this.#up(stream, (leg) => this.#options.endpoint.sendRelay(leg, copies));
  }

  /** Nothing passes any more on what is open, and nobody is told. */
  blackhole(): void {
    for (const [kind, stream] of this.#streams) {
      stream.isDead = true;
      this.#options.clock.after(KEEPALIVE_MS[kind], () => this.#lost(kind, stream));
    }
  }

  /** A dead one is found out; a living one answers in time. */
  challenge(timeoutMs: number): void {
    this.#options.clock.after(timeoutMs, () => {
      for (const [kind, stream] of this.#streams) if (stream.isDead) this.#lost(kind, stream);
    });
  }

  /** Given up together with signalling. */
  reopen(): void {
    for (const [kind, stream] of this.#streams) this.#lost(kind, stream);
  }

  stop(): void {
    this.#isStopped = true;
    for (const stream of this.#streams.values()) this.#close(stream);
    this.#streams.clear();
  }

  #connect(kind: RelayLeg, roundTrips = OPEN_ROUND_TRIPS[kind] + TOKEN_ROUND_TRIPS[kind]): void {
    const { clock, host, endpoint, id, isSignalling } = this.#options;
    if (this.#isStopped || this.#streams.has(kind) || (kind === "websocket" && !isSignalling())) return;
    const stream: Stream = { leg: undefined, isUp: false, isDead: false, upAt: 0, downAt: 0 };
    this.#streams.set(kind, stream);
    const roundTripMs = host.delay.upMs + host.delay.downMs;
    const isBlocked = host.isOffline || (kind === "ssh" && host.isSshBlocked) || !endpoint.isUp;
    clock.after(isBlocked ? CONNECT_TIMEOUT_MS : roundTrips * roundTripMs + this.#lateness(), () => {
      if (this.#streams.get(kind) !== stream) return;
      if (isBlocked || stream.isDead || !endpoint.isUp) return this.#lost(kind, stream);
      stream.isUp = true;
      stream.leg = endpoint.openRelay(id, kind, {
        receive: (from, frame) => this.#down(kind, stream, () => this.#options.onFrame(kind, from, frame)),
        closed: () => this.#down(kind, stream, () => this.#lost(kind, stream)),
      });
      this.#waits[kind] = FIRST_RETRY_MS;
      for (const peer of this.#bound[kind]) this.#up(stream, (leg) => endpoint.bindRelay(leg, peer));
      this.#options.onState(kind, true);
    });
  }

  #up(stream: Stream, run: (leg: number) => void): void {
    const { clock, host } = this.#options;
    stream.upAt = Math.max(stream.upAt, clock.now + host.delay.upMs + this.#lateness());
    clock.after(stream.upAt - clock.now, () => {
      if (!stream.isDead && stream.leg !== undefined) run(stream.leg);
    });
  }

  #down(kind: RelayLeg, stream: Stream, run: () => void): void {
    const { clock, host } = this.#options;
    stream.downAt = Math.max(stream.downAt, clock.now + host.delay.downMs + this.#lateness());
    clock.after(stream.downAt - clock.now, () => {
      if (!stream.isDead && this.#streams.get(kind) === stream) run();
    });
  }

  #lateness(): number {
    const { network, random, host } = this.#options;
    const jitterMs = network.jitterMs === 0 ? 0 : random.next() * network.jitterMs;
    const isLost = random.chance(network.lossPercent);
    return isLost ? jitterMs + RETRANSMIT_MS + host.delay.upMs + host.delay.downMs : jitterMs;
  }

  #lost(kind: RelayLeg, stream: Stream): void {
    if (this.#streams.get(kind) !== stream) return;
    const { random } = this.#options;
    this.#streams.delete(kind);
    if (stream.isUp && this.#options.isSignalling()) this.#options.tellLost(kind);
    this.#close(stream);
    if (this.#isStopped) return;
    const waitMs = this.#waits[kind] * (0.5 + random.next());
    this.#waits[kind] = Math.min(this.#waits[kind] * 2, MAX_RETRY_MS);
    this.#wait(kind, waitMs);
    this.#options.onState(kind, false);
  }

  /** A peer may come to want it meanwhile. */
  #wait(kind: RelayLeg, leftMs: number): void {
    const { clock, isWanted } = this.#options;
    const waitMs = Math.min(leftMs, isWanted(kind) ? MAX_WANTED_RETRY_MS : WANTED_POLL_MS);
    clock.after(waitMs, () => {
      if (leftMs <= waitMs || isWanted(kind)) this.#connect(kind);
      else this.#wait(kind, leftMs - waitMs);
    });
  }

  #close(stream: Stream): void {
    const { clock, host, endpoint } = this.#options;
    const { leg } = stream;
    stream.isUp = false;
    if (leg === undefined || stream.isDead) return;
    clock.after(host.delay.upMs, () => endpoint.closeRelay(leg));
  }
}
