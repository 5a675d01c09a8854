/**
 * Unencrypted Ed25519 private keys in OpenSSH's own format, so that ssh-keygen and the SSH leg read our identity file.
 *
 *   "openssh-key-v1\0"
 *   string "none"  string "none"  string ""      cipher, key derivation, its options
 *   uint32 1                                     number of keys
 *   string public key                            string "ssh-ed25519", string 32 bytes
 *   string private section                       uint32 check twice; string "ssh-ed25519"; string public (32);
 *                                                string seed (32) + public (32); string comment; padding 1, 2, 3 ... to 8 bytes
 *
 * Numbers are big-endian, a string is a uint32 length and its bytes. Source: PROTOCOL.key of OpenSSH.
 */
import { concatBytes, equalBytes, toBase64, utf8, utf8Text } from "../../shared/bytes.ts";

const MAGIC = utf8("openssh-key-v1\0");
const KEY_TYPE = "ssh-ed25519";
const BLOCK_BYTES = 8;
const LINE_CHARACTERS = 70;
const BEGIN = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END = "-----END OPENSSH PRIVATE KEY-----";

export interface OpensshKey {
  /** 32 bytes each. */
  readonly seed: Uint8Array;
  readonly publicKey: Uint8Array;
}

/** @param check 4 random bytes, by which a reader of an encrypted file knows that the passphrase was right */
export function encodeOpensshKey(key: OpensshKey, comment: string, check: Uint8Array): string {
  const section = concatBytes(
    check,
    check,
    string(utf8(KEY_TYPE)),
    string(key.publicKey),
    string(concatBytes(key.seed, key.publicKey)),
    string(utf8(comment)),
  );
  const padding = Uint8Array.from({ length: -section.length & (BLOCK_BYTES - 1) }, (_, index) => index + 1);
  const none = string(utf8("none"));
  const blob = concatBytes(
    MAGIC,
    none,
    none,
    string(new Uint8Array(0)),
    uint32(1),
    string(publicBlob(key.publicKey)),
    string(concatBytes(section, padding)),
  );
  const lines = toBase64(blob).match(new RegExp(`.{1,${LINE_CHARACTERS}}`, "g")) ?? [];
  return `${[BEGIN, ...lines, END].join("\n")}\n`;
}

export type DecodedOpensshKey =
  | { readonly ok: true; readonly key: OpensshKey }
  | { readonly ok: false; readonly reason: string };

/** The key in `text`. The caller checks that `publicKey` belongs to `seed`. */
export function decodeOpensshKey(text: string): DecodedOpensshKey {
  const refuse = (reason: string): DecodedOpensshKey => ({ ok: false, reason });
  const body = new RegExp(`^\\s*${BEGIN}([A-Za-z0-9+/=\\s]+)${END}\\s*$`).exec(text)?.[1];
  if (body === undefined) return refuse("it is not an OpenSSH private key");
  // A plain array, since Buffer.slice() would hand out views instead of copies.
  const reader = new Reader(new Uint8Array(Buffer.from(body, "base64")));
  if (!equalBytes(reader.take(MAGIC.length), MAGIC)) return refuse("it is not an OpenSSH private key");
  if (reader.text() !== "none" || reader.text() !== "none") return refuse("it is protected by a passphrase");
  reader.string();
  if (reader.uint32() !== 1) return refuse("it holds more than one key");
  const outer = reader.string();
  const section = new Reader(reader.string());
  if (section.uint32() !== section.uint32() || section.text() !== KEY_TYPE) return refuse("it is not an Ed25519 key");
  const publicKey = section.string();
  const pair = section.string();
  const seed = pair.subarray(0, 32);
  if (reader.failed || section.failed || pair.length !== 64 || publicKey.length !== 32)
    return refuse("it is cut short");
  if (!equalBytes(publicBlob(publicKey), outer) || !equalBytes(pair.subarray(32), publicKey)) {
    return refuse("its public and private parts do not belong together");
  }
  return { ok: true, key: { seed: seed.slice(), publicKey: publicKey.slice() } };
}

/** The public key as SSH sends it. */
export const publicBlob = (publicKey: Uint8Array): Uint8Array => concatBytes(string(utf8(KEY_TYPE)), string(publicKey));

function uint32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value);
  return bytes;
}

const string = (bytes: Uint8Array): Uint8Array => concatBytes(uint32(bytes.length), bytes);

/** Reads past the end give empty values and set `failed`, so that the layout above reads as it is written. */
class Reader {
  failed = false;
  #at = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  take(length: number): Uint8Array {
    if (this.#at + length > this.#bytes.length) {
      this.failed = true;
      return new Uint8Array(0);
    }
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  uint32(): number {
    const bytes = this.take(4);
    return bytes.length === 4 ? new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0) : 0;
  }

  string(): Uint8Array {
    return this.take(this.uint32());
  }

  text(): string | undefined {
    return utf8Text(this.string());
  }
}
