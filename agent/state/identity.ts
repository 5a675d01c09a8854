/**
 * The keys of this machine, made on first start and never leaving it: the Ed25519 identity (OpenSSH format, file `identity`) and the
 * X25519 session key that it signs (PKCS #8, file `session_key`).
 *
 * Losing `identity` is losing the machine's place in every peer's trust store, so a missing one is replaced only where the
 * directory never joined a mesh. The session key is proved by the identity and can be made anew.
 */
import { createPrivateKey, randomBytes } from "node:crypto";
import { statSync } from "node:fs";
import { join } from "node:path";
import { equalBytes } from "../../shared/bytes.ts";
import { groupFingerprint, type PeerId, peerIdOf, signSessionKey } from "../../shared/session/identity.ts";
import { Ed25519Key, KEY_BYTES, X25519Key } from "../../shared/session/primitives.ts";
import { readIfPresent, writeAtomically } from "./atomic_file.ts";
import { decodeOpensshKey, encodeOpensshKey } from "./openssh_key.ts";
import { EXIT, UserError } from "./user_error.ts";

const IDENTITY_FILE = "identity";
const SESSION_KEY_FILE = "session_key";
/** RFC 8410 §7: the DER of a PKCS #8 X25519 key up to its 32 raw bytes. */
const X25519_PKCS8 = Buffer.from("302e020100300506032b656e04220420", "hex");

export interface Identity {
  readonly id: PeerId;
  /** The id as people compare it. */
  readonly fingerprint: string;
  readonly identityKey: Ed25519Key;
  readonly sessionKey: X25519Key;
  /** Of the identity key over the session key (shared/session/identity.ts). */
  readonly sessionKeySignature: Uint8Array;
}

/** Reads the keys of `stateDir`, making those that are missing. `joined`: the directory belongs to a mesh already. */
export function openIdentity(stateDir: string, joined: boolean): Identity {
  const identityPath = join(stateDir, IDENTITY_FILE);
  const seed = readIdentity(identityPath) ?? makeIdentity(identityPath, joined);
  const identityKey = new Ed25519Key(seed);
  const sessionKeyPath = join(stateDir, SESSION_KEY_FILE);
  const sessionKey = new X25519Key(readSessionKey(sessionKeyPath) ?? makeSessionKey(sessionKeyPath));
  const id = peerIdOf(identityKey.publicKey);
  return {
    id,
    fingerprint: groupFingerprint(id),
    identityKey,
    sessionKey,
    sessionKeySignature: signSessionKey(identityKey, sessionKey.publicKey),
  };
}

function readIdentity(path: string): Uint8Array | undefined {
  const text = readSecret(path);
  if (text === undefined) return undefined;
  const decoded = decodeOpensshKey(text);
  if (!decoded.ok) throw broken(path, decoded.reason);
  const { seed, publicKey } = decoded.key;
  if (!equalBytes(new Ed25519Key(seed).publicKey, publicKey)) {
    throw broken(path, "its public and private parts do not belong together");
  }
  return seed;
}

function makeIdentity(path: string, joined: boolean): Uint8Array {
  if (joined) {
    throw new UserError(
      EXIT.badConfiguration,
      `The identity key ${path} is missing, although this directory has joined a mesh; restore it from a backup, or remove state.json beside it to join as a new machine`,
    );
  }
  const seed = new Uint8Array(randomBytes(KEY_BYTES));
  const { publicKey } = new Ed25519Key(seed);
  writeAtomically(path, encodeOpensshKey({ seed, publicKey }, "tunnelmesh", new Uint8Array(randomBytes(4))));
  return seed;
}

function readSessionKey(path: string): Uint8Array | undefined {
  const text = readSecret(path);
  if (text === undefined) return undefined;
  try {
    const key = createPrivateKey(text);
    if (key.asymmetricKeyType !== "x25519") throw new Error("another kind of key");
    return new Uint8Array(key.export({ format: "der", type: "pkcs8" })).slice(-KEY_BYTES);
  } catch (error) {
    throw new UserError(
      EXIT.badConfiguration,
      `The session key ${path} is broken: it is not an X25519 key; remove it and the next start makes a new one`,
      { cause: error },
    );
  }
}

function makeSessionKey(path: string): Uint8Array {
  const raw = randomBytes(KEY_BYTES);
  const key = createPrivateKey({ key: Buffer.concat([X25519_PKCS8, raw]), format: "der", type: "pkcs8" });
  writeAtomically(path, String(key.export({ format: "pem", type: "pkcs8" })));
  return new Uint8Array(raw);
}

/** A private file that others may read is refused, as ssh does: somebody else may hold the key by now. */
function readSecret(path: string): string | undefined {
  const text = readIfPresent(path);
  if (text === undefined) return undefined;
  const mode = statSync(path).mode & 0o777;
  if ((mode & 0o077) === 0) return text;
  throw new UserError(
    EXIT.badConfiguration,
    `Others may read the private key ${path} (mode ${mode.toString(8).padStart(4, "0")}); run "chmod 600 ${path}"`,
  );
}

const broken = (path: string, reason: string): UserError =>
  new UserError(
    EXIT.badConfiguration,
    `The identity key ${path} is broken: ${reason}; restore it from a backup, or remove it and state.json to join as a new machine`,
  );
