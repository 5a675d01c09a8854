/**
 * Who may jump to this machine by plain OpenSSH, in the files `jump_keys` and `jump_sessions` of the state directory.
 *
 * The first has a line for each key, as an authorized_keys has, without options. The second remembers each client session that a connection was
 * made with, so that a coordinator that keeps a client's proof cannot use it again.
 */
import { createHash } from "node:crypto";
import { appendFileSync, chmodSync } from "node:fs";
import { join } from "node:path";
import { equalBytes, fromBase64, toBase64 } from "../../shared/bytes.ts";
import { readIfPresent, writeAtomically } from "./atomic_file.ts";
import { EXIT, UserError } from "./user_error.ts";

const KEYS_FILE = "jump_keys";
const SESSIONS_FILE = "jump_sessions";
const MAX_KEYS = 200;
/** About 4 MB: a jump each minute for a month and a half. Then somebody has to look. */
const MAX_SESSIONS = 60_000;
const LINE = /^(ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521)|ssh-rsa) ([A-Za-z0-9+/]+={0,2})(?: (.*))?$/;

export interface JumpKey {
  readonly type: string;
  /** RFC 4253 §6.6. */
  readonly blob: Uint8Array;
  readonly comment: string;
  /** As `ssh-keygen -l` prints it. */
  readonly fingerprint: string;
}

export function readJumpKeys(stateDir: string): readonly JumpKey[] {
  const text = readIfPresent(join(stateDir, KEYS_FILE)) ?? "";
  return text.split("\n").flatMap((line) => parseJumpKey(line) ?? []);
}

/** Adds the keys of a public key file. Returns those that are new. */
export function addJumpKeys(stateDir: string, text: string): readonly JumpKey[] {
  const known = readJumpKeys(stateDir);
  const lines = text.split("\n").filter((line) => line.trim() !== "" && !line.startsWith("#"));
  const given = lines.map((line) => parseJumpKey(line));
  if (given.length === 0 || given.includes(undefined)) {
    throw new UserError(
      EXIT.badConfiguration,
      'This is no public key: it must look like "ssh-ed25519 AAAA... comment", without options in front',
    );
  }
  const added = given.flatMap((key) => (key === undefined || known.some((each) => isSame(each, key)) ? [] : [key]));
  if (known.length + added.length > MAX_KEYS) throw new UserError(EXIT.failed, `There may be ${MAX_KEYS} keys at most`);
  if (added.length > 0) save(stateDir, [...known, ...added]);
  return added;
}

/** @param which a fingerprint, or a comment. Returns what was removed. */
export function removeJumpKeys(stateDir: string, which: string): readonly JumpKey[] {
  const known = readJumpKeys(stateDir);
  const isMeant = ({ fingerprint, comment }: JumpKey): boolean => fingerprint === which || comment === which;
  if (known.some(isMeant))
    save(
      stateDir,
      known.filter((key) => !isMeant(key)),
    );
  return known.filter(isMeant);
}

export const isJumpKey = (stateDir: string, blob: Uint8Array): boolean =>
  readJumpKeys(stateDir).some((key) => equalBytes(key.blob, blob));

/** True once for each session. Throws UserError when that cannot be remembered. */
export function takeJumpSession(stateDir: string, session: string): boolean {
  const path = join(stateDir, SESSIONS_FILE);
  const used = (readIfPresent(path) ?? "").split("\n");
  if (used.includes(session)) return false;
  if (used.length > MAX_SESSIONS) {
    throw new UserError(EXIT.failed, `${path} is full; remove it after changing every key in ${KEYS_FILE}`);
  }
  appendFileSync(path, `${session}\n`, { mode: 0o600, flush: true });
  return true;
}

function parseJumpKey(line: string): JumpKey | undefined {
  const [, type, base64, comment = ""] = LINE.exec(line.trim()) ?? [];
  const blob = base64 === undefined ? undefined : fromBase64(base64);
  if (type === undefined || blob === undefined) return undefined;
  const hash = createHash("sha256").update(blob).digest("base64").replace(/=+$/, "");
  return { type, blob, comment: comment.trim(), fingerprint: `SHA256:${hash}` };
}

function save(stateDir: string, keys: readonly JumpKey[]): void {
  const path = join(stateDir, KEYS_FILE);
  const lines = keys.map(({ type, blob, comment }) => `${type} ${toBase64(blob)} ${comment}`.trimEnd());
  writeAtomically(path, lines.map((line) => `${line}\n`).join(""));
  chmodSync(path, 0o600);
}

const isSame = (a: JumpKey, b: JumpKey): boolean => equalBytes(a.blob, b.blob);
