import { describe, expect, test } from "vitest";
import {
  keepaliveMs,
  LifetimeTest,
  type MappingLifetime,
  SILENCES_S,
} from "../../../../agent/path/mapping_lifetime.ts";
import type { TransportAddress } from "../../../../shared/address.ts";
import { instant } from "../../../../shared/time.ts";

const ECHO = new Uint8Array(8).fill(7);
const DATA: TransportAddress = { ip: "198.51.100.1", port: 5000 };

describe("how long an idle mapping lives", () => {
  test.each([
    [5, 0, 8],
    [10, 8, 12],
    [15, 12, 18],
    [30, 27, 40],
    [50, 40, 60],
    [120, 90, undefined],
  ])("a NAT that forgets after %i s", (lifetimeS, stoodSeconds, fellSeconds) => {
    expect(measured({ lifetimeS }).result).toEqual({ stoodSeconds, fellSeconds });
  });

  test("costs three sockets at most, one at a time, and three minutes", () => {
    for (const lifetimeS of [5, 10, 15, 20, 30, 50, 70, 120]) {
      const run = measured({ lifetimeS });
      expect(run.opened).toBeLessThanOrEqual(3);
      expect(run.datagrams).toBeLessThanOrEqual(3 * (2 + 3 + 1));
      expect(run.endedAtMs).toBeLessThan(200_000);
    }
  });

  test("a socket has had traffic for more than two seconds before it falls silent, as a path has", () => {
    const run = measured({ lifetimeS: 120 });
    const [first = 0, second = 0] = run.askedAtMs;
    expect(second - first).toBeGreaterThan(2000);
  });

  test("one lost datagram of each kind changes nothing", () => {
    expect(measured({ lifetimeS: 30, isFirstLost: true }).result).toEqual({ stoodSeconds: 27, fellSeconds: 40 });
  });

  test("nothing is learned from the silence of a coordinator that is away", () => {
    expect(measured({ lifetimeS: 120, awayFromMs: 10_000 }).result).toBeUndefined();
  });

  test("what was learned before it went away stays", () => {
    expect(measured({ lifetimeS: 120, awayFromMs: 60_000 }).result).toEqual({
      stoodSeconds: 27,
      fellSeconds: undefined,
    });
  });

  test("a coordinator that answers the asker does not know the question, and is not asked again", () => {
    const run = measured({ lifetimeS: 120, isOld: true });
    expect([run.result, run.opened]).toEqual([undefined, 1]);
  });
});

test.each<[string, MappingLifetime | undefined, number]>([
  ["15 s while nothing is known", undefined, 15_000],
  ["15 s while all that is known is that 8 s are not too long", { stoodSeconds: 8, fellSeconds: undefined }, 15_000],
  ["two thirds of what a mapping survives", { stoodSeconds: 27, fellSeconds: 40 }, 18_000],
  ["two thirds of what a mapping survives, if that is little", { stoodSeconds: 12, fellSeconds: 18 }, 8000],
  ["5 s at least: a path in use is proven as often", { stoodSeconds: 0, fellSeconds: 8 }, 5000],
  ["25 s at most", { stoodSeconds: 90, fellSeconds: undefined }, 25_000],
])("a keepalive waits for %s", (_, lifetime, ms) => expect(keepaliveMs(lifetime)).toBeCloseTo(ms, -1));

test("a keepalive never waits for longer than two thirds of a silence that was too long, beyond 8 s", () => {
  SILENCES_S.forEach((fellSeconds, index) => {
    const stoodSeconds = SILENCES_S[index - 1] ?? 0;
    if (index > 0)
      expect(keepaliveMs({ stoodSeconds, fellSeconds })).toBeLessThanOrEqual((2 / 3) * 1000 * stoodSeconds + 1e-6);
  });
});

interface Measured {
  readonly result: MappingLifetime | undefined;
  readonly opened: number;
  readonly datagrams: number;
  readonly endedAtMs: number;
  readonly askedAtMs: readonly number[];
}

/** Runs the test against a NAT that forgets what has been silent for longer, and that preserves ports. */
function measured(options: {
  readonly lifetimeS: number;
  readonly isFirstLost?: boolean;
  readonly awayFromMs?: number;
  readonly isOld?: boolean;
}): Measured {
  let byte = 0;
  const machine = new LifetimeTest({ random: (n) => new Uint8Array(n).fill(++byte), now: instant(0) });
  let [opened, datagrams, now, usedAt] = [0, 0, 0, 0];
  const askedAtMs: number[] = [];
  const lost = new Set<string>();
  const isLost = (kind: string): boolean => {
    if (options.isFirstLost !== true || lost.has(kind)) return now >= (options.awayFromMs ?? Infinity);
    lost.add(kind);
    return true;
  };
  while (!machine.isDone && now < 600_000) {
    for (let action = machine.poll(); action !== undefined; action = machine.poll()) {
      if (action.type === "open") opened++;
      if (action.type === "open" || action.type === "close") continue;
      datagrams++;
      const own: TransportAddress = { ip: DATA.ip, port: 6000 + opened };
      if (action.type === "ask") {
        askedAtMs.push(now);
        usedAt = now;
        if (isLost("ask")) continue;
        machine.handleResponse(action.transactionId, { mapped: own, echo: ECHO }, instant(now));
        continue;
      }
      expect(action.returnTo).toEqual({ address: own, echo: ECHO });
      if (isLost("ask_return")) continue;
      const isRemembered = now - usedAt <= options.lifetimeS * 1000;
      const mapped = options.isOld === true ? DATA : own;
      if (isRemembered || options.isOld === true)
        machine.handleResponse(action.transactionId, { mapped, echo: undefined }, instant(now));
    }
    now = machine.deadline() ?? now;
    machine.handleTimeout(instant(now));
  }
  return { result: machine.result, opened, datagrams, endedAtMs: now, askedAtMs };
}
