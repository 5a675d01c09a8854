/**
 * One UDP socket of the kernel: opened, asked for its port, sent and received on without blocking and without allocating.
 *
 * Failures to open are exceptions with words for people; failures to send or receive are error numbers, because the data path meets
 * them at line rate. The error queue is not read: ICMP errors do not surface on unconnected sockets, silence is what we measure.
 */
import { ipBytes, PACKED_ADDRESS_BYTES, unpackAddress, type TransportAddress } from "../../../shared/address.ts";
import { ptr } from "bun:ffi";
import type { SealedRun } from "../../data/plane.ts";
import { EAFNOSUPPORT, EAGAIN, EINVAL, EIO, EMSGSIZE, ENOSYS, EOPNOTSUPP, EPERM, errnoText } from "./errno.ts";
import * as c from "./libc.ts";
import type { Offloads } from "./offloads.ts";
import { type AddressFamily, decodeSockaddr, encodeSockaddr, SOCKADDR_BYTES } from "./sockaddr.ts";
import {
  type Incoming,
  type IncomingMessages,
  incomingMessages,
  MAX_INCOMING,
  MAX_OUTGOING,
  type OutgoingMessages,
  outgoingMessages,
} from "./udp_message.ts";

/**
 * Asked-for size of the socket buffers: 20 ms of 1.6 Gbit/s. The forced variant needs CAP_NET_ADMIN; the plain one is cut to
 * net.core.rmem_max.
 */
const SOCKET_BUFFER_BYTES = 4 * 1024 * 1024;

/** What is larger waits in the kernel while it is worked on: many such buffers in a call would not fit the processor's cache. */
const LARGE_BYTES = 16 * 1024;

/** ip(7): the system's default time to live again. */
const DEFAULT_HOPS = -1;

export interface UdpSocketOptions {
  readonly family: AddressFamily;
  /** Canonical ip to bind to. Default: any address of the family. */
  readonly address?: string | undefined;
  /** 0: the kernel chooses. */
  readonly port: number;
  readonly offloads: Offloads;
}

/** A system call failed: what, and the error number. */
export class SystemError extends Error {
  readonly errno: number;
  constructor(what: string, errno: number) {
    super(`${what}: ${errnoText(errno)}`);
    this.name = "SystemError";
    this.errno = errno;
  }
}

export class UdpSocket {
  readonly family: AddressFamily;
  readonly fd: number;
  readonly local: TransportAddress;
  readonly #libc: c.Libc;
  readonly #outgoing: OutgoingMessages = outgoingMessages();
  readonly #incoming: IncomingMessages = incomingMessages();
  /** Cleared when the kernel or the device cannot cut datagrams. */
  #cutsInKernel: boolean;
  /** Cleared when the kernel, or what stands before it, does not know the calls for many messages. */
  #takesMany: boolean;
  /** How many the next call asks for. */
  #wanted = MAX_INCOMING;
  /** What came last was all there was. */
  isDrained = false;

  private constructor(
    libc: c.Libc,
    family: AddressFamily,
    fd: number,
    local: TransportAddress,
    offloads: UdpSocketOptions["offloads"],
  ) {
    this.#libc = libc;
    this.#cutsInKernel = offloads.has("udp-send");
    this.#takesMany = offloads.has("udp-many");
    this.family = family;
    this.fd = fd;
    this.local = local;
  }

  /** Throws a SystemError whose message can be shown as it is. */
  static open(options: UdpSocketOptions): UdpSocket {
    const libc = c.libc();
    const { family, port } = options;
    const ip = options.address ?? (family === 4 ? "0.0.0.0" : "::");
    const what = `Cannot bind UDP port ${port} on ${ip}`;
    const domain = family === 4 ? c.AF_INET : c.AF_INET6;
    const fd = libc.socket(domain, c.SOCK_DGRAM | c.SOCK_NONBLOCK | c.SOCK_CLOEXEC, 0);
    if (fd < 0) throw new SystemError(`Cannot open an IPv${family} UDP socket`, libc.errno());
    try {
      const packed = new Uint8Array(PACKED_ADDRESS_BYTES);
      packed.set(ipBytes(ip));
      packed[16] = port >> 8;
      packed[17] = port & 0xff;
      const sockaddr = new Uint8Array(SOCKADDR_BYTES);
      const length = encodeSockaddr(packed, family, sockaddr);
      if (length === 0) throw new SystemError(what, EAFNOSUPPORT);
      setOptions(libc, fd, family, options.offloads);
      if (libc.bind(fd, sockaddr, length) < 0) throw new SystemError(what, libc.errno());
      const local = localAddress(libc, fd);
      if (local === undefined) throw new SystemError(what, EINVAL);
      return new UdpSocket(libc, family, fd, local, options.offloads);
    } catch (error) {
      libc.close(fd);
      throw error;
    }
  }

  /**
   * Sends datagrams of `frameBytes`, the last perhaps shorter, to a packed address. Returns 0 or the error number, EAGAIN when the send
   * buffer is full.
   *
   * @param hops their time to live, on IPv4; default the system's
   */
  send(to: Uint8Array, bytes: Uint8Array, frameBytes: number = bytes.length, hops?: number): number {
    return this.#send(to, addressOf(bytes), bytes.length, frameBytes, hops);
  }

  /** Sends the first `count` of these runs, as many in a call as the kernel takes, and tells each its error number as `send` does. */
  sendRuns(bytes: Uint8Array, runs: readonly SealedRun[], count: number): void {
    const address = addressOf(bytes);
    for (let at = 0; at < count; ) {
      const length = this.#takesMany && count - at > 1 ? this.#lineUp(address, runs, at, count) : 0;
      at += length > 1 ? this.#sendSeries(address, runs, at, length) : this.#sendRun(address, runs[at]);
    }
  }

  /** Lays out what can leave in one call from this run on. Returns how many runs that are. */
  #lineUp(address: c.Address, runs: readonly SealedRun[], from: number, count: number): number {
    const { sockaddrs } = this.#outgoing;
    let length = 0;
    for (; from + length < count && length < MAX_OUTGOING; length++) {
      const run = runs[from + length];
      const sockaddr = sockaddrs[length];
      if (run === undefined || sockaddr === undefined || run.path.hops !== undefined) break;
      if (run.frameBytes < run.length && !this.#cutsInKernel) break;
      const nameLength = encodeSockaddr(run.path.to, this.family, sockaddr);
      if (nameLength === 0) break;
      this.#outgoing.set(length, nameLength, address + run.start, run.length, run.frameBytes);
    }
    return length;
  }

  /** Returns how many have been dealt with: those that left, or the first that was refused. */
  #sendSeries(address: c.Address, runs: readonly SealedRun[], from: number, length: number): number {
    const sent = this.#outgoing.send(this.fd, length);
    for (let i = 0; i < sent; i++) setErrno(runs[from + i], 0);
    if (sent > 0) return sent;
    const errno = this.#libc.errno() || EIO;
    if (errno === EAGAIN) {
      setErrno(runs[from], errno);
      return 1;
    }
    if (errno === ENOSYS) this.#takesMany = false;
    // Refused for what it is, perhaps, and not for what it was asked for: alone it is cut here where the kernel cannot.
    return this.#sendRun(address, runs[from]);
  }

  #sendRun(address: c.Address, run: SealedRun | undefined): number {
    if (run === undefined) return 1;
    const { path, start, length, frameBytes } = run;
    run.errno = this.#send(path.to, address + start, length, frameBytes, path.hops);
    return 1;
  }

  #send(to: Uint8Array, address: c.Address, length: number, frameBytes: number, hops: number | undefined): number {
    if (hops === undefined || this.family !== 4) return this.#sendNow(to, address, length, frameBytes);
    this.#setHops(hops);
    const errno = this.#sendNow(to, address, length, frameBytes);
    this.#setHops(DEFAULT_HOPS);
    return errno;
  }

  #setHops(hops: number): void {
    this.#libc.setsockopt(this.fd, c.IPPROTO_IP, c.IP_TTL, Int32Array.of(hops), 4);
  }

  #sendNow(to: Uint8Array, address: c.Address, length: number, frameBytes: number): number {
    const sockaddr = this.#outgoing.sockaddrs[0];
    const nameLength = sockaddr === undefined ? 0 : encodeSockaddr(to, this.family, sockaddr);
    if (sockaddr === undefined || nameLength === 0) return EAFNOSUPPORT;
    if (frameBytes >= length) return this.#sendOne(address, length, sockaddr, nameLength);
    if (this.#cutsInKernel) {
      this.#outgoing.set(0, nameLength, address, length, frameBytes);
      if (this.#outgoing.sendFirst(this.fd) >= 0) return 0;
      const errno = this.#libc.errno() || EIO;
      // The device cannot do it, or has no checksum offload, which this needs (udp(7)).
      if (errno === EIO || errno === EOPNOTSUPP) this.#cutsInKernel = false;
      // A frame is larger than the interface lets out: smaller ones of the batch are not.
      else if (errno !== EINVAL && errno !== EMSGSIZE) return errno;
    }
    let failed = 0;
    for (let at = 0; at < length; at += frameBytes) {
      failed = this.#sendOne(address + at, Math.min(frameBytes, length - at), sockaddr, nameLength) || failed;
    }
    return failed;
  }

  /**
   * Receives what waits, as much as one call brings. Returns how many of `incoming` are filled until the next call of any socket, or minus
   * the error number: -EAGAIN when nothing waits. `isDrained` then tells whether to ask again.
   */
  receive(): number {
    const wanted = this.#takesMany ? this.#wanted : 1;
    const count = wanted > 1 ? this.#incoming.receive(this.fd, wanted) : this.#incoming.receiveOne(this.fd);
    // No datagram is refused by EPERM: a sandbox has refused the call.
    if ((count === -ENOSYS || count === -EPERM) && wanted > 1) {
      this.#takesMany = false;
      return this.receive();
    }
    this.isDrained = wanted > 1 && count >= 0 && count < wanted;
    const newest = this.#incoming.incoming[count - 1];
    if (newest !== undefined) this.#wanted = newest.length < LARGE_BYTES ? MAX_INCOMING : 1;
    return count;
  }

  get incoming(): readonly Incoming[] {
    return this.#incoming.incoming;
  }

  #sendOne(address: c.Address, length: number, sockaddr: Uint8Array, nameLength: number): number {
    const sent = this.#libc.sendto(this.fd, address, length, c.MSG_DONTWAIT, sockaddr, nameLength);
    return sent < 0 ? this.#libc.errno() || EIO : 0;
  }

  close(): void {
    this.#libc.close(this.fd);
  }
}

/** An array without bytes has no place. */
const addressOf = (bytes: Uint8Array): c.Address => (bytes.length === 0 ? 0 : ptr(bytes));

function setErrno(run: SealedRun | undefined, errno: number): void {
  if (run !== undefined) run.errno = errno;
}

/** The address a socket is bound to. */
export function localAddress(libc: c.Libc, fd: number): TransportAddress | undefined {
  const sockaddr = new Uint8Array(SOCKADDR_BYTES);
  const packed = new Uint8Array(PACKED_ADDRESS_BYTES);
  if (libc.getsockname(fd, sockaddr, Uint32Array.of(SOCKADDR_BYTES)) < 0) return undefined;
  return decodeSockaddr(sockaddr, packed) ? unpackAddress(packed) : undefined;
}

/** Options that make a socket better, and without which it still works: their failure is not ours. */
function setOptions(libc: c.Libc, fd: number, family: AddressFamily, offloads: Offloads): void {
  const set = (level: number, name: number, value: number): boolean =>
    libc.setsockopt(fd, level, name, Int32Array.of(value), 4) === 0;
  if (!set(c.SOL_SOCKET, c.SO_RCVBUFFORCE, SOCKET_BUFFER_BYTES)) set(c.SOL_SOCKET, c.SO_RCVBUF, SOCKET_BUFFER_BYTES);
  if (!set(c.SOL_SOCKET, c.SO_SNDBUFFORCE, SOCKET_BUFFER_BYTES)) set(c.SOL_SOCKET, c.SO_SNDBUF, SOCKET_BUFFER_BYTES);
  if (offloads.has("udp-receive")) set(c.SOL_UDP, c.UDP_GRO, 1);
  if (family === 6) {
    // IPv4 has sockets of its own: a dual-stack one would show IPv4 peers at mapped addresses and share its port.
    set(c.IPPROTO_IPV6, c.IPV6_V6ONLY, 1);
    set(c.IPPROTO_IPV6, c.IPV6_MTU_DISCOVER, c.PMTUDISC_PROBE);
  } else {
    set(c.IPPROTO_IP, c.IP_MTU_DISCOVER, c.PMTUDISC_PROBE);
  }
}
