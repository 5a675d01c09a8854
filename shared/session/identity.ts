/**
 * Who a peer is: an Ed25519 identity key that signs an X25519 key.
 *
 * The id is the hash of the identity key, so a coordinator that hands out another key for an id is found out without trusting
 * anybody; that a *name* keeps its id is the trust store's business (pinning).
 */
import { concatBytes, toBase32, utf8 } from "../bytes.ts";
import { type Ed25519Key, ed25519Verify, KEY_BYTES, sha256 } from "./primitives.ts";

declare const peerIdBrand: unique symbol;
/** Base32 of the first 16 bytes of SHA-256 of the raw Ed25519 public key: 26 characters. */
export type PeerId = string & { readonly [peerIdBrand]: true };

const ID_HASH_BYTES = 16;
const CERTIFICATE_CONTEXT = utf8("TunnelMesh X25519 certificate v1\0");

/** Text form of a key's hash, for ids and fingerprints. */
export const keyFingerprint = (key: Uint8Array): string => toBase32(sha256(key).subarray(0, ID_HASH_BYTES));

export const peerIdOf = (identity: Uint8Array): PeerId => keyFingerprint(identity) as PeerId;

export const isPeerId = (text: string): text is PeerId => /^[a-z2-7]{26}$/.test(text);

/** A fingerprint as people compare it: groups of four. */
export const groupFingerprint = (fingerprint: string): string => fingerprint.replace(/(.{4})(?=.)/g, "$1-");

export interface IdentityChain {
  /** Raw Ed25519 public key. */
  readonly identity: Uint8Array;
  /** Raw X25519 public key, the static key of sessions. */
  readonly sessionKey: Uint8Array;
  /** Ed25519 signature over the context string and the X25519 key. */
  readonly signature: Uint8Array;
}

export const signSessionKey = (identity: Ed25519Key, sessionKey: Uint8Array): Uint8Array =>
  identity.sign(concatBytes(CERTIFICATE_CONTEXT, sessionKey));

/** The id that this chain proves, or undefined when it proves none. */
export function verifyIdentityChain(chain: IdentityChain): PeerId | undefined {
  const { identity, sessionKey, signature } = chain;
  if (sessionKey.length !== KEY_BYTES) return undefined;
  const signed = concatBytes(CERTIFICATE_CONTEXT, sessionKey);
  return ed25519Verify(identity, signed, signature) ? peerIdOf(identity) : undefined;
}
