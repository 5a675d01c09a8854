import { describe, expect, test } from "vitest";
import type { TransportAddress } from "../../../../shared/address.ts";
import { instant } from "../../../../shared/time.ts";
import { BASE_BYTES, direct, OTHER, PUBLIC } from "./paths_bench.ts";

describe("a path in use", () => {
  test("is proven anew every five seconds; out of use it is kept alive every fifteen", () => {
    const bench = direct(40);
    const answerAll = (): void => {
      if (bench.sent.at(-1)?.type === "probe") bench.answer(PUBLIC, { answered: true });
    };
    const countIn = (milliseconds: number): number => {
      const before = bench.sent.length;
      bench.pass(milliseconds, answerAll);
      return bench.sent.length - before;
    };
    countIn(10_000);
    expect(countIn(60_000)).toBe(12);
    bench.do((paths, now) => paths.setInUse(false, now));
    countIn(20_000);
    expect(countIn(60_000)).toBe(4);
  });

  test.each([5, 50, 100])("dies within a second and a bit of unanswered traffic at %i ms round trip", (roundTripMs) => {
    const bench = direct(roundTripMs);
    bench.pass(1000);
    const since = bench.now;
    bench.do((paths, now) => paths.handleSent(now));
    bench.pass(3000);
    const died = bench.selections.find(({ pair }) => pair === undefined);
    expect(died?.reason).toBe("the path stopped answering");
    expect((died?.at ?? Infinity) - since).toBeLessThanOrEqual(300 + 2.25 * roundTripMs + 370 + 50);
    expect((died?.at ?? 0) - since).toBeGreaterThan(500);
  });

  test("does not die of one-way traffic as long as probes are answered, and probes at most thrice a second", () => {
    const bench = direct(40);
    for (let i = 0; i < 300; i++) {
      bench.do((paths, now) => paths.handleSent(now));
      bench.pass(100, () => {
        if (bench.sent.at(-1)?.type === "probe") bench.answer(PUBLIC, { answered: true });
      });
    }
    expect(bench.paths.selected?.remote).toEqual(PUBLIC);
    expect(bench.probesTo(PUBLIC).filter(({ at }) => at > 5000).length).toBeLessThanOrEqual(25 * 4);
  });

  test("is not probed for traffic that is answered by traffic", () => {
    const bench = direct(40);
    const before = bench.sent.length;
    for (let i = 0; i < 40; i++) {
      bench.do((paths, now) => paths.handleSent(now));
      bench.pass(50);
      bench.received(PUBLIC);
      bench.pass(50);
    }
    expect(bench.sent.length - before).toBe(0);
  });

  test("never probes faster than each 70 ms while it lives, whatever it hears meanwhile", () => {
    const bench = direct(40);
    for (let i = 0; i < 3000; i++) {
      bench.received(PUBLIC);
      bench.pass(10);
    }
    const death = bench.selections.find(({ pair }) => pair === undefined)?.at ?? Number.POSITIVE_INFINITY;
    const times = bench
      .probesTo(PUBLIC)
      .map(({ at }) => at)
      .filter((at) => at > 1000 && at < death);
    expect(times.length).toBeGreaterThan(3);
    times.slice(1).forEach((at, index) => expect(at - (times[index] ?? 0)).toBeGreaterThanOrEqual(70));
  });

  test("is proven each 400 ms while data moves, also when this side only receives, and no longer 2 s after", () => {
    const bench = direct(40);
    bench.do((paths, now) => paths.handleTraffic(NONE, SMALL, now));
    const before = bench.probesTo(PUBLIC).length;
    bench.pass(3000, () => {
      if (bench.probesTo(PUBLIC).at(-1)?.at === bench.now) bench.answer(PUBLIC);
    });
    expect(bench.probesTo(PUBLIC).length - before).toBeGreaterThanOrEqual(4);
    expect(bench.probesTo(PUBLIC).length - before).toBeLessThanOrEqual(6);
  });

  test("that only lets small packets through is left, and taken again only by large proof", () => {
    const bench = direct(40);
    for (let i = 0; i < 300 && bench.paths.selected !== undefined; i++) {
      bench.do((paths, now) => paths.handleTraffic(NONE, { small: 0, large: 1 }, now));
      bench.received(PUBLIC);
      bench.pass(10);
    }
    expect(bench.selections.at(-1)?.reason).toBe("large packets do not get through");
    bench.pass(5000);
    expect(bench.sent.at(-1)?.frameBytes).toBe(BASE_BYTES);
  });

  test("that has become narrower carries on with smaller frames, within a second", () => {
    const bench = direct(40);
    bench.pass(0);
    bench.answerSizes(1472, PUBLIC);
    expect(bench.paths.selected?.mtu.size).toBe(1472);
    // From here on 1400 bytes pass, and nobody says so.
    let since: number | undefined;
    for (let i = 0; i < 300; i++) {
      bench.do((paths, now) => paths.handleTraffic({ small: 0, large: 1 }, NONE, now));
      bench.pass(10);
      const asked = bench.sent.at(-1);
      if (asked?.type === "probe" && asked.at > bench.now - 10) bench.answer(PUBLIC);
      bench.answerSizes(1400, PUBLIC);
      if (bench.paths.selected?.mtu.size !== 1472) since ??= bench.now;
    }
    expect(since).toBeLessThan(1000);
    expect(bench.paths.selected?.mtu.size).toBeGreaterThan(1396);
    expect(bench.paths.selected?.mtu.size).toBeLessThanOrEqual(1400);
    expect(bench.selections).toHaveLength(1);
  });

  /** A path to `PUBLIC`, and one to `OTHER` that has worked a moment ago. The first answers no more, and is in use. */
  const dying = (): ReturnType<typeof direct> => {
    const bench = direct(40);
    bench.candidates([PUBLIC, OTHER], [PUBLIC, OTHER]);
    bench.do((paths, now) => paths.probeAll(now));
    bench.now = instant(bench.now + 40);
    bench.answer(PUBLIC, { answered: true });
    bench.now = instant(bench.now + 20);
    bench.answer(OTHER, { answered: true });
    expect(bench.paths.selected?.remote).toEqual(PUBLIC);
    bench.do((paths, now) => paths.handleSent(now));
    return bench;
  };

  test.each([true, false])("that dies gives way at once to another that answers meanwhile (relay: %s)", (hasRelay) => {
    const bench = dying();
    bench.paths.setRelay(hasRelay);
    let asked = 0;
    bench.pass(1500, () => {
      const probes = bench.probesTo(OTHER).length;
      if (probes > asked) bench.answer(OTHER, { answered: true });
      asked = probes;
    });
    expect(bench.paths.selected?.remote).toEqual(OTHER);
    expect(bench.requests).toEqual([]);
    expect(bench.selections.map(({ pair }) => pair?.remote.ip)).toEqual([PUBLIC.ip, OTHER.ip]);
  });

  test("that dies with all others leaves the traffic to a relay, and not to each of them in turn", () => {
    const bench = dying();
    bench.paths.setRelay(true);
    bench.pass(1500);
    expect(bench.selections.map(({ pair }) => pair?.remote.ip)).toEqual([PUBLIC.ip, undefined]);
    expect(bench.selections.at(-1)?.at).toBeLessThan(bench.now - 500);
  });

  test("that dies without a relay gives way to any that has worked lately", () => {
    const bench = dying();
    bench.pass(1500);
    expect(bench.selections.map(({ pair }) => pair?.remote.ip)).toEqual([PUBLIC.ip, OTHER.ip, undefined]);
  });

  test("that dies does not give way to one that was proven long ago", () => {
    const bench = direct(40);
    bench.candidates([PUBLIC, OTHER], [PUBLIC, OTHER]);
    bench.do((paths, now) => paths.probeAll(now));
    bench.now = instant(bench.now + 60);
    bench.answer(PUBLIC, { answered: true });
    bench.answer(OTHER, { answered: true });
    bench.pass(31_000, () => {
      if (bench.sent.at(-1)?.to.ip === PUBLIC.ip) bench.answer(PUBLIC, { answered: true });
    });
    bench.do((paths, now) => paths.handleSent(now));
    bench.pass(1500);
    expect(bench.selections.at(-1)?.pair).toBeUndefined();
  });

  test("that dies with no other begins a round alone, and asks for one with the peer", () => {
    const bench = direct(40);
    bench.do((paths, now) => paths.handleSent(now));
    bench.pass(2000);
    const diedAt = bench.selections.find(({ pair }) => pair === undefined)?.at ?? Infinity;
    expect(bench.requests[0]).toBe(diedAt);
    expect(bench.probesTo(PUBLIC).filter(({ at }) => at >= diedAt && at <= diedAt + 50).length).toBeGreaterThanOrEqual(
      2,
    );
  });

  test("that nobody uses and that dies is left alone", () => {
    const bench = direct(40, { isInUse: false });
    bench.pass(60_000);
    expect(bench.paths.selected).toBeUndefined();
    const before = bench.sent.length;
    bench.pass(120_000);
    expect([bench.sent.length - before, bench.requests]).toEqual([0, []]);
  });
});

const NONE = { small: 0, large: 0 };
const SMALL = { small: 1, large: 0 };

describe("what the receiver reports", () => {
  /** Ten packets a second, probes answered; the peer reports what it gets of these sizes. Returns when the path was left, if it was. */
  function flow(
    reported: "small" | "large" | "none" | "both",
    options: { readonly answers: boolean },
  ): number | undefined {
    const bench = direct(40);
    const total = { small: 0, large: 0 };
    bench.do((paths, now) => paths.handleDeliveryReport({ small: 1, large: 1 }, now));
    const startedAt = bench.now;
    for (let i = 0; i < 30; i++) {
      bench.do((paths, now) => paths.handleTraffic({ small: 1, large: 1 }, NONE, now));
      bench.pass(100, () => {
        if (options.answers && bench.probesTo(PUBLIC).at(-1)?.at === bench.now) bench.answer(PUBLIC);
      });
      const left = bench.selections.find(({ pair }) => pair === undefined);
      if (left !== undefined) return left.at - startedAt;
      total.small += reported === "small" || reported === "both" ? 1 : 0;
      total.large += reported === "large" || reported === "both" ? 1 : 0;
      bench.do((paths, now) => paths.handleDeliveryReport({ small: 1 + total.small, large: 1 + total.large }, now));
      bench.received(PUBLIC);
    }
    return undefined;
  }

  test("keeps a path on which everything arrives", () => {
    expect(flow("both", { answers: true })).toBeUndefined();
  });

  test.each(["small", "large", "none"] as const)(
    "ends within a second a path that answers probes and delivers this alone: %s",
    (size) => {
      expect(flow(size, { answers: true })).toBeLessThanOrEqual(800);
    },
  );

  test("ends one whose probes die too as soon", () => {
    expect(flow("none", { answers: false })).toBeLessThanOrEqual(800);
  });

  test("is not missed when the flow has ended, though the last report came before the last count", () => {
    const bench = direct(40);
    bench.do((paths, now) => paths.handleDeliveryReport({ small: 20, large: 0 }, now));
    bench.do((paths, now) => paths.handleTraffic({ small: 100, large: 0 }, NONE, now));
    bench.pass(3000, () => {
      if (bench.probesTo(PUBLIC).at(-1)?.at === bench.now) bench.answer(PUBLIC);
    });
    expect(bench.paths.selected?.remote).toEqual(PUBLIC);
  });

  test("ends a path after three unanswered probes, where five would be asked of one that is merely quiet", () => {
    const bench = direct(40);
    bench.do((paths, now) => paths.handleDeliveryReport({ small: 1, large: 0 }, now));
    const startedAt = bench.now;
    for (let i = 0; i < 10 && bench.paths.selected !== undefined; i++) {
      bench.do((paths, now) => paths.handleTraffic(SMALL, NONE, now));
      bench.pass(100);
    }
    expect(bench.paths.selected).toBeUndefined();
    expect(bench.now - startedAt).toBeLessThanOrEqual(600);
  });

  test("is not missed while the peer still sends it to an address that our router has given up", () => {
    const leave = (seenFrom: TransportAddress): number => {
      const bench = direct(40);
      bench.do((paths, now) => paths.handleDeliveryReport({ small: 1, large: 0 }, now));
      const startedAt = bench.now;
      for (let i = 0; i < 50; i++) {
        bench.do((paths, now) => paths.handleTraffic(SMALL, NONE, now));
        bench.pass(100, () => {
          if (bench.probesTo(PUBLIC).at(-1)?.at === bench.now) bench.answer(PUBLIC, { seenFrom });
        });
      }
      const left = bench.selections.find(({ pair }) => pair === undefined);
      return left === undefined ? Number.POSITIVE_INFINITY : left.at - startedAt;
    };
    const known = leave({ ip: "198.51.100.200", port: 1 });
    expect(known).toBeLessThanOrEqual(800);
    const moved = leave({ ip: "198.51.100.201", port: 1 });
    expect(moved).toBeGreaterThan(known + 800);
    expect(moved).toBeLessThanOrEqual(known + 1500);
  });

  test("says nothing by its absence, when the peer has never reported", () => {
    const bench = direct(40);
    for (let i = 0; i < 30; i++) {
      bench.do((paths, now) => paths.handleTraffic({ small: 1, large: 0 }, NONE, now));
      bench.pass(100, () => {
        if (bench.probesTo(PUBLIC).at(-1)?.at === bench.now) bench.answer(PUBLIC);
      });
    }
    expect(bench.paths.selected?.remote).toEqual(PUBLIC);
  });
});

describe("a path that comes and goes", () => {
  test("must answer more often each time before it is taken again", () => {
    const bench = direct(40);
    const answersNeeded: number[] = [];
    bench.paths.setRelay(true);
    for (let death = 0; death < 4; death++) {
      for (let i = 0; i < 200 && bench.paths.selected !== undefined; i++) {
        bench.do((paths, now) => paths.handleTraffic(SMALL, NONE, now));
        bench.pass(10);
      }
      expect(bench.paths.selected).toBeUndefined();
      let answers = 0;
      for (let i = 0; i < 100 && bench.paths.selected === undefined; i++) {
        bench.pass(50, () => {
          if (bench.paths.selected !== undefined || bench.probesTo(PUBLIC).at(-1)?.at !== bench.now) return;
          answers++;
          bench.answer(PUBLIC);
        });
      }
      answersNeeded.push(answers);
    }
    expect(answersNeeded).toEqual([3, 6, 12, 24]);
  });
});
