import { expect, test } from "vitest";
import {
  groupFingerprint,
  isPeerId,
  keyFingerprint,
  peerIdOf,
  signSessionKey,
  verifyIdentityChain,
} from "../../../../shared/session/identity.ts";
import { Ed25519Key, X25519Key } from "../../../../shared/session/primitives.ts";
import { flipped } from "./ends.ts";

const identity = new Ed25519Key(new Uint8Array(32).fill(1));
const session = new X25519Key(new Uint8Array(32).fill(2));
const chain = {
  identity: identity.publicKey,
  sessionKey: session.publicKey,
  signature: signSessionKey(identity, session.publicKey),
};

test("a chain proves the id that is the hash of its identity key", () => {
  expect(verifyIdentityChain(chain)).toBe(peerIdOf(identity.publicKey));
  expect(isPeerId(peerIdOf(identity.publicKey))).toBe(true);
});

test("a chain with any bit changed proves nothing", () => {
  for (let bit = 0; bit < 64 * 8; bit += 7) {
    expect(verifyIdentityChain({ ...chain, signature: flipped(chain.signature, bit) })).toBeUndefined();
  }
  for (let bit = 0; bit < 32 * 8; bit += 3) {
    expect(verifyIdentityChain({ ...chain, sessionKey: flipped(chain.sessionKey, bit) })).toBeUndefined();
    expect(verifyIdentityChain({ ...chain, identity: flipped(chain.identity, bit) })).toBeUndefined();
  }
});

test("keys and signatures of other lengths prove nothing, and nothing throws", () => {
  for (const length of [0, 1, 31, 33, 63, 65, 1000]) {
    const bytes = new Uint8Array(length);
    expect(verifyIdentityChain({ ...chain, identity: bytes })).toBeUndefined();
    expect(verifyIdentityChain({ ...chain, sessionKey: bytes })).toBeUndefined();
    expect(verifyIdentityChain({ ...chain, signature: bytes })).toBeUndefined();
  }
});

test("a signature for another purpose is none for a session key", () => {
  expect(verifyIdentityChain({ ...chain, signature: identity.sign(session.publicKey) })).toBeUndefined();
});

test("fingerprints are 26 letters and digits, shown in groups of four", () => {
  const fingerprint = keyFingerprint(session.publicKey);
  expect(fingerprint).toMatch(/^[a-z2-7]{26}$/);
  expect(groupFingerprint("abcdefghijklmnopqrstuvwxyz")).toBe("abcd-efgh-ijkl-mnop-qrst-uvwx-yz");
  expect(groupFingerprint(fingerprint).replaceAll("-", "")).toBe(fingerprint);
});

test.each(["", "abc", "A".repeat(26), "a".repeat(25), "a".repeat(27), "1".repeat(26), `${"a".repeat(25)}\n`])(
  "%j is no peer id",
  (text) => expect(isPeerId(text)).toBe(false),
);
