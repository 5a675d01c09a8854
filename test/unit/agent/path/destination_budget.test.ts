import { expect, test } from "vitest";
import { DestinationBudget } from "../../../../agent/path/destination_budget.ts";
import { instant } from "../../../../shared/time.ts";

test("sixty at once, then twenty a second, however many ask", () => {
  const budget = new DestinationBudget();
  const taken = (at: number, tries: number): number =>
    Array.from({ length: tries }, () => budget.take("192.0.2.1", instant(at))).filter(Boolean).length;
  expect(taken(0, 1000)).toBe(60);
  expect(taken(1000, 1000)).toBe(20);
  expect(taken(1050, 1000)).toBe(1);
  expect(taken(3_600_000, 1000)).toBe(60);
});

test("one address costs another nothing", () => {
  const budget = new DestinationBudget();
  for (let i = 0; i < 100; i++) budget.take("192.0.2.1", instant(0));
  expect(budget.take("192.0.2.2", instant(0))).toBe(true);
});

test("a table full of addresses lets no new one in until one has rested", () => {
  const budget = new DestinationBudget();
  for (let i = 0; i < 1024; i++) expect(budget.take(`10.0.${i >> 8}.${i & 255}`, instant(0))).toBe(true);
  expect(budget.take("192.0.2.1", instant(0))).toBe(false);
  expect(budget.take("10.0.0.0", instant(0))).toBe(true);
  expect(budget.take("192.0.2.1", instant(10_000))).toBe(true);
});
