/**
 * Figures of the ladder: what each event costs a flow of 1000 packets a second, and what each rung costs against the bare path.
 *
 * With LAB_FULL=1 ten times each, at a round trip of 0, 50 and 200 ms to the coordinator; the normal run takes one sample of what no
 * other case covers. Prints tables and leaves them in .lab-results/ladder.json. Planned switches are held to "nothing lost".
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startPair } from "./mesh.ts";
import { type FlowReport, sleep, withFlow } from "./numbered_flow.ts";
import type { Lab } from "./topology.ts";

const IS_FULL = process.env["LAB_FULL"] === "1";
const REPEATS = IS_FULL ? 10 : 1;
const TIMEOUT_MS = IS_FULL ? 300_000 : 20_000;
const RESULTS = fileURLToPath(new URL("../../.lab-results", import.meta.url));
const NAT = "portrestricted" as const;
const BLOCKED = { forward: ["meta l4proto udp drop"] };
const OPEN = { forward: [] };

interface Scene {
  readonly lab: Lab;
  readonly one: MeshAgent;
  readonly two: MeshAgent;
  /** Counts the repetitions, from 0. */
  readonly round: number;
}

interface Event {
  readonly name: string;
  readonly isPlanned: boolean;
  /** Before the flow begins. */
  readonly before?: (scene: Scene) => Promise<void>;
  /** In the middle of it. */
  readonly during: (scene: Scene) => Promise<void>;
  /** Brings everything back. */
  readonly after?: (scene: Scene) => Promise<void>;
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
    name: "silent death of the direct path",
    isPlanned: false,
    during: async ({ lab }) => lab.site(1).setNat(NAT, BLOCKED),
    after: async ({ lab }) => lab.site(1).setNat(NAT, OPEN),
  },
  {
    name: "a firewall opens",
    isPlanned: true,
    before: async ({ lab, one, two }) => {
      await lab.site(1).setNat(NAT, BLOCKED);
      for (const [agent, peer] of [
        [one, two],
        [two, one],
      ] as const) {
        while ((await agent.peer(peer.name)).path?.kind === "direct") await sleep(200);
      }
      await sleep(1500);
    },
    during: async ({ lab }) => lab.site(1).setNat(NAT, OPEN),
  },
  {
    name: "a machine moves to another network",
    isPlanned: false,
    during: async ({ lab, one, round }) => one.host.moveTo(lab.site(3 + (round % 2))),
  },
  {
    name: "a router restarts, TCP mappings lost",
    isPlanned: false,
    before: async ({ lab }) =>
      lab.site(1).setNat(NAT, {
        forward: ['iifname "wan" ct state invalid drop', "tcp flags & (syn | ack) == ack ct state new drop"],
      }),
    during: async ({ lab }) => lab.site(1).rebootNat(),
  },
];

interface Row {
  readonly what: string;
  readonly roundTripMs: number;
  readonly reports: readonly FlowReport[];
}
const rows: Row[] = [];
const rungRows: { readonly what: string; readonly roundTripMs: number; readonly delays: readonly number[] }[] = [];

describe.each(IS_FULL ? [0, 50, 200] : [200])("at a round trip of %i ms", (roundTripMs) => {
  const delay = roundTripMs === 0 ? {} : { roundTripMs };

  test.each(IS_FULL ? EVENTS : EVENTS.slice(0, 1))(
    "$name",
    async (event) => {
      const sites = [{ nat: NAT }, { nat: NAT }, { nat: NAT, hosts: 0 }, { nat: NAT, hosts: 0 }];
      await withLab({ sites, ...delay }, async (lab) => {
        const { one, two } = await startPair(lab);
        await bothDirect(one, two);
        const reports: FlowReport[] = [];
        for (let round = 0; round < REPEATS; round++) {
          const scene = { lab, one, two, round };
          await event.before?.(scene);
          reports.push(
            await withFlow(one, two, 4, async () => {
              await sleep(500);
              await event.during(scene);
            }),
          );
          await event.after?.(scene);
          await bothDirect(one, two, 20);
        }
        rows.push({ what: event.name, roundTripMs, reports });
        for (const { account, lost } of event.isPlanned ? reports : []) {
          expect([lost, account.duplicated, account.reordered]).toEqual([0, 0, 0]);
        }
      });
    },
    TIMEOUT_MS,
  );

  test.runIf(IS_FULL).each(["direct", "ssh", "websocket"] as const)(
    "one packet over a session that stands: %s",
    async (rung) => {
      const sites = [{ nat: NAT }, { nat: NAT }] as const;
      await withLab({ sites, ...delay }, async (lab) => {
        const { one, two } = await startPair(lab);
        await bothDirect(one, two);
        if (rung !== "direct") expect((await one.command(["path", two.name, rung])).code).toBe(0);
        const delays: number[] = [];
        for (let round = 0; round < REPEATS; round++) {
          const { account } = await withFlow(one, two, 1, async () => {}, { perSecond: 1 });
          delays.push(account.firstDelayMs);
        }
        rungRows.push({ what: rung, roundTripMs, delays });
      });
    },
    TIMEOUT_MS,
  );
});

afterAll(() => {
  const lines = rows.map(({ what, roundTripMs, reports }) => {
    const of = (pick: (report: FlowReport) => number): string => medianAndWorst(reports.map(pick));
    return [
      what.padEnd(50),
      `${roundTripMs} ms`.padStart(7),
      of(({ account }) => account.longestGapMs),
      of(({ lost }) => lost),
      of(({ account }) => account.duplicated),
      of(({ account }) => account.reordered),
    ].join("  ");
  });
  const rungLines = rungRows.map(({ what, roundTripMs, delays }) =>
    [what.padEnd(50), `${roundTripMs} ms`.padStart(7), medianAndWorst(delays)].join("  "),
  );
  console.log(
    [
      `1000 packets/s, ${REPEATS} each, median / worst: longest gap in ms, lost, duplicated, reordered`,
      ...lines,
      ...(rungLines.length === 0 ? [] : ["one packet delivered after, in ms", ...rungLines]),
    ].join("\n"),
  );
  mkdirSync(RESULTS, { recursive: true });
  const report = { schema: 1, at: new Date().toISOString(), isFull: IS_FULL, events: rows, rungs: rungRows };
  writeFileSync(`${RESULTS}/ladder.json`, `${JSON.stringify(report, undefined, 1)}\n`);
});

function medianAndWorst(values: readonly number[]): string {
  const sorted = values.toSorted((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
  return `${median.toFixed(0)} / ${(sorted.at(-1) ?? Number.NaN).toFixed(0)}`.padStart(13);
}
