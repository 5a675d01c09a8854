import { expect, test } from "vitest";
import { HandshakeGuard, mac1Of, mac2Of, openCookie } from "../../../../shared/session/handshake_guard.ts";
import { X25519Key } from "../../../../shared/session/primitives.ts";
import { after, type Instant } from "../../../../shared/time.ts";
import { decodeHandshake, encodeHandshake, handshakeMacs, type Mac } from "../../../../shared/wire/handshake.ts";
import { flipped, randomOf, START } from "./ends.ts";

const responder = new X25519Key(new Uint8Array(32).fill(7)).publicKey;
/** What the guard lets through each second without asking, for each source with a cookie, and in all. */
const [UNLOADED, PER_SOURCE, IN_ALL] = [100, 10, 1000];

test("handshakes below the rate are admitted from anywhere, without a cookie", () => {
  const guard = makeGuard();
  for (let i = 0; i < UNLOADED; i++) expect(guard.admit(initiation(), `192.0.2.${i}`, 1, START).admitted).toBe(true);
});

test("what does not carry the right mac1 is refused, gets no answer, and does not count as load", () => {
  const guard = makeGuard();
  const genuine = initiation();
  for (let bit = 0; bit < (genuine.length - 16) * 8; bit++) {
    expect(guard.admit(flipped(genuine, bit), "192.0.2.1", 1, START)).toEqual({ admitted: false, reason: "mac1" });
  }
  const foreign = initiation(undefined, mac1Of(new Uint8Array(32)));
  expect(guard.admit(foreign, "192.0.2.1", 1, START)).toEqual({ admitted: false, reason: "mac1" });
  for (let length = 0; length < 80; length++) {
    const short = guard.admit(genuine.subarray(0, length), "192.0.2.1", 1, START);
    expect(short).toEqual({ admitted: false, reason: "malformed" });
  }
  expect(admittedOf(guard, 200, () => "192.0.2.1")).toBe(UNLOADED);
});

test("a flood without cookies costs the work of one second's allowance, whoever it claims to come from", () => {
  const guard = makeGuard();
  expect(admittedOf(guard, 1000, (i) => `10.${i >> 8}.${i & 255}.1`)).toBe(UNLOADED);
  expect(admittedOf(guard, 1000, (i) => `10.${i >> 8}.${i & 255}.1`, after(START, 999))).toBe(0);
  expect(admittedOf(guard, 1000, (i) => `10.${i >> 8}.${i & 255}.1`, after(START, 1000))).toBe(UNLOADED);
});

test("above the rate the cookie reply is smaller than the initiation and opens only with the mac1 that it answers", () => {
  const guard = makeGuard();
  exhaust(guard);
  const bytes = initiation();
  const reply = cookieReplyOf(guard, bytes, "192.0.2.1");
  expect(reply.length).toBeLessThan(bytes.length);
  const packet = decodeHandshake(reply);
  if (packet?.type !== "cookie") throw new Error("no cookie");
  expect(packet.receiverIndex).toBe(0x1234);
  const mac1 = handshakeMacs(bytes)?.mac1 ?? new Uint8Array();
  expect(openCookie(responder, packet.nonce, mac1, packet.sealed)?.length).toBe(16);
  expect(openCookie(responder, packet.nonce, flipped(mac1, 3), packet.sealed)).toBeUndefined();
  expect(openCookie(new Uint8Array(32), packet.nonce, mac1, packet.sealed)).toBeUndefined();
});

test("a client with the cookie of its own address gets in during a flood, up to a rate of its own", () => {
  const guard = makeGuard();
  exhaust(guard);
  const proven = withCookie(guard, "192.0.2.1");
  expect(admittedOf(guard, 50, () => "192.0.2.1", START, proven)).toBe(PER_SOURCE);
  expect(admittedOf(guard, 50, () => "192.0.2.2", START, proven)).toBe(0);
  exhaust(guard, after(START, 1000));
  expect(admittedOf(guard, 50, () => "192.0.2.1", after(START, 1000), proven)).toBe(PER_SOURCE);
});

test("however many sources hold cookies, the work of a second is bounded", () => {
  const guard = makeGuard();
  exhaust(guard);
  let admitted = UNLOADED;
  for (let i = 0; i < 300; i++) {
    const source = `10.0.${i >> 8}.${i & 255}`;
    admitted += admittedOf(guard, 5, () => source, START, withCookie(guard, source));
  }
  expect(admitted).toBe(IN_ALL);
});

test("the addresses of one IPv6 /64 share one rate", () => {
  const guard = makeGuard();
  exhaust(guard);
  let admitted = 0;
  for (let i = 1; i <= 30; i++) {
    const source = `2001:db8:0:1::${i.toString(16)}`;
    admitted += admittedOf(guard, 2, () => source, START, withCookie(guard, source));
  }
  expect(admitted).toBe(PER_SOURCE);
  const elsewhere = "2001:db8:0:2::1";
  expect(admittedOf(guard, 1, () => elsewhere, START, withCookie(guard, elsewhere))).toBe(1);
});

test("a cookie serves for two minutes", () => {
  const guard = makeGuard();
  exhaust(guard);
  const proven = withCookie(guard, "192.0.2.1");
  const [before, at] = [after(START, 119_999), after(START, 120_000)];
  exhaust(guard, before);
  expect(admittedOf(guard, 1, () => "192.0.2.1", before, proven)).toBe(1);
  exhaust(guard, after(at, 1000));
  expect(admittedOf(guard, 1, () => "192.0.2.1", after(at, 1000), proven)).toBe(0);
});

test("handshakes through signalling are never asked for a cookie, since their sender is known", () => {
  const guard = makeGuard();
  exhaust(guard);
  expect(guard.admit(initiation(), undefined, 1, START)).toEqual({ admitted: true });
  expect(guard.admit(flipped(initiation(), 100), undefined, 1, START).admitted).toBe(false);
});

const makeGuard = () => new HandshakeGuard(responder, randomOf("guard"));

const initiation = (mac2?: Mac, mac1: Mac = mac1Of(responder)): Uint8Array =>
  encodeHandshake({ type: "initiation", senderIndex: 0x1234, noise: new Uint8Array(96).fill(3) }, mac1, mac2);

const exhaust = (guard: HandshakeGuard, now: Instant = START): number =>
  admittedOf(guard, UNLOADED, () => "198.51.100.1", now);

function admittedOf(
  guard: HandshakeGuard,
  count: number,
  source: (i: number) => string,
  now: Instant = START,
  bytes: Uint8Array = initiation(),
): number {
  let admitted = 0;
  for (let i = 0; i < count; i++) if (guard.admit(bytes, source(i), 1, now).admitted) admitted++;
  return admitted;
}

function cookieReplyOf(guard: HandshakeGuard, bytes: Uint8Array, source: string): Uint8Array {
  const refused = guard.admit(bytes, source, 0x1234, START);
  if (refused.admitted || refused.cookieReply === undefined) throw new Error("no cookie reply");
  return refused.cookieReply;
}

function withCookie(guard: HandshakeGuard, source: string): Uint8Array {
  const bytes = initiation();
  const packet = decodeHandshake(cookieReplyOf(guard, bytes, source));
  const mac1 = handshakeMacs(bytes)?.mac1;
  if (packet?.type !== "cookie" || mac1 === undefined) throw new Error("no cookie");
  const cookie = openCookie(responder, packet.nonce, mac1, packet.sealed);
  if (cookie === undefined) throw new Error("cookie does not open");
  return initiation(mac2Of(cookie));
}
