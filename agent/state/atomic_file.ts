/**
 * Small files that are either the old version or the new one, never a mix: written beside the target, synced, renamed.
 *
 * Everything here is synchronous. The files are a few kilobytes, written rarely, and the data path lives in another thread.
 */
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { dirname } from "node:path";
import * as v from "valibot";
import { EXIT, systemCode, systemReason, UserError } from "./user_error.ts";

/** Far above any file of ours; keeps a wrong path (a log, a device) from filling the memory. */
const MAX_FILE_BYTES = 4 * 1024 * 1024;

/** Replaces `path` with `content`, mode 0600. On failure the old file is untouched and nothing is left behind. */
export function writeAtomically(path: string, content: string): void {
  // One fixed name, since the state directory is locked: what a killed agent left there is simply replaced.
  const temporary = `${path}.new`;
  try {
    unlinkIfPresent(temporary);
    const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
    const file = openSync(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
    try {
      writeAll(file, Buffer.from(content));
      // Without it a power cut may leave the new name on an empty file.
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(temporary, path);
    syncDirectory(dirname(path));
  } catch (error) {
    try {
      unlinkIfPresent(temporary);
    } catch {
      // The first failure is the one to report.
    }
    const isFull = systemCode(error) === "ENOSPC" || systemCode(error) === "EDQUOT";
    const cure = isFull ? "free some space and try again" : "what was saved before is kept";
    throw new UserError(EXIT.failed, `Cannot save ${path}: ${systemReason(error)}; ${cure}`, { cause: error });
  }
}

/** The text of `path`, or undefined when there is no such file. */
export function readIfPresent(path: string): string | undefined {
  let file: number;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw unreadable(path, error);
  }
  try {
    const info = fstatSync(file);
    if (!info.isFile()) throw new UserError(EXIT.badConfiguration, `Cannot read ${path}: it is not a regular file`);
    if (info.size > MAX_FILE_BYTES) throw new UserError(EXIT.badConfiguration, `Cannot read ${path}: it is too large`);
    return readFileSync(file, "utf8");
  } catch (error) {
    throw error instanceof UserError ? error : unreadable(path, error);
  } finally {
    closeSync(file);
  }
}

/** A JSON file as `schema` has it. A broken one is refused, never replaced; `cure` ends the sentence with what to do. */
export function readJsonIfPresent<Schema extends v.GenericSchema>(
  path: string,
  schema: Schema,
  cure: string,
): v.InferOutput<Schema> | undefined {
  const text = readIfPresent(path);
  if (text === undefined) return undefined;
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new UserError(EXIT.badConfiguration, `${path} is broken: it is not JSON; ${cure}`, { cause: error });
  }
  const result = v.safeParse(schema, parsed);
  if (result.success) return result.output;
  const where = v.getDotPath(result.issues[0]);
  const what = where === null ? "its content is not what was expected" : `"${where}" is not what was expected`;
  throw new UserError(EXIT.badConfiguration, `${path} is broken: ${what}; ${cure}`);
}

const unreadable = (path: string, error: unknown): UserError =>
  new UserError(EXIT.badConfiguration, `Cannot read ${path}: ${systemReason(error)}`, { cause: error });

function writeAll(file: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at);
}

function syncDirectory(path: string): void {
  const directory = openSync(path, constants.O_RDONLY);
  try {
    fsyncSync(directory);
  } catch (error) {
    // Some file systems cannot sync a directory; the rename is still atomic there.
    if (systemCode(error) !== "EINVAL") throw error;
  } finally {
    closeSync(directory);
  }
}

function unlinkIfPresent(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
}
