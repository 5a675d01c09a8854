/**
 * A TUN device: IP packets in and out of the machine's network stack, one per read and write, without a header before them.
 *
 * The device is never made persistent, so the kernel removes it, its addresses and its routes when this process ends, however it ends.
 * Addresses, routes, MTU and "up" are netlink's work (netlink.ts).
 */
import { EACCES, EBUSY, EINVAL, EIO, ENODEV, ENOENT, EPERM, errnoText } from "./errno.ts";
import * as c from "./libc.ts";

const TUNSETIFF = 0x400454ca;
const IFF_TUN = 0x0001;
const IFF_NO_PI = 0x1000;
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
  readonly #libc: c.Libc;

  private constructor(libc: c.Libc, fd: number, name: string) {
    this.#libc = libc;
    this.fd = fd;
    this.name = name;
  }

  /** Opens the device of this name, or the first free `tmN`. Throws a TunError. */
  static open(name?: string): TunDevice {
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
    const request = new Uint8Array(IFREQ_BYTES);
    request.set(new TextEncoder().encode(asked));
    new DataView(request.buffer).setUint16(16, IFF_TUN | IFF_NO_PI, true);
    if (libc.ioctl(fd, TUNSETIFF, request) < 0) {
      const errno = libc.errno();
      libc.close(fd);
      throw openError(asked, errno);
    }
    const given = new TextDecoder().decode(request.subarray(0, request.indexOf(0)));
    return new TunDevice(libc, fd, given);
  }

  /** Reads one packet. Returns its length, or minus the error number: -EAGAIN when none waits, -EBADFD when the device is gone. */
  read(buffer: Uint8Array): number {
    const length = this.#libc.read(this.fd, buffer, buffer.length);
    return length < 0 ? -(this.#libc.errno() || EIO) : length;
  }

  /** Writes one packet. Returns 0 or the error number: EIO while the device is down. */
  write(packet: Uint8Array): number {
    return this.#libc.write(this.fd, packet, packet.length) < 0 ? this.#libc.errno() || EIO : 0;
  }

  close(): void {
    this.#libc.close(this.fd);
  }
}

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
