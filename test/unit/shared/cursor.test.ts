import * as fc from "fast-check";
import { expect, test } from "vitest";
import { Reader, Writer } from "../../../shared/wire/cursor.ts";

test("what was written is read back", () => {
  const u = (maximum: number) => fc.nat(maximum);
  fc.assert(
    fc.property(u(0xff), u(0xffff), fc.nat(0xffff_ffff), fc.maxSafeNat(), fc.uint8Array(), (a, b, c, d, bytes) => {
      const reader = new Reader(new Writer(1).u8(a).u16(b).u32(c).u64(d).zeros(3).bytes(bytes).finish());
      expect([reader.u8(), reader.u16(), reader.u32(), reader.u64()]).toEqual([a, b, c, d]);
      reader.skip(3);
      expect([reader.rest(), reader.remaining, reader.failed]).toEqual([bytes, 0, false]);
    }),
  );
});

test("a read past the end gives zeros, fails, and stays failed", () => {
  const reader = new Reader(Uint8Array.of(1, 2, 3));
  expect([reader.u16(), reader.u16(), reader.u8(), reader.bytes(1).length, reader.rest().length]).toEqual([
    0x0102, 0, 0, 0, 0,
  ]);
  expect(reader.failed).toBe(true);
});

test("lengths that are no lengths fail instead of moving backwards", () => {
  for (const length of [-1, 1.5, Number.NaN, Infinity]) {
    const reader = new Reader(new Uint8Array(8));
    expect([reader.bytes(length).length, reader.failed, reader.offset]).toEqual([0, true, 0]);
  }
});

test("a u64 that a number cannot hold is a failed read", () => {
  const reader = new Reader(Uint8Array.of(0, 0x20, 0, 0, 0, 0, 0, 0));
  expect([reader.u64(), reader.failed]).toEqual([0, true]);
});

test("writing what does not fit is our own bug and throws", () => {
  expect(() => new Writer().u8(256)).toThrow(RangeError);
  expect(() => new Writer().u16(-1)).toThrow(RangeError);
  expect(() => new Writer().u64(2 ** 53)).toThrow(RangeError);
  expect(() => new Writer().setU16(0, 1)).toThrow(RangeError);
});
