/** What goes into and comes out of the streams of one peer (stream_mux.ts). */
import type { ResetCode } from "../../shared/wire/stream.ts";

/** A stream as this side numbers it; odd if opened here. */
export type StreamId = number;

/** `silent`: nothing came from the peer for too long. `restarted`: it has lost its streams. `broken`: it broke
 * the rules. */
export type CloseCode = ResetCode | "silent" | "restarted" | "broken";

export interface StreamPath {
  /** The round trip as control has measured it. */
  readonly rttMs: number | undefined;
  /** The largest stream frame for this path. */
  readonly frameBytes: number;
}

export type MuxAction =
  /** Frames for the selected path (shared/batch.ts). */
  | { readonly type: "transmit"; readonly batch: Uint8Array }
  /** The peer wants a stream to this port: answer by `accept` or `reset`. */
  | { readonly type: "opened"; readonly stream: StreamId; readonly port: number }
  | { readonly type: "accepted"; readonly stream: StreamId }
  /** Bytes in order. Borrowed: valid until the next input. `consumed` gives the peer room for more. */
  | { readonly type: "data"; readonly stream: StreamId; readonly bytes: Uint8Array }
  /** The peer has ended its direction: nothing follows. */
  | { readonly type: "ended"; readonly stream: StreamId }
  /** A write that was told to pause may go on. */
  | { readonly type: "writable"; readonly stream: StreamId }
  /** Both directions are over, and all that was sent has arrived. The id is gone. */
  | { readonly type: "finished"; readonly stream: StreamId }
  /** The stream broke. The id is gone. */
  | { readonly type: "closed"; readonly stream: StreamId; readonly code: CloseCode }
  /** Borrowed bytes, as above. */
  | { readonly type: "datagram"; readonly flow: StreamId; readonly port: number; readonly bytes: Uint8Array };
