/** Routers that turn packets back and others: `netcheck` says so, from the running agent and without one. */
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { netcheckWithoutAgent, startMesh } from "./mesh.ts";
import type { SiteOptions } from "./topology.ts";

const SITES: readonly (SiteOptions & { readonly works: boolean | null })[] = [
  { nat: "portrestricted", hairpin: true, works: true },
  { nat: "fullcone", works: false },
  { nat: "open", works: null },
];

test("netcheck knows whether the router turns packets back", async () => {
  await withLab({ sites: SITES }, async (lab) => {
    const { coordinator, agents } = await startMesh(lab);
    const answers = await Promise.all([
      ...agents.map(async (agent) => [agent.host.site, await agent.netcheck()] as const),
      ...lab.hosts.map(async (host) => [host.site, await netcheckWithoutAgent(lab, host, coordinator.url)] as const),
    ]);
    for (const [site, { ipv4 }] of answers) {
      expect(ipv4?.hairpin, site.nat).toBe(SITES.find(({ nat }) => nat === site.nat)?.works);
    }
    expect(answers).toHaveLength(6);
    // The ways to the coordinator: an agent knows of SSH, and without one it is not tried.
    expect(answers.map(([, { ssh, websocket, proxy }]) => [ssh, websocket, proxy])).toEqual([
      ...agents.map(() => [true, true, null]),
      ...lab.hosts.map(() => [null, true, null]),
    ]);
    const [words] = await Promise.all(agents.map(async (agent) => (await agent.command(["netcheck"])).stdout));
    expect(words).toMatch(/hairpin +works/);
  });
});
