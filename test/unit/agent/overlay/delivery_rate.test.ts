import { describe, expect, test } from "vitest";
import { DeliveryRate } from "../../../../agent/overlay/delivery_rate.ts";
import { instant } from "../../../../shared/time.ts";

const MINIMUM_MS = 10;

describe("a sample of the rate", () => {
  test("is what was delivered since the frame left, over the time it took", () => {
    const delivery = new DeliveryRate();
    const first = delivery.handleSent(0, instant(0));
    const second = delivery.handleSent(1000, instant(1));
    expect(delivery.handleAcked(1000, first, instant(0), MINIMUM_MS, instant(10))?.bytesPerMs).toBe(100);
    const third = delivery.handleSent(1000, instant(10));
    delivery.handleAcked(1000, second, instant(1), MINIMUM_MS, instant(11));
    expect(delivery.handleAcked(1000, third, instant(10), MINIMUM_MS, instant(30))?.bytesPerMs).toBe(100);
  });

  test("is no higher than the rate of sending, when acks come all at once", () => {
    const delivery = new DeliveryRate();
    const states = [0, 10, 20, 30].map((at) => ({ at: instant(at), state: delivery.handleSent(at, instant(at)) }));
    const rates = states.map(
      ({ at, state }) => delivery.handleAcked(1000, state, at, MINIMUM_MS, instant(40))?.bytesPerMs ?? 0,
    );
    expect(Math.max(...rates)).toBeLessThanOrEqual(100);
  });

  test("is none in less than a round trip", () => {
    const delivery = new DeliveryRate();
    const state = delivery.handleSent(0, instant(0));
    expect(delivery.handleAcked(1000, state, instant(0), MINIMUM_MS, instant(9))).toBeUndefined();
  });

  test("is the program's own until what was under way when it had no more has arrived", () => {
    const delivery = new DeliveryRate();
    const first = delivery.handleSent(0, instant(0));
    delivery.handleNothingToSend(1000);
    const second = delivery.handleSent(1000, instant(5));
    expect([first, second].map((state) => state.isProgramLimited)).toEqual([false, true]);
    delivery.handleAcked(1000, first, instant(0), MINIMUM_MS, instant(10));
    expect(delivery.handleSent(1000, instant(11)).isProgramLimited).toBe(false);
  });
});
