/**
 * Routers that forget idle mappings soon: agents find out how soon (agent/path/mapping_lifetime.ts), and keep the path of a peer that nobody
 * uses open with as few packets as that allows. Kernel NATs that give each mapping another port, so that one which was forgotten and made
 * anew shows: the entry of the router's table must be the same one, by its number, after minutes.
 *
 * Only with LAB_FULL=1, three minutes: the first silence that is tried is 27 s, and a peer counts as used for two minutes. In virtual time,
 * with more kinds of NATs, test/sim/mapping_lifetime.test.ts has it in every run.
 */
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startMesh } from "./mesh.ts";
import { sleep } from "./numbered_flow.ts";
import { IS_FULL } from "./series.ts";
import type { Site } from "./topology.ts";

/** Of the silences that are tried, the last that such a router survives and the first that it does not. */
const CASES = [
  { seconds: 10, stood: 8, fell: 12 },
  { seconds: 20, stood: 18, fell: 27 },
] as const;
/** Three silences and what is between them, of which the longest takes 72 s; and the start. */
const MEASURED_MS = 90_000;
/** Used until two minutes after joining (PRODUCT.md, "In use"), and a last proof. */
const IDLE_FROM_MS = 126_000;
const WATCHED_MS = 40_000;
const LOOK_EVERY_MS = 250;
/** A path in use is proven each 5 s. */
const IN_USE_SECONDS = 5;
/** Of its router's memory an idle path never uses more than two thirds, and a lost keepalive, sent again, leaves a part. */
const LEAST_LEFT = 0.2;

describe.runIf(IS_FULL)("an idle direct path through a router that forgets soon (only in the full run)", () => {
  test(`keeps its mapping, by what was measured of the router: ${CASES.map(({ seconds }) => `${seconds} s`).join(", ")}`, {
    timeout: MEASURED_MS + IDLE_FROM_MS + WATCHED_MS,
  }, async () => {
    const routers = CASES.map(({ seconds }) => ({ nat: "symmetric", mappingSeconds: seconds }) as const);
    await withLab({ sites: [...routers, { nat: "open" }] }, async (lab) => {
      const { agents } = await startMesh(lab);
      const startedAt = performance.now();
      const open = agents.at(-1);
      if (open === undefined) throw new Error("A peer in the open expected");
      const watched = CASES.flatMap((one, index) => {
        const agent = agents[index];
        return agent === undefined ? [] : [{ ...one, agent, site: lab.site(index + 1) }];
      });
      for (const { agent } of watched) await bothDirect(agent, open);
      await Promise.all(
        watched.map(async ({ agent, stood, fell }) =>
          expect.poll(async () => lifetimeOf(agent), { timeout: MEASURED_MS, interval: 1000 }).toEqual([stood, fell]),
        ),
      );
      await sleep(startedAt + IDLE_FROM_MS - performance.now());

      const before = await Promise.all(watched.map(async ({ site }) => mappingTo(site, open)));
      const idleAt = performance.now();
      const left = watched.map(({ seconds }): number => seconds);
      while (performance.now() < idleAt + WATCHED_MS) {
        const entries = await Promise.all(watched.map(async ({ site }) => mappingTo(site, open)));
        for (const [index, entry] of entries.entries()) left[index] = Math.min(left[index] ?? 0, entry.secondsLeft);
        expect(entries.map(({ id, port }) => [id, port])).toEqual(before.map(({ id, port }) => [id, port]));
        await sleep(LOOK_EVERY_MS);
      }
      console.log(`seconds left of the mapping when the next packet renewed it: ${left.join(", ")}`);
      for (const [index, { agent, seconds }] of watched.entries()) {
        expect(left[index]).toBeGreaterThanOrEqual(LEAST_LEFT * seconds);
        // A pause as of a path that nobody uses, where the router allows one.
        if (seconds > 2 * IN_USE_SECONDS) expect(left[index]).toBeLessThan(seconds - IN_USE_SECONDS - 1);
        for (const [one, two] of [
          [agent, open],
          [open, agent],
        ] as const) {
          const { path, history } = await one.peer(two.name);
          expect(path?.kind).toBe("direct");
          expect(history.filter(({ from }) => from === "direct")).toEqual([]);
        }
      }
    });
  });
});

async function lifetimeOf(agent: MeshAgent): Promise<readonly unknown[]> {
  const { nat } = (await agent.status()).self;
  return [nat.mappingLifetimeSeconds, nat.mappingForgottenSeconds];
}

/** The one mapping of this site's router towards a machine in the open: its number in the table, its port, and what is left of its time. */
async function mappingTo(site: Site, peer: MeshAgent): Promise<{ id: string; port: string; secondsLeft: number }> {
  const filter = ["-p", "udp", "--orig-src", site.host.address, "--orig-dst", peer.host.address];
  const table = await site.router?.exec(["conntrack", "-L", "-o", "id", ...filter]);
  const entries = (table?.stdout ?? "").split("\n").flatMap((line) => {
    const found = /^udp +17 (\d+) .* dst=\S+ sport=\d+ dport=(\d+) .*id=(\d+)/.exec(line);
    const [, secondsLeft, port, id] = found ?? [];
    return id === undefined || port === undefined ? [] : [{ id, port, secondsLeft: Number(secondsLeft) }];
  });
  const [entry] = entries;
  if (entry === undefined || entries.length > 1)
    throw new Error(`One mapping to ${peer.name} expected: ${table?.stdout}`);
  return entry;
}
