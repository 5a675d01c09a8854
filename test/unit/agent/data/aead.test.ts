/** One suite for both libraries: what one seals the other opens, byte for byte, and neither opens anything else. */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type AeadFactory, createNodeAead } from "../../../../agent/data/aead.ts";
import { loadLibcryptoAead } from "../../../../agent/driver/linux/libcrypto.ts";
import { toHex } from "../../../../shared/bytes.ts";
import { aeadSeal, counterNonce } from "../../../../shared/session/primitives.ts";
import { FRAME_HEADER_BYTES, FRAME_TAG_BYTES, writeFrameHeader } from "../../../../shared/wire/frame.ts";
import { epochKeys } from "./planes.ts";

const libcrypto = loadLibcryptoAead();
if (libcrypto === undefined) console.log("AES-256-GCM of libcrypto is not tested: the library was not found");
const factories: [string, AeadFactory][] = [["node:crypto", createNodeAead]];
if (libcrypto !== undefined) factories.push(["libcrypto", libcrypto]);

describe.each(factories)("%s", (_name, create) => {
  const { a, b } = epochKeys(0);

  test("seals to the bytes of the session's own AEAD, whatever the place and the length", () => {
    const aead = create(a);
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 1, maxLength: 3000 }),
        fc.integer({ min: 0, max: 2 ** 52 }),
        fc.nat(40),
        (plaintext, counter, at) => {
          const source = new Uint8Array(at + plaintext.length + 5);
          source.set(plaintext, at);
          const frame = new Uint8Array(at + FRAME_HEADER_BYTES + plaintext.length + FRAME_TAG_BYTES + 3).fill(0xee);
          writeFrameHeader(frame, a.remoteIndex, counter, at);
          const header = frame.slice(at, at + FRAME_HEADER_BYTES);
          expect(aead.seal(counter, source, at, plaintext.length, frame, at)).toBe(true);
          const sealed = aeadSeal(a.sendKey, counterNonce(counter), header, plaintext);
          const end = at + FRAME_HEADER_BYTES + sealed.length;
          expect(toHex(frame.subarray(at + FRAME_HEADER_BYTES, end))).toBe(toHex(sealed));
          expect([...frame.subarray(0, at), ...frame.subarray(end)].every((byte) => byte === 0xee)).toBe(true);
        },
      ),
      { numRuns: 200 },
    );
    aead.close();
  });

  test("opens what any of them sealed, in place, and nothing with a bit changed", () => {
    for (const [, other] of factories) {
      const [sealer, opener] = [other(a), create(b)];
      const plaintext = Uint8Array.from({ length: 70 }, (_, i) => i);
      const frame = new Uint8Array(FRAME_HEADER_BYTES + plaintext.length + FRAME_TAG_BYTES);
      writeFrameHeader(frame, a.remoteIndex, 77);
      sealer.seal(77, plaintext, 0, plaintext.length, frame, 0);
      for (let bit = 0; bit < frame.length * 8; bit++) {
        const forged = frame.slice();
        forged[bit >> 3] = (forged[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        expect(opener.open(77, forged, 0, forged.length)).toBe(false);
      }
      expect(opener.open(78, frame.slice(), 0, frame.length)).toBe(false);
      expect(opener.open(77, frame, 0, frame.length)).toBe(true);
      expect(frame.subarray(FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + 70)).toEqual(plaintext);
      sealer.close();
      opener.close();
    }
  });

  test("seals and opens nothing once it is closed", () => {
    if (create === createNodeAead) return;
    const aead = create(a);
    aead.close();
    aead.close();
    expect(aead.seal(1, new Uint8Array(10), 0, 10, new Uint8Array(60), 0)).toBe(false);
    expect(aead.open(1, new Uint8Array(60), 0, 60)).toBe(false);
  });
});
