/**
 * Outages of what everything leans on, under 1000 numbered packets a second: both machines move at once, one sleeps and wakes behind a
 * captive portal, the coordinator restarts or stays away under relayed traffic, the only proxy dies, a path comes and goes.
 */
import { expect, test } from "vitest";
import { SLACK, withLab } from "./lab_case.ts";
import { bothDirect, startAgent, startCoordinator, startPair, transferFile } from "./mesh.ts";
import { sleep, tellFlow, withFlow } from "./numbered_flow.ts";
import { IS_FULL } from "./series.ts";
import { forwardNothing, startTinyproxy } from "./proxy_site.ts";

const BACK_MS = SLACK * 1000;
/** Retries are jittered around a second. */
const RELAYED_AGAIN_MS = SLACK * 2000;
/** How long the coordinator stays away. */
const COORDINATOR_AWAY_MS = IS_FULL ? 60_000 : 2000;
const COORDINATOR_TIMEOUT_MS = COORDINATOR_AWAY_MS + 20_000;
/** Queues and buffers hold less than this: nothing older arrives when a way opens again. */
const OLDEST_MS = 1000;

test("both machines move to other networks in the same moment, and are direct again at once", async () => {
  const nat = "portrestricted" as const;
  const sites = [{ nat }, { nat }, { nat, hosts: 0 }, { nat, hosts: 0 }];
  await withLab({ sites, roundTripMs: 50 }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const times: number[] = [];
    const report = await withFlow(one, two, 7, async () => {
      await sleep(1000);
      await Promise.all([one.host.moveTo(lab.site(3)), two.host.moveTo(lab.site(4))]);
      const movedAt = performance.now();
      for (const [agent, peer, index] of [
        [one, two, 4],
        [two, one, 3],
      ] as const) {
        const address = lab.site(index).publicAddress;
        const event = await agent.directEvent(peer.name, {
          since: movedAt - 500,
          timeoutMs: 10_000,
          accept: ({ remoteAddress }) => String(remoteAddress).startsWith(`${address}:`),
        });
        times.push(event.at - movedAt);
      }
    });
    console.log(`both moved: direct after ${times.map(Math.round).join(" and ")} ms, ${tellFlow(report)}`);
    expect(Math.max(...times)).toBeLessThan(BACK_MS);
    expect(report.account.duplicated).toBe(0);
  });
});

test("a laptop wakes in another network behind a captive portal, and is direct a moment after the portal opens", async () => {
  const nat = "portrestricted" as const;
  await withLab({ sites: [{ nat }, { nat }, { nat, hosts: 0 }], roundTripMs: 50 }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    // The lid closes: the kernel's clock goes on, the process does not.
    one.process.signal("SIGSTOP");
    await sleep(4000);
    const portal = 'iifname "lan" counter drop';
    await lab.site(3).setNat(nat, { forward: [portal] });
    await one.host.moveTo(lab.site(3));
    one.process.signal("SIGCONT");
    await sleep(5000);
    await lab.site(3).setNat(nat, { forward: [] });
    const openedAt = performance.now();
    const pings = one.startPing(two.name, { count: 1000, intervalSeconds: 0.1 });
    await pings.moreAnswers(1, 9000);
    const answeredMs = performance.now() - openedAt;
    await bothDirect(one, two);
    console.log(
      `portal open: first answer after ${answeredMs.toFixed(0)} ms, direct at both ends after ${(performance.now() - openedAt).toFixed(0)} ms`,
    );
    await pings.stop();
    expect((await two.peer(one.name)).path?.remoteAddress).toContain(lab.site(3).publicAddress);
  });
});

test(
  "the coordinator crashes under relayed traffic: it comes back by itself, once, in order, and nothing has piled up",
  async () => {
    await withLab({ sites: [{ nat: "udpblocked" }, { nat: "fullcone" }] }, async (lab) => {
      const { coordinator, one, two } = await startPair(lab);
      expect(await one.wait(`peer=${two.name}`, 10)).toBe(0);
      const seconds = Math.ceil(COORDINATOR_AWAY_MS / 1000) + 7;
      let backMs = Number.POSITIVE_INFINITY;
      const report = await withFlow(one, two, seconds, async () => {
        await sleep(1000);
        coordinator.process.signal("SIGKILL");
        await coordinator.process.exited;
        await sleep(COORDINATOR_AWAY_MS);
        await startCoordinator(lab, { dataDir: coordinator.dataDir });
        const readyAt = performance.now();
        const back = await one.events.next("path_changed", {
          since: readyAt - 1000,
          accept: ({ peer, to }) => peer === two.name && to !== "none",
        });
        backMs = back.at - readyAt;
      });
      console.log(`relayed again ${backMs.toFixed(0)} ms after the coordinator was ready, ${tellFlow(report)}`);
      expect(backMs).toBeLessThan(RELAYED_AGAIN_MS);
      expect([report.account.duplicated, report.account.reordered]).toEqual([0, 0]);
      expect(report.account.highest).toBe(report.sent - 1);
      expect(report.account.longestDelayMs).toBeLessThan(OLDEST_MS);
    });
  },
  COORDINATOR_TIMEOUT_MS,
);

test("the only proxy dies under traffic and comes back: so does the path, and nothing has piled up", async () => {
  await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
    const site = lab.site(1);
    await forwardNothing(site);
    const proxy = await startTinyproxy(lab, site);
    const coordinator = await startCoordinator(lab, { listen: ["http://0.0.0.0:443"] });
    const key = await coordinator.createKey({ reusable: true });
    const [first, second] = lab.hosts;
    if (first === undefined || second === undefined) throw new Error("Two hosts expected");
    const one = await startAgent(lab, first, { name: "one", url: coordinator.url, key, extra: ["--proxy", proxy.url] });
    const two = await startAgent(lab, second, { name: "two", url: coordinator.url, key });
    expect(await two.wait("peer=one", 10)).toBe(0);
    const report = await withFlow(one, two, 9, async () => {
      await sleep(1000);
      proxy.process.signal("SIGKILL");
      await proxy.process.exited;
      await two.events.next("path_changed", { accept: ({ peer, to }) => peer === "one" && to === "none" });
      await sleep(1500);
      expect((await one.status()).self.coordinator.connected).toBe(false);
      await startTinyproxy(lab, site);
      const aliveAt = performance.now();
      expect(await two.wait("peer=one", 10)).toBe(0);
      console.log(`proxy back: the path is there again after ${(performance.now() - aliveAt).toFixed(0)} ms`);
    });
    console.log(tellFlow(report));
    expect([report.account.duplicated, report.account.reordered]).toEqual([0, 0]);
    expect(report.account.highest).toBe(report.sent - 1);
    expect(report.account.longestDelayMs).toBeLessThan(OLDEST_MS);
    expect((await transferFile(one, two, { bytes: 100_000 })).bytes).toBe(100_000);
    expect((await two.peer("one")).path?.kind).toBe("websocket");
  });
});

test("a path that comes and goes each second does not take the traffic along", async () => {
  await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const since = performance.now();
    const report = await withFlow(one, two, 14, async () => {
      for (let round = 0; round < 6; round++) {
        await lab.site(1).setNat("portrestricted", { forward: ["meta l4proto udp drop"] });
        await sleep(1000);
        await lab.site(1).setNat("portrestricted", { forward: [] });
        await sleep(1000);
      }
    });
    const moves = one.events.all("path_changed").filter(({ at, fields }) => at > since && fields["to"] === "direct");
    console.log(`six outages of a second: ${moves.length} times back to direct, ${tellFlow(report)}`);
    expect(moves.length).toBeLessThanOrEqual(4);
  });
});
