/**
 * An initiator that shares no code with ours: Noise IK, the packet layouts and both MACs written again from PROTOCOL.md on
 * @noble/curves, @noble/ciphers and @noble/hashes. It completes a handshake with our responder and exchanges frames.
 */
import { gcm } from "@noble/ciphers/aes.js";
import { ed25519, x25519 } from "@noble/curves/ed25519.js";
import { hmac } from "@noble/hashes/hmac.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { describe, expect, test } from "vitest";
import { signSessionKey } from "../../../../shared/session/identity.ts";
import { type EpochKeys, PeerSession } from "../../../../shared/session/peer_session.ts";
import { aeadOpen, aeadSeal, counterNonce, Ed25519Key, X25519Key } from "../../../../shared/session/primitives.ts";
import { HandshakeGuard } from "../../../../shared/session/handshake_guard.ts";
import { openInitiation } from "../../../../shared/session/peer_session.ts";
import { decodeHandshake } from "../../../../shared/wire/handshake.ts";
import { writeFrameHeader } from "../../../../shared/wire/frame.ts";
import { environmentOf, LIST, makeEnds, randomOf, START } from "./ends.ts";

const text = (value: string) => new TextEncoder().encode(value);
const join = (...parts: Uint8Array[]) => Uint8Array.from(parts.flatMap((part) => [...part]));
const u32 = (value: number) => Uint8Array.of(value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255);
const u64 = (value: number) => join(u32(Math.floor(value / 2 ** 32)), u32(value >>> 0));
const nonce = (counter: number) => join(new Uint8Array(4), u64(counter));
const ours = (fill: number) => new Uint8Array(32).fill(fill);

/** Noise §5.2, with AES-256-GCM and SHA-256. */
class Symmetric {
  hash: Uint8Array = join(text("Noise_IK_25519_AESGCM_SHA256"), new Uint8Array(4));
  chain: Uint8Array = this.hash;
  key = new Uint8Array(32);
  counter = 0;
  mixHash(data: Uint8Array): void {
    this.hash = sha256(join(this.hash, data));
  }
  mixKey(secret: Uint8Array): void {
    [this.chain, this.key] = hkdf(this.chain, secret) as [Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>];
    this.counter = 0;
  }
  encrypt(plaintext: Uint8Array): Uint8Array {
    const sealed = gcm(this.key, nonce(this.counter++), this.hash).encrypt(plaintext);
    this.mixHash(sealed);
    return sealed;
  }
  decrypt(sealed: Uint8Array): Uint8Array {
    const plaintext = gcm(this.key, nonce(this.counter++), this.hash).decrypt(sealed);
    this.mixHash(sealed);
    return plaintext;
  }
}

function hkdf(chain: Uint8Array, material: Uint8Array): [Uint8Array, Uint8Array] {
  const temporary = hmac(sha256, chain, material);
  const first = hmac(sha256, temporary, Uint8Array.of(1));
  return [first, hmac(sha256, temporary, join(first, Uint8Array.of(2)))];
}

const mac = (label: string, responder: Uint8Array, covered: Uint8Array) =>
  hmac(sha256, sha256(join(text(label), responder)), covered).subarray(0, 16);

/** Sender index, features, timestamp, and a candidate list of generation 3 with one server-reflexive 198.51.100.7:4660. */
const payloadOf = (senderIndex: number) =>
  join(
    u32(senderIndex),
    u32(0),
    u64(1_700_000_123_456),
    u32(3),
    Uint8Array.of(0, 0, 0, 0, 1),
    Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 7, 0x12, 0x34),
  );

describe("an independent initiator", () => {
  const responder = new X25519Key(ours(0x22));
  const [staticSecret, ephemeralSecret] = [ours(0x11), ours(0x33)];
  const senderIndex = 0xdead_beef;

  test("completes a handshake with our responder byte for byte, and frames open both ways", () => {
    const state = new Symmetric();
    state.mixHash(text("TunnelMesh session 1"));
    state.mixHash(responder.publicKey);
    const ephemeral = x25519.getPublicKey(ephemeralSecret);
    state.mixHash(ephemeral);
    state.mixKey(x25519.getSharedSecret(ephemeralSecret, responder.publicKey));
    const sealedStatic = state.encrypt(x25519.getPublicKey(staticSecret));
    state.mixKey(x25519.getSharedSecret(staticSecret, responder.publicKey));
    const sealedPayload = state.encrypt(payloadOf(senderIndex));
    const covered = join(Uint8Array.of(5, 1, 0, 0), u32(senderIndex), ephemeral, sealedStatic, sealedPayload);
    const initiation = join(covered, mac("TunnelMesh mac1 v1", responder.publicKey, covered), new Uint8Array(16));

    const guard = new HandshakeGuard(responder.publicKey, randomOf("guard"));
    expect(guard.admit(initiation, "192.0.2.1", senderIndex, START)).toEqual({ admitted: true });
    const packet = decodeHandshake(initiation);
    if (packet?.type !== "initiation") throw new Error("not decoded");
    const opened = openInitiation(responder, packet, randomOf("responder"));
    if (opened === undefined) throw new Error("not opened");
    expect(opened.payload).toMatchObject({ features: 0, timestamp: 1_700_000_123_456 });
    expect(opened.payload.list).toMatchObject({
      generation: 3,
      candidates: [{ kind: "server-reflexive", address: { ip: "198.51.100.7", port: 0x1234 } }],
    });

    const session = new PeerSession({
      staticKey: responder,
      remoteStatic: opened.remoteStatic,
      environment: environmentOf("session", 0x0102_0303),
      greatestTimestamp: 0,
    });
    expect(session.respond(opened, LIST, START)).toBe(true);
    let keys: EpochKeys | undefined;
    let response = new Uint8Array();
    for (let action = session.poll(); action !== undefined; action = session.poll()) {
      if (action.type === "install_epoch") keys = action.keys;
      if (action.type === "send_handshake") response = Uint8Array.from(action.bytes);
    }
    if (keys === undefined) throw new Error("no keys");

    const view = new DataView(response.buffer);
    expect([response[0], response[1], view.getUint16(2), view.getUint32(8)]).toEqual([6, 1, 0, senderIndex]);
    const responderIndex = view.getUint32(4);
    expect(responderIndex).toBe(0x0102_0304);
    const noise = response.subarray(12, -32);
    const responderEphemeral = noise.subarray(0, 32);
    state.mixHash(responderEphemeral);
    state.mixKey(x25519.getSharedSecret(ephemeralSecret, responderEphemeral));
    state.mixKey(x25519.getSharedSecret(staticSecret, responderEphemeral));
    const payload = state.decrypt(noise.subarray(32));
    expect(new DataView(Uint8Array.from(payload).buffer).getUint32(0)).toBe(responderIndex);
    expect(payload.length).toBe(16 + 9 + 19);
    const end = response.length - 32;
    const initiatorStatic = x25519.getPublicKey(staticSecret);
    expect(response.subarray(end, end + 16)).toEqual(
      mac("TunnelMesh mac1 v1", initiatorStatic, response.subarray(0, end)),
    );

    const [send, receive] = hkdf(state.chain, new Uint8Array());
    expect(keys.remoteIndex).toBe(senderIndex);
    expect([...keys.receiveKey]).toEqual([...send]);
    expect([...keys.sendKey]).toEqual([...receive]);

    const header = join(Uint8Array.of(4), u32(responderIndex), u64(9));
    const frame = gcm(send, nonce(9), header).encrypt(text("\u0001hello"));
    expect([...(aeadOpen(keys.receiveKey, counterNonce(9), header, frame) ?? [])]).toEqual([...text("\u0001hello")]);
    const back = new Uint8Array(13);
    writeFrameHeader(back, keys.remoteIndex, 2 ** 40 + 5);
    expect(back).toEqual(join(Uint8Array.of(4), u32(senderIndex), u64(2 ** 40 + 5)));
    const sealed = aeadSeal(keys.sendKey, counterNonce(2 ** 40 + 5), back, text("\u0005x"));
    expect(gcm(receive, nonce(2 ** 40 + 5), back).decrypt(Uint8Array.from(sealed))).toEqual(text("\u0005x"));
  });

  test("opens the cookie that our guard gives it, and its mac2 is accepted", () => {
    const { larger } = makeEnds();
    const target = larger.key.publicKey;
    const guard = new HandshakeGuard(target, randomOf("guard"));
    const covered = join(Uint8Array.of(5, 1, 0, 0), u32(77), new Uint8Array(96));
    const withMac1 = join(covered, mac("TunnelMesh mac1 v1", target, covered));
    const initiation = join(withMac1, new Uint8Array(16));
    for (let i = 0; i < 100; i++) guard.admit(initiation, "192.0.2.9", 77, START);
    const refused = guard.admit(initiation, "192.0.2.1", 77, START);
    if (refused.admitted || refused.cookieReply === undefined) throw new Error("no cookie");
    const reply = Uint8Array.from(refused.cookieReply);
    expect(reply.length).toBe(52);
    expect(reply.subarray(0, 8)).toEqual(join(Uint8Array.of(7, 1, 0, 0), u32(77)));
    const key = sha256(join(text("TunnelMesh cookie v1"), target));
    const cookie = gcm(key, reply.subarray(8, 20), withMac1.subarray(-16)).decrypt(reply.subarray(20));
    expect(cookie.length).toBe(16);
    const proven = join(withMac1, hmac(sha256, cookie, withMac1).subarray(0, 16));
    expect(guard.admit(proven, "192.0.2.1", 77, START)).toEqual({ admitted: true });
    expect(guard.admit(proven, "192.0.2.2", 77, START)).toMatchObject({ admitted: false, reason: "overload" });
  });

  test("signs an X25519 key as we do", () => {
    const seed = ours(0x44);
    const signed = join(text("TunnelMesh X25519 certificate v1\0"), responder.publicKey);
    expect(signSessionKey(new Ed25519Key(seed), responder.publicKey)).toEqual(ed25519.sign(signed, seed));
  });
});
