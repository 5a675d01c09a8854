/**
 * Moving along the ladder under load: 1000 numbered packets a second inside the TUN, while the operator or a firewall changes the rung.
 *
 * A planned switch loses, duplicates and reorders nothing. A silent death is left within a second; what it costs is measured.
 */
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { type MeshAgent, startAgent, startCoordinator, startMesh, transferFile } from "./mesh.ts";
import { sleep, withFlow } from "./numbered_flow.ts";

describe("planned switches under 1000 packets a second", () => {
  test.each([0, 50])("at %i ms round trip lose, duplicate and reorder nothing", async (roundTripMs) => {
    const wire = roundTripMs === 0 ? {} : { roundTripMs };
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }], ...wire }, async (lab) => {
      const [one, two] = await twoAgents(await startMesh(lab));
      await one.waitDirect(two.name, 10);
      await two.waitDirect(one.name, 10);
      const rungs = ["ssh", "direct", "websocket", "ssh", "websocket", "direct"];
      const { account, sent } = await withFlow(one, two, 6, async () => {
        for (const rung of rungs) {
          const { code, stderr } = await one.command(["path", two.name, rung === "direct" ? "auto" : rung]);
          expect([code, stderr]).toEqual([0, ""]);
          expect((await one.peer(two.name))?.path?.kind).toBe(rung);
          await sleep(400);
        }
      });
      console.log(`${roundTripMs} ms, ${rungs.length} switches: ${JSON.stringify({ sent, ...account })}`);
      expect({ ...account, longestGapMs: 0, firstDelayMs: 0 }).toEqual({
        received: sent,
        highest: sent - 1,
        duplicated: 0,
        reordered: 0,
        longestGapMs: 0,
        firstDelayMs: 0,
      });
      const history = (await one.peer(two.name))?.history.map(({ from, to }) => `${from} > ${to}`) ?? [];
      expect(history.slice(-rungs.length)).toEqual(
        rungs.map((rung, i) => `${i === 0 ? "direct" : rungs[i - 1]} > ${rung}`),
      );
    });
  });
});

const IS_FULL = process.env["LAB_FULL"] === "1";
const DOWNLOAD = IS_FULL
  ? { megabytes: 200, switches: 10, timeoutMs: 90_000 }
  : { megabytes: 20, switches: 4, timeoutMs: 20_000 };

test(
  `a download of ${DOWNLOAD.megabytes} MB over one connection lives through ${DOWNLOAD.switches} switches, every byte right`,
  async () => {
    const { megabytes, switches, timeoutMs } = DOWNLOAD;
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
      const [one, two] = await twoAgents(await startMesh(lab));
      await one.waitDirect(two.name, 10);
      await two.waitDirect(one.name, 10);
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

describe("a direct path that dies silently under 1000 packets a second", () => {
  test.each([
    ["both ways", ["meta l4proto udp drop"]],
    ["outwards only", ['iifname "lan" meta l4proto udp drop']],
    ["inwards only", ['iifname "wan" meta l4proto udp drop']],
  ])("is left within a second: %s", async (_name, forward) => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
      const [one, two] = await twoAgents(await startMesh(lab));
      await one.waitDirect(two.name, 10);
      await two.waitDirect(one.name, 10);
      const { account, sent } = await withFlow(one, two, 5, async () => {
        await sleep(1000);
        await lab.site(1).setNat("portrestricted", { forward });
        await sleep(2500);
        expect((await one.peer(two.name))?.path?.kind).toBe("ssh");
      });
      const lost = sent - account.received;
      console.log(`${_name}: lost ${lost}, ${JSON.stringify({ sent, ...account })}`);
      if (_name !== "inwards only") expect(account.longestGapMs).toBeLessThan(3000);
    });
  });

  test("is left when only packets over 1000 bytes die, and taken again when they pass", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
      const [one, two] = await twoAgents(await startMesh(lab));
      await one.waitDirect(two.name, 10);
      await two.waitDirect(one.name, 10);
      const large = withFlow(one, two, 5, async () => {}, { perSecond: 200, port: 5203, bytes: 1200 });
      const small = withFlow(one, two, 5, async () => {}, { perSecond: 200, port: 5204, bytes: 100 });
      await sleep(1500);
      await lab.site(1).setNat("portrestricted", { forward: ["meta l4proto udp meta length > 1000 drop"] });
      const account = await large;
      console.log(`large packets: lost ${account.lost}, ${JSON.stringify(account.account)}`);
      console.log(`small packets: lost ${(await small).lost}`);
      expect((await one.peer(two.name))?.path?.kind).toBe("ssh");
      expect(account.account.longestGapMs).toBeLessThan(3000);
      await lab.site(1).setNat("portrestricted", { forward: [] });
      await one.waitDirect(two.name, 10);
    });
  });

  test("is left when probes of any size pass, and packets of the size of the data do not", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
      const [one, two] = await twoAgents(await startMesh(lab));
      await one.waitDirect(two.name, 10);
      await two.waitDirect(one.name, 10);
      const { account, lost } = await withFlow(
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
        { perSecond: 100, bytes: 450 },
      );
      console.log(`medium packets: lost ${lost}, ${JSON.stringify(account)}`);
      expect(account.longestGapMs).toBeLessThan(3000);
    });
  });

  test("is left by a machine that only receives, when its router restarts and takes TCP along", async () => {
    await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }], roundTripMs: 50 }, async (lab) => {
      const [one, two] = await twoAgents(await startMesh(lab));
      await one.waitDirect(two.name, 10);
      await two.waitDirect(one.name, 10);
      const { lost, account } = await withFlow(two, one, 7, async () => {
        await sleep(1500);
        await lab.site(1).rebootNat();
      });
      console.log(`only receiving: lost ${lost}, ${JSON.stringify(account)}`);
      expect(account.longestGapMs).toBeLessThan(4500);
    });
  });
});

describe("a firewall that opens", () => {
  test.each(["udpblocked", "fullcone"] as const)("brings a direct path back by itself: %s", async (far) => {
    await withLab({ sites: [{ nat: "udpblocked" }, { nat: far }] }, async (lab) => {
      const [one, two] = await twoAgents(await startMesh(lab));
      expect(await one.wait(`peer=${two.name}`, 10)).toBe(0);
      const { account, sent } = await withFlow(one, two, 9, async () => {
        await sleep(1000);
        if (far === "udpblocked") await lab.site(2).setNat("portrestricted");
        await lab.site(1).setNat("portrestricted");
        const openedAt = performance.now();
        await one.waitDirect(two.name, 3 * 5);
        await two.waitDirect(one.name, 3 * 5);
        console.log(`direct ${(performance.now() - openedAt).toFixed(0)} ms after the firewall opened`);
      });
      console.log(JSON.stringify({ sent, ...account }));
      expect([sent - account.received, account.duplicated, account.reordered]).toEqual([0, 0, 0]);
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
      const { account, lost } = await withFlow(one, two, 9, async () => {
        await sleep(2500);
        await lab.site(1).setNat("udpblocked");
        const openedAt = performance.now();
        const moved = await one.events.next("path_changed", { accept: ({ to }) => to === "ssh", timeoutMs: 15_000 });
        console.log(`by SSH ${(moved.at - openedAt).toFixed(0)} ms after its port opened`);
        expect(moved.at - openedAt).toBeLessThan(2 * 5000);
      });
      console.log(`lost ${lost}, ${JSON.stringify(account)}`);
      expect([lost, account.duplicated, account.reordered]).toEqual([0, 0, 0]);
    });
  });
});

async function twoAgents(mesh: { readonly agents: readonly MeshAgent[] }): Promise<[MeshAgent, MeshAgent]> {
  const [one, two] = mesh.agents;
  if (one === undefined || two === undefined) throw new Error("Two agents expected");
  return Promise.resolve([one, two]);
}
