/**
 * Join keys: `tmk_<id>_<secret>_<coordinator fingerprint>`.
 *
 * The fingerprint tells the agent whom to trust before it says anything; id and secret tell the coordinator that a new identity may
 * come in. They do nothing for an identity that is known already.
 */
import { toBase32, utf8 } from "../../shared/bytes.ts";
import { equalSecret, sha256 } from "../../shared/session/primitives.ts";
import type { KeyRecord } from "../store/store.ts";

const ID_BYTES = 5;
const SECRET_BYTES = 20;
/** Random bytes that `newJoinKey` wants. */
export const JOIN_KEY_RANDOM_BYTES = ID_BYTES + SECRET_BYTES;

export interface NewJoinKey {
  readonly record: KeyRecord;
  /** The whole key, shown once and never stored. */
  readonly text: string;
}

export function newJoinKey(options: {
  readonly random: Uint8Array;
  readonly fingerprint: string;
  readonly nowUnixMs: number;
  readonly lifetimeMs: number;
  readonly reusable: boolean;
}): NewJoinKey {
  const id = toBase32(options.random.subarray(0, ID_BYTES));
  const secret = toBase32(options.random.subarray(ID_BYTES, JOIN_KEY_RANDOM_BYTES));
  return {
    record: {
      id,
      secretHash: sha256(utf8(secret)),
      createdUnixMs: options.nowUnixMs,
      expiresUnixMs: options.nowUnixMs + options.lifetimeMs,
      reusable: options.reusable,
      usedUnixMs: undefined,
      revoked: false,
    },
    text: `tmk_${id}_${secret}_${options.fingerprint}`,
  };
}

export interface ParsedJoinKey {
  readonly id: string;
  readonly secret: string;
  readonly fingerprint: string;
}

export function parseJoinKey(text: string): ParsedJoinKey | undefined {
  const match = /^tmk_([a-z2-7]+)_([a-z2-7]+)_([a-z2-7]{26})$/.exec(text.trim());
  return match === null ? undefined : { id: match[1] ?? "", secret: match[2] ?? "", fingerprint: match[3] ?? "" };
}

export type KeyVerdict = "valid" | "key_invalid" | "key_expired";

/** The secret is compared before anything else is said: nobody learns about a key without having it. */
export function checkJoinKey(secret: string, record: KeyRecord | undefined, nowUnixMs: number): KeyVerdict {
  if (record === undefined || !equalSecret(sha256(utf8(secret)), record.secretHash)) return "key_invalid";
  if (record.revoked || (!record.reusable && record.usedUnixMs !== undefined)) return "key_invalid";
  return nowUnixMs >= record.expiresUnixMs ? "key_expired" : "valid";
}
