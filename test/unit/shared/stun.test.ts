import { readFileSync } from "node:fs";
import { createHmac } from "node:crypto";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  decodeStun,
  encodeStun,
  isClassicStun,
  STUN_BINDING,
  type StunMessage,
  verifyStunIntegrity,
} from "../../../shared/wire/stun.ts";

describe("golden messages", () => {
  test.each(goldenVectors())("$name decodes to what the document says", ({ hex, decoded }) => {
    const { integrity: _, transactionId, ...rest } = decodeStun(fromHex(hex))!;
    expect({ ...rest, transactionId: toHex(transactionId) }).toEqual(decoded);
  });

  test("the question whose answer is to go elsewhere keeps its exact bytes", () => {
    const returnTo = { address: { ip: "198.51.100.7", port: 41_000 }, echo: fromHex("0102030405060708") };
    const bytes = encodeStun({ ...request, username: "token", sequence: 8, returnTo });
    expect(toHex(bytes)).toBe(
      [
        "000100382112a442", // Binding request, length of the attributes, cookie
        "000102030405060708090a0b", // transaction id
        "00060005746f6b656e000000", // USERNAME "token", padded
        "d44d00080000000000000008", // TUNNELMESH-SEQUENCE
        "d44f001a00000000000000000000ffffc6336407a028", // TUNNELMESH-RETURN: packed address
        "01020304050607080000", // and the echo, padded
      ].join(""),
    );
    expect(decodeStun(bytes)?.returnTo).toEqual(returnTo);
  });

  test("our own message keeps its exact bytes", () => {
    const bytes = encodeStun(
      {
        ...request,
        changeRequest: { ip: true, port: false },
        username: "abc",
        sequence: 2 ** 40 + 7,
      },
      { fingerprint: true },
    );
    expect(toHex(bytes)).toBe(
      [
        "000100242112a442", // Binding request, length of the attributes, cookie
        "000102030405060708090a0b", // transaction id
        "0003000400000004", // CHANGE-REQUEST: change ip
        "0006000361626300", // USERNAME "abc", padded
        "d44d00080000010000000007", // TUNNELMESH-SEQUENCE
        "802800046a6e13e8", // FINGERPRINT
      ].join(""),
    );
    expect(decodeStun(bytes)?.fingerprinted).toBe(true);
  });
});

describe("decoding", () => {
  test("every message we can write comes back the same", () => {
    fc.assert(
      fc.property(messages, fc.boolean(), fc.boolean(), (message, signed, fingerprint) => {
        const integrity = signed ? { key, hmacSha256 } : undefined;
        const back = decodeStun(encodeStun(message, { integrity, fingerprint }))!;
        const { unknownRequired, integrity: tag, fingerprinted, ...rest } = back;
        expect(rest).toEqual(message);
        expect([unknownRequired, tag !== undefined, fingerprinted]).toEqual([[], signed, fingerprint]);
        expect(verifyStunIntegrity(back, key, hmacSha256)).toBe(signed);
      }),
    );
  });

  test("random bytes and damaged messages never throw", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => void decodeStun(bytes)));
    fc.assert(
      fc.property(messages, fc.nat(), fc.nat(255), fc.nat(), (message, at, flip, cut) => {
        const bytes = encodeStun(message, { integrity: { key, hmacSha256 }, fingerprint: true });
        bytes[at % bytes.length]! ^= flip;
        decodeStun(bytes);
        decodeStun(bytes.subarray(0, cut % bytes.length));
      }),
    );
  });

  test("a flipped bit anywhere breaks the fingerprint or the framing", () => {
    const bytes = encodeStun({ ...request, software: "x" }, { fingerprint: true });
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const damaged = bytes.slice();
      damaged[bit >> 3]! ^= 1 << (bit & 7);
      // In the fingerprint's own header a flip turns it into an unknown optional attribute: the message is then merely unproven.
      expect(decodeStun(damaged)?.fingerprinted ?? false).toBe(false);
    }
  });

  test("a truncated message is refused", () => {
    const bytes = encodeStun({ ...request, username: "abc" });
    for (let length = 0; length < bytes.length; length++) expect(decodeStun(bytes.subarray(0, length))).toBeUndefined();
  });

  test("attributes after the integrity tag are ignored", () => {
    const signed = encodeStun(request, { integrity: { key, hmacSha256 } });
    const forged = new Uint8Array(signed.length + 8);
    forged.set(signed);
    forged.set([0x00, 0x03, 0x00, 0x04, 0, 0, 0, 6], signed.length);
    forged[3] = forged.length - 20;
    const decoded = decodeStun(forged)!;
    expect(decoded.changeRequest).toBeUndefined();
    expect(verifyStunIntegrity(decoded, key, hmacSha256)).toBe(true);
  });

  test("a tag made with another key, or over other bytes, is refused", () => {
    const bytes = encodeStun({ ...request, sequence: 5 }, { integrity: { key, hmacSha256 } });
    expect(verifyStunIntegrity(decodeStun(bytes)!, new Uint8Array(32), hmacSha256)).toBe(false);
    bytes[31]! ^= 1;
    expect(verifyStunIntegrity(decodeStun(bytes)!, key, hmacSha256)).toBe(false);
  });

  test("the first of two equal attributes counts", () => {
    const bytes = encodeStun({ ...request, username: "one1" });
    const twice = new Uint8Array(bytes.length + 8);
    twice.set(bytes);
    twice.set([0x00, 0x06, 0x00, 0x04, 0x74, 0x77, 0x6f, 0x32], bytes.length);
    twice[3] = twice.length - 20;
    expect(decodeStun(twice)?.username).toBe("one1");
  });

  test("a sequence number of 2^53 or more is refused instead of rounded", () => {
    const bytes = encodeStun({ ...request, sequence: 1 });
    bytes[24] = 0xff;
    expect(decodeStun(bytes)).toBeUndefined();
  });

  test("a message without the cookie is a classic one and keeps all 16 bytes of its id", () => {
    const classic = { ...request, transactionId: new Uint8Array(16).fill(9) };
    const back = decodeStun(encodeStun(classic))!;
    expect(isClassicStun(back)).toBe(true);
    expect(back.transactionId).toEqual(classic.transactionId);
  });
});

const request: StunMessage = {
  class: "request",
  method: STUN_BINDING,
  transactionId: Uint8Array.from({ length: 12 }, (_, i) => i),
};
const key = new Uint8Array(32).fill(7);
const hmacSha256 = (secret: Uint8Array, data: Uint8Array): Uint8Array =>
  Uint8Array.from(createHmac("sha256", secret).update(data).digest());

const address = fc.record({
  ip: fc.oneof(fc.ipV4(), fc.constantFrom("2001:db8::1", "fe80::1:2", "::1", "fd00:1:2:3:4:5:6:7")),
  port: fc.nat(65_535),
});
const messages: fc.Arbitrary<StunMessage> = fc
  .record(
    {
      mappedAddress: address,
      xorMappedAddress: address,
      sourceAddress: address,
      changedAddress: address,
      responseOrigin: address,
      otherAddress: address,
      changeRequest: fc.record({ ip: fc.boolean(), port: fc.boolean() }),
      username: fc.stringMatching(/^[a-z0-9]{0,40}$/),
      software: fc.stringMatching(/^[a-z ]{0,40}$/),
      errorCode: fc.record({ code: fc.integer({ min: 300, max: 699 }), reason: fc.constantFrom("", "Bad Request") }),
      unknownAttributes: fc.array(fc.nat(0xffff), { maxLength: 8 }),
      sequence: fc.maxSafeNat(),
      echo: fc.uint8Array({ minLength: 8, maxLength: 8 }),
      returnTo: fc.record({ address, echo: fc.uint8Array({ minLength: 8, maxLength: 8 }) }),
    },
    { requiredKeys: [] },
  )
  .chain((attributes) =>
    fc
      .record({
        class: fc.constantFrom("request", "indication", "success", "error"),
        method: fc.nat(0xfff),
        transactionId: fc.uint8Array({ minLength: 12, maxLength: 12 }),
      })
      .map((head) => ({ ...head, ...attributes })),
  );

function goldenVectors(): { name: string; hex: string; decoded: unknown }[] {
  return JSON.parse(readFileSync(new URL("../../golden/stun.json", import.meta.url), "utf8")) as never;
}

const fromHex = (hex: string): Uint8Array => Uint8Array.from(Buffer.from(hex, "hex"));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
