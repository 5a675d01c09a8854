/**
 * One UDP socket of the kernel: opened, asked for its port, sent and received on without blocking and without allocating.
 *
 * Failures to open are exceptions with words for people; failures to send or receive are error numbers, because the data path meets
 * them at line rate. The error queue is not read: ICMP errors do not surface on unconnected sockets, silence is what we measure.
 */
import { ipBytes, PACKED_ADDRESS_BYTES, unpackAddress, type TransportAddress } from "../../../shared/address.ts";
import { EAFNOSUPPORT, EINVAL, EIO, EMSGSIZE, EOPNOTSUPP, errnoText } from "./errno.ts";
import * as c from "./libc.ts";
import type { Offloads } from "./offloads.ts";
import { type AddressFamily, decodeSockaddr, encodeSockaddr, SOCKADDR_BYTES } from "./sockaddr.ts";
import { type UdpMessage, udpMessage } from "./udp_message.ts";

/**
 * Asked-for size of the socket buffers: 20 ms of 1.6 Gbit/s. The forced variant needs CAP_NET_ADMIN; the plain one is cut to
 * net.core.rmem_max.
 */
const SOCKET_BUFFER_BYTES = 4 * 1024 * 1024;

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
  readonly #message: UdpMessage = udpMessage();
  /** Cleared when the kernel or the device cannot cut datagrams. */
  #cutsInKernel: boolean;

  private constructor(libc: c.Libc, family: AddressFamily, fd: number, local: TransportAddress, cutsInKernel: boolean) {
    this.#libc = libc;
    this.#cutsInKernel = cutsInKernel;
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
      return new UdpSocket(libc, family, fd, local, options.offloads.has("udp-send"));
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
    if (hops === undefined || this.family !== 4) return this.#sendNow(to, bytes, frameBytes);
    this.#setHops(hops);
    const errno = this.#sendNow(to, bytes, frameBytes);
    this.#setHops(DEFAULT_HOPS);
    return errno;
  }

  #setHops(hops: number): void {
    this.#libc.setsockopt(this.fd, c.IPPROTO_IP, c.IP_TTL, Int32Array.of(hops), 4);
  }

  #sendNow(to: Uint8Array, bytes: Uint8Array, frameBytes: number): number {
    const { sockaddr } = this.#message;
    const length = encodeSockaddr(to, this.family, sockaddr);
    if (length === 0) return EAFNOSUPPORT;
    if (frameBytes >= bytes.length) return this.#sendOne(bytes, length);
    if (this.#cutsInKernel) {
      if (this.#message.send(this.fd, length, bytes, frameBytes) >= 0) return 0;
      const errno = this.#libc.errno() || EIO;
      // The device cannot do it, or has no checksum offload, which this needs (udp(7)).
      if (errno === EIO || errno === EOPNOTSUPP) this.#cutsInKernel = false;
      // A frame is larger than the interface lets out: smaller ones of the batch are not.
      else if (errno !== EINVAL && errno !== EMSGSIZE) return errno;
    }
    let failed = 0;
    for (let at = 0; at < bytes.length; at += frameBytes) {
      failed = this.#sendOne(bytes.subarray(at, at + frameBytes), length) || failed;
    }
    return failed;
  }

  /**
   * Receives datagrams of one sender into `buffer`, one behind the other, and the sender into `from` (packed). Returns their length, or minus
   * the error number: -EAGAIN when none waits. `frameBytes` then tells where to cut them.
   */
  receive(buffer: Uint8Array, from: Uint8Array): number {
    const length = this.#message.receive(this.fd, buffer);
    if (length < 0) return -(this.#libc.errno() || EIO);
    return decodeSockaddr(this.#message.sockaddr, from) ? length : -EAFNOSUPPORT;
  }

  /** Of what `receive` has just brought: the size of all datagrams but the last. */
  get frameBytes(): number {
    return this.#message.frameBytes;
  }

  #sendOne(bytes: Uint8Array, nameLength: number): number {
    const { sockaddr } = this.#message;
    const sent = this.#libc.sendto(this.fd, bytes, bytes.length, c.MSG_DONTWAIT, sockaddr, nameLength);
    return sent < 0 ? this.#libc.errno() || EIO : 0;
  }

  close(): void {
    this.#libc.close(this.fd);
  }
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
