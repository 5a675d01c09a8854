import * as fc from "fast-check";
import { expect, test } from "vitest";
import {
  compareBytes,
  concatBytes,
  equalBytes,
  fromBase32,
  fromBase64,
  fromHex,
  toBase32,
  toBase64,
  toHex,
  utf8,
  utf8Text,
} from "../../../shared/bytes.ts";

const bytes = fc.uint8Array({ maxLength: 80 });

test("every text form gives back the bytes that went in", () => {
  fc.assert(
    fc.property(bytes, (value) => {
      expect(fromHex(toHex(value))).toEqual(value);
      expect(fromBase64(toBase64(value))).toEqual(value);
      expect(fromBase32(toBase32(value))).toEqual(value);
      expect(toBase32(value)).toMatch(/^[a-z2-7]*$/);
    }),
  );
});

test.each([
  ["", ""],
  ["f", "my"],
  ["fo", "mzxq"],
  ["foo", "mzxw6"],
  ["foob", "mzxw6yq"],
  ["fooba", "mzxw6ytb"],
  ["foobar", "mzxw6ytboi"],
])("base32 of %j is %j, as in RFC 4648 §10", (text, encoded) => {
  expect(toBase32(utf8(text))).toBe(encoded);
  expect(fromBase32(encoded)).toEqual(utf8(text));
});

test("what is no base32, base64 or UTF-8 is undefined, never an exception", () => {
  for (const text of ["A", "1", "a b", "ä", "a="]) expect(fromBase32(text), text).toBeUndefined();
  for (const text of ["!", "a", "ä", "abc=d"]) expect(fromBase64(text), text).toBeUndefined();
  expect(utf8Text(Uint8Array.of(0xff, 0xfe))).toBeUndefined();
  fc.assert(
    fc.property(fc.string({ unit: "binary-ascii" }), (text) => {
      expect(fromBase32(text) ?? new Uint8Array()).toBeInstanceOf(Uint8Array);
      expect(fromBase64(text) ?? new Uint8Array()).toBeInstanceOf(Uint8Array);
    }),
    { numRuns: 30 },
  );
});

test("UTF-8 keeps text", () => {
  fc.assert(
    fc.property(fc.string({ unit: "grapheme" }), (text) => {
      expect(utf8Text(utf8(text))).toBe(text);
    }),
  );
});

test("comparison is an order, and says equal where equality does", () => {
  fc.assert(
    fc.property(bytes, bytes, (a, b) => {
      expect(Math.sign(compareBytes(a, b)) + Math.sign(compareBytes(b, a))).toBe(0);
      expect(compareBytes(a, b) === 0).toBe(equalBytes(a, b));
      expect(equalBytes(a, Uint8Array.from(a))).toBe(true);
      expect(compareBytes(a, concatBytes(a, Uint8Array.of(0)))).toBeLessThan(0);
    }),
  );
});

test("joining keeps order and length", () => {
  fc.assert(
    fc.property(fc.array(bytes, { maxLength: 5 }), (parts) => {
      expect([...concatBytes(...parts)]).toEqual(parts.flatMap((part) => [...part]));
    }),
  );
});
