import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Reader, Writer } from "../../../../shared/wire/cursor.ts";

const field = fc.oneof(
  fc.record({ type: fc.constant("u8" as const), value: fc.integer({ min: 0, max: 0xff }) }),
  fc.record({ type: fc.constant("u16" as const), value: fc.integer({ min: 0, max: 0xffff }) }),
  fc.record({ type: fc.constant("u32" as const), value: fc.integer({ min: 0, max: 0xffff_ffff }) }),
  fc.record({ type: fc.constant("u64" as const), value: fc.maxSafeInteger().map(Math.abs) }),
  fc.record({ type: fc.constant("bytes" as const), value: fc.uint8Array({ maxLength: 40 }) }),
);

test("what was written is read back, in order, and nothing is left", () => {
  fc.assert(
    fc.property(fc.array(field, { maxLength: 30 }), (fields) => {
      const writer = new Writer(1);
      for (const { type, value } of fields) {
        if (type === "bytes") writer.bytes(value);
        else writer[type](value);
      }
      const reader = new Reader(writer.finish());
      for (const { type, value } of fields) {
        if (type === "bytes") expect(reader.bytes(value.length)).toEqual(value);
        else expect(reader[type]()).toBe(value);
      }
      expect([reader.remaining, reader.failed]).toEqual([0, false]);
    }),
  );
});

describe("a reader", () => {
  test("that was asked for too much has failed for good, and gives zeros", () => {
    const reader = new Reader(Uint8Array.of(1, 2, 3));
    expect([reader.u16(), reader.u32(), reader.failed]).toEqual([0x0102, 0, true]);
    expect([reader.u8(), reader.u64(), reader.bytes(1).length, reader.rest().length, reader.offset]).toEqual([
      0, 0, 0, 0, 2,
    ]);
  });

  test("refuses a 64-bit number that a plain number cannot hold", () => {
    const reader = new Reader(Uint8Array.of(0, 0x20, 0, 0, 0, 0, 0, 0));
    expect([reader.u64(), reader.failed]).toEqual([0, true]);
  });

  test.each([-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY])("fails on a length of %d", (length) => {
    const reader = new Reader(new Uint8Array(8));
    reader.bytes(length);
    expect(reader.failed).toBe(true);
  });
});

describe("a writer throws on what does not fit, since that is our own bug", () => {
  test.each([
    ["u8", 256],
    ["u16", -1],
    ["u32", 2 ** 32],
    ["u64", 2 ** 53],
    ["u8", 1.5],
  ] as const)("%s of %d", (type, value) => expect(() => new Writer()[type](value)).toThrow(RangeError));

  test("and a late length must lie inside what was written", () => {
    const writer = new Writer().u16(0);
    writer.setU16(0, 7);
    expect(writer.finish()).toEqual(Uint8Array.of(0, 7));
    expect(() => writer.setU16(1, 7)).toThrow(RangeError);
  });
});
