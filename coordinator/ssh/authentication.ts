/**
 * Who may log in: the holder of the Ed25519 identity key of an approved agent, by public key and nothing else. Pure.
 *
 * Every attempt costs the same: whether a key is known is decided after its signature has been checked, so that nobody can ask which
 * keys are registered without owning them.
 */
import { equalBytes } from "../../shared/bytes.ts";
import { isPeerId, type PeerId, peerIdOf } from "../../shared/session/identity.ts";
import { ed25519Verify, KEY_BYTES } from "../../shared/session/primitives.ts";
import { KEY_TYPE, publicBlobOf } from "./host_key.ts";

export interface LoginAttempt {
  readonly user: string;
  readonly method: string;
  readonly keyType?: string | undefined;
  /** RFC 8709 §4. */
  readonly keyBlob?: Uint8Array | undefined;
  /** Absent when the client only asks whether the key could do. */
  readonly signature?: Uint8Array | undefined;
  readonly signed?: Uint8Array | undefined;
}

export type LoginDecision = "refused" | "sign" | PeerId;

/** `sign`: go on, and prove that you own the key. */
export function decideLogin(attempt: LoginAttempt, isMember: (peer: PeerId) => boolean): LoginDecision {
  const { user, keyBlob, signature, signed } = attempt;
  if (attempt.method !== "publickey" || attempt.keyType !== KEY_TYPE || keyBlob === undefined) return "refused";
  const key = keyBlob.slice(-KEY_BYTES);
  if (!equalBytes(publicBlobOf(key), keyBlob)) return "refused";
  if (signature === undefined || signed === undefined) return "sign";
  const isProven = ed25519Verify(key, signed, signature);
  const peer = peerIdOf(key);
  // The key says who it is. Any user name will do, except one that claims to be somebody else.
  return isProven && isMember(peer) && (!isPeerId(user) || user === peer) ? peer : "refused";
}
