/**
 * Where an agent keeps what must survive it, and that only one agent does so at a time.
 *
 * The directory is made 0700. One that exists is used as it is, unless others may write into it: they could then swap the keys.
 */
import { accessSync, constants, mkdirSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { FileLock } from "./file_lock.ts";
import { EXIT, systemReason, UserError } from "./user_error.ts";

/** Default of root, where services keep their state (FHS 3.0 §5.8). */
export const ROOT_STATE_DIR = "/var/lib/tunnelmesh";
const LOCK_FILE = "agent.lock";

/**
 * Longest path of a unix socket: sun_path is 108 bytes on Linux and 104 on macOS, with the final zero.
 */
const MAX_SOCKET_PATH_BYTES = process.platform === "linux" ? 107 : 103;

/** What decides the default; the environment comes in as an argument so that tests can choose it. */
export interface Account {
  readonly uid: number;
  readonly home: string;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export const currentAccount = (env: Account["env"]): Account => ({
  uid: process.geteuid?.() ?? -1,
  home: homedir(),
  env,
});

/** The state directory of this account, absolute. `chosen` is what `--state-dir` said. */
export function stateDirOf(chosen: string | undefined, account: Account): string {
  if (chosen !== undefined) return resolve(chosen);
  if (account.uid === 0) return ROOT_STATE_DIR;
  const base = account.env["XDG_STATE_HOME"];
  // The XDG specification asks that a relative path be ignored.
  if (base !== undefined && isAbsolute(base)) return join(base, "tunnelmesh");
  return join(account.home, ".local", "state", "tunnelmesh");
}

/** The socket of the local API, absolute and short enough to be bound. `chosen` is what `--socket` said. */
export function socketPathOf(chosen: string | undefined, stateDir: string): string {
  const path = chosen === undefined ? join(stateDir, "agent.sock") : resolve(chosen);
  if (Buffer.byteLength(path) <= MAX_SOCKET_PATH_BYTES) return path;
  throw new UserError(
    EXIT.badConfiguration,
    `The socket path ${path} is longer than the ${MAX_SOCKET_PATH_BYTES} bytes that the system allows; choose a shorter one with --socket`,
  );
}

/** Makes the directory if need be and takes its lock. */
export function lockStateDir(path: string): FileLock {
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    const info = statSync(path);
    if (!info.isDirectory()) throw new UserError(EXIT.badConfiguration, `${path} is not a directory`);
    if ((info.mode & 0o022) !== 0) {
      throw new UserError(
        EXIT.badConfiguration,
        `Others may write into the state directory ${path}; run "chmod 700 ${path}" or choose another with --state-dir`,
      );
    }
    accessSync(path, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(
      EXIT.failed,
      `Cannot use the state directory ${path}: ${systemReason(error)}; choose another with --state-dir`,
      { cause: error },
    );
  }
  const result = FileLock.take(join(path, LOCK_FILE));
  if (result.locked) return result.lock;
  const owner = result.pid === undefined ? "Another agent" : `Another agent (pid ${result.pid})`;
  throw new UserError(
    EXIT.failed,
    `${owner} is already running in ${path}; stop it with "tunnelmesh-agent down" or choose another directory with --state-dir`,
  );
}

/** Does an agent run in this directory? */
export const isStateDirInUse = (path: string): boolean => FileLock.isHeld(join(path, LOCK_FILE));
