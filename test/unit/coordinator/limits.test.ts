import { expect, test } from "vitest";
import { SourceLimits, sourceOf, TokenBucket } from "../../../coordinator/limits.ts";
import { instant } from "../../../shared/time.ts";

const rate = { perSecond: 10, burst: 3 };

test("a bucket gives its burst at once and then its rate", () => {
  const bucket = new TokenBucket(rate, instant(0));
  const take = (at: number) => bucket.take(instant(at));
  expect([0, 0, 0, 0, 99, 100, 101, 200].map(take)).toEqual([true, true, true, false, false, true, false, true]);
});

test("a clock that steps back neither gives nor takes", () => {
  const bucket = new TokenBucket(rate, instant(1000));
  for (let i = 0; i < 3; i++) bucket.take(instant(1000));
  expect(bucket.take(instant(0))).toBe(false);
});

test("the table stays at its size, forgets the idle, and lets newcomers share when all are active", () => {
  const limits = new SourceLimits(rate, 2);
  const take = (source: string, at: number) => limits.take(source, instant(at));
  take("a", 0);
  take("b", 0);
  const strangers = Array.from({ length: 100 }, (_, i) => take(`stranger ${i}`, 0));
  expect([strangers.filter(Boolean).length, limits.size]).toEqual([30, 2]);
  expect(take("c", 10_000)).toBe(true);
  expect(limits.size).toBe(2);
});

test("a source is an IPv4 address or an IPv6 /64", () => {
  expect(sourceOf("::ffff:192.0.2.1")).toBe(sourceOf("192.0.2.1"));
  expect(sourceOf("2001:db8:0:1::1")).toBe(sourceOf("2001:db8:0:1:ffff::2"));
  expect(sourceOf("2001:db8:0:1::1")).not.toBe(sourceOf("2001:db8:0:2::1"));
});
