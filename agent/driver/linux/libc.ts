/**
 * The C library, as far as this program needs it: one typed function per system call, loaded when first used.
 *
 * Importing this file is safe on every system; calling `libc()` elsewhere than on 64-bit Linux throws. Every wrapper returns what the
 * C function returns; after -1, `errno()` tells why. Constants are those of x86_64 and arm64, which agree on all of these (asm-generic);
 * both are little-endian, which the users of this file rely on when they lay out structures.
 */
import { dlopen, type Pointer, read } from "bun:ffi";

/** Memory handed to C: a view whose bytes the call reads or writes. Borrowed for the call only. */
export type Memory = Uint8Array | Uint16Array | Int32Array | Uint32Array;

/** Where something is in memory; 0 for nothing. */
export type Address = number;

export const AF_UNSPEC = 0;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const AF_NETLINK = 16;
export const SOCK_DGRAM = 2;
export const SOCK_RAW = 3;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
export const SOL_SOCKET = 1;
export const SOL_UDP = 17;
export const UDP_SEGMENT = 103;
export const UDP_GRO = 104;
export const SO_SNDBUF = 7;
export const SO_RCVBUF = 8;
export const SO_SNDBUFFORCE = 32;
export const SO_RCVBUFFORCE = 33;
export const IPPROTO_IP = 0;
export const IPPROTO_IPV6 = 41;
export const IP_TTL = 2;
export const IP_MTU_DISCOVER = 10;
export const IPV6_MTU_DISCOVER = 23;
export const IPV6_V6ONLY = 26;
/** Never fragments and ignores what ICMP says of the route: path MTU discovery is ours (ip(7)). */
export const PMTUDISC_PROBE = 3;
export const MSG_DONTWAIT = 0x40;
export const POLLIN = 0x1;
export const POLLERR = 0x8;
export const POLLHUP = 0x10;
export const POLLNVAL = 0x20;
export const O_RDWR = 2;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;
export const EFD_NONBLOCK = O_NONBLOCK;
export const EFD_CLOEXEC = O_CLOEXEC;
export const CLOCK_BOOTTIME = 7;

const { arch } = process;

/** glibc, then musl under the names that Alpine and Void give it. */
const CANDIDATES: readonly string[] =
  arch === "arm64"
    ? ["libc.so.6", "libc.musl-aarch64.so.1", "/lib/ld-musl-aarch64.so.1", "libc.so"]
    : ["libc.so.6", "libc.musl-x86_64.so.1", "/lib/ld-musl-x86_64.so.1", "libc.so"];

/** Results that C declares as `ssize_t` are read as 32 bits: no buffer here is longer than 2^31. */
const SYMBOLS = {
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  bind: { args: ["i32", "ptr", "u32"], returns: "i32" },
  connect: { args: ["i32", "ptr", "u32"], returns: "i32" },
  getsockname: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  setsockopt: { args: ["i32", "i32", "i32", "ptr", "u32"], returns: "i32" },
  getsockopt: { args: ["i32", "i32", "i32", "ptr", "ptr"], returns: "i32" },
  ppoll: { args: ["ptr", "u64", "ptr", "ptr"], returns: "i32" },
  recvfrom: { args: ["i32", "ptr", "u64", "i32", "ptr", "ptr"], returns: "i32" },
  sendto: { args: ["i32", "ptr", "u64", "i32", "ptr", "u32"], returns: "i32" },
  recvmsg: { args: ["i32", "ptr", "i32"], returns: "i32" },
  sendmsg: { args: ["i32", "ptr", "i32"], returns: "i32" },
  recvmmsg: { args: ["i32", "ptr", "u32", "i32", "ptr"], returns: "i32" },
  sendmmsg: { args: ["i32", "ptr", "u32", "i32"], returns: "i32" },
  writev: { args: ["i32", "ptr", "i32"], returns: "i32" },
  read: { args: ["i32", "ptr", "u64"], returns: "i32" },
  write: { args: ["i32", "ptr", "u64"], returns: "i32" },
  open: { args: ["ptr", "i32", "i32"], returns: "i32" },
  ioctl: { args: ["i32", "u64", "ptr"], returns: "i32" },
  fcntl: { args: ["i32", "i32", "i32"], returns: "i32" },
  close: { args: ["i32"], returns: "i32" },
  eventfd: { args: ["u32", "i32"], returns: "i32" },
  clock_gettime: { args: ["i32", "ptr"], returns: "i32" },
  __errno_location: { args: [], returns: "ptr" },
} as const;

const VALUE_IOCTL = { ioctl: { args: ["i32", "u64", "u64"], returns: "i32" } } as const;

export interface Libc {
  socket(domain: number, type: number, protocol: number): number;
  bind(fd: number, address: Memory, length: number): number;
  connect(fd: number, address: Memory, length: number): number;
  getsockname(fd: number, address: Memory, length: Memory): number;
  setsockopt(fd: number, level: number, name: number, value: Memory, length: number): number;
  getsockopt(fd: number, level: number, name: number, value: Memory, length: Memory): number;
  ppoll(fds: Memory, count: number, timeout: Memory | null, signalMask: null): number;
  recvfrom(
    fd: number,
    buffer: Memory,
    length: number,
    flags: number,
    from: Memory | null,
    fromLength: Memory | null,
  ): number;
  sendto(
    fd: number,
    buffer: Memory | Address,
    length: number,
    flags: number,
    to: Memory | null,
    toLength: number,
  ): number;
  recvmsg(fd: number, header: Memory, flags: number): number;
  sendmsg(fd: number, header: Memory, flags: number): number;
  recvmmsg(fd: number, headers: Memory, count: number, flags: number, timeout: null): number;
  sendmmsg(fd: number, headers: Memory, count: number, flags: number): number;
  writev(fd: number, iovecs: Memory, count: number): number;
  read(fd: number, buffer: Memory, length: number): number;
  write(fd: number, buffer: Memory, length: number): number;
  /** `path` is zero-terminated: see `cString`. */
  open(path: Memory, flags: number, mode: number): number;
  ioctl(fd: number, request: number, argument: Memory): number;
  /** The same call for requests whose argument is a number. */
  ioctlValue(fd: number, request: number, argument: number): number;
  fcntl(fd: number, command: number, argument: number): number;
  close(fd: number): number;
  eventfd(initial: number, flags: number): number;
  clock_gettime(clock: number, timespec: Memory): number;
  /** Why the call just before this one failed. Ask at once: any other call may change it. */
  errno(): number;
}

let loaded: Libc | undefined;

/** Can `libc()` work here? Tells the reason when not. */
export function libcUnavailable(): string | undefined {
  if (process.platform !== "linux") return `The system is ${process.platform}, not Linux`;
  if (arch !== "x64" && arch !== "arm64") return `The processor is ${arch}, not x64 or arm64`;
  try {
    libc();
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** The C library of this thread. */
export function libc(): Libc {
  loaded ??= load();
  return loaded;
}

function load(): Libc {
  if (process.platform !== "linux") throw new Error(`Cannot load the C library: ${process.platform} is not Linux`);
  let cause: unknown;
  for (const name of CANDIDATES) {
    try {
      const { __errno_location, ...calls } = dlopen(name, SYMBOLS).symbols;
      const { ioctl: ioctlValue } = dlopen(name, VALUE_IOCTL).symbols;
      // errno is one word per thread, and a module instance belongs to one thread: its place never changes.
      const place = __errno_location() as Pointer;
      return {
        ...(calls as unknown as Omit<Libc, "errno" | "ioctlValue">),
        ioctlValue,
        errno: () => read.i32(place, 0),
      };
    } catch (error) {
      cause ??= error;
    }
  }
  throw new Error("Cannot load the C library: neither glibc nor musl was found", { cause });
}

/** Zero-terminated bytes of a string for C. */
export const cString = (text: string): Uint8Array => new TextEncoder().encode(`${text}\0`);
