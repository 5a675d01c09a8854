/**
 * Pairs of NATs that plain simultaneous opening cannot join, on real kernels: each must become direct by an attempt with many packets,
 * carry a file, and leave no more in the routers' tables than is promised. Statistics over many runs are in hard_statistics.test.ts.
 */
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startPair, transferFile } from "./mesh.ts";
import type { Site, SiteNat } from "./topology.ts";

/** PROTOCOL.md, "Punching with many packets". */
const MAX_PACKETS = 4000;
/** What else has an entry: TCP to the coordinator, discovery, plain rounds. */
const OTHER_ENTRIES = 150;
/** Of a block of ports discovery takes more samples (agent/path/port_reuse.ts). */
const BLOCK_SAMPLES = 116;

const PAIRS: readonly [SiteNat, SiteNat][] = [
  ["portrestricted", "symmetric"],
  ["symmetric", "firewalled"],
  ["portrestricted", "symseq"],
  ["portrestricted", "symblock512"],
  ["symseq", "symseq"],
  ["symblock256", "symblock256"],
  ["symblock512", "symblock512"],
  ["symblock1024", "symblock1024"],
  ["symblock256", "symseq"],
];

/** What this side did in its attempts, all together. */
function effortOf(agent: MeshAgent): { readonly packets: number; readonly attempts: number } {
  const punched = agent.events.all("punched");
  return { packets: punched.reduce((sum, { fields }) => sum + Number(fields["packets"]), 0), attempts: punched.length };
}

/**
 * Entries in the table of this site's NAT. Conntrack keeps one without an answer for 30 s, longer than a case lasts, so what is there
 * after the path has been found is the most that there was.
 */
async function entriesOf(site: Site): Promise<number> {
  const machine = site.router ?? site.host;
  return Number(await machine.execChecked(["conntrack", "-C"]));
}

describe("pairs of NATs that take many packets", () => {
  test.each(PAIRS)("%s x %s connects directly", async (a, b) => {
    await withLab({ sites: [{ nat: a }, { nat: b }] }, async (lab) => {
      const { one, two } = await startPair(lab);
      await bothDirect(one, two, 10);
      const entries = await Promise.all(lab.sites.map(async (site) => entriesOf(site)));
      const known = await Promise.all([one, two].map(async (agent) => agent.events.next("nat_detected")));
      const direct = await Promise.all([one.directEvent(two.name), two.directEvent(one.name)]);
      const milliseconds = Math.max(...direct.map(({ at }) => at)) - Math.max(...known.map(({ at }) => at));
      const efforts = [one, two].map(effortOf);
      console.log(
        `${a} x ${b}: direct ${milliseconds.toFixed(0)} ms after both NATs were known; packets ${efforts.map(({ packets }) => packets).join(" and ")}, router entries ${entries.join(" and ")}`,
      );
      for (const { packets, attempts } of efforts) {
        expect(attempts).toBeGreaterThan(0);
        expect(packets).toBeLessThanOrEqual(attempts * MAX_PACKETS);
      }
      efforts.forEach(({ packets }, index) => {
        const samples = [a, b][index]?.startsWith("symblock") === true ? BLOCK_SAMPLES : 0;
        expect(entries[index]).toBeLessThanOrEqual(packets + samples + OTHER_ENTRIES);
      });
      const file = await transferFile(one, two);
      expect(file.bytes).toBe(10_000_000);
      expect((await one.peer(two.name)).path?.kind).toBe("direct");
      expect((await two.peer(one.name)).path?.kind).toBe("direct");
    });
  });

  test("symmetric x symmetric with random ports stays on the relay, without an attempt, and says what chance there is", async () => {
    await withLab({ sites: [{ nat: "symmetric" }, { nat: "symmetric" }] }, async (lab) => {
      const { one, two } = await startPair(lab);
      expect(await one.wait(`direct=${two.name}`, 6)).toBe(7);
      expect([effortOf(one).attempts, effortOf(two).attempts]).toEqual([0, 0]);
      for (const site of lab.sites) expect(await entriesOf(site)).toBeLessThanOrEqual(OTHER_ENTRIES);
      const { path, why } = await one.peer(two.name);
      expect(path?.kind).toBe("ssh");
      expect(why).toMatch(
        /would succeed once in 260 attempts, so it is not tried, which is normal for this pair; a port forward/,
      );
    });
  });
});
