/**
 * Joins a TCP or unix socket to a stream: bytes both ways with back-pressure, each direction ended by itself, a reset for a reset.
 *
 * A socket that cannot take more keeps the stream's bytes here, bounded by the stream's window: the peer is given room only for what the
 * socket has taken. A stream that cannot take more pauses the socket.
 */
import type { Socket } from "bun";
import { concatBytes } from "../../../shared/bytes.ts";
import type { CloseCode } from "../../overlay/contract.ts";
import type { StreamEvents, StreamHandle } from "./stream_driver.ts";

export interface SocketStreamHooks {
  /** The program at the other end has taken the stream. */
  readonly accepted?: () => void;
  /** It broke, and why; the socket is reset after this. True: the hook has ended the socket itself. */
  readonly closed?: (code: CloseCode) => boolean;
  /** Whatever happened, this connection is over. */
  readonly over?: () => void;
}

export class SocketStream implements StreamEvents {
  readonly #hooks: SocketStreamHooks;
  #stream: StreamHandle | undefined;
  /** Undefined until it is connected. */
  #socket: Socket<unknown> | undefined;
  /** For the socket: views of what this step has brought, and copies of what it has not taken before. */
  #fresh: Uint8Array[] = [];
  #waiting: Uint8Array[] = [];
  #isBlocked = false;
  #isShut = false;
  #resumed = 0;
  #hasStreamEnded = false;
  #hasSocketEnded = false;
  #isFinished = false;
  #isOver = false;

  #isHeld: boolean;

  /** @param isHeld the socket gets nothing of the stream before `release`: something else has to be said on it first */
  constructor(hooks: SocketStreamHooks = {}, isHeld = false) {
    this.#hooks = hooks;
    this.#isHeld = isHeld;
  }

  release(): void {
    this.#isHeld = false;
    this.flush();
  }

  /** The stream that this is the owner of. */
  setStream(stream: StreamHandle | undefined): void {
    this.#stream = stream;
  }

  setSocket(socket: Socket<unknown>): void {
    this.#socket = socket;
    if (this.#isOver) socket.terminate();
    else this.flush();
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  /** There will be no socket. */
  giveUp(): void {
    this.#end();
  }

  // From the socket

  handleSocketData(bytes: Uint8Array): void {
    if (this.#isOver) return;
    const before = this.#resumed;
    const hasRoom = this.#stream?.write(bytes) ?? true;
    // Room may have come within the very call.
    if (!hasRoom && this.#resumed === before) this.#socket?.pause();
  }

  handleSocketDrain(): void {
    this.#isBlocked = false;
    this.flush();
  }

  /** The program here sends nothing more. */
  handleSocketEnd(): void {
    if (this.#hasSocketEnded || this.#isOver) return;
    this.#hasSocketEnded = true;
    this.#stream?.end();
    this.#endIfDone();
  }

  /** The socket is gone in both directions. */
  handleSocketClose(error: unknown): void {
    if (this.#isOver) return;
    const hasTakenAll = this.#hasStreamEnded && this.#waiting.length === 0;
    if (error === undefined && hasTakenAll) {
      this.handleSocketEnd();
      this.#end();
      return;
    }
    this.#end();
    this.#stream?.reset("cancelled");
  }

  // From the stream

  accepted(): void {
    this.#hooks.accepted?.();
  }

  data(bytes: Uint8Array): void {
    this.#fresh.push(bytes);
  }

  flush(): void {
    const [first] = this.#fresh;
    if (first !== undefined) {
      const bytes = this.#fresh.length === 1 ? first : concatBytes(...this.#fresh);
      const written = this.#waiting.length === 0 ? this.#write(bytes) : 0;
      if (written < bytes.length) this.#waiting.push(bytes.slice(written));
      this.#fresh = [];
    }
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      const written = this.#write(next);
      if (written < next.length) {
        this.#waiting[0] = next.subarray(written);
        return;
      }
      this.#waiting.shift();
    }
    if (this.#hasStreamEnded && !this.#isShut && !this.#isHeld && this.#socket !== undefined && !this.#isOver) {
      this.#isShut = true;
      this.#socket.shutdown();
      this.#endIfDone();
    }
  }

  ended(): void {
    this.#hasStreamEnded = true;
    this.flush();
  }

  writable(): void {
    this.#resumed++;
    this.#socket?.resume();
  }

  finished(): void {
    // Both directions have been ended one by one; the socket closes by itself when the program here has read everything.
    this.#stream = undefined;
    this.#isFinished = true;
    this.#endIfDone();
  }

  closed(code: CloseCode): void {
    if (this.#isOver) return;
    this.#stream = undefined;
    this.#end();
    if (this.#hooks.closed?.(code) !== true) this.#socket?.terminate();
  }

  /** How many bytes the socket has taken. */
  #write(bytes: Uint8Array): number {
    if (this.#socket === undefined || this.#isHeld || this.#isBlocked || this.#isOver) return 0;
    const written = Math.max(0, this.#socket.write(bytes));
    this.#isBlocked = written < bytes.length;
    if (written > 0) this.#stream?.consumed(written);
    return written;
  }

  /** The stream may be done within the very write that gives the socket its last bytes: the socket has yet to hear of its end. */
  #endIfDone(): void {
    if (this.#isFinished && (this.#socket === undefined || (this.#hasSocketEnded && this.#isShut))) this.#end();
  }

  #end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#fresh = [];
    this.#waiting = [];
    this.#hooks.over?.();
  }
}

/** Handlers for Bun's sockets whose `data` is a `SocketStream`. */
export const SOCKET_STREAM_HANDLERS = {
  data: (socket: Socket<SocketStream>, bytes: Uint8Array) => socket.data.handleSocketData(bytes),
  drain: (socket: Socket<SocketStream>) => socket.data.handleSocketDrain(),
  end: (socket: Socket<SocketStream>) => socket.data.handleSocketEnd(),
  close: (socket: Socket<SocketStream>, error?: unknown) => socket.data.handleSocketClose(error),
  error: (socket: Socket<SocketStream>, error: unknown) => socket.data.handleSocketClose(error),
} as const;
