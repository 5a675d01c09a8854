/**
 * Sealed frames: the header on the wire, and the types inside.
 *
 *   0      1           5           13
 *   | 0x04 | receiver  | counter   | sealed plaintext + 16-byte tag ... |
 *
 * Big-endian; the first 13 bytes are the AEAD's associated data. The counter belongs to the session's epoch and spans all paths, so a
 * receiver can put frames of several paths in order. The plaintext begins with a type byte:
 *
 *   0x00 padding    nothing: a keepalive, a probe of the path MTU
 *   0x01 packet     one IP packet
 *   0x02 segment    run id 4, offset 2, total 2, body: a piece of a super-packet's payload; the headers come with the first and the last
 *   0x03 fragment   id 4, index 1, count 1, body: part of an IP packet that does not fit the path
 *   0x04 stream     bytes of the reliable streams
 *   0x05 control    see control.ts
 *   0x06 switch     mark 1 (0 begin, on the new path; 1 fence, on the old one), id 4: a planned change of path
 *   0x07 unfinished one IP packet whose TCP or UDP checksum is that of the pseudo-header only; the receiver completes it
 *
 * A receiver counts and ignores types that it does not know.
 */

export const SEALED = 0x04;
export const FRAME_HEADER_BYTES = 13;
export const FRAME_TAG_BYTES = 16;
/** What sealing adds to an IP packet: header, tag, type byte. */
export const FRAME_OVERHEAD_BYTES = FRAME_HEADER_BYTES + FRAME_TAG_BYTES + 1;

export const FRAME_PADDING = 0x00;
export const FRAME_PACKET = 0x01;
export const FRAME_SEGMENT = 0x02;
export const FRAME_FRAGMENT = 0x03;
export const FRAME_STREAM = 0x04;
export const FRAME_CONTROL = 0x05;
export const FRAME_SWITCH = 0x06;
export const FRAME_UNFINISHED = 0x07;

/** Marks of a switch frame. */
export const SWITCH_BEGIN = 0;
export const SWITCH_FENCE = 1;
export const SWITCH_BYTES = 8;
/** Without the time to wait, which a sender may leave out. */
const LEAST_SWITCH_BYTES = 6;

/** Type byte, id, index and count in front of a fragment's body. */
export const FRAGMENT_HEADER_BYTES = 7;

/** Type byte, run id, offset and total in front of a segment's body. */
export const SEGMENT_HEADER_BYTES = 9;
/** What stands before the headers of a super-packet: the payload bytes of each packet that it stands for. */
export const SEGMENT_SIZE_BYTES = 2;

export function writeFrameHeader(out: Uint8Array, receiverIndex: number, counter: number, at = 0): void {
  const high = Math.floor(counter / 2 ** 32);
  out[at] = SEALED;
  out[at + 1] = receiverIndex >>> 24;
  out[at + 2] = receiverIndex >>> 16;
  out[at + 3] = receiverIndex >>> 8;
  out[at + 4] = receiverIndex;
  out[at + 5] = high >>> 24;
  out[at + 6] = high >>> 16;
  out[at + 7] = high >>> 8;
  out[at + 8] = high;
  out[at + 9] = counter >>> 24;
  out[at + 10] = counter >>> 16;
  out[at + 11] = counter >>> 8;
  out[at + 12] = counter;
}

/** Is this long enough for a sealed frame, and marked as one? */
export const isSealedFrame = (bytes: Uint8Array, at = 0, end = bytes.length): boolean =>
  bytes[at] === SEALED && end - at > FRAME_HEADER_BYTES + FRAME_TAG_BYTES;

export const frameReceiver = (bytes: Uint8Array, at = 0): number => u32(bytes, at + 1);

/** The counter; 2^53 and more come out as a number that no window accepts. */
export const frameCounter = (bytes: Uint8Array, at = 0): number => u32(bytes, at + 5) * 2 ** 32 + u32(bytes, at + 9);

/** @param holdMs how long a begin asks to wait for its fence, at most 65 535 ms; 0: as long as the receiver likes */
export function writeSwitch(out: Uint8Array, mark: number, id: number, holdMs: number): void {
  out[0] = FRAME_SWITCH;
  out[1] = mark;
  out[2] = id >>> 24;
  out[3] = id >>> 16;
  out[4] = id >>> 8;
  out[5] = id;
  out[6] = holdMs >>> 8;
  out[7] = holdMs;
}

/** The mark and id of a switch frame's plaintext (type byte included); undefined when it is too short. */
export function readSwitch(
  plaintext: Uint8Array,
): { readonly mark: number; readonly id: number; readonly holdMs: number } | undefined {
  if (plaintext.length < LEAST_SWITCH_BYTES) return undefined;
  const holdMs = plaintext.length < SWITCH_BYTES ? 0 : ((plaintext[6] ?? 0) << 8) | (plaintext[7] ?? 0);
  return { mark: plaintext[1] ?? 0, id: u32(plaintext, 2), holdMs };
}

export interface FragmentHeader {
  readonly id: number;
  readonly index: number;
  readonly count: number;
}

export function writeFragmentHeader(out: Uint8Array, header: FragmentHeader): void {
  out[0] = FRAME_FRAGMENT;
  out[1] = header.id >>> 24;
  out[2] = header.id >>> 16;
  out[3] = header.id >>> 8;
  out[4] = header.id;
  out[5] = header.index;
  out[6] = header.count;
}

/** The header of a fragment frame's plaintext (type byte included); undefined when it makes no sense. */
export function readFragmentHeader(plaintext: Uint8Array): FragmentHeader | undefined {
  if (plaintext.length <= FRAGMENT_HEADER_BYTES) return undefined;
  const index = plaintext[5] ?? 0;
  const count = plaintext[6] ?? 0;
  return count >= 2 && index < count ? { id: u32(plaintext, 1), index, count } : undefined;
}

export function writeSegmentHeader(out: Uint8Array, at: number, runId: number, offset: number, total: number): void {
  out[at] = FRAME_SEGMENT;
  out[at + 1] = runId >>> 24;
  out[at + 2] = runId >>> 16;
  out[at + 3] = runId >>> 8;
  out[at + 4] = runId;
  out[at + 5] = offset >>> 8;
  out[at + 6] = offset;
  out[at + 7] = total >>> 8;
  out[at + 8] = total;
}

/** The fields of the segment whose type byte is at `at`; there must be a header. The run id is a signed number. */
export const segmentRunId = (bytes: Uint8Array, at: number): number => u32(bytes, at + 1) | 0;
/** Where this piece begins in the payload of the super-packet. */
export const segmentOffset = (bytes: Uint8Array, at: number): number => u16(bytes, at + 5);
/** Bytes of the whole payload. */
export const segmentTotal = (bytes: Uint8Array, at: number): number => u16(bytes, at + 7);

const u16 = (bytes: Uint8Array, at: number): number => ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
const u32 = (bytes: Uint8Array, at: number): number =>
  (((bytes[at] ?? 0) << 24) | ((bytes[at + 1] ?? 0) << 16) | ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0)) >>> 0;
