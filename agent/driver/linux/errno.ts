/** Error numbers of Linux (asm-generic: the same on x86_64 and arm64) and what they mean to people. */
export const EPERM = 1;
export const ENOENT = 2;
export const ESRCH = 3;
export const EINTR = 4;
export const EIO = 5;
export const EBADF = 9;
export const EAGAIN = 11;
export const EACCES = 13;
export const EBUSY = 16;
export const EEXIST = 17;
export const ENODEV = 19;
export const EINVAL = 22;
export const ENOSYS = 38;
export const EMSGSIZE = 90;
export const EOPNOTSUPP = 95;
export const EAFNOSUPPORT = 97;
export const EADDRINUSE = 98;
export const EADDRNOTAVAIL = 99;
export const ENETUNREACH = 101;
export const ENOBUFS = 105;
export const ETIMEDOUT = 110;
export const EHOSTUNREACH = 113;

const TEXT: Readonly<Record<number, string>> = {
  1: "operation not permitted",
  2: "no such file or entry",
  3: "no such entry",
  4: "interrupted",
  5: "input/output error",
  6: "no such device or address",
  9: "bad file descriptor",
  11: "would block",
  12: "out of memory",
  13: "permission denied",
  16: "device or resource busy",
  17: "already exists",
  19: "no such device",
  22: "invalid argument",
  23: "too many open files in the system",
  24: "too many open files",
  28: "no space left on device",
  90: "message too long",
  92: "option not available",
  93: "protocol not supported",
  95: "operation not supported",
  97: "address family not supported",
  98: "address already in use",
  99: "address not available on this machine",
  100: "network is down",
  101: "network is unreachable",
  105: "no buffer space available",
  107: "not connected",
  110: "timed out",
  111: "connection refused",
  113: "no route to host",
};

/** `address already in use`, or `error 77` for one that we have no words for. */
export const errnoText = (errno: number): string => TEXT[errno] ?? `error ${errno}`;
