/**
 * One stream: the state of its two directions, what the peer still has to be told, and when both are over.
 *
 * A stream has an id that both ends derive from its number: odd if this side opened it (stream_mux.ts). Resetting one direction resets
 * the other too, as with TCP; each side then tells how much it had sent, so that both agree on the session's credit.
 */
import type { Instant } from "../../shared/time.ts";
import type { ResetCode } from "../../shared/wire/stream.ts";
import { INITIAL_STREAM_WINDOW } from "./limits.ts";
import { ReceiveBuffer } from "./receive_buffer.ts";
import { SendBuffer } from "./send_buffer.ts";

/** `ending`: the program has ended it, the peer has not acknowledged everything. `resetting`: our reset is not acknowledged. */
export type Sending = "open" | "ending" | "done" | "resetting" | "reset";
export type Receiving = "open" | "ended" | "reset";

export class Stream {
  readonly id: number;
  /** Undefined for a stream of the peer whose `open` has not come yet. */
  port: number | undefined;
  sending: Sending = "open";
  receiving: Receiving = "open";
  readonly send = new SendBuffer();
  readonly receive = new ReceiveBuffer();
  /** The program here has let go: what still comes is counted and dropped. */
  isAbandoned = false;
  /** Has the program at the other end taken it? */
  isAccepted = false;
  resetCode: ResetCode = "cancelled";
  /** One of ours: `waiting` while too many others are unanswered, `asked` until the peer has said something about it. */
  opening: "waiting" | "asked" | "done" = "done";

  /** What the peer allows us to send, and we the peer. */
  sendLimit = INITIAL_STREAM_WINDOW;
  receiveLimit = INITIAL_STREAM_WINDOW;
  /** How far ahead of the program's reading the peer may be. */
  window = INITIAL_STREAM_WINDOW;
  /** The highest offset that has come, and how far the program has read. */
  received = 0;
  consumed = 0;
  /** The peer's number of bytes, once it has said so. */
  finalSize: number | undefined;
  creditedAt: Instant | undefined;

  /** Records to be sent, again where they were lost. */
  needs = 0;
  isLastAcked = false;
  /** Whether it waits for its turn to send, or for the session's credit. */
  queue: "none" | "ready" | "blocked" = "none";
  /** What came before the peer's `open` did. */
  early: Uint8Array[] | undefined;
  /** The program was told to pause: when it has this little left it may go on. */
  resumeBelow = 0;

  constructor(id: number, port: number | undefined) {
    this.id = id;
    this.port = port;
  }

  get isOurs(): boolean {
    return (this.id & 1) === 1;
  }

  get isOver(): boolean {
    const hasSent = this.sending === "done" || this.sending === "reset";
    return hasSent && this.receiving !== "open" && (this.isAbandoned || this.consumed === this.received);
  }

  /** Are there bytes, or the end, that could leave but for the session's credit? */
  get wantsToSend(): boolean {
    if ((this.sending !== "open" && this.sending !== "ending") || this.opening === "waiting") return false;
    if (this.send.hasLost) return true;
    return this.send.unsentBytes > 0 ? this.send.sentTo < this.sendLimit : (this.needs & NEEDS_LAST) !== 0;
  }
}

/** Bits of `needs`. */
export const NEEDS_OPEN = 1;
export const NEEDS_ACCEPT = 2;
export const NEEDS_RESET = 4;
export const NEEDS_CREDIT = 8;
/** The end of the bytes, which travels on a data record. */
export const NEEDS_LAST = 16;
/** Those that travel as records of their own. */
export const CONTROL_NEEDS = NEEDS_OPEN | NEEDS_ACCEPT | NEEDS_RESET | NEEDS_CREDIT;
