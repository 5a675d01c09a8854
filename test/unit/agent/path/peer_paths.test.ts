import { describe, expect, test } from "vitest";
import { DestinationBudget } from "../../../../agent/path/destination_budget.ts";
import type { TransportAddress } from "../../../../shared/address.ts";
import { instant } from "../../../../shared/time.ts";
import { BASE_BYTES, Bench, type BenchOptions, LEG } from "./paths_bench.ts";

/** PRODUCT.md, "Nobody can be aimed": not imported, since the number is the promise. */
const UNTRUSTED_PROBES = 5;

const PUBLIC: TransportAddress = { ip: "198.51.100.7", port: 4000 };
const OTHER: TransportAddress = { ip: "198.51.100.8", port: 4000 };
const LAN: TransportAddress = { ip: "10.0.0.7", port: 4000 };

/** A bench with a path to `PUBLIC`, of the given round trip. */
function direct(roundTripMs = 40, options: BenchOptions = {}): Bench {
  const bench = new Bench(options);
  bench.candidates([PUBLIC], [PUBLIC]);
  bench.fire();
  bench.now = instant(bench.now + roundTripMs);
  bench.answer(PUBLIC, { answered: true });
  expect(bench.paths.selected?.remote).toEqual(PUBLIC);
  return bench;
}

describe("a round", () => {
  test("probes all pairs at the instant that was named, the LAN first, and says that it has fired", () => {
    const bench = new Bench();
    bench.candidates([OTHER, PUBLIC, LAN], [PUBLIC]);
    bench.do((paths, now) => paths.schedule(3, instant(250), now));
    bench.sent.length = 0;
    bench.pass(249);
    expect(bench.sent).toEqual([]);
    bench.pass(1);
    expect(bench.sent.map(({ to, at }) => [to.ip, at])).toEqual([
      [LAN.ip, 250],
      [PUBLIC.ip, 250],
      [OTHER.ip, 250],
    ]);
    expect(bench.fired).toEqual([{ round: 3, at: 250 }]);
  });

  test("is preceded by a primer that opens our own router and dies on the way, for attested IPv4 addresses only", () => {
    const bench = new Bench();
    bench.candidates([OTHER, PUBLIC, LAN], [PUBLIC]);
    bench.do((paths, now) => paths.schedule(3, instant(250), now));
    expect(bench.sent.map(({ to, at, hops }) => [to.ip, at, hops])).toEqual([[PUBLIC.ip, 0, 4]]);
    bench.pass(300);
    expect(bench.sent.slice(1).every(({ hops }) => hops === undefined)).toBe(true);
  });

  test("repeats probes early and then ever more slowly", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.fire();
    bench.pass(3500);
    expect(bench.probesTo(PUBLIC).map(({ at }) => at)).toEqual([
      0, 20, 45, 80, 130, 200, 300, 450, 700, 1000, 1500, 2200, 3000,
    ]);
  });

  test("candidates that come late join it, with all of its steps", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.fire();
    bench.pass(100);
    bench.candidates([PUBLIC, OTHER], [PUBLIC, OTHER]);
    bench.pass(60);
    expect(bench.probesTo(OTHER).map(({ at }) => at)).toEqual([100, 120, 145]);
  });

  test("of a lower number than ours counts too: the peer may have missed some", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.fire(9);
    bench.pass(5000);
    bench.fire(2);
    expect(bench.fired.map(({ round }) => round)).toEqual([9, 2]);
    expect(bench.paths.round).toBe(9);
  });

  test("does nothing while there are no keys", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.do((paths, now) => paths.setEnabled(false, now));
    bench.fire();
    bench.pass(10_000);
    expect(bench.sent).toEqual([]);
    expect(bench.paths.deadline()).toBeUndefined();
  });

  test("that found a path stops probing the others after half a second", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC, OTHER], [PUBLIC, OTHER]);
    bench.fire();
    bench.now = instant(40);
    bench.answer(PUBLIC, { answered: true });
    bench.pass(4000);
    expect(Math.max(...bench.probesTo(OTHER).map(({ at }) => at))).toBeLessThanOrEqual(500);
  });
});

describe("an address that only the peer's own packets name", () => {
  /** The peer probes from there again and again, and none of our own probes is answered. */
  const probed = (echoOf: (asked: number | undefined) => number | undefined): number => {
    const bench = new Bench();
    for (let i = 0; i < 40; i++) {
      bench.probe(PUBLIC, true, echoOf(bench.answersTo(PUBLIC).at(-1)?.echo));
      bench.pass(500);
    }
    return bench.probesTo(PUBLIC).length;
  };

  test("gets five probes and no more, whatever the peer says", () => {
    expect(probed(() => undefined)).toBe(UNTRUSTED_PROBES);
    expect(probed((asked) => (asked === undefined ? undefined : asked ^ 1))).toBe(UNTRUSTED_PROBES);
  });

  test("gets more once the peer has repeated what an answer has brought there", () => {
    expect(probed((asked) => asked)).toBeGreaterThan(10);
  });
});

describe("rounds that fail", () => {
  test("are followed by slow probing of what is trusted, for as long as the peer is in use", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.fire();
    bench.pass(60_000);
    const background = bench.probesTo(PUBLIC).filter(({ at }) => at > 4000);
    expect(background.length).toBeGreaterThanOrEqual(13);
    expect(background.length).toBeLessThanOrEqual(15);
    bench.do((paths, now) => paths.setInUse(false, now));
    const before = bench.sent.length;
    bench.pass(60_000);
    expect(bench.sent.length - before).toBeLessThanOrEqual(1);
  });

  test("ask for the next one after 3, 8, 20 and then each 60 seconds", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.requests.length = 0;
    bench.pass(300_000);
    const gaps = bench.requests.map((at, index) => at - (bench.requests[index - 1] ?? 0));
    expect(gaps.slice(1, 6).map((gap) => Math.round(gap / 1000))).toEqual([3, 8, 20, 60, 60]);
  });

  test("hurry once when something changes, however often it is said", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.pass(15_000);
    bench.requests.length = 0;
    for (let i = 0; i < 10; i++) bench.do((paths, now) => paths.hurry(now));
    bench.pass(2000);
    expect(bench.requests).toEqual([15_030]);
  });

  test("are known to have failed when they end, whoever asked for them", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.fire();
    bench.pass(3900);
    expect(bench.paths.hasFailedRound).toBe(false);
    bench.pass(200);
    expect(bench.paths.hasFailedRound).toBe(true);
    bench.fire(2);
    bench.answer(PUBLIC, { answered: true });
    expect(bench.paths.hasFailedRound).toBe(false);
  });

  test("nobody asks for a round to a peer that is not in use", () => {
    const bench = new Bench({ isInUse: false });
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.pass(120_000);
    expect(bench.requests).toEqual([]);
  });
});

describe("selection", () => {
  test("takes the first pair that answers, and tells the peer once that it works", () => {
    const bench = direct(40);
    expect(bench.selections).toMatchObject([{ at: 40, reason: "first direct path that answered" }]);
    const untold = new Bench();
    untold.candidates([PUBLIC], [PUBLIC]);
    untold.fire();
    untold.answer(PUBLIC);
    expect(untold.sent.at(-1)).toMatchObject({ type: "probe", answered: true });
    const before = untold.sent.length;
    untold.answer(PUBLIC);
    expect(untold.sent.length).toBe(before);
  });

  test("a pair on the LAN wins over the way through both routers", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC, LAN], [PUBLIC]);
    bench.fire();
    bench.now = instant(12);
    bench.answer(PUBLIC, { answered: true });
    bench.now = instant(13);
    bench.pass(30);
    bench.now = instant(bench.probesTo(LAN).at(-1)?.at ?? 0);
    bench.answer(LAN, { answered: true });
    expect(bench.paths.selected?.remote).toEqual(LAN);
    expect(bench.selections.at(-1)?.reason).toBe("faster path");
  });

  test.each([
    { late: 15, wins: true },
    { late: 40, wins: false },
  ])("a pair on the LAN that seems slower by $late ms than the router's hairpin wins: $wins", ({ late, wins }) => {
    const bench = new Bench();
    bench.candidates([PUBLIC, LAN], [PUBLIC]);
    bench.fire();
    bench.now = instant(4);
    bench.answer(PUBLIC, { answered: true });
    bench.now = instant(4 + late);
    bench.answer(LAN, { answered: true });
    expect(bench.paths.selected?.remote).toEqual(wins ? LAN : PUBLIC);
  });

  test("a second pair on the LAN that is no faster displaces nothing", () => {
    const bench = new Bench();
    const second = { ip: "10.0.0.8", port: 4000 };
    bench.candidates([LAN, second]);
    bench.fire();
    bench.now = instant(1);
    bench.answer(LAN, { answered: true });
    bench.now = instant(2);
    bench.answer(second, { answered: true });
    expect(bench.paths.selected?.remote).toEqual(LAN);
  });

  test.each([
    { first: 40, second: 36, wins: false },
    { first: 40, second: 29, wins: true },
    { first: 10, second: 6.5, wins: false },
    { first: 10, second: 5, wins: true },
  ])("$second ms displaces $first ms: $wins", ({ first, second, wins }) => {
    const bench = new Bench();
    bench.candidates([PUBLIC, OTHER], [PUBLIC, OTHER]);
    bench.fire();
    bench.now = instant(first);
    const [probe] = bench.probesTo(PUBLIC);
    if (probe === undefined) throw new Error("No probe");
    bench.answer(PUBLIC, { answered: true });
    bench.do((paths, now) => paths.probeAll(now));
    bench.now = instant(first + second);
    bench.answer(OTHER, { answered: true });
    expect(bench.paths.selected?.remote).toEqual(wins ? OTHER : PUBLIC);
  });

  test("an answer may come from another port than the probe went to", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.fire();
    bench.now = instant(30);
    const from = { ...PUBLIC, port: 9999 };
    bench.answer(PUBLIC, { answered: true, from });
    expect(bench.paths.selected).toMatchObject({ remote: PUBLIC, answersFrom: from, rttMs: 30 });
  });

  test("the port that the peer's own packets come from wins over it, even if it is slower", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.fire();
    bench.now = instant(30);
    const from = { ...PUBLIC, port: 9999 };
    bench.answer(PUBLIC, { answered: true, from });
    bench.probe(from);
    bench.now = instant(70);
    bench.answer(from, { answered: true });
    expect(bench.paths.selected?.remote).toEqual(from);
    expect(bench.selections.at(-1)?.reason).toBe("an address that the peer's own packets keep open");
  });

  test("an answer to nothing that we asked proves nothing", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    bench.fire();
    const forged = { type: "probe_answer", transaction: 123_456, answered: true, seenFrom: PUBLIC } as const;
    bench.do((paths, now) => paths.handleProbeAnswer(forged, LEG, PUBLIC, now));
    expect(bench.paths.selected).toBeUndefined();
  });
});

describe("a probe of the peer", () => {
  test("is answered on the pair that it came in on, and probed back at once", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    const reflexive = { ...PUBLIC, port: 7777 };
    bench.probe(reflexive);
    expect(bench.sent.map(({ type, to }) => [type, to.port])).toEqual([
      ["probe_answer", 7777],
      ["probe", 7777],
    ]);
    expect(bench.paths.pairs().find((pair) => pair.remote.port === 7777)?.origin).toBe("peer-reflexive");
  });

  test("of a volley is probed back once: its probes to all our mappings arrive together", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC]);
    for (let i = 0; i < 8; i++) bench.probe(PUBLIC);
    expect(bench.answersTo(PUBLIC)).toHaveLength(8);
    expect(bench.probesTo(PUBLIC)).toHaveLength(1);
  });

  test("from ever new ports leaves no more than sixteen pairs, and never the one that works", () => {
    const bench = direct();
    for (let port = 10_000; port < 10_200; port++) {
      bench.probe({ ...PUBLIC, port });
      bench.pass(100, () => {
        if (bench.sent.at(-1)?.to.port === PUBLIC.port) bench.answer(PUBLIC, { answered: true });
      });
    }
    expect(bench.paths.pairs().filter(({ origin }) => origin === "peer-reflexive").length).toBeLessThanOrEqual(16);
    expect(bench.paths.selected?.remote).toEqual(PUBLIC);
  });
});

describe("nobody can be aimed", () => {
  test("an address that only the peer names gets five probes, over any number of rounds and lists", () => {
    const bench = new Bench();
    for (let round = 1; round <= 20; round++) {
      bench.candidates(round % 2 === 0 ? [OTHER] : [OTHER, PUBLIC]);
      bench.fire(round);
      bench.pass(10_000);
    }
    expect(bench.probesTo(OTHER)).toHaveLength(UNTRUSTED_PROBES);
  });

  test("five even if the peer stops naming it and names it again", () => {
    const bench = new Bench();
    for (let round = 1; round <= 20; round++) {
      bench.candidates(round % 2 === 0 ? [OTHER] : [PUBLIC]);
      bench.fire(round);
      bench.pass(5000);
    }
    expect(bench.probesTo(OTHER)).toHaveLength(UNTRUSTED_PROBES);
  });

  test("one that the coordinator alone names gets none", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC], [PUBLIC, OTHER]);
    bench.fire();
    bench.pass(20_000);
    expect(bench.probesTo(OTHER)).toEqual([]);
  });

  test("one that both name, and one in our own subnet, are probed on", () => {
    const bench = new Bench();
    bench.candidates([PUBLIC, LAN], [PUBLIC]);
    bench.fire();
    bench.pass(20_000);
    expect(bench.probesTo(PUBLIC).length).toBeGreaterThan(UNTRUSTED_PROBES);
    expect(bench.probesTo(LAN).length).toBeGreaterThan(UNTRUSTED_PROBES);
  });

  test("a hundred peers that name one victim together stay within the budget of the address", () => {
    const budget = new DestinationBudget();
    const benches = Array.from({ length: 100 }, () => new Bench({ budget }));
    for (const bench of benches) {
      bench.candidates([OTHER]);
      bench.fire();
      bench.pass(1000);
    }
    const sent = benches.reduce((sum, bench) => sum + bench.probesTo(OTHER).length, 0);
    expect(sent).toBeLessThanOrEqual(60 + 20);
  });

  test("a peer that writes a stranger's address on its probes gets him five probes, and answers within the budget", () => {
    const bench = new Bench();
    for (let i = 0; i < 1000; i++) bench.probe(OTHER);
    expect(bench.probesTo(OTHER).length).toBeLessThanOrEqual(UNTRUSTED_PROBES);
    expect(bench.sent.length).toBeLessThanOrEqual(60);
  });

  test.each(["224.0.0.1", "255.255.255.255", "127.0.0.1", "169.254.1.1", "0.0.0.0", "100.96.0.5"])(
    "%s is never probed",
    (ip) => {
      const bench = new Bench();
      const address = { ip, port: 4000 };
      bench.candidates([address], [address]);
      bench.probe(address);
      bench.fire();
      bench.pass(10_000);
      expect(bench.sent).toEqual([]);
    },
  );
});

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

  test("that dies gives way to the next best pair that works, at once", () => {
    const bench = direct(40);
    bench.candidates([PUBLIC, OTHER], [PUBLIC, OTHER]);
    bench.do((paths, now) => paths.probeAll(now));
    bench.now = instant(bench.now + 60);
    bench.answer(OTHER, { answered: true });
    expect(bench.paths.selected?.remote).toEqual(PUBLIC);
    bench.do((paths, now) => paths.handleSent(now));
    bench.pass(1500);
    expect(bench.paths.selected?.remote).toEqual(OTHER);
    expect(bench.requests).toEqual([]);
    expect(bench.selections.map(({ pair }) => pair?.remote.ip)).toEqual([PUBLIC.ip, OTHER.ip]);
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
    bench.paths.setRelayed(true);
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

describe("a network that has changed", () => {
  test("makes the path prove itself, and asks for a round only when it does not in its usual time", () => {
    const bench = direct(40);
    bench.requests.length = 0;
    bench.do((paths, now) => paths.doubt(now));
    expect(bench.paths.isLooking).toBe(true);
    bench.pass(40);
    bench.answer(PUBLIC);
    bench.pass(200);
    expect([bench.paths.isLooking, bench.requests]).toEqual([false, []]);
    const doubtedAt = bench.now;
    bench.do((paths, now) => paths.doubt(now));
    bench.pass(300);
    expect(bench.requests).toEqual([doubtedAt + 100]);
  });

  test("lets another pair take over once the doubted one is overdue, and not before", () => {
    for (const [waitMs, expected] of [
      [20, PUBLIC],
      [150, OTHER],
    ] as const) {
      const bench = direct(40);
      bench.do((paths, now) => paths.doubt(now));
      bench.candidates([PUBLIC, OTHER], [PUBLIC, OTHER]);
      bench.pass(waitMs);
      bench.do((paths, now) => paths.probeAll(now));
      bench.answer(OTHER);
      expect(bench.paths.selected?.remote).toEqual(expected);
    }
  });

  test("at the peer's end shows in its list: what it no longer names is doubted", () => {
    const bench = direct(40);
    bench.candidates([OTHER], [OTHER]);
    expect([bench.paths.isLooking, bench.paths.selected?.remote]).toEqual([true, PUBLIC]);
  });
});

describe("lists of candidates", () => {
  test("an older list, which came by a slower way, is ignored", () => {
    const bench = new Bench();
    const list = (generation: number, address: TransportAddress) => ({
      generation,
      nat: { mapping: undefined, filtering: undefined, allocation: undefined, udpBlocked: false, certain: false },
      candidates: [{ kind: "server-reflexive" as const, address }],
    });
    expect(bench.paths.setRemote(list(10, PUBLIC), bench.now)).toBe(true);
    expect(bench.paths.setRemote(list(9, OTHER), bench.now)).toBe(false);
    expect(bench.paths.pairs().map(({ remote }) => remote)).toEqual([PUBLIC]);
  });

  test("after the keys are gone any list counts: the peer's process may be a new one", () => {
    const bench = new Bench();
    const list = (generation: number, address: TransportAddress) => ({
      generation,
      nat: { mapping: undefined, filtering: undefined, allocation: undefined, udpBlocked: false, certain: false },
      candidates: [{ kind: "server-reflexive" as const, address }],
    });
    bench.paths.setRemote(list(100, PUBLIC), bench.now);
    bench.do((paths, now) => {
      paths.setEnabled(false, now);
      paths.invalidate("the peer has restarted", now);
      paths.setRemote(list(3, OTHER), now);
      paths.setEnabled(true, now);
    });
    expect(bench.paths.pairs().map(({ remote }) => remote)).toEqual([OTHER]);
  });

  test("addresses that the peer no longer names make room, unless they work", () => {
    const bench = direct(40);
    for (let i = 0; i < 200; i++) bench.candidates([{ ip: "198.51.100.9", port: 1000 + i }]);
    expect(bench.paths.pairs().map(({ remote }) => remote.port)).toEqual([PUBLIC.port, 1199]);
    expect(bench.paths.selected?.remote).toEqual(PUBLIC);
  });
});
