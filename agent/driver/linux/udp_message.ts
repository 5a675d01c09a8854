/**
 * `sendmsg` and `recvmsg` with the two control messages that make UDP fast: UDP_SEGMENT cuts one buffer into datagrams on the way out,
 * UDP_GRO says where one buffer of merged datagrams is to be cut on the way in.
 *
 * The structures are laid out once per thread and pointed at the buffers of each call. As on all machines that we run on, pointers have 64
 * bits and numbers are little-endian.
 *
 *   msghdr    0 name (8)   8 name length (4+4)   16 iovec (8)   24 iovecs (8)   32 control (8)   40 control length (8)   48 flags (4+4)
 *   iovec     0 base (8)   8 length (8)
 *   cmsghdr   0 length (8)   8 level (4)   12 type (4)   16 data
 */
import { ptr } from "bun:ffi";
import { type Libc, libc, MSG_DONTWAIT, SOL_UDP, UDP_GRO, UDP_SEGMENT } from "./libc.ts";
import { SOCKADDR_BYTES } from "./sockaddr.ts";

const MSGHDR_WORDS = 14;
const NAME_LENGTH = 2;
const CONTROL_LENGTH = 10;
const CMSG_HEADER_BYTES = 16;
const CMSG_SPACE_BYTES = 24;
/** Room for control messages that we did not ask for. */
const CONTROL_BYTES = 64;

export class UdpMessage {
  /** The address to send to, and the sender of what has come. */
  readonly sockaddr = new Uint8Array(new ArrayBuffer(SOCKADDR_BYTES));
  /** Of what has come: the size of all datagrams but the last; 0 for a single one. */
  frameBytes = 0;
  readonly #libc: Libc = libc();
  readonly #header = new Uint32Array(new ArrayBuffer(4 * MSGHDR_WORDS));
  readonly #iovec = new Uint32Array(new ArrayBuffer(16));
  readonly #control = new Uint32Array(new ArrayBuffer(CONTROL_BYTES));

  constructor() {
    this.#point(this.#header, 0, ptr(this.sockaddr));
    this.#point(this.#header, 4, ptr(this.#iovec));
    this.#header[6] = 1;
    this.#point(this.#header, 8, ptr(this.#control));
  }

  /** Sends to `sockaddr`, of which the first `nameLength` bytes count, in datagrams of `frameBytes`. Returns what sendmsg returns. */
  send(fd: number, nameLength: number, bytes: Uint8Array, frameBytes: number): number {
    const header = this.#header;
    const control = this.#control;
    this.#point(this.#iovec, 0, ptr(bytes));
    this.#iovec[2] = bytes.length;
    header[NAME_LENGTH] = nameLength;
    header[CONTROL_LENGTH] = CMSG_SPACE_BYTES;
    control[0] = CMSG_HEADER_BYTES + 2;
    control[1] = 0;
    control[2] = SOL_UDP;
    control[3] = UDP_SEGMENT;
    control[4] = frameBytes;
    return this.#libc.sendmsg(fd, header, MSG_DONTWAIT);
  }

  /** Receives into `buffer`, and the sender into `sockaddr`. Returns what recvmsg returns. */
  receive(fd: number, buffer: Uint8Array): number {
    const header = this.#header;
    const control = this.#control;
    this.#point(this.#iovec, 0, ptr(buffer));
    this.#iovec[2] = buffer.length;
    header[NAME_LENGTH] = SOCKADDR_BYTES;
    header[CONTROL_LENGTH] = CONTROL_BYTES;
    const length = this.#libc.recvmsg(fd, header, MSG_DONTWAIT);
    this.frameBytes = 0;
    if (length > 0 && (header[CONTROL_LENGTH] ?? 0) >= CMSG_HEADER_BYTES + 4) {
      if (control[2] === SOL_UDP && control[3] === UDP_GRO) this.frameBytes = control[4] ?? 0;
    }
    return length;
  }

  #point(words: Uint32Array, at: number, address: number): void {
    words[at] = address;
    words[at + 1] = Math.floor(address / 2 ** 32);
  }
}

let shared: UdpMessage | undefined;

/** The one of this thread: what a call leaves in it lasts until the next call. */
export function udpMessage(): UdpMessage {
  shared ??= new UdpMessage();
  return shared;
}
