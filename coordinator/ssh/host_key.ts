/**
 * The SSH endpoint's host key: Ed25519, made at the first start and kept, so that agents can pin it. Written as OpenSSH does
 * (PROTOCOL.key of OpenSSH), the one form of Ed25519 private keys that ssh2 reads.
 */
import { concatBytes, fromBase64, toBase64, utf8 } from "../../shared/bytes.ts";
import { Ed25519Key, KEY_BYTES } from "../../shared/session/primitives.ts";
import { Writer } from "../../shared/wire/cursor.ts";
import type { Store } from "../store/store.ts";

export const KEY_TYPE = "ssh-ed25519";
const BLOCK_BYTES = 8;

export interface HostKey {
  readonly privateKey: string;
  /** RFC 4253 §6.6, RFC 8709 §4. */
  readonly publicBlob: Uint8Array;
}

export function loadHostKey(store: Store, random: (length: number) => Uint8Array): HostKey {
  const seed = store.transaction(() => {
    const stored = fromBase64(store.meta("ssh_host_key") ?? "");
    if (stored?.length === KEY_BYTES) return stored;
    const fresh = random(KEY_BYTES);
    store.setMeta("ssh_host_key", toBase64(fresh));
    return fresh;
  });
  const { publicKey } = new Ed25519Key(seed);
  return { privateKey: opensshPrivateKey(seed, publicKey), publicBlob: publicBlobOf(publicKey) };
}

export const publicBlobOf = (publicKey: Uint8Array): Uint8Array =>
  concatBytes(sshString(utf8(KEY_TYPE)), sshString(publicKey));

export function opensshPrivateKey(seed: Uint8Array, publicKey: Uint8Array): string {
  const section = concatBytes(
    // Two equal numbers, by which a reader of an encrypted key would know that its passphrase was right.
    new Uint8Array(8),
    publicBlobOf(publicKey),
    sshString(concatBytes(seed, publicKey)),
    sshString(utf8("tunnelmesh")),
  );
  const padding = Uint8Array.from({ length: -section.length & (BLOCK_BYTES - 1) }, (_, index) => index + 1);
  const none = sshString(utf8("none"));
  const file = concatBytes(
    utf8("openssh-key-v1\0"),
    none,
    none,
    sshString(new Uint8Array(0)),
    new Writer(4).u32(1).finish(),
    sshString(publicBlobOf(publicKey)),
    sshString(concatBytes(section, padding)),
  );
  const lines = toBase64(file).match(/.{1,70}/g) ?? [];
  return ["-----BEGIN OPENSSH PRIVATE KEY-----", ...lines, "-----END OPENSSH PRIVATE KEY-----", ""].join("\n");
}

/** RFC 4251 §5. */
const sshString = (bytes: Uint8Array): Uint8Array =>
  new Writer(4 + bytes.length).u32(bytes.length).bytes(bytes).finish();
