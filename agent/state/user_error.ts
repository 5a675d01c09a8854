/**
 * Errors that are the user's to mend, and the exit codes of the command line contract.
 *
 * Their message is all that is shown: what failed, why, what to do; never a stack and never a key. Anything else that is thrown is our own bug.
 */
export const EXIT = {
  ok: 0,
  /** Port busy, no TUN permission with `--tun on`, disk full. */
  failed: 1,
  usage: 2,
  agentNotRunning: 3,
  /** Key invalid or expired, fingerprint wrong, not approved. */
  keyRefused: 4,
  /** Peer unknown or offline. */
  peerUnavailable: 5,
  /** Reached, but not direct (`--until-direct`). */
  notDirect: 6,
  timedOut: 7,
  /** State file broken, URL unusable, name taken, flags that contradict. */
  badConfiguration: 78,
} as const;
export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

const EXIT_CODES: ReadonlySet<number> = new Set(Object.values(EXIT));
export const isExitCode = (code: number): code is ExitCode => EXIT_CODES.has(code);

export class UserError extends Error {
  readonly exitCode: ExitCode;

  constructor(exitCode: ExitCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "UserError";
    this.exitCode = exitCode;
  }
}

/** Anything that looks like a join key, also a mistyped one, loses its secret. */
export const withoutKeys = (text: string): string => text.replace(/tmk_[A-Za-z0-9][^\s"',;]*/g, "tmk_(hidden)");

/** `error.code` of a system call that failed ("ENOENT"), or undefined. */
export function systemCode(error: unknown): string | undefined {
  if (typeof error !== "object" || error === null || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}

/** Plain words for the system errors that users meet. */
const SYSTEM_WORDS: Readonly<Record<string, string>> = {
  EACCES: "permission denied",
  EPERM: "operation not permitted",
  ENOENT: "it does not exist",
  ENOTDIR: "a part of the path is not a directory",
  EISDIR: "it is a directory",
  EEXIST: "it exists and is something else",
  ENOSPC: "the disk is full",
  EDQUOT: "the disk quota is used up",
  EROFS: "the file system is read-only",
  EIO: "the disk reports an error",
  EMFILE: "too many open files",
  ENFILE: "too many open files",
  ELOOP: "too many symbolic links",
  ENAMETOOLONG: "the name is too long",
  EADDRINUSE: "address already in use",
  ECONNREFUSED: "connection refused",
  ConnectionRefused: "connection refused",
  ENOTFOUND: "no such host",
  ENETUNREACH: "network unreachable",
  EHOSTUNREACH: "host unreachable",
};

export function systemReason(error: unknown): string {
  const code = systemCode(error);
  if (code !== undefined) return SYSTEM_WORDS[code] ?? code;
  return error instanceof Error ? error.message : String(error);
}
