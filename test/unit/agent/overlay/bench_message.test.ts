import { expect, test } from "vitest";
import {
  type BenchRequest,
  decodeBenchRequest,
  decodeBenchTotal,
  encodeBenchRequest,
  encodeBenchTotal,
} from "../../../../agent/overlay/bench_message.ts";
import { fromHex, toHex } from "../../../../shared/bytes.ts";

test.each([
  ["0105", { sender: "opener", seconds: 5 }],
  ["023c", { sender: "peer", seconds: 60 }],
] satisfies [string, BenchRequest][])("request %s", (hex, request) => {
  expect(toHex(encodeBenchRequest(request))).toBe(hex);
  expect(decodeBenchRequest(fromHex(`${hex}00ff`))).toEqual(request);
});

test.each(["", "01", "0100", "013d", "0005", "0305"])("request %s is refused", (hex) => {
  expect(decodeBenchRequest(fromHex(hex))).toBeUndefined();
});

test("total", () => {
  const hex = "000000012a05f20000002710";
  expect(toHex(encodeBenchTotal({ bytes: 5_000_000_000, ms: 10_000 }))).toBe(hex);
  expect(decodeBenchTotal(fromHex(hex))).toEqual({ bytes: 5_000_000_000, ms: 10_000 });
  expect(decodeBenchTotal(fromHex(hex.slice(2)))).toBeUndefined();
});
