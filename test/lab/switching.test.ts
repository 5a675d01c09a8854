/**
 * Moving along the ladder under load: 1000 numbered packets a second inside the TUN, while the operator or a firewall changes the rung.
 *
 * A planned switch loses, duplicates and reorders nothing. A silent death is left within a second; what it costs is measured.
 */
import { describe, expect, test } from "vitest";
import { SLACK, withLab } from "./lab_case.ts";
import { bothDirect, startAgent, startCoordinator, startPair, transferFile } from "./mesh.ts";
import { faults, NO_FAULTS, sleep, tellFlow, withFlow } from "./numbered_flow.ts";
import { IS_FULL } from "./series.ts";

/** PRODUCT.md: a silent death is left within a second, an opening found within five. */
const LEFT_WITHIN_MS = SLACK * 1000;
const FOUND_WITHIN_MS = SLACK * 5000;

describe("planned switches under 1000 packets a second", () => {
  test.each([0, 50])("at %i ms round trip lose, duplicate and reorder nothing", async (roundTripMs) => {
    const wire = roundTripMs === 0 ? {} : { roundTripMs };
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }], ...wire }, async (lab) => {
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      const rungs = ["ssh", "direct", "websocket", "ssh", "websocket", "direct"];
      const report = await withFlow(one, two, 6, async () => {
        for (const rung of rungs) {
          const { code, stderr } = await one.command(["path", two.name, rung === "direct" ? "auto" : rung]);
          expect([code, stderr]).toEqual([0, ""]);
          expect((await one.peer(two.name))?.path?.kind).toBe(rung);
          await sleep(400);
        }
      });
      console.log(`${roundTripMs} ms, ${rungs.length} switches: ${tellFlow(report)}`);
      expect(faults(report)).toEqual(NO_FAULTS);
      const history = (await one.peer(two.name))?.history.map(({ from, to }) => `${from} > ${to}`) ?? [];
      expect(history.slice(-rungs.length)).toEqual(
        rungs.map((rung, i) => `${i === 0 ? "direct" : rungs[i - 1]} > ${rung}`),
      );
    });
  });
});

const DOWNLOAD = IS_FULL
  ? { megabytes: 200, switches: 10, timeoutMs: 90_000 }
  : { megabytes: 20, switches: 4, timeoutMs: 20_000 };

test(
  `a download of ${DOWNLOAD.megabytes} MB over one connection lives through ${DOWNLOAD.switches} switches, every byte right`,
  async () => {
    const { megabytes, switches, timeoutMs } = DOWNLOAD;
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      // Slow enough to be under way at each switch, and half of what the slowest rung carries at most.
      const bytes = megabytes * 1_000_000;
      const file = transferFile(one, two, { bytes, bytesPerSecond: 5_000_000, timeoutMs: timeoutMs - 5000 });
      file.catch(() => undefined);
      await sleep(500);
      const gapMs = (megabytes * 200) / (switches + 1);
      for (let i = 0; i < switches; i++) {
        const rung = ["ssh", "auto", "websocket", "auto"][i % 4] ?? "auto";
        expect((await one.command(["path", two.name, rung])).code).toBe(0);
        await sleep(gapMs - 150);
      }
      const got = await file;
      console.log(`${got.bytes} bytes in ${got.milliseconds.toFixed(0)} ms through ${switches} switches`);
      expect(got.bytes).toBe(bytes);
      const moves = (await one.peer(two.name)).history.length;
      expect(moves).toBeGreaterThanOrEqual(switches);
    });
  },
  DOWNLOAD.timeoutMs,
);

/** What dies, as rules of the first site's router; which way the packets go from there; how many a second. */
const DEATHS = [
  ["both ways", "outwards", 1000, "meta l4proto udp drop"],
  ["outwards only", "outwards", 10, 'iifname "lan" meta l4proto udp drop'],
  ["inwards only", "inwards", 1000, 'iifname "wan" meta l4proto udp drop'],
] as const;
const MORE_DEATHS = [
  ["both ways", "outwards", 10, "meta l4proto udp drop"],
  ["outwards only", "outwards", 1000, 'iifname "lan" meta l4proto udp drop'],
  ["inwards only", "inwards", 10, 'iifname "wan" meta l4proto udp drop'],
] as const;

describe("a direct path that dies silently", () => {
  test.each(IS_FULL ? [...DEATHS, ...MORE_DEATHS] : DEATHS)(
    "is left within a second by a one-way flow: %s, packets %s, %i a second",
    async (name, direction, perSecond, rule) => {
      await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
        const { one, two } = await startPair(lab);
        await bothDirect(one, two);
        const [from, to] = direction === "outwards" ? [one, two] : [two, one];
        const during = async (): Promise<void> => {
          await sleep(1500);
          await lab.site(1).setNat("portrestricted", { forward: [rule] });
          await sleep(2000);
          expect((await from.peer(to.name)).path?.kind).toBe("ssh");
        };
        const report = await withFlow(from, to, 4, during, { perSecond });
        console.log(`${name}, ${perSecond}/s: ${tellFlow(report)}`);
        expect(report.account.longestGapMs).toBeLessThan(LEFT_WITHIN_MS);
        expect(report.account.duplicated).toBe(0);
      });
    },
  );

  test.each(IS_FULL ? [1000, 10] : [1000])(
    "is left when only packets over 1000 bytes die, at %i of them a second, and taken again when they pass",
    async (perSecond) => {
      await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
        const { one, two } = await startPair(lab);
        await bothDirect(one, two);
        const large = withFlow(one, two, 5, async () => {}, { perSecond, port: 5203, bytes: 1200 });
        const small = withFlow(one, two, 5, async () => {}, { perSecond: 200, port: 5204, bytes: 100 });
        await sleep(1500);
        await lab.site(1).setNat("portrestricted", { forward: ["meta l4proto udp meta length > 1000 drop"] });
        const [largeReport, smallReport] = await Promise.all([large, small]);
        console.log(`large packets: ${tellFlow(largeReport)}`);
        console.log(`small packets: ${tellFlow(smallReport)}`);
        expect((await one.peer(two.name)).path?.kind).toBe("ssh");
        expect(largeReport.account.longestGapMs).toBeLessThan(LEFT_WITHIN_MS);
        await lab.site(1).setNat("portrestricted", { forward: [] });
        await one.waitDirect(two.name, 10);
      });
    },
  );

  test("is left when probes of any size pass, and packets of the size of the data do not", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      const report = await withFlow(
        one,
        two,
        5,
        async () => {
          await sleep(1000);
          await lab.site(1).setNat("portrestricted", { forward: ["meta l4proto udp meta length 400-600 drop"] });
          await sleep(2500);
          const { path, history } = await one.peer(two.name);
          expect([path?.kind, history.at(-1)?.reason]).toEqual(["ssh", "probes get through, data does not"]);
        },
        { perSecond: IS_FULL ? 10 : 100, bytes: 450 },
      );
      console.log(`medium packets: ${tellFlow(report)}`);
      expect(report.account.longestGapMs).toBeLessThan(LEFT_WITHIN_MS);
    });
  });

  test("is left by a machine that only receives, when its router restarts and takes TCP along", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }], roundTripMs: 50 }, async (lab) => {
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      const report = await withFlow(two, one, 7, async () => {
        await sleep(1500);
        await lab.site(1).rebootNat();
      });
      console.log(`only receiving: ${tellFlow(report)}`);
      expect(report.account.longestGapMs).toBeLessThan(SLACK * 1500);
    });
  });
});

describe("a firewall that opens", () => {
  test.each([
    ["udpblocked", /both networks block UDP; allowing outgoing UDP on both sides would make a direct path possible/],
    ["fullcone", /this network blocks UDP; allowing outgoing UDP here would make a direct path possible/],
  ] as const)("brings a direct path by itself, as why has said: %s", { timeout: 30_000 }, async (far, words) => {
    await withLab({ sites: [{ nat: "udpblocked" }, { nat: far }] }, async (lab) => {
      const { one, two } = await startPair(lab);
      expect(await one.wait(`peer=${two.name}`, 10)).toBe(0);
      await one.waitWhy(two.name, words);
      const report = await withFlow(one, two, undefined, async () => {
        await sleep(1000);
        if (far === "udpblocked") {
          await lab.site(2).setNat("portrestricted");
          // One of two doors: nothing passes yet, and nothing may be lost by trying.
          await sleep(1500);
          for (const [agent, peer] of [
            [one, two],
            [two, one],
          ] as const)
            expect((await agent.peer(peer.name)).path?.kind).toBe("ssh");
        }
        await lab.site(1).setNat("portrestricted");
        const openedAt = performance.now();
        await Promise.all([one, two].map(async (agent, i) => agent.waitDirect((i === 0 ? two : one).name, 15)));
        const foundMs = performance.now() - openedAt;
        console.log(`direct ${foundMs.toFixed(0)} ms after the firewall opened`);
        expect(foundMs).toBeLessThan(FOUND_WITHIN_MS);
      });
      console.log(tellFlow(report));
      expect(faults(report)).toEqual(NO_FAULTS);
    });
  });

  test("for TCP port 2222 brings SSH in the place of the WebSocket, with nothing lost", async () => {
    await withLab({ sites: [{ nat: "tcp443only" }, { nat: "fullcone" }] }, async (lab) => {
      const coordinator = await startCoordinator(lab, { listen: ["http://0.0.0.0:443"] });
      const key = await coordinator.createKey({ reusable: true });
      const [one, two] = await Promise.all(
        lab.hosts.map(async (host) => startAgent(lab, host, { name: host.role, url: coordinator.url, key })),
      );
      if (one === undefined || two === undefined) throw new Error("Two agents expected");
      expect(await one.wait(`peer=${two.name}`, 10)).toBe(0);
      expect((await one.peer(two.name)).path?.kind).toBe("websocket");
      const report = await withFlow(one, two, 9, async () => {
        await sleep(2500);
        await lab.site(1).setNat("udpblocked");
        const openedAt = performance.now();
        const moved = await one.events.next("path_changed", { accept: ({ to }) => to === "ssh", timeoutMs: 15_000 });
        console.log(`by SSH ${(moved.at - openedAt).toFixed(0)} ms after its port opened`);
        expect(moved.at - openedAt).toBeLessThan(Math.min(FOUND_WITHIN_MS, 2 * 5000));
      });
      console.log(tellFlow(report));
      expect(faults(report)).toEqual(NO_FAULTS);
    });
  });
});
