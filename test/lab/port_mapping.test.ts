/**
 * Port mapping with a real daemon on the router: pairs of NATs that nothing else joins become direct by it, by each protocol alone, and
 * nothing is left behind.
 */
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, netcheckWithoutAgent, startAgent, startCoordinator, startPair } from "./mesh.ts";
import { MINIUPNPD, Miniupnpd, type MiniupnpdOptions } from "./miniupnpd.ts";
import { sleep } from "./numbered_flow.ts";
import type { SiteNat } from "./topology.ts";

const HOSTILE_ROUTER = fileURLToPath(new URL("hostile_router.ts", import.meta.url));
const isMissing = !existsSync(MINIUPNPD);
const title = isMissing ? `port mapping (skipped: ${MINIUPNPD} is not installed)` : "port mapping";

describe.skipIf(isMissing)(title, () => {
  const protocols: [string, MiniupnpdOptions, string][] = [
    ["all three", {}, "PCP"],
    ["PCP alone", { only: "pcp" }, "PCP"],
    ["NAT-PMP alone", { only: "nat-pmp" }, "NAT-PMP"],
    ["UPnP alone", { only: "upnp" }, "UPnP"],
    ["UPnP of version 1", { only: "upnp", isVersion1: true }, "UPnP"],
  ];
  test.each(protocols)(
    "%s: symmetric x port-restricted is direct, and nothing stays behind",
    async (_, options, name) => {
      await withLab({ sites: [{ nat: "symmetric" }, { nat: "portrestricted" }] }, async (lab) => {
        const router = await Miniupnpd.start(lab, lab.site(1), options);
        const { one, two } = await startPair(lab);
        await bothDirect(one, two);
        const mapped = await mappedAddress(one);
        expect(mapped).toMatchObject({ protocol: name, note: null });
        // The path itself: the port-restricted side sends to the mapped port, on no other way could it reach the symmetric one.
        expect((await two.peer(one.name)).path?.remoteAddress).toBe(mapped.address);
        expect(await router.mappings()).toHaveLength(1);
        expect(router.requests.length).toBeGreaterThan(0);
        const { portMapping } = await one.netcheck();
        expect(portMapping).toMatchObject({
          upnp: options.only === undefined || options.only === "upnp",
          natPmp: options.only === undefined || options.only === "nat-pmp",
          pcp: options.only === undefined || options.only === "pcp",
        });
        expect(await one.stop()).toBe(0);
        expect(await router.mappings()).toEqual([]);
      });
    },
  );

  test.each<[SiteNat, SiteNat, number]>([
    ["symmetric", "symmetric", 1],
    ["symmetric", "symmetric", 2],
    ["portrestricted", "symmetric", 1],
  ])("%s x %s is direct by a mapping at site %i", async (a, b, mappedSite) => {
    await withLab({ sites: [{ nat: a }, { nat: b }] }, async (lab) => {
      await Miniupnpd.start(lab, lab.site(mappedSite));
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      const [mapped, other] = mappedSite === 1 ? [one, two] : [two, one];
      expect((await other.peer(mapped.name)).path?.remoteAddress).toBe((await mappedAddress(mapped)).address);
    });
  });

  test.each<MiniupnpdOptions>([{}, { only: "upnp" }])("is found when switched on later: %o", async (options) => {
    await withLab({ sites: [{ nat: "symmetric" }, { nat: "symmetric" }] }, async (lab) => {
      const { one, two } = await startPair(lab);
      expect(await one.wait(`direct=${two.name}`, 5)).toBe(7);
      // The remedy that `why` names, applied.
      expect((await one.peer(two.name)).why).toMatch(/UPnP on either router would make a direct path possible/);
      await Miniupnpd.start(lab, lab.site(1), options);
      const startedAt = performance.now();
      await bothDirect(one, two);
      console.log(
        `${JSON.stringify(options)}: direct ${Math.round(performance.now() - startedAt)} ms after it was switched on`,
      );
    });
  });

  test("a router that loses power and comes back maps the same port again", async () => {
    await withLab({ sites: [{ nat: "symmetric" }, { nat: "symmetric" }] }, async (lab) => {
      const router = await Miniupnpd.start(lab, lab.site(1));
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      const before = await router.mappings();
      await router.cutPower();
      await lab.site(1).flushConntrack();
      await sleep(1000);
      const restartedAt = performance.now();
      const again = await Miniupnpd.start(lab, lab.site(1));
      await until(async () => (await again.mappings()).length > 0, 5000);
      console.log(
        `mapped again ${Math.round(performance.now() - restartedAt)} ms after the start of the router's daemon`,
      );
      expect(await again.mappings()).toEqual(before);
      await bothDirect(one, two);
    });
  });

  test.each([
    [
      "maps all the same",
      true,
      /behind another NAT itself: it calls its address 100\.127\.1\.2, the coordinator sees 198/,
    ],
    ["maps nothing", false, /no public address of its own/],
  ] as const)("a router behind a carrier's NAT is recognised, and said: it %s", async (_, mapsBehindCarrier, words) => {
    const sites = [{ nat: "symmetric", carrier: "symmetric" }, { nat: "symmetric" }] as const;
    await withLab({ sites }, async (lab) => {
      await Miniupnpd.start(lab, lab.site(1), { mapsBehindCarrier });
      const { one, two } = await startPair(lab);
      expect(await one.wait(`direct=${two.name}`, 6)).toBe(7);
      const { note } = await mappedAddress(one);
      expect(note).toMatch(words);
      expect((await one.command(["why", two.name])).stdout).toContain(note);
      // Both sides know which router to open, and it helps.
      const remedy = "a port forward or UPnP on";
      await one.waitWhy(two.name, new RegExp(`${remedy} the router of "${two.name}" would`));
      await two.waitWhy(
        one.name,
        new RegExp(`${remedy} this router would .* on the router of "${one.name}" it would not`),
      );
      await Miniupnpd.start(lab, lab.site(2));
      await bothDirect(one, two);
    });
  });

  test.each(["endless", "bomb", "redirect"])(
    "a hostile router (%s) gets nothing out of the agent, and does not stop it",
    async (mode) => {
      await withLab({ sites: [{ nat: "portrestricted" }, { nat: "portrestricted" }] }, async (lab) => {
        const { router, lan } = lab.site(1);
        if (router === undefined || lan === undefined) throw new Error("A router expected");
        const hostile = router.spawn([process.execPath, HOSTILE_ROUTER, lan.gateway, mode]);
        await hostile.waitFor("ready", ({ text }) => (text === "ready" ? true : undefined), 3000);
        const { one, two } = await startPair(lab);
        await bothDirect(one, two);
        expect((await one.netcheck()).portMapping).toMatchObject({ upnp: false, address: null });
        expect(hostile.lines.some(({ text }) => text.startsWith("fetched"))).toBe(true);
        // It has named another machine as the place of its description, and sent us on to it.
        const flows = await router.execChecked(["conntrack", "-L", "-p", "tcp", "--dport", "9"]);
        expect(flows.trim()).toBe("");
        const stoppedAt = performance.now();
        expect(await one.stop()).toBe(0);
        expect(performance.now() - stoppedAt).toBeLessThan(2000);
      });
    },
  );

  test("--no-port-mapping leaves the router alone", async () => {
    await withLab({ sites: [{ nat: "symmetric" }, { nat: "symmetric" }] }, async (lab) => {
      const router = await Miniupnpd.start(lab, lab.site(1));
      const { one, two } = await startPair(lab, { agent: { extra: ["--no-port-mapping"] } });
      expect(await one.wait(`direct=${two.name}`, 5)).toBe(7);
      expect(await router.mappings()).toEqual([]);
      expect(
        router.process.lines.filter(({ text }) => /M-SEARCH|PCP|HTTP REQUEST/.test(text) && /from/.test(text)),
      ).toEqual([]);
      expect((await one.netcheck()).portMapping).toMatchObject({ upnp: null, natPmp: null, pcp: null });
    });
  });

  test("netcheck finds the three protocols without an agent, and maps nothing", async () => {
    await withLab({ sites: [{ nat: "symmetric" }] }, async (lab) => {
      const router = await Miniupnpd.start(lab, lab.site(1));
      const { url } = await startCoordinator(lab);
      const { portMapping } = await netcheckWithoutAgent(lab, lab.site(1).host, url);
      expect(portMapping).toMatchObject({ upnp: true, natPmp: true, pcp: true, address: null });
      expect(await router.mappings()).toEqual([]);
    });
  });

  test("two agents behind one router get a port each", async () => {
    await withLab({ sites: [{ nat: "symmetric", hosts: 2 }, { nat: "symmetric" }] }, async (lab) => {
      const router = await Miniupnpd.start(lab, lab.site(1), { only: "upnp" });
      const coordinator = await startCoordinator(lab);
      const key = await coordinator.createKey({ reusable: true });
      const [one, two, three] = await Promise.all(
        lab.hosts.map(async (host) =>
          // The same port inside, so that the second one's wish for it outside is refused.
          startAgent(lab, host, { name: host.role, url: coordinator.url, key, extra: ["--udp-port", "41641"] }),
        ),
      );
      if (one === undefined || two === undefined || three === undefined) throw new Error("Three agents expected");
      await Promise.all([bothDirect(one, three), bothDirect(two, three)]);
      expect(await router.mappings()).toHaveLength(2);
      expect((await mappedAddress(one)).address).not.toBe((await mappedAddress(two)).address);
    });
  });
});

async function mappedAddress(agent: MeshAgent) {
  const { portMapping } = (await agent.status()).self;
  if (portMapping === undefined) throw new Error(`${agent.name} says nothing of port mapping`);
  return portMapping;
}

async function until(condition: () => Promise<boolean>, timeoutMs: number): Promise<void> {
  const endsAt = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > endsAt) throw new Error("It did not come to pass in time");
    await sleep(50);
  }
}
