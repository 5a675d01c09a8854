/**
 * A TUN device: IP packets in and out of the machine's network stack, one per read and write.
 *
 * Where the kernel can, a `struct virtio_net_hdr` stands before each packet and tells what is left to be done to it: a checksum to be
 * completed, a super-packet of up to 64 KB to be cut. Both directions then spare the work, and the kernel spares the calls.
 *
 *   0 flags   1 GSO type   2 header length (2)   4 segment size (2)   6 checksum start (2)   8 checksum offset (2)      little-endian
 *
 * The device is never made persistent, so the kernel removes it, its addresses and its routes when this process ends, however it ends.
 * Addresses, routes, MTU and "up" are netlink's work (netlink.ts).
 */
import { ptr } from "bun:ffi";
import { PACKET_ROOM_BEFORE, PACKET_ROOM_BEHIND, type PacketOffload } from "../../data/plane.ts";
import { type PacketHeaders, TCP } from "../../data/packet_headers.ts";
import { EACCES, EBUSY, EINVAL, EIO, ENODEV, ENOENT, EPERM, errnoText } from "./errno.ts";
import * as c from "./libc.ts";
import type { Offloads } from "./offloads.ts";

const TUNSETIFF = 0x400454ca;
const IFF_TUN = 0x0001;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const TUNSETOFFLOAD = 0x400454d0;
const TUN_F_CSUM = 0x01;
/** With ECN: otherwise the kernel cuts the packets that carry its marks. */
const TUN_F_TSO = 0x02 | 0x04 | 0x08;
const TUN_F_USO = 0x20 | 0x40;
const VNET_HEADER_BYTES = 10;
const FLAG_NEEDS_CHECKSUM = 1;
const GSO_NONE = 0;
const GSO_TCPV4 = 1;
const GSO_TCPV6 = 4;
const GSO_UDP = 5;
const GSO_ECN = 0x80;
const MAX_PACKET_BYTES = 65_535;
/** `struct ifreq`: 16 bytes of name, then a union of which we use the flags. */
const IFREQ_BYTES = 40;
/** IFNAMSIZ counts the terminating zero. */
const MAX_NAME_LENGTH = 15;
/** The kernel replaces %d by the first free number. */
const DEFAULT_NAME = "tm%d";

export type TunErrorCode = "not_permitted" | "name_in_use" | "bad_name" | "unavailable" | "failed";

/** A TUN device could not be opened; the message says what to do about it. */
export class TunError extends Error {
  readonly code: TunErrorCode;
  readonly errno: number;
  constructor(code: TunErrorCode, errno: number, message: string) {
    super(message);
    this.name = "TunError";
    this.code = code;
    this.errno = errno;
  }
}

export class TunDevice {
  readonly fd: number;
  readonly name: string;
  /** Where `read` leaves packets, and what it has found out about the last one. */
  readonly bytes = new Uint8Array(PACKET_ROOM_BEFORE + MAX_PACKET_BYTES + PACKET_ROOM_BEHIND);
  readonly offload: { -readonly [K in keyof PacketOffload]: PacketOffload[K] } = {
    isUnfinished: false,
    checksumStart: 0,
    checksumOffset: 0,
    segmentBytes: 0,
  };
  /** Does it take packets that are not finished? */
  readonly hasHeader: boolean;
  readonly #libc: c.Libc;
  /** `bytes` from the header on. */
  readonly #readAt: Uint8Array;
  /** The header of what is written, and two iovecs: it and the packet. */
  readonly #header = new Uint8Array(new ArrayBuffer(VNET_HEADER_BYTES));
  readonly #iovecs = new Uint32Array(new ArrayBuffer(32));

  private constructor(libc: c.Libc, fd: number, name: string, hasHeader: boolean) {
    this.#libc = libc;
    this.fd = fd;
    this.name = name;
    this.hasHeader = hasHeader;
    const headerBytes = hasHeader ? VNET_HEADER_BYTES : 0;
    this.#readAt = this.bytes.subarray(PACKET_ROOM_BEFORE - headerBytes, PACKET_ROOM_BEFORE + MAX_PACKET_BYTES);
    this.#point(0, ptr(this.#header));
    this.#iovecs[2] = VNET_HEADER_BYTES;
  }

  /** Opens the device of this name, or the first free `tmN`. Throws a TunError. */
  static open(name: string | undefined, offloads: Offloads): TunDevice {
    const asked = name ?? DEFAULT_NAME;
    if (!isInterfaceName(asked)) {
      throw new TunError(
        "bad_name",
        EINVAL,
        `Cannot open TUN device "${asked}": a name has 1 to ${MAX_NAME_LENGTH} letters, digits, "-", "_" or "."`,
      );
    }
    const libc = c.libc();
    const fd = libc.open(c.cString("/dev/net/tun"), c.O_RDWR | c.O_NONBLOCK | c.O_CLOEXEC, 0);
    if (fd < 0) throw openError(asked, libc.errno());
    const wantsHeader = offloads.has("tun-checksum");
    const request = new Uint8Array(IFREQ_BYTES);
    const attach = (flags: number): boolean => {
      request.fill(0);
      request.set(new TextEncoder().encode(asked));
      new DataView(request.buffer).setUint16(16, IFF_TUN | IFF_NO_PI | flags, true);
      return libc.ioctl(fd, TUNSETIFF, request) >= 0;
    };
    const hasHeader = wantsHeader && attach(IFF_VNET_HDR);
    if (!hasHeader && !attach(0)) {
      const errno = libc.errno();
      libc.close(fd);
      throw openError(asked, errno);
    }
    const given = new TextDecoder().decode(request.subarray(0, request.indexOf(0)));
    if (hasHeader) askForOffloads(libc, fd, offloads);
    return new TunDevice(libc, fd, given, hasHeader);
  }

  /**
   * Reads one packet to PACKET_ROOM_BEFORE of `bytes`. Returns its length, or minus the error number: -EAGAIN when none waits, -EBADFD when
   * the device is gone.
   */
  read(): number {
    const length = this.#libc.read(this.fd, this.#readAt, this.#readAt.length);
    if (length < 0) return -(this.#libc.errno() || EIO);
    if (!this.hasHeader) return length;
    const { bytes, offload } = this;
    const at = PACKET_ROOM_BEFORE - VNET_HEADER_BYTES;
    offload.isUnfinished = ((bytes[at] ?? 0) & FLAG_NEEDS_CHECKSUM) !== 0;
    offload.segmentBytes = bytes[at + 1] === GSO_NONE ? 0 : u16le(bytes, at + 4);
    offload.checksumStart = u16le(bytes, at + 6);
    offload.checksumOffset = u16le(bytes, at + 8);
    return Math.max(0, length - VNET_HEADER_BYTES);
  }

  /** Writes one packet. Returns 0 or the error number: EIO while the device is down. */
  write(packet: Uint8Array): number {
    if (this.hasHeader) {
      this.#header.fill(0);
      return this.#writeWithHeader(packet);
    }
    return this.#libc.write(this.fd, packet, packet.length) < 0 ? this.#libc.errno() || EIO : 0;
  }

  /** Writes a packet whose checksum is missing, or a super-packet. Only a device that `hasHeader` takes them. */
  writeUnfinished(packet: Uint8Array, headers: PacketHeaders, segmentBytes: number): number {
    const header = this.#header;
    header[0] = FLAG_NEEDS_CHECKSUM;
    header[1] = segmentBytes === 0 ? GSO_NONE : gsoType(packet, headers);
    header[2] = headers.bytes;
    header[3] = headers.bytes >>> 8;
    header[4] = segmentBytes;
    header[5] = segmentBytes >>> 8;
    header[6] = headers.ipBytes;
    header[7] = headers.ipBytes >>> 8;
    header[8] = headers.checksumOffset;
    header[9] = 0;
    return this.#writeWithHeader(packet);
  }

  #writeWithHeader(packet: Uint8Array): number {
    this.#point(4, ptr(packet));
    this.#iovecs[6] = packet.length;
    return this.#libc.writev(this.fd, this.#iovecs, 2) < 0 ? this.#libc.errno() || EIO : 0;
  }

  #point(at: number, address: number): void {
    this.#iovecs[at] = address;
    this.#iovecs[at + 1] = Math.floor(address / 2 ** 32);
  }

  close(): void {
    this.#libc.close(this.fd);
  }
}

/** As many as the kernel has: UDP came later than TCP. What is refused it does itself. */
function askForOffloads(libc: c.Libc, fd: number, offloads: Offloads): void {
  const tcp = offloads.has("tun-tcp") ? TUN_F_TSO : 0;
  const udp = offloads.has("tun-udp") ? TUN_F_USO : 0;
  for (const wanted of [tcp | udp, tcp, 0]) if (setOffload(libc, fd, TUN_F_CSUM | wanted)) return;
}

/** The argument is the value itself and no pointer. */
const setOffload = (libc: c.Libc, fd: number, flags: number): boolean => libc.ioctlValue(fd, TUNSETOFFLOAD, flags) >= 0;

function gsoType(packet: Uint8Array, headers: PacketHeaders): number {
  if (headers.protocol !== TCP) return GSO_UDP;
  const ecn = headers.hasCwr(packet, 0) ? GSO_ECN : 0;
  return (headers.version === 4 ? GSO_TCPV4 : GSO_TCPV6) | ecn;
}

const u16le = (bytes: Uint8Array, at: number): number => (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8);

function isInterfaceName(name: string): boolean {
  return name === DEFAULT_NAME || (/^[A-Za-z0-9_.-]{1,15}$/.test(name) && name !== "." && name !== "..");
}

function openError(name: string, errno: number): TunError {
  const what = name === DEFAULT_NAME ? "Cannot open a TUN device" : `Cannot open TUN device "${name}"`;
  switch (errno) {
    case EPERM:
    case EACCES:
      return new TunError(
        "not_permitted",
        errno,
        `${what}: not permitted; run as root or with CAP_NET_ADMIN, or use --tun off`,
      );
    case EBUSY:
      return new TunError(
        "name_in_use",
        errno,
        `${what}: another program uses it; stop that program or choose another --tun-name`,
      );
    case EINVAL:
      return new TunError(
        "name_in_use",
        errno,
        `${what}: an interface of that name exists and is no TUN device; choose another --tun-name`,
      );
    case ENOENT:
    case ENODEV:
      return new TunError(
        "unavailable",
        errno,
        `${what}: /dev/net/tun is missing; load the kernel module "tun" or pass the device to the container, or use --tun off`,
      );
    default:
      return new TunError("failed", errno, `${what}: ${errnoText(errno)}`);
  }
}
