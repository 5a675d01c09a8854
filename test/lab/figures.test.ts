/**
 * Figures of the ladder: what each event costs a flow of 1000 packets a second, and what each rung costs against the bare path.
 *
 * With LAB_FULL=1 ten times each, at a round trip of 0, 50 and 200 ms to the coordinator, held to the targets of PRODUCT.md and to "planned
 * switches lose, repeat and reorder nothing". The normal run takes one sample of what no other case covers. Each sample is kept at once in
 * .lab-results/ladder.json, so that an interrupted series goes on where it stopped; delete the file to begin anew.
 */
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, type MeshCoordinator, startCoordinator, startPair } from "./mesh.ts";
import { faults, type FlowReport, NO_FAULTS, sleep, withFlow } from "./numbered_flow.ts";
import { IS_FULL, Series } from "./series.ts";
import type { Lab, Machine, NatOptions } from "./topology.ts";

const REPEATS = IS_FULL ? 10 : 1;
const TIMEOUT_MS = IS_FULL ? 300_000 : 20_000;
const TRAFFIC = fileURLToPath(new URL("traffic.ts", import.meta.url));
const ECHO_PORT = 5300;
const ECHOES = 21;
const NAT = "portrestricted" as const;
const OPEN: NatOptions = { forward: [] };
const BLOCKED: NatOptions = { forward: ["meta l4proto udp drop"] };
/** Two for each machine that moves, to and fro. */
const EMPTY_SITES = 4;

/** From the event to the first delivery, up to 50 ms of round trip; what is further away is missed, and asked, a round trip later. */
const UNPLANNED_MS = 1000;
const USUAL_ROUND_TRIP_MS = 100;
const unplannedMs = (roundTripMs: number): number => UNPLANNED_MS + 2 * Math.max(0, roundTripMs - USUAL_ROUND_TRIP_MS);

interface Scene {
  readonly lab: Lab;
  readonly one: MeshAgent;
  readonly two: MeshAgent;
  /** Another one after it has been killed. */
  coordinator: MeshCoordinator;
  /** Counts the repetitions, from 0. */
  readonly round: number;
}

interface Event {
  readonly name: string;
  /** Nothing may be lost or change places. */
  readonly isPlanned?: boolean;
  /** The longest time without a delivery; undefined: how long it takes is not up to the agents. */
  readonly mostMs?: (roundTripMs: number) => number;
  readonly seconds?: number;
  readonly bytes?: number;
  /** Before the flow begins. */
  readonly before?: (scene: Scene) => Promise<void>;
  /** In the middle of it. */
  readonly during: (scene: Scene) => Promise<void>;
  /** Brings everything back. */
  readonly after?: (scene: Scene) => Promise<void>;
}

const reopen = async ({ lab }: Scene): Promise<void> => lab.site(1).setNat(NAT, OPEN);

async function leaveDirect({ lab, one, two }: Scene): Promise<void> {
  await lab.site(1).setNat(NAT, BLOCKED);
  for (const [agent, peer] of [
    [one, two],
    [two, one],
  ] as const) {
    while ((await agent.peer(peer.name)).path?.kind === "direct") await sleep(200);
  }
  await sleep(1500);
}

const EVENTS: readonly Event[] = [
  {
    name: "planned switches: direct, ssh, websocket, direct",
    isPlanned: true,
    during: async ({ one, two }) => {
      for (const rung of ["ssh", "websocket", "auto"]) {
        expect((await one.command(["path", two.name, rung])).code).toBe(0);
        await sleep(300);
      }
    },
  },
  {
    name: "a firewall opens",
    isPlanned: true,
    before: leaveDirect,
    during: reopen,
  },
  {
    name: "the direct path dies",
    mostMs: unplannedMs,
    during: async ({ lab }) => lab.site(1).setNat(NAT, BLOCKED),
    after: reopen,
  },
  {
    name: "the direct path dies in the direction of the packets",
    mostMs: unplannedMs,
    during: async ({ lab }) => lab.site(1).setNat(NAT, { forward: ['iifname "lan" meta l4proto udp drop'] }),
    after: reopen,
  },
  {
    name: "the direct path dies for packets over 1000 bytes",
    mostMs: unplannedMs,
    bytes: 1200,
    during: async ({ lab }) => lab.site(1).setNat(NAT, { forward: ["meta l4proto udp meta length > 1000 drop"] }),
    after: reopen,
  },
  {
    name: "a machine moves to another network",
    mostMs: unplannedMs,
    during: async ({ lab, one, round }) => one.host.moveTo(lab.site(3 + (round % 2))),
  },
  {
    name: "both machines move to other networks",
    mostMs: unplannedMs,
    during: async ({ lab, one, two, round }) => {
      await Promise.all([one.host.moveTo(lab.site(3 + (round % 2))), two.host.moveTo(lab.site(5 + (round % 2)))]);
    },
  },
  {
    name: "a router restarts, TCP mappings lost",
    mostMs: unplannedMs,
    before: async ({ lab }) =>
      lab.site(1).setNat(NAT, {
        forward: ['iifname "wan" ct state invalid drop', "tcp flags & (syn | ack) == ack ct state new drop"],
      }),
    during: async ({ lab }) => lab.site(1).rebootNat(),
  },
  {
    name: "a router gets another public address",
    mostMs: unplannedMs,
    // Each time one that the other router has not let anything through for.
    during: async ({ lab, round }) => lab.site(1).changePublicAddress(`198.51.100.${100 + round}`),
  },
  {
    name: "the coordinator restarts under relayed packets",
    seconds: 8,
    before: leaveDirect,
    during: async (scene) => {
      const { coordinator } = scene;
      coordinator.process.signal("SIGKILL");
      await coordinator.process.exited;
      scene.coordinator = await startCoordinator(scene.lab, { dataDir: coordinator.dataDir });
    },
    after: reopen,
  },
];

interface Sample {
  readonly longestGapMs: number;
  readonly longestDelayMs: number;
  readonly lost: number;
  readonly duplicated: number;
  readonly reordered: number;
}
interface Rung {
  readonly coldMs: number;
  readonly warmMs: number;
  readonly roundTripMs: number;
  readonly bareMs: number;
}

const RUNGS = ["direct", "ssh", "websocket"] as const;
const ROUND_TRIPS = IS_FULL ? [0, 50, 200] : [200];
const events = new Series<Sample>("ladder");
const rungs = new Series<Rung>("ladder_rungs");
const keyOf = (what: string, roundTripMs: number): string => `${what}, ${roundTripMs} ms`;
const delayOf = (roundTripMs: number) => (roundTripMs === 0 ? {} : { roundTripMs });

describe.each(ROUND_TRIPS)("at a round trip of %i ms", (roundTripMs) => {
  test.each(IS_FULL ? EVENTS : EVENTS.slice(0, 1))(
    "$name",
    async (event) => {
      const key = keyOf(event.name, roundTripMs);
      const sites = [
        { nat: NAT },
        { nat: NAT },
        ...Array.from({ length: EMPTY_SITES }, () => ({ nat: NAT, hosts: 0 })),
      ];
      if (events.of(key).length < REPEATS) {
        await withLab({ sites, ...delayOf(roundTripMs) }, async (lab) => {
          const { one, two, coordinator } = await startPair(lab);
          await bothDirect(one, two);
          let running = coordinator;
          for (let round = 0; events.of(key).length < REPEATS; round++) {
            const scene: Scene = { lab, one, two, round, coordinator: running };
            events.keep(key, sampleOf(await through(event, scene)));
            running = scene.coordinator;
          }
        });
      }
      for (const { lost, duplicated, reordered, longestGapMs } of events.of(key)) {
        expect(duplicated).toBe(0);
        if (event.isPlanned === true) expect({ lost, duplicated, reordered }).toEqual(NO_FAULTS);
        if (event.mostMs !== undefined) expect(longestGapMs).toBeLessThan(event.mostMs(roundTripMs));
      }
    },
    TIMEOUT_MS,
  );

  test.runIf(IS_FULL).each(RUNGS)(
    "first packet without and with a session, and round trip beside the bare path: %s",
    async (rung) => {
      const key = keyOf(rung, roundTripMs);
      const sites = [{ nat: rung === "direct" ? NAT : ("udpblocked" as const) }, { nat: NAT }];
      if (rungs.of(key).length < REPEATS) {
        await withLab({ sites, ...delayOf(roundTripMs) }, async (lab) => {
          const extra = rung === "websocket" ? ["--no-ssh"] : [];
          const { one, two } = await startPair(lab, { agent: { extra } });
          while (rungs.of(key).length < REPEATS) rungs.keep(key, await measure(one, two, rung, lab.coordinator));
        });
      }
      // A relay is twice as far as the coordinator.
      for (const { coldMs, warmMs } of rungs.of(key)) {
        expect(coldMs).toBeLessThan(2 * 2 * roundTripMs + 50);
        expect(warmMs).toBeLessThan(2 * roundTripMs + 20);
      }
    },
    TIMEOUT_MS,
  );
});

async function through(event: Event, scene: Scene): Promise<FlowReport> {
  const { one, two } = scene;
  await event.before?.(scene);
  const during = async (): Promise<void> => {
    await sleep(500);
    await event.during(scene);
  };
  const report = await withFlow(one, two, event.seconds ?? 4, during, { bytes: event.bytes ?? 200 });
  await event.after?.(scene);
  await bothDirect(one, two, 20);
  return report;
}

const sampleOf = (report: FlowReport): Sample => ({
  ...faults(report),
  longestGapMs: report.account.longestGapMs,
  longestDelayMs: report.account.longestDelayMs,
});

async function measure(
  one: MeshAgent,
  two: MeshAgent,
  rung: (typeof RUNGS)[number],
  coordinator: Machine,
): Promise<Rung> {
  await onRung(one, two, rung);
  // A peer that was refused and is admitted again has no session, and both sides have their relays: the first packet that finds the
  // route again is by far the oldest when it arrives.
  const refuse = async (): Promise<void> => {
    await sleep(500);
    for (const command of ["block", "trust"]) expect((await one.command([command, two.name])).code).toBe(0);
  };
  const cold = await withFlow(one, two, 2, refuse, { perSecond: 20 });
  await onRung(one, two, rung);
  const warm = await withFlow(one, two, 1, async () => {}, { perSecond: 5 });
  const { meshIPv4 } = (await two.status()).self;
  // To the coordinator and back is as far as to any other site, and a relayed path goes there on its way.
  const legMs = await echoMs(two.host, coordinator, coordinator.address);
  return {
    coldMs: cold.account.longestDelayMs,
    warmMs: warm.account.firstDelayMs,
    roundTripMs: await echoMs(one.host, two.host, meshIPv4),
    bareMs: rung === "direct" ? legMs : 2 * legMs,
  };
}

/** The median round trip of UDP packets to an address of another machine. */
async function echoMs(from: Machine, to: Machine, address: string): Promise<number> {
  const server = to.spawn([process.execPath, TRAFFIC, "serve", address, `${ECHO_PORT}`]);
  try {
    await server.waitFor("echo server", ({ text }) => (text === "ready" ? true : undefined), 5000);
    const output = await from.execChecked([process.execPath, TRAFFIC, "rtt", address, `${ECHO_PORT}`, `${ECHOES}`], {
      timeoutMs: 15_000,
    });
    return median((JSON.parse(output) as (number | null)[]).map((ms) => ms ?? Number.POSITIVE_INFINITY));
  } finally {
    await server.stop();
  }
}

async function onRung(one: MeshAgent, two: MeshAgent, rung: (typeof RUNGS)[number]): Promise<void> {
  for (const [agent, peer] of [
    [one, two],
    [two, one],
  ] as const) {
    expect(await agent.wait(`peer=${peer.name}`, 10)).toBe(0);
    while ((await agent.peer(peer.name)).path?.kind !== rung) await sleep(100);
  }
}

afterAll(() => {
  const columns = (samples: readonly Sample[]): string =>
    (["longestGapMs", "lost", "duplicated", "reordered", "longestDelayMs"] as const)
      .map((name) => medianAndWorst(samples.map((sample) => sample[name])))
      .join("  ");
  const eventLines = ROUND_TRIPS.flatMap((roundTripMs) =>
    EVENTS.flatMap(({ name }) => {
      const samples = events.of(keyOf(name, roundTripMs));
      return samples.length === 0 ? [] : [`${keyOf(name, roundTripMs).padEnd(62)}  ${columns(samples)}`];
    }),
  );
  const rungLines = ROUND_TRIPS.flatMap((roundTripMs) =>
    RUNGS.flatMap((rung) => {
      const samples = rungs.of(keyOf(rung, roundTripMs));
      if (samples.length === 0) return [];
      const overheads = samples.map((sample) => sample.roundTripMs - sample.bareMs);
      const of = (pick: (sample: Rung) => number): string => medianAndWorst(samples.map(pick));
      const added = `${median(overheads).toFixed(2)} / ${Math.max(...overheads).toFixed(2)}`.padStart(13);
      return [
        `${keyOf(rung, roundTripMs).padEnd(62)}  ${of(({ coldMs }) => coldMs)}  ${of(({ warmMs }) => warmMs)}  ${added}`,
      ];
    }),
  );
  console.log(
    [
      "1000 packets/s, median / worst: longest gap in ms, lost, duplicated, reordered, longest delay in ms",
      ...eventLines,
      ...(rungLines.length === 0
        ? []
        : ["first packet without a session, with one, round trip beside the bare path, in ms"]),
      ...rungLines,
    ].join("\n"),
  );
});

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

const medianAndWorst = (values: readonly number[]): string =>
  `${median(values).toFixed(0)} / ${Math.max(...values).toFixed(0)}`.padStart(13);
