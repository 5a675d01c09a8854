/**
 * Bounds-checked reading and writing of big-endian bytes, for every codec in this folder.
 *
 * The reader never throws. Reading past the end returns zeros (or no bytes) and sets `failed`, which stays set: a decoder reads its
 * whole packet straight down and asks once at the end. A length taken from the wire can therefore never read outside the packet, and
 * a loop over the wire must ask `failed` or `remaining`, because a failed reader no longer moves.
 */

const EMPTY = new Uint8Array(0);

/** 2^53: numbers from here on cannot be told apart, so a u64 that reaches it is a failed read. */
const U64_LIMIT = 2 ** 53;

export class Reader {
  readonly #bytes: Uint8Array;
  #offset = 0;
  #failed = false;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** Has any read asked for more than was there? */
  get failed(): boolean {
    return this.#failed;
  }

  get offset(): number {
    return this.#offset;
  }

  get remaining(): number {
    return this.#bytes.length - this.#offset;
  }

  u8(): number {
    const at = this.#take(1);
    return at < 0 ? 0 : (this.#bytes[at] ?? 0);
  }

  u16(): number {
    const at = this.#take(2);
    return at < 0 ? 0 : ((this.#bytes[at] ?? 0) << 8) | (this.#bytes[at + 1] ?? 0);
  }

  u32(): number {
    const high = this.#take(4);
    return high < 0 ? 0 : readU32(this.#bytes, high);
  }

  u48(): number {
    const at = this.#take(6);
    if (at < 0) return 0;
    const high = ((this.#bytes[at] ?? 0) << 8) | (this.#bytes[at + 1] ?? 0);
    return high * 2 ** 32 + readU32(this.#bytes, at + 2);
  }

  /** A 64-bit number below 2^53; a larger one is a failed read, since a plain number cannot hold it. */
  u64(): number {
    const at = this.#take(8);
    if (at < 0) return 0;
    const value = readU32(this.#bytes, at) * 2 ** 32 + readU32(this.#bytes, at + 4);
    if (value < U64_LIMIT) return value;
    this.#failed = true;
    return 0;
  }

  /** A view of the next `length` bytes, not a copy. */
  bytes(length: number): Uint8Array {
    const at = this.#take(length);
    return at < 0 ? EMPTY : this.#bytes.subarray(at, at + length);
  }

  /** A view of everything that is left. */
  rest(): Uint8Array {
    return this.bytes(this.#failed ? 0 : this.remaining);
  }

  skip(length: number): void {
    this.#take(length);
  }

  /** Where the next `length` bytes begin, or -1 when they are not there. */
  #take(length: number): number {
    if (this.#failed || !Number.isInteger(length) || length < 0 || length > this.remaining) {
      this.#failed = true;
      return -1;
    }
    const at = this.#offset;
    this.#offset += length;
    return at;
  }
}

/** Writes into a buffer that grows. A value that does not fit its field is our own bug and throws. */
export class Writer {
  #buffer: Uint8Array;
  #length = 0;

  constructor(sizeHint = 128) {
    this.#buffer = new Uint8Array(sizeHint);
  }

  get length(): number {
    return this.#length;
  }

  u8(value: number): this {
    requireRange(value, 0xff);
    // First the place, then the buffer: reserving may replace the buffer.
    const at = this.#reserve(1);
    this.#buffer[at] = value;
    return this;
  }

  u16(value: number): this {
    requireRange(value, 0xffff);
    this.setU16(this.#reserve(2), value);
    return this;
  }

  u32(value: number): this {
    requireRange(value, 0xffff_ffff);
    this.#putU32(this.#reserve(4), value);
    return this;
  }

  u64(value: number): this {
    requireRange(value, U64_LIMIT - 1);
    const at = this.#reserve(8);
    this.#putU32(at, Math.floor(value / 2 ** 32));
    this.#putU32(at + 4, value % 2 ** 32);
    return this;
  }

  bytes(bytes: Uint8Array): this {
    const at = this.#reserve(bytes.length);
    this.#buffer.set(bytes, at);
    return this;
  }

  zeros(length: number): this {
    const at = this.#reserve(length);
    this.#buffer.fill(0, at, at + length);
    return this;
  }

  /** Overwrites two bytes written earlier: a length that is known only after its content. */
  setU16(at: number, value: number): void {
    requireRange(value, 0xffff);
    if (at < 0 || at + 2 > this.#length) throw new RangeError(`No two bytes written at ${at}`);
    this.#buffer[at] = value >>> 8;
    this.#buffer[at + 1] = value & 0xff;
  }

  /** A copy of what was written. */
  finish(): Uint8Array {
    return this.#buffer.slice(0, this.#length);
  }

  #putU32(at: number, value: number): void {
    this.#buffer[at] = value >>> 24;
    this.#buffer[at + 1] = (value >>> 16) & 0xff;
    this.#buffer[at + 2] = (value >>> 8) & 0xff;
    this.#buffer[at + 3] = value & 0xff;
  }

  #reserve(length: number): number {
    const at = this.#length;
    this.#length += length;
    if (this.#length > this.#buffer.length) {
      const grown = new Uint8Array(Math.max(this.#length, this.#buffer.length * 2));
      grown.set(this.#buffer);
      this.#buffer = grown;
    }
    return at;
  }
}

const readU32 = (bytes: Uint8Array, at: number): number =>
  (((bytes[at] ?? 0) << 24) | ((bytes[at + 1] ?? 0) << 16) | ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0)) >>> 0;

function requireRange(value: number, maximum: number): void {
  if (!Number.isInteger(value) || value < 0 || value > maximum)
    throw new RangeError(`${value} is not a whole number from 0 to ${maximum}`);
}
