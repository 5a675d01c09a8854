/** The text that an SSH client signs to log in with a key (RFC 4252 §7). Bytes to a value; whether it is true is jump_proof.ts's. */
import { toHex, utf8Text } from "../../../shared/bytes.ts";
import { Reader } from "../../../shared/wire/cursor.ts";

const USERAUTH_REQUEST = 50;
/** The hash of the key exchange: SHA-256 at least (RFC 4253 §8), SHA-512 at most. */
const MIN_SESSION_BYTES = 32;
const MAX_SESSION_BYTES = 64;
const MAX_STRING_BYTES = 4096;
export interface SignedLogin {
  /** In hex. */
  readonly session: string;
  readonly user: string;
  readonly algorithm: string;
  /** RFC 4253 §6.6. */
  readonly key: Uint8Array;
}

/** What stands in the signed text; undefined: it is none of a public key login. */
export function readSignedLogin(signed: Uint8Array): SignedLogin | undefined {
  const reader = new Reader(signed);
  const session = string(reader);
  const kind = reader.u8();
  const user = utf8Text(string(reader));
  const service = utf8Text(string(reader));
  const method = utf8Text(string(reader));
  const hasSignature = reader.u8();
  const algorithm = utf8Text(string(reader)) ?? "";
  const key = string(reader);
  const isLogin =
    kind === USERAUTH_REQUEST && service === "ssh-connection" && method === "publickey" && hasSignature === 1;
  const isWhole = !reader.failed && reader.remaining === 0;
  if (!isLogin || !isWhole || user === undefined) return undefined;
  if (session.length < MIN_SESSION_BYTES || session.length > MAX_SESSION_BYTES) return undefined;
  return { session: toHex(session), user, algorithm, key };
}

/** The name that a key's bytes begin with. */
export function keyType(key: Uint8Array): string | undefined {
  const reader = new Reader(key);
  const name = utf8Text(string(reader));
  return reader.failed ? undefined : name;
}

function string(reader: Reader): Uint8Array {
  const length = reader.u32();
  return length > MAX_STRING_BYTES ? reader.bytes(Number.MAX_SAFE_INTEGER) : reader.bytes(length);
}
