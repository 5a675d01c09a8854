import { chmodSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { assert, property, uint8Array } from "fast-check";
import { describe, expect, test } from "vitest";
import { openIdentity } from "../../../../agent/state/identity.ts";
import { decodeOpensshKey, encodeOpensshKey, publicBlob } from "../../../../agent/state/openssh_key.ts";
import { EXIT } from "../../../../agent/state/user_error.ts";
import { toBase32, toBase64, utf8 } from "../../../../shared/bytes.ts";
import { verifyIdentityChain } from "../../../../shared/session/identity.ts";
import { Ed25519Key, sha256 } from "../../../../shared/session/primitives.ts";
import { scratchDir } from "./scratch.ts";

const sshKeygen = Bun.which("ssh-keygen");

describe("the identity", () => {
  test("is made on first start, private, and the same on the next", () => {
    const dir = scratchDir();
    const first = openIdentity(dir, false);
    expect(readdirSync(dir).sort()).toEqual(["identity", "session_key"]);
    for (const file of readdirSync(dir)) expect(statSync(join(dir, file)).mode & 0o777).toBe(0o600);
    const second = openIdentity(dir, true);
    expect(second.id).toBe(first.id);
    expect(second.sessionKey.publicKey).toEqual(first.sessionKey.publicKey);
  });

  test("its id is the hash of its key, its fingerprint the id in groups of four", () => {
    const { id, fingerprint, identityKey } = openIdentity(scratchDir(), false);
    expect(id).toBe(toBase32(sha256(identityKey.publicKey).subarray(0, 16)));
    expect(id).toMatch(/^[a-z2-7]{26}$/);
    expect(fingerprint).toMatch(/^([a-z2-7]{4}-){6}[a-z2-7]{2}$/);
    expect(fingerprint.replaceAll("-", "")).toBe(id);
  });

  test("signs the session key so that a peer verifies the chain", () => {
    const { id, identityKey, sessionKey, sessionKeySignature } = openIdentity(scratchDir(), false);
    const chain = {
      identity: identityKey.publicKey,
      sessionKey: sessionKey.publicKey,
      signature: sessionKeySignature,
    };
    expect(verifyIdentityChain(chain)).toBe(id);
  });

  test("shows no private byte when it is printed", () => {
    const dir = scratchDir();
    const identity = openIdentity(dir, false);
    const decoded = decodeOpensshKey(readFileSync(join(dir, "identity"), "utf8"));
    if (!decoded.ok) throw new Error(decoded.reason);
    const printed = `${JSON.stringify(identity)} ${Bun.inspect(identity, { depth: 9 })}`;
    expect(printed).not.toContain([...decoded.key.seed.subarray(0, 6)].join(","));
    expect(printed).not.toContain([...decoded.key.seed.subarray(0, 6)].join(", "));
  });

  test("a lost session key is made anew, a lost identity of a joined directory is not", () => {
    const dir = scratchDir();
    const { id } = openIdentity(dir, false);
    rmSync(join(dir, "session_key"));
    expect(openIdentity(dir, true).id).toBe(id);
    rmSync(join(dir, "identity"));
    expect(() => openIdentity(dir, true)).toThrow(expect.objectContaining({ exitCode: EXIT.badConfiguration }));
    expect(readdirSync(dir)).toEqual(["session_key"]);
  });

  test.each(["identity", "session_key"])("a broken or open file %s is refused and kept", (file) => {
    const dir = scratchDir();
    openIdentity(dir, false);
    const path = join(dir, file);
    chmodSync(path, 0o644);
    expect(() => openIdentity(dir, true)).toThrow(/chmod 600/);
    chmodSync(path, 0o600);
    writeFileSync(path, "garbage");
    expect(() => openIdentity(dir, true)).toThrow(expect.objectContaining({ exitCode: EXIT.badConfiguration }));
    expect(readFileSync(path, "utf8")).toBe("garbage");
  });

  test.skipIf(sshKeygen === null)("is read by ssh-keygen, which finds the same public key", () => {
    const dir = scratchDir();
    const { identityKey } = openIdentity(dir, false);
    const result = Bun.spawnSync([sshKeygen ?? "", "-y", "-f", join(dir, "identity")]);
    expect(result.stdout.toString().split(" ").slice(0, 2)).toEqual([
      "ssh-ed25519",
      toBase64(publicBlob(identityKey.publicKey)),
    ]);
  });

  test.skipIf(sshKeygen === null)("a key made by ssh-keygen is taken, one with a passphrase refused by name", () => {
    const dir = scratchDir();
    const path = join(dir, "identity");
    Bun.spawnSync([sshKeygen ?? "", "-q", "-t", "ed25519", "-N", "", "-C", "a longer comment", "-f", path]);
    const publicLine = readFileSync(`${path}.pub`, "utf8");
    expect(publicLine).toContain(toBase64(publicBlob(openIdentity(dir, false).identityKey.publicKey)));
    rmSync(path);
    Bun.spawnSync([sshKeygen ?? "", "-q", "-t", "ed25519", "-N", "secret", "-f", path]);
    expect(() => openIdentity(dir, false)).toThrow(/protected by a passphrase/);
  });
});

describe("the OpenSSH format", () => {
  test("every seed and comment survives a round trip", () => {
    assert(
      property(uint8Array({ minLength: 32, maxLength: 32 }), uint8Array({ maxLength: 20 }), (seed, comment) => {
        const key = { seed, publicKey: new Ed25519Key(seed).publicKey };
        const text = encodeOpensshKey(key, String.fromCharCode(...comment.map((b) => b % 128)), new Uint8Array(4));
        expect(decodeOpensshKey(text)).toEqual({ ok: true, key });
      }),
      { numRuns: 50 },
    );
  });

  test("damaged files are refused with a reason, never an exception", () => {
    const seed = new Uint8Array(32).fill(7);
    const key = { seed, publicKey: new Ed25519Key(seed).publicKey };
    const lines = encodeOpensshKey(key, "c", new Uint8Array(4)).split("\n");
    const blob = Buffer.from(lines.slice(1, -2).join(""), "base64");
    const wrap = (bytes: Uint8Array) => [lines[0], toBase64(bytes), lines.at(-2)].join("\n");
    for (let length = 0; length < blob.length - 16; length++) {
      expect(decodeOpensshKey(wrap(blob.subarray(0, length))).ok).toBe(false);
    }
    for (let at = 0; at < blob.length * 8; at++) {
      const damaged = Uint8Array.from(blob);
      damaged[at >> 3] = (damaged[at >> 3] ?? 0) ^ (1 << (at & 7));
      expect(() => decodeOpensshKey(wrap(damaged))).not.toThrow();
    }
    assert(
      property(uint8Array({ maxLength: 300 }), (bytes) => {
        expect(decodeOpensshKey(wrap(bytes)).ok).toBe(false);
        expect(decodeOpensshKey(wrap(Buffer.concat([utf8("openssh-key-v1\0"), bytes]))).ok).toBe(false);
      }),
    );
  });
});
