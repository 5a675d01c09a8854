import * as fc from "fast-check";
import { expect, test } from "vitest";
import { AgentClock } from "../../../../coordinator/signalling/clock.ts";
import { instant } from "../../../../shared/time.ts";

/** One exchange at coordinator time `at` with an agent whose clock is `offset` ahead. */
const exchange = (clock: AgentClock, at: number, offset: number, out: number, held: number, back: number): void =>
  clock.add({
    requestSentAt: instant(at),
    agentReceivedAt: at + out + offset,
    agentSentAt: at + out + held + offset,
    replyReceivedAt: instant(at + out + held + back),
  });

test("with equal delays both ways the offset is exact", () => {
  const clock = new AgentClock();
  exchange(clock, 1000, 123_456, 40, 3, 40);
  expect([clock.toAgent(instant(2000)), clock.toCoordinator(125_456), clock.rttMs]).toEqual([125_456, 2000, 80]);
});

test("the error is never more than half of the shortest round trip seen", () => {
  const delay = fc.double({ min: 0.1, max: 500, noNaN: true });
  fc.assert(
    fc.property(fc.array(fc.tuple(delay, delay), { minLength: 1, maxLength: 8 }), (delays) => {
      const clock = new AgentClock();
      delays.forEach(([out, back], i) => exchange(clock, i * 10_000, 5000, out, 0, back));
      const shortest = Math.min(...delays.map(([out, back]) => out + back));
      expect(Math.abs(clock.toAgent(instant(0)) - 5000)).toBeLessThanOrEqual(shortest / 2 + 1e-6);
    }),
  );
});

test("a sample behind a full queue does not spoil what is known", () => {
  const clock = new AgentClock();
  exchange(clock, 0, 100, 20, 0, 20);
  exchange(clock, 1000, 100, 900, 0, 20);
  expect([clock.toAgent(instant(0)), clock.rttMs, clock.worstRttMs]).toEqual([100, 40, 920]);
});

test("old samples give way, so that a clock that was set anew is followed", () => {
  const clock = new AgentClock();
  exchange(clock, 0, 100, 1, 0, 1);
  for (let i = 1; i <= 8; i++) exchange(clock, i * 1000, 900, 20, 0, 20);
  expect(clock.toAgent(instant(0))).toBe(900);
});

test("an impossible sample is not taken", () => {
  const clock = new AgentClock();
  exchange(clock, 0, 0, 10, -5, 10);
  clock.add({ requestSentAt: instant(0), agentReceivedAt: 0, agentSentAt: 99, replyReceivedAt: instant(20) });
  expect(clock.isKnown).toBe(false);
});
