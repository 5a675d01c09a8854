/**
 * Stream frames: what the sealed frame type 0x04 holds behind its type byte. They carry the reliable streams and the datagrams of rootless
 * machines (agent/overlay).
 *
 *   0       4       8        14
 *   | from  | to    | number | record, record ... |
 *
 * `from` is the sender's instance, a number other than 0 that is new with each life of its streams; `to` is the receiver's as far as the
 * sender knows it, else 0. `number` counts the frames of an instance and is never used twice. Records, each behind a type byte:
 *
 *   0x01 ack             largest 6, delay 2 (1/16 ms), count 1, then count x (skip 2, run 4): from `largest` down, so many are missing, so
 *                        many have come
 *   0x02 open            stream 4, port 2
 *   0x03 accept          stream 4
 *   0x04 data            stream 4, offset 6, length 2, bytes
 *   0x05 last data       the same; the stream ends behind it
 *   0x06 reset           stream 4, code 1, final size 6
 *   0x07 stream credit   stream 4, limit 6: bytes up to here may be sent
 *   0x08 session credit  limit 6: the sum over all streams
 *   0x09 datagram        flow 4, port 2, length 2, bytes
 *   0x0a ping            wants an ack, like everything but an ack
 *
 * The lowest bit of a stream or flow is 1 if the sender of the record opened it, and 0 if its receiver did.
 */
import { Reader } from "./cursor.ts";

export const STREAM_HEADER_BYTES = 14;
/** In front of the bytes of a data record, and of a datagram record. */
export const DATA_HEADER_BYTES = 13;
export const DATAGRAM_HEADER_BYTES = 9;
export const MAX_ACK_RANGES = 32;
/** Units of an ack's delay in a millisecond; longer delays than the field holds are sent as its largest. */
const DELAY_UNITS_PER_MS = 16;
const MAX_U16 = 0xffff;

/** Why a stream was reset: number on the wire, name. The receiver takes a number it does not know for "cancelled". */
export const RESET_CODES = {
  /** The program at the other end reset its connection. */
  cancelled: 0,
  /** Nobody listens on the port. */
  refused: 1,
  /** The port is not offered to the mesh. */
  not_exposed: 2,
  /** The port did not answer. */
  unreachable: 3,
  /** Too many streams. */
  overloaded: 4,
  /** The agent stops. */
  stopping: 5,
} as const;
export type ResetCode = keyof typeof RESET_CODES;
const RESET_NAMES = Object.keys(RESET_CODES) as ResetCode[];

/** Frames from `low` to `high`, both included. */
export interface AckRange {
  readonly low: number;
  readonly high: number;
}

export type StreamRecord =
  /** Ranges from the highest down. */
  | { readonly type: "ack"; readonly delayMs: number; readonly ranges: readonly AckRange[] }
  | { readonly type: "open"; readonly stream: number; readonly port: number }
  | { readonly type: "accept"; readonly stream: number }
  | {
      readonly type: "data";
      readonly stream: number;
      readonly offset: number;
      readonly bytes: Uint8Array;
      readonly isLast: boolean;
    }
  | { readonly type: "reset"; readonly stream: number; readonly code: ResetCode; readonly finalSize: number }
  | { readonly type: "stream_credit"; readonly stream: number; readonly limit: number }
  | { readonly type: "session_credit"; readonly limit: number }
  | { readonly type: "datagram"; readonly flow: number; readonly port: number; readonly bytes: Uint8Array }
  | { readonly type: "ping" };

export interface StreamFrame {
  readonly from: number;
  readonly to: number;
  readonly number: number;
  /** Byte strings are views of what was decoded. */
  readonly records: readonly StreamRecord[];
}

export function decodeStreamFrame(bytes: Uint8Array): StreamFrame | undefined {
  const reader = new Reader(bytes);
  const from = reader.u32();
  const to = reader.u32();
  const number = reader.u48();
  const records: StreamRecord[] = [];
  while (reader.remaining > 0 && !reader.failed) {
    const record = readRecord(reader);
    // Without its length an unknown record cannot be passed over; new ones need a feature bit.
    if (record === undefined) return undefined;
    records.push(record);
  }
  return reader.failed || from === 0 || records.length === 0 ? undefined : { from, to, number, records };
}

function readRecord(reader: Reader): StreamRecord | undefined {
  switch (reader.u8()) {
    case 0x01:
      return readAck(reader);
    case 0x02:
      return { type: "open", stream: reader.u32(), port: reader.u16() };
    case 0x03:
      return { type: "accept", stream: reader.u32() };
    case 0x04:
      return readData(reader, false);
    case 0x05:
      return readData(reader, true);
    case 0x06:
      return {
        type: "reset",
        stream: reader.u32(),
        code: RESET_NAMES[reader.u8()] ?? "cancelled",
        finalSize: reader.u48(),
      };
    case 0x07:
      return { type: "stream_credit", stream: reader.u32(), limit: reader.u48() };
    case 0x08:
      return { type: "session_credit", limit: reader.u48() };
    case 0x09:
      return { type: "datagram", flow: reader.u32(), port: reader.u16(), bytes: reader.bytes(reader.u16()) };
    case 0x0a:
      return { type: "ping" };
    default:
      return undefined;
  }
}

function readData(reader: Reader, isLast: boolean): StreamRecord {
  return { type: "data", stream: reader.u32(), offset: reader.u48(), bytes: reader.bytes(reader.u16()), isLast };
}

function readAck(reader: Reader): StreamRecord | undefined {
  let next = reader.u48();
  const delayMs = reader.u16() / DELAY_UNITS_PER_MS;
  const count = reader.u8();
  if (count < 1 || count > MAX_ACK_RANGES) return undefined;
  const ranges: AckRange[] = [];
  for (let i = 0; i < count; i++) {
    const skip = reader.u16();
    const run = reader.u32();
    const high = next - skip;
    const low = high - run + 1;
    if (reader.failed || run < 1 || low < 0 || (skip < 1 && i > 0)) return undefined;
    ranges.push({ low, high });
    next = low - 1;
  }
  return { type: "ack", delayMs, ranges };
}

/**
 * Writes one frame into a buffer of fixed size. The caller asks `room` first; what does not fit is our own bug and throws nothing but is
 * cut off by the buffer, so every method names its size.
 */
export class StreamFrameWriter {
  readonly #out: Uint8Array;
  #length = 0;
  #limit = 0;

  constructor(capacity: number) {
    this.#out = new Uint8Array(capacity);
  }

  /** @param limit the largest frame, header included */
  begin(from: number, to: number, number: number, limit: number): void {
    this.#length = 0;
    this.#limit = Math.min(limit, this.#out.length);
    this.#u32(from);
    this.#u32(to);
    this.#u48(number);
  }

  get room(): number {
    return this.#limit - this.#length;
  }

  get isEmpty(): boolean {
    return this.#length === STREAM_HEADER_BYTES;
  }

  /** The frame so far, a view. */
  get bytes(): Uint8Array {
    return this.#out.subarray(0, this.#length);
  }

  /** At most as many ranges as fit and as the format holds, the highest ones. False: not even one fits. */
  ack(ranges: readonly AckRange[], delayMs: number): boolean {
    const first = ranges[0];
    let count = Math.min(ranges.length, MAX_ACK_RANGES, Math.floor((this.room - 10) / 6));
    if (first === undefined || count < 1) return false;
    for (let i = 1; i < count; i++) {
      if ((ranges[i - 1]?.low ?? 0) - 1 - (ranges[i]?.high ?? 0) > MAX_U16) count = i;
    }
    this.#u8(0x01);
    this.#u48(first.high);
    this.#u16(Math.min(MAX_U16, Math.round(delayMs * DELAY_UNITS_PER_MS)));
    this.#u8(count);
    let next = first.high;
    for (let i = 0; i < count; i++) {
      const { low, high } = ranges[i] ?? first;
      this.#u16(next - high);
      this.#u32(high - low + 1);
      next = low - 1;
    }
    return true;
  }

  /** 7 bytes. */
  open(stream: number, port: number): void {
    this.#u8(0x02);
    this.#u32(stream);
    this.#u16(port);
  }

  /** 5 bytes. */
  accept(stream: number): void {
    this.#u8(0x03);
    this.#u32(stream);
  }

  /** Returns the place for the bytes, `DATA_HEADER_BYTES` further on. */
  data(stream: number, offset: number, length: number, isLast: boolean): Uint8Array {
    this.#u8(isLast ? 0x05 : 0x04);
    this.#u32(stream);
    this.#u48(offset);
    this.#u16(length);
    return this.#place(length);
  }

  /** 12 bytes. */
  reset(stream: number, code: ResetCode, finalSize: number): void {
    this.#u8(0x06);
    this.#u32(stream);
    this.#u8(RESET_CODES[code]);
    this.#u48(finalSize);
  }

  /** 11 bytes. */
  streamCredit(stream: number, limit: number): void {
    this.#u8(0x07);
    this.#u32(stream);
    this.#u48(limit);
  }

  /** 7 bytes. */
  sessionCredit(limit: number): void {
    this.#u8(0x08);
    this.#u48(limit);
  }

  datagram(flow: number, port: number, bytes: Uint8Array): void {
    this.#u8(0x09);
    this.#u32(flow);
    this.#u16(port);
    this.#u16(bytes.length);
    this.#place(bytes.length).set(bytes);
  }

  ping(): void {
    this.#u8(0x0a);
  }

  #place(length: number): Uint8Array {
    const at = this.#length;
    this.#length += length;
    return this.#out.subarray(at, this.#length);
  }

  #u8(value: number): void {
    this.#out[this.#length++] = value;
  }

  #u16(value: number): void {
    this.#out[this.#length++] = value >>> 8;
    this.#out[this.#length++] = value;
  }

  #u32(value: number): void {
    this.#u16(value >>> 16);
    this.#u16(value);
  }

  #u48(value: number): void {
    this.#u16(Math.floor(value / 2 ** 32));
    this.#u32(value >>> 0);
  }
}
