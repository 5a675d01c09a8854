import { expect, test } from "vitest";
import { ConnectionGuard } from "../../../coordinator/connection_guard.ts";
import { instant } from "../../../shared/time.ts";

const t0 = instant(0);

test("16 connections of one source may stay, 256 in all, and a closed one makes room", () => {
  const guard = new ConnectionGuard();
  const accept = (ip: string, count: number) =>
    Array.from({ length: count }, (_, i) => guard.accept(`${ip}:${i}`, ip, t0)).filter(Boolean).length;
  expect(accept("192.0.2.1", 20)).toBe(16);
  guard.release("192.0.2.1:3");
  guard.release("192.0.2.1:3");
  expect([guard.accept("192.0.2.1:99", "192.0.2.1", t0), guard.accept("192.0.2.1:98", "192.0.2.1", t0)]).toEqual([
    true,
    false,
  ]);
  for (let host = 2; host < 40; host++) accept(`192.0.2.${host}`, 16);
  expect(guard.size).toBe(256);
  expect(guard.accept("198.51.100.1:1", "198.51.100.1", t0)).toBe(false);
});

test("a client that has not asked anything within 5 s is overdue, until it is gone", () => {
  const guard = new ConnectionGuard();
  guard.accept("a", "192.0.2.1", t0);
  guard.accept("b", "192.0.2.1", instant(1000));
  guard.accept("c", "192.0.2.1", instant(1000));
  guard.release("b");
  expect(guard.overdue(instant(4999))).toEqual([]);
  expect(guard.overdue(instant(5000))).toEqual(["a"]);
  expect(guard.overdue(instant(6000))).toEqual(["a", "c"]);
  guard.release("a");
  guard.release("c");
  expect([guard.overdue(instant(9000)), guard.size]).toEqual([[], 0]);
});
