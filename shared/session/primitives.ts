/**
 * The cryptographic primitives, synchronous, on node:crypto (native in both Bun and Deno). The one shared file that may import it.
 *
 * AES-256-GCM and not ChaCha20-Poly1305, since Bun's crypto has no ChaCha20-Poly1305 and AES-GCM is native and fast on both sides.
 * Nothing here throws on bytes from the network: a failed `open`, a bad signature or a low-order point is `undefined` or `false`.
 */
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  type KeyObject,
  sign,
  timingSafeEqual,
  verify,
} from "node:crypto";

export const KEY_BYTES = 32;
export const TAG_BYTES = 16;
export const HASH_BYTES = 32;

/** DER prefixes of RFC 8410 that turn 32 raw bytes into the SPKI and PKCS #8 forms which node:crypto imports. */
const X25519_SPKI = Buffer.from("302a300506032b656e032100", "hex");
const X25519_PKCS8 = Buffer.from("302e020100300506032b656e04220420", "hex");
const ED25519_SPKI = Buffer.from("302a300506032b6570032100", "hex");
const ED25519_PKCS8 = Buffer.from("302e020100300506032b657004220420", "hex");

const publicKey = (prefix: Buffer, raw: Uint8Array): KeyObject =>
  createPublicKey({ key: Buffer.concat([prefix, raw]), format: "der", type: "spki" });
const privateKey = (prefix: Buffer, raw: Uint8Array): KeyObject =>
  createPrivateKey({ key: Buffer.concat([prefix, raw]), format: "der", type: "pkcs8" });
const rawPublic = (key: KeyObject): Uint8Array =>
  new Uint8Array(createPublicKey(key).export({ format: "der", type: "spki" })).slice(-KEY_BYTES);

/** An X25519 private key (RFC 7748) with its public half. */
export class X25519Key {
  readonly publicKey: Uint8Array;
  readonly #key: KeyObject;

  /** @param raw 32 bytes of private scalar */
  constructor(raw: Uint8Array) {
    this.#key = privateKey(X25519_PKCS8, raw);
    this.publicKey = rawPublic(this.#key);
  }

  /** The shared secret with a peer's public key; undefined for a point of low order, which would make it all zero (RFC 7748 §6.1). */
  dh(peer: Uint8Array): Uint8Array | undefined {
    if (peer.length !== KEY_BYTES) return undefined;
    try {
      const secret = diffieHellman({ privateKey: this.#key, publicKey: publicKey(X25519_SPKI, peer) });
      return secret.every((byte) => byte === 0) ? undefined : new Uint8Array(secret);
    } catch {
      return undefined;
    }
  }
}

/** An Ed25519 identity key (RFC 8032) with its public half. */
export class Ed25519Key {
  readonly publicKey: Uint8Array;
  readonly #key: KeyObject;

  /** @param seed 32 bytes */
  constructor(seed: Uint8Array) {
    this.#key = privateKey(ED25519_PKCS8, seed);
    this.publicKey = rawPublic(this.#key);
  }

  sign(message: Uint8Array): Uint8Array {
    return new Uint8Array(sign(null, message, this.#key));
  }
}

export function ed25519Verify(identity: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  if (identity.length !== KEY_BYTES || signature.length !== 64) return false;
  try {
    return verify(null, message, publicKey(ED25519_SPKI, identity), signature);
  } catch {
    return false;
  }
}

/** AES-256-GCM. Returns ciphertext followed by the 16-byte tag. */
export function aeadSeal(key: Uint8Array, nonce: Uint8Array, ad: Uint8Array, plaintext: Uint8Array): Uint8Array {
  const cipher = createCipheriv("aes-256-gcm", key, nonce);
  cipher.setAAD(ad);
  const body = cipher.update(plaintext);
  cipher.final();
  const sealed = new Uint8Array(body.length + TAG_BYTES);
  sealed.set(body);
  sealed.set(cipher.getAuthTag(), body.length);
  return sealed;
}

/** Opens what `aeadSeal` made; undefined when it is not authentic. */
export function aeadOpen(
  key: Uint8Array,
  nonce: Uint8Array,
  ad: Uint8Array,
  sealed: Uint8Array,
): Uint8Array | undefined {
  if (sealed.length < TAG_BYTES) return undefined;
  const decipher = createDecipheriv("aes-256-gcm", key, nonce);
  decipher.setAAD(ad);
  decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
  try {
    const body = decipher.update(sealed.subarray(0, sealed.length - TAG_BYTES));
    decipher.final();
    return body;
  } catch {
    return undefined;
  }
}

/** The AESGCM nonce of Noise §12.4: 32 zero bits, then the counter as 64 bits big-endian. */
export function counterNonce(counter: number, out: Uint8Array = new Uint8Array(12)): Uint8Array {
  const high = Math.floor(counter / 2 ** 32);
  const low = counter >>> 0;
  out[4] = high >>> 24;
  out[5] = high >>> 16;
  out[6] = high >>> 8;
  out[7] = high;
  out[8] = low >>> 24;
  out[9] = low >>> 16;
  out[10] = low >>> 8;
  out[11] = low;
  return out;
}

export function sha256(...parts: Uint8Array[]): Uint8Array {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return new Uint8Array(hash.digest());
}

export const hmacSha256 = (key: Uint8Array, data: Uint8Array): Uint8Array =>
  new Uint8Array(createHmac("sha256", key).update(data).digest());

/** Constant-time comparison; false at once for different lengths, which are never secret here. */
export const equalSecret = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && timingSafeEqual(a, b);
