/**
 * Cuts a super-packet into the plaintexts of segment frames (PROTOCOL.md, "Super-packet segments").
 *
 * All pieces of a run fill their frames, so that the kernel can send them in one call; only the last is shorter. Nothing is copied: each
 * header is written over the end of the piece before, which has been sealed by then. So the bytes are worth nothing afterwards.
 *
 * A frame that is full ends somewhere in a segment, and when it is lost, TCP sends both segments again that it had a part in. On a way that
 * loses, pieces therefore end where segments end. Then the first two are larger than the others and leave in a call of their own, which
 * costs a tenth of the CPU time where nothing is lost.
 */
import { SEGMENT_HEADER_BYTES, SEGMENT_SIZE_BYTES, writeSegmentHeader } from "../../shared/wire/frame.ts";
import { MAX_HEADERS_BYTES, type PacketHeaders } from "./packet_headers.ts";

/** What must be free before and behind a super-packet. */
export const RUN_ROOM_BEFORE = SEGMENT_HEADER_BYTES + SEGMENT_SIZE_BYTES;
export const RUN_ROOM_BEHIND = SEGMENT_SIZE_BYTES + MAX_HEADERS_BYTES;

/** Payload that a frame must have room for beside the headers, or cutting makes no sense. */
const MIN_PIECE_BYTES = 64;

/** Can a run be cut into bodies of this many bytes? */
export const isRunCapacity = (bodyBytes: number, headers: PacketHeaders): boolean =>
  bodyBytes >= SEGMENT_SIZE_BYTES + headers.bytes + MIN_PIECE_BYTES;

/**
 * @param segmentBytes the payload of each packet that the super-packet stands for
 * @param bodyBytes what a frame carries behind its segment header
 * @param seal takes the place and length of one plaintext at a time
 */
export function cutRun(
  bytes: Uint8Array,
  start: number,
  end: number,
  run: {
    readonly id: number;
    readonly headers: PacketHeaders;
    readonly segmentBytes: number;
    readonly bodyBytes: number;
    /** Pieces end with segments, where one fits into a frame. */
    readonly isAligned: boolean;
  },
  seal: (from: number, length: number) => void,
): void {
  const headerBytes = run.headers.bytes;
  const payload = start + headerBytes;
  const total = end - payload;
  const { id, segmentBytes, bodyBytes, isAligned } = run;
  let from = start - SEGMENT_SIZE_BYTES;
  bytes[from] = segmentBytes >>> 8;
  bytes[from + 1] = segmentBytes;
  let offset = 0;
  while (true) {
    const most = from + bodyBytes;
    const whole = most - ((most - payload) % segmentBytes);
    const stop = Math.min(isAligned && whole > Math.max(from, payload) ? whole : most, end);
    writeSegmentHeader(bytes, from - SEGMENT_HEADER_BYTES, id, offset, total);
    const isFirst = offset === 0;
    offset = stop - payload;
    const room = bodyBytes - (stop - from);
    // The headers come a second time with the end, so that no single lost frame takes them along.
    const repeats = offset === total && !isFirst && room >= SEGMENT_SIZE_BYTES + headerBytes;
    if (repeats) repeatHeaders(bytes, start, end, headerBytes);
    const length = stop - from + (repeats ? SEGMENT_SIZE_BYTES + headerBytes : 0);
    seal(from - SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + length);
    if (offset === total) {
      if (!isFirst && !repeats) sealHeaders(bytes, start, end, run, total, seal);
      return;
    }
    from = stop;
  }
}

/** A last frame with nothing but the headers, where they did not fit behind the last piece. */
function sealHeaders(
  bytes: Uint8Array,
  start: number,
  end: number,
  run: { readonly id: number; readonly headers: PacketHeaders },
  total: number,
  seal: (from: number, length: number) => void,
): void {
  repeatHeaders(bytes, start, end, run.headers.bytes);
  writeSegmentHeader(bytes, end - SEGMENT_HEADER_BYTES, run.id, total, total);
  seal(end - SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + SEGMENT_SIZE_BYTES + run.headers.bytes);
}

function repeatHeaders(bytes: Uint8Array, start: number, end: number, headerBytes: number): void {
  bytes.copyWithin(end, start - SEGMENT_SIZE_BYTES, start + headerBytes);
}
