import { describe, expect, test } from "vitest";
import { after, instant } from "../../../../shared/time.ts";
import { ReplayWindow } from "../../../../shared/session/replay_window.ts";
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

describe("a second switch, before the fence of the first has come", () => {
  /** From `a` to `b`, which has brought 2, to `c`, which has brought 3. The old path `a` is to bring 1. */
  function twice(): PathSwitch {
    const pathSwitch = new PathSwitch();
    pathSwitch.begin(1, "b", 0, T0);
    pathSwitch.holds("b", 2, bytes(2));
    expect(pathSwitch.begin(2, "c", 0, after(T0, 100))).toEqual([]);
    expect([pathSwitch.holds("a", 1, bytes(1)), pathSwitch.holds("c", 3, bytes(3))]).toEqual([false, true]);
    return pathSwitch;
  }

  test("waits for that too, whichever of the two fences comes first", () => {
    const inOrder = twice();
    expect([inOrder.fence(1), inOrder.holds("b", 4, bytes(4)), inOrder.fence(2)]).toEqual([
      [bytes(2)],
      false,
      [bytes(3)],
    ]);
    const other = twice();
    expect([other.fence(2), other.fence(1), other.deadline]).toEqual([[], [bytes(2), bytes(3)], undefined]);
  });

  test("waits for it when its own fence came before its begin", () => {
    const pathSwitch = new PathSwitch();
    pathSwitch.begin(1, "b", 0, T0);
    pathSwitch.fence(2);
    expect(pathSwitch.begin(2, "c", 0, T0)).toEqual([]);
    expect(pathSwitch.holds("c", 3, bytes(3))).toBe(true);
    expect(pathSwitch.fence(1)).toEqual([bytes(3)]);
  });

  test("waits no longer than that fence may take", () => {
    const pathSwitch = twice();
    expect(pathSwitch.overdue(after(T0, 400))).toEqual([bytes(2)]);
    expect([pathSwitch.deadline, pathSwitch.lateFences]).toEqual([after(T0, 500), 1]);
    const hasFence = twice();
    hasFence.fence(2);
    expect(hasFence.overdue(after(T0, 400))).toEqual([bytes(2), bytes(3)]);
    expect([hasFence.deadline, hasFence.lateFences]).toEqual([undefined, 1]);
  });

  test("and more than four of them are given up", () => {
    const pathSwitch = new PathSwitch();
    for (const [id, source] of ["b", "c", "d", "e"].entries()) {
      pathSwitch.begin(id, source, 0, T0);
      pathSwitch.holds(source, id, bytes(id));
    }
    expect(pathSwitch.begin(4, "f", 0, T0)).toEqual([bytes(0), bytes(1), bytes(2), bytes(3)]);
    expect(pathSwitch.holds("f", 4, bytes(4))).toBe(true);
  });
});

/** The old leg and the new one. */
const OLD = 4;
const NEW = 5;

/** An order that begins after everything below `next` has come by the old leg. */
function orderFrom(next: number) {
  const window = new ReplayWindow();
  const order = new CounterOrder(window);
  const receive = (counter: number, leg: number, hasData = true): readonly Uint8Array[] | undefined => {
    window.accept(counter);
    return order.accept(counter, leg, bytes(counter), 0, hasData ? 1 : 0, T0);
  };
  for (let counter = 0; counter < next; counter++) receive(counter, OLD);
  order.start(T0);
  return { window, order, receive };
}

test("while our own leg changes, frames go out in the order of their counters, whatever leg they came by", () => {
  const { order, window, receive } = orderFrom(10);
  expect(receive(13, NEW)).toEqual([]);
  expect(receive(14, NEW)).toEqual([]);
  expect(receive(10, OLD)).toEqual([bytes(10)]);
  // 11 is a probe: it fills the gap without being data.
  window.accept(11);
  expect(order.handleOther()).toEqual([]);
  expect(receive(12, OLD)).toEqual([bytes(12), bytes(13), bytes(14)]);
  expect(receive(15, NEW)).toBeUndefined();
});

test("a probe that was the last missing frame lets go what waited", () => {
  const { order, window, receive } = orderFrom(10);
  receive(11, NEW);
  window.accept(10);
  expect(order.handleOther()).toEqual([bytes(11)]);
});

test("frames in order pass as they are, with no copy: before our leg changes, at the change and after it", () => {
  const { receive } = orderFrom(10);
  expect([10, 11].map((counter) => receive(counter, OLD))).toEqual([undefined, undefined]);
  expect([12, 13].map((counter) => receive(counter, NEW))).toEqual([undefined, undefined]);
});

test("after an outage the first frame goes out at once by whatever leg, and the order is kept from there on", () => {
  const { order, receive } = orderFrom(10);
  order.start(T0, true);
  expect(receive(50, NEW)).toBeUndefined();
  expect(receive(53, OLD)).toEqual([]);
  expect([51, 52].map((counter) => receive(counter, NEW))).toEqual([[bytes(51)], [bytes(52), bytes(53)]]);
});

test("a frame lost on the only leg in use is not waited for, and passes if it comes all the same", () => {
  const { order, receive } = orderFrom(10);
  expect([11, 12, 10].map((counter) => receive(counter, OLD))).toEqual([undefined, undefined, undefined]);
  expect([14, 16].map((counter) => receive(counter, NEW))).toEqual([[], []]);
  expect(receive(13, OLD)).toEqual([bytes(13), bytes(14), bytes(16)]);
  expect(order.gapsGivenUp).toBe(0);
});

test("the old leg keeps the order too: what is missing before a frame that it brings is not waited for", () => {
  const { order, receive } = orderFrom(10);
  expect(receive(13, NEW)).toEqual([]);
  expect(receive(11, OLD)).toEqual([bytes(11)]);
  expect(receive(12, OLD)).toEqual([bytes(12), bytes(13)]);
  expect(order.gapsGivenUp).toBe(0);
});

test("the last frames of the old leg, when they are lost, are waited for 400 ms, once", () => {
  const { order, receive } = orderFrom(10);
  receive(12, NEW);
  expect(order.overdue(after(T0, 399))).toEqual([]);
  expect(order.deadline).toBe(after(T0, 400));
  expect(order.overdue(after(T0, 400))).toEqual([bytes(12)]);
  expect([13, 15, 10].map((counter) => receive(counter, NEW))).toEqual([undefined, undefined, undefined]);
  expect(order.gapsGivenUp).toBe(1);
  order.overdue(after(T0, 1500));
  expect(order.isActive).toBe(false);
});

test("where the sender's leg changes as well, frames of both its legs come by one of ours, and wait for the fence", () => {
  const { order, receive } = orderFrom(10);
  order.awaitFence(12);
  expect(receive(12, OLD, false)).toEqual([]);
  expect(receive(13, OLD)).toEqual([]);
  expect(receive(10, OLD)).toEqual([bytes(10)]);
  expect(receive(11, OLD, false)).toEqual([bytes(13)]);
});

test("the fence ends the wait for what was lost before it", () => {
  const { order, receive } = orderFrom(10);
  order.awaitFence(13);
  receive(13, OLD, false);
  receive(14, OLD);
  expect(receive(11, OLD)).toEqual([]);
  expect(receive(12, OLD, false)).toEqual([]);
  expect(order.handleFence()).toEqual([bytes(11), bytes(14)]);
});

test("legs that change twice at once: nothing is taken for lost that either old leg may still bring", () => {
  const { receive } = orderFrom(10);
  const THIRD = 6;
  expect(receive(12, NEW)).toEqual([]);
  expect(receive(14, THIRD)).toEqual([]);
  expect(receive(13, NEW)).toEqual([]);
  expect(receive(10, OLD)).toEqual([bytes(10)]);
  expect(receive(11, OLD)).toEqual([bytes(11), bytes(12), bytes(13), bytes(14)]);
});

test("what waits for the old leg is bounded: more than 16 MiB is given up at once", () => {
  const window = new ReplayWindow();
  const order = new CounterOrder(window);
  order.start(T0);
  const large = new Uint8Array(60_000);
  let counter = 1;
  let released: readonly Uint8Array[] | undefined = [];
  while (released?.length === 0 && counter < 1000) {
    window.accept(counter);
    released = order.accept(counter++, NEW, large, 0, large.length, T0);
  }
  expect(released).toHaveLength(Math.ceil((16 * 1024 * 1024 + 1) / large.length));
});
