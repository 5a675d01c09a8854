import { expect, test } from "vitest";
import { Delivery } from "../../../../agent/path/delivery.ts";
import { instant } from "../../../../shared/time.ts";

const at = (ms: number) => instant(100_000 + ms);
const large = (packets: number) => ({ small: 0, large: packets });

test("packets of a flow that goes on unreported are told, with the time of the oldest", () => {
  const delivery = new Delivery();
  delivery.onReport(large(1), at(-100));
  for (let ms = 0; ms <= 500; ms += 100) delivery.onSent(large(10), at(ms));
  expect(delivery.silence(6, 440)).toEqual({ since: at(0), latest: at(500) });
  delivery.onReport(large(5), at(450));
  expect(delivery.silence(6, 440)).toBeUndefined();
});

test("the last packets of a flow, counted after the report about them, do not make a later flow look lost", () => {
  const delivery = new Delivery();
  delivery.onSent(large(50), at(0));
  delivery.onReport(large(3000), at(50));
  // The report was of all 3000; our own count of the last ones comes after it.
  delivery.onSent(large(2950), at(100));
  delivery.onSent(large(2), at(2300));
  expect(delivery.silence(4, 140)).toBeUndefined();
  delivery.onReport(large(3002), at(2350));
  expect(delivery.silence(4, 140)).toBeUndefined();
});

test("a receiver that has never reported says nothing by silence", () => {
  const delivery = new Delivery();
  for (let ms = 0; ms <= 900; ms += 100) delivery.onSent(large(10), at(ms));
  expect(delivery.silence(6, 440)).toBeUndefined();
});

test("what left too late for a report to tell of it is silent from its own sending on, not from the report", () => {
  const delivery = new Delivery();
  for (let ms = 0; ms <= 400; ms += 100) delivery.onSent(large(1), at(ms));
  // The path died at 50 ms; the report of the packet before comes a round trip later.
  delivery.onReport(large(1), at(20));
  expect(delivery.silence(3, 150)).toEqual({ since: at(100), latest: at(400) });
});

test("what never stops unreported takes no more memory for it, and stays silent from the first on", () => {
  const delivery = new Delivery();
  delivery.onReport(large(1), at(0));
  for (let ms = 0; ms <= 60_000; ms += 100) delivery.onSent(large(1), at(ms));
  expect(delivery.silence(600, 1000)?.since).toBe(at(0));
});
