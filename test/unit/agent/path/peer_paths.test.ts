import { describe, expect, test } from "vitest";
import { DestinationBudget } from "../../../../agent/path/destination_budget.ts";
import type { TransportAddress } from "../../../../shared/address.ts";
import { instant } from "../../../../shared/time.ts";
import { Bench, direct, LAN, LEG, OTHER, PUBLIC } from "./paths_bench.ts";

/** PRODUCT.md, "Nobody can be aimed": not imported, since the number is the promise. */
const UNTRUSTED_PROBES = 5;

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
