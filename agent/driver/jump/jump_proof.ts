/**
 * Judges what the coordinator hands on of an SSH client that wants to jump to this machine: the client's signature over its own session with the
 * coordinator (RFC 4252 §7), which nobody makes without the client's private key.
 *
 * The signed text names this machine as the user, so that a proof for one machine, or for some other SSH server, is worth nothing here; and the
 * session, which is good for one connection (jump_keys.ts).
 */
import { utils } from "ssh2";
import { toBase64 } from "../../../shared/bytes.ts";
import { keyType, type SignedLogin } from "./signed_login.ts";

/** RSA with SHA-1 (`ssh-rsa`) can be forged (RFC 8332 §1). */
const ALGORITHMS: ReadonlySet<string> = new Set([
  "ssh-ed25519",
  "ecdsa-sha2-nistp256",
  "ecdsa-sha2-nistp384",
  "ecdsa-sha2-nistp521",
  "rsa-sha2-256",
  "rsa-sha2-512",
]);

export const isAcceptable = (algorithm: string): boolean => ALGORITHMS.has(algorithm);

/** @param hash what RSA hashes with; null for the others, whose keys decide it */
export function isSigned(login: SignedLogin, signed: Uint8Array, signature: Uint8Array, hash: string | null): boolean {
  const wanted = login.algorithm === "rsa-sha2-256" ? "sha256" : login.algorithm === "rsa-sha2-512" ? "sha512" : null;
  if (wanted !== hash) return false;
  try {
    const key = utils.parseKey(`${keyType(login.key) ?? ""} ${toBase64(login.key)}`);
    if (key instanceof Error) return false;
    // Whatever its types say, ssh2 returns an Error for a signature that cannot even be read.
    const verdict: unknown = key.verify(Buffer.from(signed), Buffer.from(signature), hash ?? undefined);
    return verdict === true;
  } catch {
    return false;
  }
}
