import { expect, test } from "vitest";
import { after, instant } from "../../../../shared/time.ts";
import { CounterOrder, PathSwitch } from "../../../../agent/data/path_switch.ts";

const T0 = instant(1000);
const bytes = (n: number): Uint8Array => Uint8Array.of(n);

test("what the new path brings waits for the fence of the old one, and then goes in the order of its counters", () => {
  const pathSwitch = new PathSwitch();
  expect(pathSwitch.begin(7, "new", 0, T0)).toEqual([]);
  expect([pathSwitch.holds("new", 12, bytes(12)), pathSwitch.holds("new", 11, bytes(11))]).toEqual([true, true]);
  expect(pathSwitch.holds("old", 10, bytes(10))).toBe(false);
  expect(pathSwitch.fence(7)).toEqual([bytes(11), bytes(12)]);
  expect([pathSwitch.holds("new", 13, bytes(13)), pathSwitch.deadline]).toEqual([false, undefined]);
});

test("a fence that came first leaves nothing to wait for", () => {
  const pathSwitch = new PathSwitch();
  pathSwitch.fence(3);
  pathSwitch.begin(3, "new", 0, T0);
  expect(pathSwitch.holds("new", 1, bytes(1))).toBe(false);
});

test("a lost fence costs at most 400 ms, and is counted", () => {
  const pathSwitch = new PathSwitch();
  pathSwitch.begin(1, "new", 0, T0);
  pathSwitch.holds("new", 1, bytes(1));
  expect(pathSwitch.overdue(after(T0, 399))).toEqual([]);
  expect(pathSwitch.deadline).toBe(after(T0, 400));
  expect(pathSwitch.overdue(after(T0, 400))).toEqual([bytes(1)]);
  expect(pathSwitch.lateFences).toBe(1);
});

test("the sender says how long its old path may take, and 400 ms are the most", () => {
  for (const [asked, waited] of [
    [200, 200],
    [60_000, 400],
  ] as const) {
    const pathSwitch = new PathSwitch();
    pathSwitch.begin(1, "new", asked, T0);
    expect(pathSwitch.deadline).toBe(after(T0, waited));
  }
});

test("memory is bounded: more than 16 MiB is given up at once", () => {
  const pathSwitch = new PathSwitch();
  pathSwitch.begin(1, "new", 0, T0);
  const large = new Uint8Array(60_000);
  let held = 0;
  while (pathSwitch.overdue(T0).length === 0 && held < 1000) {
    pathSwitch.holds("new", held, large);
    held++;
  }
  expect(held).toBe(Math.ceil((16 * 1024 * 1024 + 1) / large.length));
});

test("a second switch lets go what the first still held", () => {
  const pathSwitch = new PathSwitch();
  pathSwitch.begin(1, "a", 0, T0);
  pathSwitch.holds("a", 1, bytes(1));
  expect(pathSwitch.begin(2, "b", 0, T0)).toEqual([bytes(1)]);
});

test("while our own leg changes, frames go out in the order of their counters, whatever leg they came by", () => {
  const order = new CounterOrder();
  order.start(10, T0);
  expect(order.accept(11, bytes(11), T0)).toEqual([]);
  expect(order.accept(13, bytes(13), T0)).toEqual([]);
  expect(order.accept(10, bytes(10), T0)).toEqual([bytes(10), bytes(11)]);
  // 12 is a probe: it fills the gap without being data.
  expect(order.accept(12, undefined, T0)).toEqual([bytes(13)]);
  expect(order.accept(14, bytes(14), T0)).toEqual([bytes(14)]);
});

test("a frame that is lost while our leg changes is waited for 400 ms, once", () => {
  const order = new CounterOrder();
  order.start(10, T0);
  order.accept(11, bytes(11), T0);
  expect(order.overdue(after(T0, 399))).toEqual([]);
  expect(order.overdue(after(T0, 400))).toEqual([bytes(11)]);
  expect(order.accept(12, bytes(12), after(T0, 401))).toEqual([bytes(12)]);
  expect(order.accept(10, bytes(10), after(T0, 402))).toEqual([bytes(10)]);
  order.overdue(after(T0, 1500));
  expect(order.isActive).toBe(false);
});
