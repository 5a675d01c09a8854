import { describe, expect, test } from "vitest";
import { MAX_PUNCH, planPunch } from "../../../../agent/path/punch_plan.ts";
import { PRIMER_HOPS } from "../../../../agent/path/primer.ts";
import { type NatReport, UNKNOWN_NAT } from "../../../../shared/wire/candidates.ts";
import { SeededRandom } from "../../../sim/random.ts";

const exact = { filtering: "address-and-port-dependent", certain: true } as const;
const CONE: NatReport = { ...UNKNOWN_NAT, ...exact, mapping: "endpoint-independent", allocation: "preserving" };
const FULL_CONE: NatReport = { ...CONE, filtering: "endpoint-independent" };
const symmetric = (more: Partial<NatReport> = {}): NatReport => ({
  ...CONE,
  mapping: "address-and-port-dependent",
  allocation: "random",
  ...more,
});
const block = (size: number): NatReport =>
  symmetric({ allocation: "block", ports: { first: 40_000, last: 40_000 + size - 1, stride: 0 } });
/** One that lets a port serve many destinations. */
const shared = (size: number): NatReport => ({ ...block(size), sharesPorts: true });
const COUNTER = symmetric({ allocation: "sequential", ports: { first: 5000, last: 5000, stride: 1 } });

describe("when", () => {
  test.each<[string, NatReport, NatReport]>([
    ["plain opening can do", CONE, CONE],
    ["plain opening can do with a symmetric NAT too", symmetric(), FULL_CONE],
    ["nothing is known of one side", UNKNOWN_NAT, symmetric()],
    ["discovery here has not ended", symmetric({ filtering: undefined, allocation: undefined }), CONE],
    ["discovery there has not ended", CONE, symmetric({ filtering: undefined, allocation: undefined })],
    ["UDP is blocked", { ...UNKNOWN_NAT, udpBlocked: true }, symmetric()],
  ])("none where %s", (_, a, b) => {
    expect(planPunch(a, b)).toBeUndefined();
    expect(planPunch(b, a)).toBeUndefined();
  });
});

describe("roles", () => {
  test("the symmetric side spreads, the other guesses, with the same numbers on both sides", () => {
    for (const hard of [symmetric(), block(512), COUNTER]) {
      const [there, here] = [planPunch(CONE, hard), planPunch(hard, CONE)];
      expect([there?.role, here?.role]).toEqual(["guess", "spread"]);
      expect({ ...there, role: "", hops: 0 }).toEqual({ ...here, role: "", hops: 0 });
    }
  });

  test("two symmetric sides meet", () => {
    expect(planPunch(block(256), COUNTER)).toMatchObject({ role: "meet" });
    expect(planPunch(COUNTER, block(256))).toEqual(planPunch(block(256), COUNTER));
  });
});

describe("the chance", () => {
  test.each<[string, NatReport, NatReport, number, number]>([
    ["all ports against a cone", CONE, symmetric(), 0.999, 1],
    ["a block against a cone", CONE, block(1024), 0.999, 1],
    ["a counter against a cone", CONE, COUNTER, 0.999, 1],
    ["blocks of 1024", block(1024), block(1024), 0.999, 1],
    ["blocks of 4096", block(4096), block(4096), 0.6, 0.63],
    ["a block of 1024 and a counter", block(1024), COUNTER, 0.97, 0.99],
    ["a block of 512 and all ports", block(512), symmetric(), 0.37, 0.4],
    ["all ports on both sides", symmetric(), symmetric(), 0.003, 0.005],
  ])("%s", (_, a, b, least, most) => {
    const chance = planPunch(a, b)?.chance ?? Number.NaN;
    expect(chance).toBeGreaterThanOrEqual(least);
    expect(chance).toBeLessThanOrEqual(most);
  });

  test("of guessing is what throwing dice says", () => {
    const random = new SeededRandom(1);
    const plan = planPunch(CONE, block(2048));
    if (plan === undefined) throw new Error("A plan expected");
    // Fewer packets than planned, so that there is something to count.
    const probes = 40;
    const hits = Array.from({ length: 2000 }, () => {
      const mapped = new Set(Array.from({ length: plan.sockets }, () => random.between(0, 2047)));
      return Array.from({ length: probes }, () => random.between(0, 2047)).some((port) => mapped.has(port));
    }).filter(Boolean).length;
    expect(hits / 2000).toBeCloseTo(1 - Math.exp((-plan.sockets * probes) / 2048), 1);
  });
});

describe("blocks of which each port serves one destination", () => {
  const exclusive = (size: number): NatReport => ({ ...block(size), sharesPorts: false });

  test.each([256, 512, 1024])("of %i: rounds of at most half, with the chance of one and of all", (size) => {
    const plan = planPunch(exclusive(size), exclusive(size));
    if (plan === undefined) throw new Error("A plan expected");
    expect(plan.probes).toBeLessThanOrEqual(size / 2);
    expect(plan.probes).toBeGreaterThan(size * 0.4);
    expect(plan.chance).toBeCloseTo(1 - Math.exp(-((plan.probes / size) ** 2)), 5);
    expect(plan.rounds).toBeGreaterThan(1);
    expect(plan.chanceInAll).toBeCloseTo(1 - (1 - plan.chance) ** plan.rounds, 5);
    expect(plan.chanceInAll).toBeGreaterThan(0.9);
  });

  test("opposite one that shares its ports: the other side sends more, and both know it", () => {
    const [small, large] = [planPunch(exclusive(256), block(256)), planPunch(block(256), exclusive(256))];
    expect(small?.probes).toBeLessThanOrEqual(128);
    expect(large?.probes).toBeGreaterThan(2000);
    expect([small?.peerProbes, small?.probes]).toEqual([large?.probes, large?.peerProbes]);
    expect(small?.rounds).toBe(1);
    expect(small?.chance).toBeGreaterThan(0.99);
  });

  test("opposite all ports: no rounds, since each would have to be large", () => {
    expect(planPunch(exclusive(256), symmetric())).toMatchObject({ rounds: 1 });
    expect(planPunch(exclusive(256), symmetric())?.chanceInAll).toBeLessThan(0.1);
  });

  test("are supposed where nothing is known, once an attempt has failed that chance does not explain", () => {
    expect(planPunch(block(256), block(256))).toMatchObject({ rounds: 1, chance: 0.999 });
    const after = planPunch(block(256), block(256), { failed: 1 });
    expect(after?.probes).toBeLessThanOrEqual(128);
    expect(after?.rounds).toBeGreaterThan(1);
    const shared = { ...block(256), sharesPorts: true };
    expect(planPunch(shared, shared, { failed: 3 })).toMatchObject({ rounds: 1, chance: 0.999 });
    // Something that fails often by chance says nothing of the block.
    expect(planPunch(block(512), symmetric(), { failed: 3 })).toMatchObject({ rounds: 1, probes: 4000 });
  });
});

describe("for routers that take what they did not ask for", () => {
  test("what spreads dies on the way in the first attempt and each other one, what guesses never", () => {
    const hops = (a: NatReport, b: NatReport): unknown[] =>
      [0, 1, 2].map((failed) => planPunch(a, b, { failed })?.hops);
    expect(hops(symmetric(), CONE)).toEqual([PRIMER_HOPS, undefined, PRIMER_HOPS]);
    expect(hops(CONE, symmetric())).toEqual([undefined, undefined, undefined]);
  });

  test.each<[string, NatReport, NatReport, number, number]>([
    ["blocks of 512", shared(512), shared(512), 2, 0.99],
    ["two counters", COUNTER, COUNTER, 2, 0.99],
    ["blocks of 1024, where the caps leave no room for twice as many", shared(1024), shared(1024), 1.25, 0.95],
    ["a block of 512 and a counter", shared(512), COUNTER, 1, 0.95],
  ])("%s: each second attempt sends all of it twice, as far as the caps allow", (_, a, b, factor, sure) => {
    const [plain, primed, third] = [0, 1, 2].map((failed) => planPunch(a, b, { failed }));
    expect([plain?.hops, primed?.hops, third?.hops]).toEqual([undefined, PRIMER_HOPS, undefined]);
    expect(third?.probes).toBe(plain?.probes);
    expect((primed?.probes ?? 0) / (plain?.probes ?? 1)).toBeCloseTo(factor, 1);
    const meetings = chanceOfMeeting(a, b, (primed?.probes ?? 0) / 2);
    expect(meetings).toBeGreaterThan(sure);
  });

  test("not where half of the packets would find too little", () => {
    expect(planPunch(shared(1024), shared(4096), { failed: 1 })?.hops).toBeUndefined();
  });

  /** Of so many packets from each side, each with ports of its own. */
  function chanceOfMeeting(a: NatReport, b: NatReport, packets: number): number {
    if (a === COUNTER && b === COUNTER) return 1;
    const [one, two] = [a, b].map(({ ports }) => (ports === undefined ? 1 : ports.last - ports.first + 1));
    return 1 - Math.exp(-(b === COUNTER ? packets : packets ** 2) / ((one ?? 1) * (two ?? 1)));
  }
});

describe("an operator's caps", () => {
  test("lower every number, and the chance with them", () => {
    const limits = { sockets: 32, packets: 200, perSecond: 100 };
    for (const [a, b] of [
      [CONE, symmetric()],
      [symmetric(), CONE],
      [block(512), block(512)],
      [COUNTER, COUNTER],
    ] as const) {
      const [full, plan] = [planPunch(a, b), planPunch(a, b, { limits })];
      expect(plan?.sockets).toBeLessThanOrEqual(32);
      expect(plan?.probes).toBeLessThanOrEqual(200);
      expect(plan?.perSecond).toBe(100);
      expect(plan?.chance).toBeLessThanOrEqual(full?.chance ?? 0);
    }
  });

  test("of no packets: no plan", () => {
    expect(planPunch(CONE, symmetric(), { limits: { ...MAX_PUNCH, packets: 0 } })).toBeUndefined();
  });
});

test("no plan is larger than the caps, and a smaller range takes fewer packets", () => {
  const nats = [CONE, symmetric(), COUNTER, ...[1, 2, 64, 256, 4096, 60_000].map(block)];
  for (const a of nats) {
    for (const b of nats) {
      const plan = planPunch(a, b);
      if (plan === undefined) continue;
      expect(plan.sockets).toBeLessThanOrEqual(MAX_PUNCH.sockets);
      expect(plan.probes).toBeLessThanOrEqual(MAX_PUNCH.packets);
      expect(plan.perSecond).toBeLessThanOrEqual(MAX_PUNCH.perSecond);
      expect(Math.min(plan.sockets, plan.probes)).toBeGreaterThan(0);
    }
  }
  const effort = (hard: NatReport): number => {
    const plan = planPunch(CONE, hard);
    return (plan?.sockets ?? 0) + (plan?.probes ?? 0);
  };
  expect(effort(COUNTER)).toBeLessThan(effort(block(512)));
  expect(effort(block(512))).toBeLessThan(effort(block(4096)));
  expect(effort(block(4096))).toBeLessThan(effort(symmetric()));
});
