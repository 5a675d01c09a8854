/**
 * One agent per state directory: flock(2) on a file in it.
 *
 * The kernel drops the lock when the process ends, however it ends, so there is no stale lock to judge. The file holds the pid of its
 * owner for messages only, and is never removed: a second agent could then lock a new file beside the old one.
 */
import { closeSync, constants, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { dlopen } from "bun:ffi";
import { EXIT, systemCode, systemReason, UserError } from "./user_error.ts";

const LOCK_EX = 2;
const LOCK_NB = 4;

/** glibc, musl, macOS. */
const LIBRARIES = [
  "libc.so.6",
  `libc.musl-${process.arch === "arm64" ? "aarch64" : "x86_64"}.so.1`,
  "libSystem.B.dylib",
  "libc.so",
];

export type LockResult =
  | { readonly locked: true; readonly lock: FileLock }
  /** `pid` is undefined when its owner has only just taken it. */
  | { readonly locked: false; readonly pid: number | undefined };

export class FileLock {
  #file: number | undefined;

  private constructor(file: number) {
    this.#file = file;
  }

  /** Takes the lock without waiting. */
  static take(path: string): LockResult {
    const { O_RDWR, O_CREAT, O_NOFOLLOW } = constants;
    let file: number;
    try {
      file = openSync(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600);
    } catch (error) {
      throw new UserError(EXIT.failed, `Cannot open the lock file ${path}: ${systemReason(error)}`, { cause: error });
    }
    if (flock()(file, LOCK_EX | LOCK_NB) !== 0) {
      const pid = Number.parseInt(readFileSync(file, "utf8"), 10);
      closeSync(file);
      return { locked: false, pid: Number.isSafeInteger(pid) && pid > 0 ? pid : undefined };
    }
    try {
      ftruncateSync(file);
      writeSync(file, `${process.pid}\n`, 0);
    } catch {
      // A full disk costs the pid in a message, not the lock.
    }
    return { locked: true, lock: new FileLock(file) };
  }

  /** Is it held by some process? Also false when there is no such file. */
  static isHeld(path: string): boolean {
    let file: number;
    try {
      file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
    } catch (error) {
      return systemCode(error) === "EACCES";
    }
    const held = flock()(file, LOCK_EX | LOCK_NB) !== 0;
    closeSync(file);
    return held;
  }

  release(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }
}

let loaded: ((file: number, operation: number) => number) | undefined;

function flock(): (file: number, operation: number) => number {
  if (loaded !== undefined) return loaded;
  for (const library of LIBRARIES) {
    try {
      loaded = dlopen(library, { flock: { args: ["i32", "i32"], returns: "i32" } }).symbols.flock;
      return loaded;
    } catch {
      // The next name.
    }
  }
  throw new UserError(EXIT.failed, "Cannot lock the state directory: no C library found on this system");
}
