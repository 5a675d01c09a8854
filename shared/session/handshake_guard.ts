/**
 * Decides which handshake packets are worth X25519 work.
 *
 * Three hurdles, each cheaper than what it protects: `mac1` shows that the sender knows our public key; a global token bucket
 * bounds the work; above its rate, `mac2` must carry a cookie that we gave to this very address, and each address has a bucket
 * of its own (WireGuard, "DoS mitigation"). Handshakes that come through the authenticated signalling channel skip the cookie:
 * their sender is known, and limited per peer.
 */
import { ipBytes, isIPv6 } from "../address.ts";
import { toHex, utf8 } from "../bytes.ts";
import { after, type Instant } from "../time.ts";
import { encodeCookie, handshakeMacs, MAC_BYTES, type Mac } from "../wire/handshake.ts";
import { aeadOpen, aeadSeal, equalSecret, hmacSha256, sha256 } from "./primitives.ts";

const MAC1_LABEL = utf8("TunnelMesh mac1 v1");
const COOKIE_LABEL = utf8("TunnelMesh cookie v1");

/** A cookie secret serves two minutes, as in WireGuard; cookies of the one before are not accepted. */
const COOKIE_SECRET_MS = 120_000;
/** Handshakes a second that are processed without asking for a cookie; 100 cost about 20 ms of X25519. */
const UNLOADED_PER_SECOND = 100;
const PER_SOURCE_PER_SECOND = 10;
/** However many sources hold cookies, no more than this: a fifth of a second of X25519. The table of sources needs no other cap. */
const MAX_PER_SECOND = 1000;

export const mac1Of = (responderStatic: Uint8Array): Mac => {
  const key = sha256(MAC1_LABEL, responderStatic);
  return (covered) => hmacSha256(key, covered).subarray(0, MAC_BYTES);
};

export const mac2Of =
  (cookie: Uint8Array): Mac =>
  (covered) =>
    hmacSha256(cookie, covered).subarray(0, MAC_BYTES);

const cookieKey = (responderStatic: Uint8Array): Uint8Array => sha256(COOKIE_LABEL, responderStatic);

/** The cookie inside a cookie reply to a message whose `mac1` we remember; undefined when it is not authentic. */
export const openCookie = (
  responderStatic: Uint8Array,
  nonce: Uint8Array,
  mac1: Uint8Array,
  sealed: Uint8Array,
): Uint8Array | undefined => aeadOpen(cookieKey(responderStatic), nonce, mac1, sealed);

export type Admission =
  | { readonly admitted: true }
  | { readonly admitted: false; readonly reason: "malformed" | "mac1" | "overload"; readonly cookieReply?: Uint8Array };

export class HandshakeGuard {
  readonly #mac1: Mac;
  readonly #cookieKey: Uint8Array;
  readonly #random: (bytes: number) => Uint8Array;
  #secret: Uint8Array;
  #secretExpiresAt: Instant | undefined;
  #secondStartedAt: Instant | undefined;
  #handled = 0;
  #admitted = 0;
  readonly #sources = new Map<string, number>();

  constructor(ourStatic: Uint8Array, random: (bytes: number) => Uint8Array) {
    this.#mac1 = mac1Of(ourStatic);
    this.#cookieKey = cookieKey(ourStatic);
    this.#random = random;
    this.#secret = random(32);
  }

  /**
   * @param source canonical ip of the sender, or undefined for a packet that came through signalling
   * @param senderIndex where a cookie reply goes
   */
  admit(bytes: Uint8Array, source: string | undefined, senderIndex: number, now: Instant): Admission {
    const macs = handshakeMacs(bytes);
    if (macs === undefined) return { admitted: false, reason: "malformed" };
    if (!equalSecret(this.#mac1(macs.covered1), macs.mac1)) return { admitted: false, reason: "mac1" };
    this.#startSecond(now);
    if (source === undefined) return { admitted: true };
    this.#handled++;
    if (this.#handled <= UNLOADED_PER_SECOND) {
      this.#admitted++;
      return { admitted: true };
    }

    const cookie = this.#cookieFor(source, now);
    if (!equalSecret(mac2Of(cookie)(macs.covered2), macs.mac2)) {
      const nonce = this.#random(12);
      const sealed = aeadSeal(this.#cookieKey, nonce, macs.mac1, cookie);
      const cookieReply = encodeCookie({ type: "cookie", receiverIndex: senderIndex, nonce, sealed });
      return { admitted: false, reason: "overload", cookieReply };
    }
    const owner = ownerOf(source);
    const count = this.#sources.get(owner) ?? 0;
    if (count >= PER_SOURCE_PER_SECOND || this.#admitted >= MAX_PER_SECOND) {
      return { admitted: false, reason: "overload" };
    }
    this.#sources.set(owner, count + 1);
    this.#admitted++;
    return { admitted: true };
  }

  #startSecond(now: Instant): void {
    if (this.#secondStartedAt !== undefined && now - this.#secondStartedAt < 1000) return;
    this.#secondStartedAt = now;
    this.#handled = 0;
    this.#admitted = 0;
    this.#sources.clear();
  }

  #cookieFor(source: string, now: Instant): Uint8Array {
    if (this.#secretExpiresAt === undefined || now >= this.#secretExpiresAt) {
      this.#secret = this.#random(32);
      this.#secretExpiresAt = after(now, COOKIE_SECRET_MS);
    }
    return hmacSha256(this.#secret, utf8(source)).subarray(0, MAC_BYTES);
  }
}

/** Whose source is this? An IPv6 host owns a whole /64 and could otherwise be 2^64 sources. */
const ownerOf = (ip: string): string => (isIPv6(ip) ? toHex(ipBytes(ip).subarray(0, 8)) : ip);
