import { describe, expect, test } from "vitest";
import { ExtraLegs } from "../../../../agent/path/extra_legs.ts";
import type { PunchPlan } from "../../../../agent/path/punch_plan.ts";
import { TargetPauses } from "../../../../agent/path/target_pauses.ts";
import { Volley, type VolleyAction } from "../../../../agent/path/volley.ts";
import { unpackAddress } from "../../../../shared/address.ts";
import { instant } from "../../../../shared/time.ts";

const TARGET = { ip: "198.51.100.7", port: 41_641 };
const PLAN: PunchPlan = {
  role: "spread",
  sockets: 100,
  probes: 300,
  hops: undefined,
  perSecond: 2000,
  chance: 1,
  peerProbes: 0,
  room: undefined,
  rounds: 1,
  chanceInAll: 1,
};
const DATA_LEG = 1;
const FIRST_LEG = -100;

function volley(plan: Partial<PunchPlan> = {}) {
  const machine = new Volley({
    plan: { ...PLAN, ...plan },
    target: TARGET,
    dataLeg: DATA_LEG,
    firstLeg: FIRST_LEG,
    guess: (_socket, index) => 10_000 + index,
    firstTransaction: 0xffff_fff0,
    now: instant(0),
  });
  const actions: (VolleyAction & { readonly at: number })[] = [];
  const drain = (at: number): void => {
    for (let action = machine.poll(); action !== undefined; action = machine.poll()) actions.push({ ...action, at });
  };
  drain(0);
  /** To the end, or to a moment, as the driver's timer does. */
  const run = (until = 10_000): void => {
    for (let at = machine.deadline(); at !== undefined && at <= until; at = machine.deadline()) {
      machine.handleTimeout(at);
      drain(at);
    }
  };
  const probes = () => actions.flatMap((action) => (action.type === "probe" ? [action] : []));
  return { machine, actions, drain, run, probes };
}

describe("a side that spreads", () => {
  test("sends once from each of its sockets to the one address, opening each when it is needed", () => {
    const { run, probes, actions, machine } = volley({ hops: 4 });
    run();
    expect(new Set(probes().map(({ leg }) => leg)).size).toBe(100);
    expect(new Set(probes().map(({ to }) => JSON.stringify(unpackAddress(to))))).toEqual(
      new Set([JSON.stringify(TARGET)]),
    );
    expect(probes().every(({ hops }) => hops === 4)).toBe(true);
    const opened = actions.flatMap((action) => (action.type === "open_leg" ? [action.leg] : []));
    expect(opened).toEqual(machine.legs());
    expect([machine.hasLeg(FIRST_LEG), machine.hasLeg(-1), machine.hasLeg(0), machine.hasLeg(DATA_LEG)]).toEqual([
      true,
      true,
      false,
      false,
    ]);
  });
});

describe("a side that guesses", () => {
  test("sends from the data socket to each port of the one ip", () => {
    const { run, probes, machine } = volley({ role: "guess" });
    run();
    expect(probes()).toHaveLength(300);
    expect(new Set(probes().map(({ leg }) => leg))).toEqual(new Set([DATA_LEG]));
    expect(probes().every(({ to }) => unpackAddress(to).ip === TARGET.ip)).toBe(true);
    expect(machine.legs()).toEqual([]);
  });
});

test("sides that meet use their sockets in turn, each for many ports", () => {
  const { run, probes } = volley({ role: "meet", sockets: 16 });
  run();
  expect(probes()).toHaveLength(300);
  expect(new Set(probes().map(({ leg }) => leg)).size).toBe(16);
  expect(
    probes()
      .map(({ leg }) => leg)
      .slice(0, 3),
  ).toEqual([FIRST_LEG, FIRST_LEG + 1, FIRST_LEG + 2]);
});

test("sides that meet with few hops send half of their packets twice: first those that die, then the same all the way", () => {
  const { run, probes, machine } = volley({ role: "meet", sockets: 16, probes: 301, hops: 4 });
  run();
  const said = probes().map(({ leg, to, hops }) => ({ leg, port: unpackAddress(to).port, hops }));
  expect(said).toHaveLength(301);
  const [first, again] = [said.slice(0, 151), said.slice(151)];
  expect(first.every(({ hops }) => hops === 4)).toBe(true);
  expect(new Set(first.map(({ port }) => port)).size).toBe(151);
  expect(again).toEqual(first.slice(0, 150).map((probe) => ({ ...probe, hops: undefined })));
  expect(new Set(probes().map(({ transaction }) => transaction)).size).toBe(301);
  // Those that go again take no mapping of their own.
  expect(machine.mappings).toBe(151);
});

describe("the rate", () => {
  test("is kept in every tenth of a second", () => {
    const { run, probes } = volley({ role: "guess", probes: 1000 });
    run();
    for (let from = 0; from < 500; from += 10) {
      const sent = probes().filter(({ at }) => at >= from && at < from + 100).length;
      expect(sent).toBeLessThanOrEqual(2000 / 10 + 10);
    }
    expect(probes().at(-1)?.at).toBeGreaterThan(480);
  });

  test("what a pause of the process has missed is not made up for", () => {
    const { machine, drain, probes } = volley({ role: "guess", probes: 4000 });
    machine.handleTimeout(instant(1000));
    drain(1000);
    expect(probes().filter(({ at }) => at === 1000).length).toBeLessThanOrEqual(40);
  });

  test("a rate of one packet a second is possible", () => {
    const { run, probes } = volley({ role: "guess", probes: 3, perSecond: 1 });
    run(60_000);
    expect(probes()).toHaveLength(3);
  });
});

test("an answer is known by its transaction, also where the numbers begin again", () => {
  const { run, probes, machine } = volley({ role: "guess" });
  run();
  for (const { transaction, at } of probes()) expect(machine.sentAt(transaction)).toBe(at);
  expect(probes()[16]?.transaction).toBe(0);
  expect([machine.sentAt(0xffff_ffef), machine.sentAt(284)]).toEqual([undefined, undefined]);
});

test("stopped, it sends nothing more", () => {
  const { machine, run, probes, drain } = volley({ role: "guess" });
  run(20);
  const before = probes().length;
  machine.stop();
  machine.handleTimeout(instant(100));
  drain(100);
  expect([probes().length, machine.deadline()]).toEqual([before, undefined]);
});

test("it ends some time after the last packet of either side", () => {
  expect(volley({ role: "spread", sockets: 384, probes: 1600 }).machine.endsAt).toBe(800 + 2000);
});

test("a little more than the plan goes to the one ip, for answers, and none elsewhere", () => {
  const { machine } = volley();
  expect(machine.takeExtra("198.51.100.8")).toBe(false);
  const taken = Array.from({ length: 1000 }, () => machine.takeExtra(TARGET.ip)).filter(Boolean).length;
  expect(taken).toBe(200);
});

describe("sockets that stay", () => {
  function ended(heard: (leg: number) => boolean): {
    legs: ExtraLegs;
    closed: readonly number[];
    all: readonly number[];
  } {
    const legs = new ExtraLegs();
    const { machine, run } = volley();
    run();
    legs.volley = machine;
    const all = machine.legs();
    for (const leg of all) if (heard(leg)) legs.noteHeard(leg, instant(50));
    return { legs, closed: legs.endVolley(instant(100)), all };
  }

  test("are those on which the peer was heard, as long as it is heard there, or selected", () => {
    const { legs, closed } = ended((leg) => leg === -100 || leg === -99);
    expect(closed).toHaveLength(98);
    expect([legs.has(-100), legs.has(-99), legs.has(-98)]).toEqual([true, true, false]);
    expect(legs.takeSilent(-100, instant(30_050))).toEqual([]);
    expect(legs.takeSilent(-100, instant(30_100))).toEqual([-99]);
    expect(legs.takeSilent(undefined, instant(30_100))).toEqual([-100]);
    expect(legs.has(-100)).toBe(false);
  });

  test("are all on which the peer was heard until it has chosen, and then eight: the selected one, and those heard last", () => {
    const { legs, closed, all } = ended(() => true);
    const [selected = 0] = all;
    const chosen = all.at(-1) ?? 0;
    expect(closed).toEqual([]);
    expect(legs.takeSilent(selected, instant(15_000))).toEqual([]);
    legs.noteHeard(chosen, instant(14_000));
    expect(legs.takeSilent(selected, instant(15_100))).toHaveLength(92);
    expect([selected, chosen].map((leg) => legs.has(leg))).toEqual([true, true]);
    expect(all.filter((leg) => legs.has(leg))).toHaveLength(8);
  });
});

describe("pauses", () => {
  const IP = "198.51.100.7";

  test("grow with each failure at one address, whoever the peer, and end with a path", () => {
    const pauses = new TargetPauses();
    let now = instant(0);
    const waits = Array.from({ length: 7 }, () => {
      pauses.failed(IP, now);
      const waitMs = pauses.waitMs(IP, now);
      now = instant(now + waitMs);
      expect(pauses.waitMs(IP, now)).toBe(0);
      return waitMs;
    });
    expect(waits).toEqual([5000, 20_000, 60_000, 300_000, 600_000, 600_000, 600_000]);
    expect(pauses.waitMs("198.51.100.8", now)).toBe(0);
    pauses.opened(IP);
    pauses.failed(IP, now);
    expect(pauses.waitMs(IP, now)).toBe(5000);
  });

  test("a full table makes new addresses wait instead of forgetting one early", () => {
    const pauses = new TargetPauses();
    for (let i = 0; i < 256; i++) pauses.failed(`10.0.${i >> 8}.${i & 255}`, instant(0));
    expect(pauses.waitMs(IP, instant(1000))).toBe(4000);
    expect(pauses.waitMs(IP, instant(5000))).toBe(0);
  });
});
