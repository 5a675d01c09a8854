/**
 * Pairs with a carrier's NAT that never lets an external port serve two destinations. First the NAT itself, judged by sockets on both sides
 * of it; then what the product makes of it, and how many ports that takes.
 */
import { describe, expect, test } from "vitest";
import { type BlockNat, startBlockNat } from "./block_nat.ts";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startAgent, startCoordinator, startPair } from "./mesh.ts";
import { interval, IS_FULL, Series } from "./series.ts";
import { filtering, mappedAddress, startStunServer } from "./stun_probe.ts";
import { UdpProber } from "./udp_probe.ts";

const SERVERS = ["203.0.113.10", "203.0.113.11"].flatMap((ip) => [3478, 3479].map((port) => ({ ip, port })));
const [SERVER = { ip: "", port: 0 }] = SERVERS;
const NOTHING_MS = 300;
const FIRST_PORT = 40_000;
/** Of each pair in the full run, so many in a case of about a minute. */
const RUNS = 16;
const RUNS_PER_CASE = 8;
/** Opposite a port-restricted router. */
const SURE = 0.95;
/** The first attempt has ended by then. */
const ATTEMPT_MS = 12_000;

describe("the NAT", () => {
  test("maps and filters by address and port, from its block, and never gives a port twice", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }] }, async (lab) => {
      await startStunServer(lab);
      const nat = await startBlockNat(lab.site(1), 256);
      const prober = new UdpProber(lab.site(1).host);
      const ports: number[] = [];
      for (let socket = 0; socket < 16; socket += 1) {
        const bound = await prober.bind();
        for (const server of SERVERS) {
          const mapped = await mappedAddress(bound, server);
          expect(mapped?.ip).toBe(lab.site(1).publicAddress);
          ports.push(mapped?.port ?? 0);
          // The session keeps its port.
          expect(await mappedAddress(bound, server)).toEqual(mapped);
        }
      }
      expect(new Set(ports).size).toBe(64);
      expect(Math.min(...ports)).toBeGreaterThanOrEqual(FIRST_PORT);
      expect(Math.max(...ports)).toBeLessThan(FIRST_PORT + 256);
      expect(await filtering(await prober.bind(), SERVER)).toBe("address-and-port-dependent");
      expect(await nat.table()).toMatchObject({ now: 65, peak: 65, refused: 0 });
    });
  });

  test("lets nothing more out when its block is full, and has room again when sessions are idle", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }] }, async (lab) => {
      await startStunServer(lab);
      const nat = await startBlockNat(lab.site(1), 4, 1);
      const prober = new UdpProber(lab.site(1).host);
      for (const server of SERVERS) expect(await mappedAddress(await prober.bind(), server)).toBeDefined();
      const late = await prober.bind();
      expect(await mappedAddress(late, SERVER, NOTHING_MS)).toBeUndefined();
      expect(await nat.table()).toMatchObject({ now: 4, refused: 1 });
      await expect.poll(async () => (await nat.table()).now, { timeout: 5000, interval: 100 }).toBe(0);
      expect(await mappedAddress(late, SERVER)).toBeDefined();
    });
  });
});

/** Half of its block at most, and something of it: or the test would not see what it counts. */
async function expectPoliteness(nat: BlockNat, ports: number): Promise<void> {
  const { peak, refused } = await nat.table();
  expect(peak).toBeGreaterThan(20);
  expect(peak).toBeLessThanOrEqual(ports / 2);
  expect(refused).toBe(0);
}

describe("pairs with it", () => {
  test("two of them make a round of at most half of each block: direct, or relayed with the true chance of the rounds", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "portrestricted" }] }, async (lab) => {
      const nats = await Promise.all(lab.sites.map(async (site) => startBlockNat(site, 512)));
      const { one, two } = await startPair(lab);
      const punched = await Promise.all([one, two].map(async (agent) => agent.events.next("punched")));
      for (const { fields } of punched) expect(Number(fields["packets"])).toBeLessThanOrEqual(256);
      for (const nat of nats) await expectPoliteness(nat, 512);
      if (punched.every(({ fields }) => fields["outcome"] === "direct")) await bothDirect(one, two, 10);
      else {
        expect((await one.peer(two.name)).path?.kind).not.toBe("direct");
        // Until the plain round has ended too, a path is being looked for.
        await expect
          .poll(async () => (await one.peer(two.name)).why, { timeout: 10_000, interval: 200 })
          .toMatch(
            /1 of 16 rounds of guessing ports found nothing so far: a round of \d+ packets, at most half of a router's block of ports, succeeds in 1\d % of cases, 16 of them, two minutes apart, in 9\d % of cases; a port forward/,
          );
      }
    });
  });

  test("opposite a port-restricted router it takes a few ports of its block, and the path is direct", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "portrestricted" }] }, async (lab) => {
      const nat = await startBlockNat(lab.site(2), 256);
      const { one, two } = await startPair(lab);
      await bothDirect(one, two, 10);
      await expectPoliteness(nat, 256);
    });
  });
});

/**
 * Reported apart from NATs that share their ports: what the first attempt brings, which between two such NATs is one round, made while
 * discovery's ports are still counted. More rounds follow two minutes apart; that all of them bring what is promised shows in virtual time
 * (test/sim/hard_nats.test.ts).
 */
describe.runIf(IS_FULL)("the first attempt (only in the full run)", () => {
  const series = new Series<{ readonly isDirect: boolean; readonly ports: readonly number[] }>("block_nat");
  const parts = Array.from({ length: RUNS / RUNS_PER_CASE }, (_, part) => part + 1);

  describe.each([
    { here: 256, there: 256, least: 0 },
    { here: 512, there: 512, least: 0 },
    { here: 1024, there: 1024, least: 0 },
    { here: undefined, there: 256, least: SURE },
  ])("of blocks of $here and $there", ({ here, there, least }) => {
    const name = `${here ?? "port-restricted"} x ${there}`;

    test.each(parts)("runs, part %i", { timeout: 118_000 }, async (part) => {
      const sites = [{ nat: "portrestricted" }, { nat: "portrestricted" }] as const;
      await withLab({ sites, roundTripMs: 50 }, async (lab) => {
        const nats: { readonly nat: BlockNat; readonly size: number }[] = [];
        for (const [index, size] of [here, there].entries()) {
          if (size !== undefined) nats.push({ nat: await startBlockNat(lab.site(index + 1), size), size });
        }
        const coordinator = await startCoordinator(lab);
        const key = await coordinator.createKey({ reusable: true });
        for (let run = 0; run < RUNS_PER_CASE && series.of(name).length < part * RUNS_PER_CASE; run += 1) {
          for (const { nat } of nats) await nat.forget();
          const agents = await Promise.all(
            lab.hosts.map(async (host) =>
              startAgent(lab, host, { name: `${host.role}-${run}`, url: coordinator.url, key }),
            ),
          );
          const ended = async (agent: MeshAgent): Promise<boolean> =>
            (await agent.events.next("punched", { timeoutMs: ATTEMPT_MS })).fields["outcome"] === "direct";
          const outcomes = await Promise.all(agents.map(ended));
          const ports: number[] = [];
          for (const { nat, size } of nats) {
            await expectPoliteness(nat, size);
            ports.push((await nat.table()).peak);
          }
          series.keep(name, { isDirect: outcomes.every(Boolean), ports });
          await Promise.all(agents.map(async (agent) => agent.stop()));
        }
      });
    });

    test("as sure as can be", () => {
      const runs = series.of(name);
      const direct = runs.filter(({ isDirect }) => isDirect).length;
      const most = Math.max(...runs.flatMap(({ ports }) => ports));
      console.log(`${name}: ${direct} of ${runs.length} (${interval(direct, runs.length)}), at most ${most} ports`);
      expect(direct / runs.length).toBeGreaterThanOrEqual(least);
    });
  });
});
