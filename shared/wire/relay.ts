/**
 * What travels on a relay leg: many sealed frames in one message, each with a small index instead of a peer id.
 *
 * Indexes belong to one connection. Whoever first has something for a peer binds an index to it: the agent from 0, the coordinator from
 * 0x8000, so that the two never choose the same. A binding holds for both directions until the connection ends.
 *
 *   relay message over a WebSocket (an SSH channel belongs to one peer and carries only: length 2, sealed frame, repeated)
 *     0x01 frames     repeated: index 2, length 2, sealed frame
 *     0x02 bind       index 2, peer id 16 (the hash, not its text)
 *     0x03 challenge  nonce 4     answered at once: proves that the connection lives
 *     0x04 answer     nonce 4
 *     0x05 unbound    index 2     the coordinator has nobody for this index: the peer has no leg, or refuses
 *
 * Unknown kinds are ignored.
 */
import { assertNever } from "../assert.ts";
import { fromBase32, toBase32 } from "../bytes.ts";
import type { PeerId } from "../session/identity.ts";
import { Reader, Writer } from "./cursor.ts";

/** Indexes from here on are chosen by the coordinator. */
export const FIRST_COORDINATOR_INDEX = 0x8000;
/** Largest relay message: what one WebSocket message or one SSH write carries at most. */
export const MAX_RELAY_MESSAGE_BYTES = 128 * 1024;
/** Frames gathered into one message by a sender. Larger batches would only delay the first of them. */
export const RELAY_BATCH_BYTES = 64 * 1024;
const PEER_ID_BYTES = 16;
const FRAME_HEADER_BYTES = 4;

const FRAMES = 0x01;
const BIND = 0x02;
const CHALLENGE = 0x03;
const ANSWER = 0x04;
const UNBOUND = 0x05;

export interface RelayFrame {
  readonly index: number;
  readonly frame: Uint8Array;
}

export type RelayMessage =
  | { readonly type: "frames"; readonly frames: readonly RelayFrame[] }
  | { readonly type: "bind"; readonly index: number; readonly peer: PeerId }
  | { readonly type: "challenge"; readonly nonce: number }
  | { readonly type: "answer"; readonly nonce: number }
  | { readonly type: "unbound"; readonly index: number };

/** The room that a frame takes in a `frames` message. */
export const relayedBytes = (frame: Uint8Array): number => FRAME_HEADER_BYTES + frame.length;

export function encodeRelay(message: RelayMessage): Uint8Array {
  switch (message.type) {
    case "frames":
      return encodeFrames(message.frames);
    case "bind":
      return new Writer(19)
        .u8(BIND)
        .u16(message.index)
        .bytes(fromBase32(message.peer) ?? new Uint8Array(PEER_ID_BYTES))
        .finish();
    case "challenge":
    case "answer":
      return new Writer(5)
        .u8(message.type === "challenge" ? CHALLENGE : ANSWER)
        .u32(message.nonce)
        .finish();
    case "unbound":
      return new Writer(3).u8(UNBOUND).u16(message.index).finish();
    default:
      return assertNever(message);
  }
}

function encodeFrames(frames: readonly RelayFrame[]): Uint8Array {
  const out = new Uint8Array(frames.reduce((sum, { frame }) => sum + relayedBytes(frame), 1));
  out[0] = FRAMES;
  let at = 1;
  for (const { index, frame } of frames) {
    out[at] = index >>> 8;
    out[at + 1] = index;
    out[at + 2] = frame.length >>> 8;
    out[at + 3] = frame.length;
    out.set(frame, at + FRAME_HEADER_BYTES);
    at += relayedBytes(frame);
  }
  return out;
}

/** Frames are views into `bytes`. Undefined for an unknown kind and for anything malformed. */
export function decodeRelay(bytes: Uint8Array): RelayMessage | undefined {
  if (bytes.length > MAX_RELAY_MESSAGE_BYTES) return undefined;
  const reader = new Reader(bytes);
  const message = readMessage(reader.u8(), reader);
  return reader.failed ? undefined : message;
}

function readMessage(kind: number, reader: Reader): RelayMessage | undefined {
  switch (kind) {
    case FRAMES: {
      const frames: RelayFrame[] = [];
      while (reader.remaining > 0 && !reader.failed) {
        const index = reader.u16();
        frames.push({ index, frame: reader.bytes(reader.u16()) });
      }
      return { type: "frames", frames };
    }
    case BIND: {
      const index = reader.u16();
      return { type: "bind", index, peer: toBase32(reader.bytes(PEER_ID_BYTES)) as PeerId };
    }
    case CHALLENGE:
      return { type: "challenge", nonce: reader.u32() };
    case ANSWER:
      return { type: "answer", nonce: reader.u32() };
    case UNBOUND:
      return { type: "unbound", index: reader.u16() };
    default:
      return undefined;
  }
}
