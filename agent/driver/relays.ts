/**
 * The two relay connections of an agent, opened on joining and again whenever they are lost, with growing and jittered waits.
 *
 * Which of them carries a peer's traffic is the node's decision (agent/node/ladder.ts).
 */
import type { PeerId } from "../../shared/session/identity.ts";
import type { RelayLeg } from "../../shared/signal/messages.ts";
import type { RelayStatus } from "../local/contract.ts";
import type { WebSocketOptions } from "./bun_websocket.ts";
import type { JumpDoor } from "./jump/jump_door.ts";
import { RelaySocket } from "./relay_socket.ts";
import { RelaySsh, type SshEndpoint } from "./relay_ssh.ts";
import { noUplinkCounters, type UplinkCounters } from "./relay_uplink.ts";

const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 15_000;
/** While a peer in use would have a better path by it: PRODUCT.md allows five seconds until that is taken. */
const MAX_WANTED_RETRY_MS = 1500;
/** So often it is looked whether somebody wants it, while it waits for longer. */
const WANTED_POLL_MS = 1000;
/** Frames that the data path has already sealed for a channel get this long to leave by it. */
const CLOSE_DELAY_MS = 250;

export interface RelaysOptions {
  /** The URL that signalling uses, and how to get there. */
  readonly url: () => string;
  readonly webSocket: (url: string) => WebSocketOptions;
  readonly account: { readonly id: PeerId; readonly stateDir: string };
  readonly useSsh: boolean;
  readonly useWebSocket: boolean;
  readonly jumpDoor: JumpDoor | undefined;
  /** Asks signalling for a token; it comes back by `handleToken`. */
  readonly requestToken: () => void;
  /** Tells the coordinator that we have no such connection: its end may not know. */
  readonly tellLost: (kind: RelayLeg) => void;
  /** Would a peer in use get a path, or a better one, by this connection? */
  readonly isWanted: (kind: RelayLeg) => boolean;
  /** Something that the user should know. */
  readonly onProblem: (problem: string) => void;
  readonly onState: (kind: RelayLeg, isUp: boolean) => void;
  readonly onFrames: (kind: RelayLeg, peer: PeerId, frames: readonly Uint8Array[]) => void;
}

interface Retry {
  waitMs: number;
  timer: ReturnType<typeof setTimeout> | undefined;
}

export class Relays {
  readonly #options: RelaysOptions;
  #socket: RelaySocket | undefined;
  #ssh: RelaySsh | undefined;
  #endpoint: SshEndpoint | undefined;
  /** Over all connections of a kind. */
  readonly #counters: Readonly<Record<RelayLeg, UplinkCounters>> = {
    ssh: noUplinkCounters(),
    websocket: noUplinkCounters(),
  };
  readonly #up = new Set<RelayLeg>();
  #lastProblem: string | undefined;
  /** Tried without success since it was last up. */
  readonly #failed = new Set<RelayLeg>();
  #isSignalling = false;
  #isStopped = false;
  readonly #closing = new Map<PeerId, ReturnType<typeof setTimeout>>();
  readonly #retries: Record<RelayLeg, Retry> = {
    ssh: { waitMs: FIRST_RETRY_MS, timer: undefined },
    websocket: { waitMs: FIRST_RETRY_MS, timer: undefined },
  };

  constructor(options: RelaysOptions) {
    this.#options = options;
  }

  /** The coordinator has let us in. */
  handleWelcome(endpoint: SshEndpoint | undefined, token: string | undefined): void {
    this.#isSignalling = true;
    this.#endpoint = endpoint;
    for (const kind of ["ssh", "websocket"] as const) if (!this.#up.has(kind)) this.#options.tellLost(kind);
    if (token !== undefined) this.handleToken(token);
    this.retryNow();
  }

  /** Why there is no SSH connection at this moment, for people; it follows a colon. */
  whyNoSsh(): string {
    const { useSsh, webSocket, url } = this.#options;
    if (!useSsh) return "SSH is switched off on this machine by --no-ssh";
    if (this.#endpoint === undefined) return "the coordinator has not said where it takes SSH";
    const { port } = this.#endpoint;
    if (this.#lastProblem !== undefined)
      return `TCP port ${port} of the coordinator leads to another SSH server from here`;
    if (!this.#failed.has("ssh")) return "the SSH connection of this machine is being opened";
    const way = webSocket(url()).proxy === undefined ? "" : ", and the proxy is not asked for it";
    return `this machine does not reach TCP port ${port} of the coordinator${way}; allowing it would bring SSH`;
  }

  /** For `status`. */
  status(): Readonly<Record<RelayLeg, RelayStatus>> {
    const statusOf = (kind: RelayLeg): RelayStatus => {
      const { sentFrames, droppedOverflow, droppedLate } = this.#counters[kind];
      return { connected: this.#up.has(kind), sentFrames, droppedFrames: droppedOverflow + droppedLate };
    };
    return { ssh: statusOf("ssh"), websocket: statusOf("websocket") };
  }

  handleSignallingLost(): void {
    this.#isSignalling = false;
  }

  handleToken(token: string): void {
    if (this.#isStopped || this.#socket !== undefined || !this.#options.useWebSocket) return;
    const { url, webSocket, onFrames } = this.#options;
    this.#socket = new RelaySocket(
      url(),
      { token, webSocket: webSocket(url()), counters: this.#counters.websocket },
      {
        onState: (isUp) => this.#onState("websocket", isUp),
        onFrames: (peer, frames) => onFrames("websocket", peer, frames),
      },
    );
  }

  open(kind: RelayLeg, peer: PeerId): void {
    clearTimeout(this.#closing.get(peer));
    this.#closing.delete(peer);
    (kind === "ssh" ? this.#ssh : this.#socket)?.bind(peer);
  }

  close(kind: RelayLeg, peer: PeerId): void {
    if (kind !== "ssh" || this.#closing.has(peer)) return;
    const timer = setTimeout(() => {
      this.#closing.delete(peer);
      this.#ssh?.unbind(peer);
    }, CLOSE_DELAY_MS);
    this.#closing.set(peer, timer);
  }

  send(kind: RelayLeg, peer: PeerId, frames: readonly Uint8Array[], lanes: readonly number[]): void {
    (kind === "ssh" ? this.#ssh : this.#socket)?.send(peer, frames, lanes);
  }

  /** Does this connection work? Null: it was not tried, or the first try is under way. */
  verdict(kind: RelayLeg): boolean | null {
    return this.#up.has(kind) ? true : this.#failed.has(kind) ? false : null;
  }

  /** Is a first try under way? */
  isTrying(kind: RelayLeg): boolean {
    return this.verdict(kind) === null && (kind === "ssh" ? this.#ssh : this.#socket) !== undefined;
  }

  /** Something may have killed the connections without a word. */
  challenge(timeoutMs: number): void {
    this.#socket?.challenge(timeoutMs);
    this.#ssh?.challenge(timeoutMs);
  }

  /** All that are up have waited for an answer for so long; false where none is. */
  areSilent(milliseconds: number): boolean {
    const since = [...this.#up].map((kind) => (kind === "ssh" ? this.#ssh : this.#socket)?.silentSince);
    return since.length > 0 && since.every((at) => at !== undefined && performance.now() - at >= milliseconds);
  }

  /** Signalling has died and come back: what was open beside it is not waited for. */
  reopen(): void {
    this.#socket?.close();
    this.#ssh?.close();
  }

  /** Something has changed: what is down is tried at once. */
  retryNow(): void {
    for (const kind of ["ssh", "websocket"] as const) {
      clearTimeout(this.#retries[kind].timer);
      this.#retries[kind].waitMs = FIRST_RETRY_MS;
      this.#connect(kind);
    }
  }

  stop(): void {
    this.#isStopped = true;
    for (const { timer } of Object.values(this.#retries)) clearTimeout(timer);
    for (const timer of this.#closing.values()) clearTimeout(timer);
    this.#socket?.close();
    this.#ssh?.close();
  }

  #connect(kind: RelayLeg): void {
    if (this.#isStopped) return;
    const { useSsh, useWebSocket, requestToken, account, jumpDoor, onFrames } = this.#options;
    if (kind === "websocket") {
      if (useWebSocket && this.#socket === undefined && this.#isSignalling) requestToken();
    } else if (useSsh && this.#ssh === undefined && this.#endpoint !== undefined) {
      this.#ssh = new RelaySsh(
        {
          endpoint: this.#endpoint,
          account,
          counters: this.#counters.ssh,
          jumpDoor,
          onProblem: (problem) => this.#tell(problem),
        },
        {
          onState: (isUp) => this.#onState("ssh", isUp),
          onFrames: (peer, frames) => onFrames("ssh", peer, frames),
        },
      );
    }
  }

  /** Once, however often it is tried. */
  #tell(problem: string): void {
    if (problem !== this.#lastProblem) this.#options.onProblem(problem);
    this.#lastProblem = problem;
  }

  #wait(kind: RelayLeg, leftMs: number): void {
    const waitMs = Math.min(leftMs, this.#options.isWanted(kind) ? MAX_WANTED_RETRY_MS : WANTED_POLL_MS);
    this.#retries[kind].timer = setTimeout(() => {
      if (leftMs <= waitMs || this.#options.isWanted(kind)) this.#connect(kind);
      else this.#wait(kind, leftMs - waitMs);
    }, waitMs);
  }

  #onState(kind: RelayLeg, isUp: boolean): void {
    const retry = this.#retries[kind];
    if (isUp) {
      retry.waitMs = FIRST_RETRY_MS;
      if (kind === "ssh") this.#lastProblem = undefined;
      this.#up.add(kind);
      this.#failed.delete(kind);
    } else {
      this.#failed.add(kind);
      if (this.#up.delete(kind) && this.#isSignalling) this.#options.tellLost(kind);
      if (kind === "ssh") this.#ssh = undefined;
      else this.#socket = undefined;
      if (!this.#isStopped) {
        clearTimeout(retry.timer);
        this.#wait(kind, retry.waitMs * (0.5 + Math.random()));
        retry.waitMs = Math.min(retry.waitMs * 2, MAX_RETRY_MS);
      }
    }
    this.#options.onState(kind, isUp);
  }
}
