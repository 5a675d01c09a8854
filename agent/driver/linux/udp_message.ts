/**
 * Datagrams as `sendmmsg` and `recvmmsg` take them, many in a call, with the two control messages that make UDP fast: UDP_SEGMENT cuts one
 * buffer into datagrams on the way out, UDP_GRO says where one buffer of merged datagrams is to be cut on the way in.
 *
 * The structures are laid out once per thread and pointed at the buffers. As on all machines that we run on, pointers have 64 bits and
 * numbers are little-endian.
 *
 *   mmsghdr   0 msghdr (56)   56 length of what has come (4+4)
 *   msghdr    0 name (8)   8 name length (4+4)   16 iovec (8)   24 iovecs (8)   32 control (8)   40 control length (8)   48 flags (4+4)
 *   iovec     0 base (8)   8 length (8)
 *   cmsghdr   0 length (8)   8 level (4)   12 type (4)   16 data
 */
import { ptr } from "bun:ffi";
import { PACKED_ADDRESS_BYTES } from "../../../shared/address.ts";
import { EAFNOSUPPORT, EIO } from "./errno.ts";
import { type Address, type Libc, libc, MSG_DONTWAIT, SOL_UDP, UDP_GRO, UDP_SEGMENT } from "./libc.ts";
import { decodeSockaddr, SOCKADDR_BYTES } from "./sockaddr.ts";

/** Of one message, in words of four bytes. */
const HEADER_WORDS = 16;
const IOVEC_WORDS = 4;
/** With room for control messages that we did not ask for. */
const CONTROL_WORDS = 16;
const IOVECS = 6;
const NAME_LENGTH = 2;
const CONTROL_LENGTH = 10;
const LENGTH = 14;
const CMSG_HEADER_BYTES = 16;
const CMSG_SPACE_BYTES = 24;
/** Keeps each address where C expects one to begin. */
const SOCKADDR_SPACE_BYTES = 32;
/** What one call sends. */
export const MAX_OUTGOING = 64;
/** What one call receives; each has a buffer of the largest size, of which only what is filled becomes real memory. */
export const MAX_INCOMING = 16;
/** The largest UDP payload, and whatever the kernel merges into one. */
const BUFFER_BYTES = 65_536;

class Messages {
  readonly headers: Uint32Array;
  readonly iovecs: Uint32Array;
  readonly controls: Uint32Array;
  readonly sockaddrs: readonly Uint8Array[];

  constructor(count: number) {
    this.headers = words(count * HEADER_WORDS);
    this.iovecs = words(count * IOVEC_WORDS);
    this.controls = words(count * CONTROL_WORDS);
    const names = new Uint8Array(new ArrayBuffer(count * SOCKADDR_SPACE_BYTES));
    const each = Array.from({ length: count }, (_, i) => i);
    this.sockaddrs = each.map((i) =>
      names.subarray(i * SOCKADDR_SPACE_BYTES, i * SOCKADDR_SPACE_BYTES + SOCKADDR_BYTES),
    );
    for (const i of each) {
      const at = i * HEADER_WORDS;
      point(this.headers, at, ptr(names) + i * SOCKADDR_SPACE_BYTES);
      point(this.headers, at + 4, ptr(this.iovecs) + 4 * i * IOVEC_WORDS);
      this.headers[at + IOVECS] = 1;
      point(this.headers, at + 8, ptr(this.controls) + 4 * i * CONTROL_WORDS);
    }
  }
}

/** Messages to be sent: `set` each from 0 on, its address written to `sockaddrs` before, then send them. */
export class OutgoingMessages {
  readonly #libc: Libc = libc();
  readonly #messages = new Messages(MAX_OUTGOING);

  get sockaddrs(): readonly Uint8Array[] {
    return this.#messages.sockaddrs;
  }

  /**
   * @param nameLength of the address
   * @param address in memory, of `length` bytes
   * @param frameBytes of each datagram but the last; at least `length` for a single one
   */
  set(index: number, nameLength: number, address: Address, length: number, frameBytes: number): void {
    const { headers, iovecs, controls } = this.#messages;
    const at = index * HEADER_WORDS;
    point(iovecs, index * IOVEC_WORDS, address);
    iovecs[index * IOVEC_WORDS + 2] = length;
    headers[at + NAME_LENGTH] = nameLength;
    const isCut = frameBytes < length;
    headers[at + CONTROL_LENGTH] = isCut ? CMSG_SPACE_BYTES : 0;
    if (!isCut) return;
    const control = index * CONTROL_WORDS;
    controls[control] = CMSG_HEADER_BYTES + 2;
    controls[control + 1] = 0;
    controls[control + 2] = SOL_UDP;
    controls[control + 3] = UDP_SEGMENT;
    controls[control + 4] = frameBytes;
  }

  /** Returns what sendmsg returns. */
  sendFirst(fd: number): number {
    return this.#libc.sendmsg(fd, this.#messages.headers, MSG_DONTWAIT);
  }

  /** Returns how many of the first `count` have left; -1 when the first of them was refused. */
  send(fd: number, count: number): number {
    return this.#libc.sendmmsg(fd, this.#messages.headers, count, MSG_DONTWAIT);
  }
}

/** Datagrams of one sender, one behind the other. */
export interface Incoming {
  readonly bytes: Uint8Array;
  /** Packed. */
  readonly from: Uint8Array;
  /** Of all of them; minus the error number where the sender cannot be told. */
  length: number;
  /** The size of all but the last. */
  frameBytes: number;
}

/** What one call has received; it lasts until the next. */
export class IncomingMessages {
  readonly incoming: readonly Incoming[];
  readonly #libc: Libc = libc();
  readonly #messages = new Messages(MAX_INCOMING);

  constructor() {
    this.incoming = this.#messages.sockaddrs.map((_, i) => {
      const bytes = new Uint8Array(new ArrayBuffer(BUFFER_BYTES));
      point(this.#messages.iovecs, i * IOVEC_WORDS, ptr(bytes));
      this.#messages.iovecs[i * IOVEC_WORDS + 2] = BUFFER_BYTES;
      return { bytes, from: new Uint8Array(PACKED_ADDRESS_BYTES), length: 0, frameBytes: 0 };
    });
  }

  /** Receives one. Returns 1, or minus the error number. */
  receiveOne(fd: number): number {
    this.#reset(1);
    const length = this.#libc.recvmsg(fd, this.#messages.headers, MSG_DONTWAIT);
    if (length < 0) return -(this.#libc.errno() || EIO);
    this.#messages.headers[LENGTH] = length;
    this.#take(0);
    return 1;
  }

  /** Receives up to `count`. Returns how many have come, fewer when no more wait; or minus the error number when none has. */
  receive(fd: number, count: number): number {
    this.#reset(count);
    const received = this.#libc.recvmmsg(fd, this.#messages.headers, count, MSG_DONTWAIT, null);
    if (received < 0) return -(this.#libc.errno() || EIO);
    for (let i = 0; i < received; i++) this.#take(i);
    return received;
  }

  #reset(count: number): void {
    const { headers } = this.#messages;
    for (let at = 0; at < count * HEADER_WORDS; at += HEADER_WORDS) {
      headers[at + NAME_LENGTH] = SOCKADDR_BYTES;
      headers[at + CONTROL_LENGTH] = 4 * CONTROL_WORDS;
    }
  }

  #take(index: number): void {
    const { headers, controls, sockaddrs } = this.#messages;
    const incoming = this.incoming[index];
    const sockaddr = sockaddrs[index];
    if (incoming === undefined || sockaddr === undefined) return;
    const at = index * HEADER_WORDS;
    const control = index * CONTROL_WORDS;
    const length = headers[at + LENGTH] ?? 0;
    const isMerged =
      (headers[at + CONTROL_LENGTH] ?? 0) >= CMSG_HEADER_BYTES + 4 &&
      controls[control + 2] === SOL_UDP &&
      controls[control + 3] === UDP_GRO;
    incoming.length = decodeSockaddr(sockaddr, incoming.from) ? length : -EAFNOSUPPORT;
    incoming.frameBytes = (isMerged ? controls[control + 4] : 0) || length;
  }
}

const words = (count: number): Uint32Array => new Uint32Array(new ArrayBuffer(4 * count));

function point(into: Uint32Array, at: number, address: Address): void {
  into[at] = address;
  into[at + 1] = Math.floor(address / 2 ** 32);
}

let outgoing: OutgoingMessages | undefined;
let incoming: IncomingMessages | undefined;

/** Those of this thread: what a call leaves in them lasts until the next call. */
export function outgoingMessages(): OutgoingMessages {
  outgoing ??= new OutgoingMessages();
  return outgoing;
}

export function incomingMessages(): IncomingMessages {
  incoming ??= new IncomingMessages();
  return incoming;
}
