import { expect, test } from "vitest";
import { Delivery } from "../../../../agent/path/delivery.ts";
import { instant } from "../../../../shared/time.ts";

const at = (ms: number) => instant(100_000 + ms);
const large = (packets: number) => ({ small: 0, large: packets });

test("packets of a flow that goes on unreported are told, with the time of the oldest", () => {
  const delivery = new Delivery();
  delivery.onReport(large(1));
  for (let ms = 0; ms <= 500; ms += 100) delivery.onSent(large(10), at(ms));
  expect(delivery.silentSince(6, 440)).toBe(at(0));
  delivery.onReport(large(5));
  expect(delivery.silentSince(6, 440)).toBeUndefined();
});

test("the last packets of a flow, counted after the report about them, do not make a later flow look lost", () => {
  const delivery = new Delivery();
  delivery.onSent(large(50), at(0));
  delivery.onReport(large(3000));
  // The report was of all 3000; our own count of the last ones comes after it.
  delivery.onSent(large(2950), at(100));
  delivery.onSent(large(2), at(2300));
  expect(delivery.silentSince(4, 140)).toBeUndefined();
  delivery.onReport(large(3002));
  expect(delivery.silentSince(4, 140)).toBeUndefined();
});

test("a receiver that has never reported says nothing by silence", () => {
  const delivery = new Delivery();
  for (let ms = 0; ms <= 900; ms += 100) delivery.onSent(large(10), at(ms));
  expect(delivery.silentSince(6, 440)).toBeUndefined();
});
