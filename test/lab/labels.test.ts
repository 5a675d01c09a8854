/** `netcheck` behind every kind of NAT and firewall: from the running agent, and without one by anonymous STUN. Both must agree. */
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { type Netcheck, netcheckWithoutAgent, startMesh } from "./mesh.ts";
import type { SiteNat } from "./topology.ts";

interface Expected {
  readonly label: string;
  readonly mapping: string;
  readonly filtering: string;
  readonly allocation: string;
  readonly summary: RegExp;
}

const EXPECTED: readonly (readonly [SiteNat, Expected | undefined])[] = [
  [
    "open",
    {
      label: "open",
      mapping: "none",
      filtering: "endpoint-independent",
      allocation: "preserving",
      summary: /^This machine has a public address/,
    },
  ],
  [
    "firewalled",
    {
      label: "port-restricted cone",
      mapping: "none",
      filtering: "address-and-port-dependent",
      allocation: "preserving",
      summary: /only the exact addresses that this machine has sent to/,
    },
  ],
  [
    "fullcone",
    {
      label: "full cone",
      mapping: "endpoint-independent",
      filtering: "endpoint-independent",
      allocation: "preserving",
      summary: /^The router lets anybody answer/,
    },
  ],
  [
    "restricted",
    {
      label: "restricted cone",
      mapping: "endpoint-independent",
      filtering: "address-dependent",
      allocation: "preserving",
      summary: /^The router lets in whom this machine has sent to/,
    },
  ],
  [
    "portrestricted",
    {
      label: "port-restricted cone",
      mapping: "endpoint-independent",
      filtering: "address-and-port-dependent",
      allocation: "preserving",
      summary: /^The router lets in only the exact addresses/,
    },
  ],
  ...(["symmetric", "symseq", "symblock256", "symblock512", "symblock1024"] as const).map(
    (kind): readonly [SiteNat, Expected] => [
      kind,
      {
        label: "symmetric",
        mapping: "address-and-port-dependent",
        filtering: "address-and-port-dependent",
        allocation: kind === "symmetric" ? "random" : kind === "symseq" ? "sequential" : "block",
        summary: /^The router uses a different port for each destination/,
      },
    ],
  ),
  ["udpblocked", undefined],
];

/** A few at a time: each site has two programs, and the agents have paths to find beside this. */
const GROUPS = [0, 3, 6, 9].map((from) => {
  const nats = EXPECTED.slice(from, from + 3).map(([nat]) => nat);
  return { names: nats.join(", "), nats };
});

test.each(GROUPS)("netcheck names mapping, filtering, public address and consequence: $names", async ({ nats }) => {
  await withLab({ sites: nats.map((nat) => ({ nat })) }, async (lab) => {
    const { coordinator, agents } = await startMesh(lab);
    const answers = await Promise.all([
      ...agents.map(async (agent) => [agent.host.site, "agent", await agent.netcheck()] as const),
      ...lab.hosts.map(
        async (host) => [host.site, "no agent", await netcheckWithoutAgent(lab, host, coordinator.url)] as const,
      ),
    ]);
    for (const [site, source, answer] of answers) {
      const expected = EXPECTED.find(([nat]) => nat === site.nat)?.[1];
      const what = `${site.nat}, ${source}`;
      if (expected === undefined) expectBlocked(answer, what);
      else expectAnswer(answer, expected, site.publicAddress, what);
    }
    // The agents' own view, which peers are told, is the same.
    for (const agent of agents) {
      const expected = EXPECTED.find(([nat]) => nat === agent.host.site.nat)?.[1];
      const { nat } = (await agent.status()).self;
      expect([nat.label, nat.certain, nat.allocation]).toEqual(
        expected === undefined ? ["udp blocked", false, null] : [expected.label, true, expected.allocation],
      );
      console.log(`${agent.host.site.nat}: ${nat.label}, ${nat.allocation} ${JSON.stringify(nat.ports)}`);
    }
  });
});

function expectAnswer(answer: Netcheck, expected: Expected, publicAddress: string, what: string): void {
  const { ipv4 } = answer;
  expect(
    {
      label: ipv4?.label,
      certain: ipv4?.certain,
      mapping: ipv4?.mapping,
      filtering: ipv4?.filtering,
      allocation: ipv4?.allocation,
    },
    what,
  ).toEqual({
    label: expected.label,
    certain: true,
    mapping: expected.mapping,
    filtering: expected.filtering,
    allocation: expected.allocation,
  });
  expect(ipv4?.publicAddress?.split(":")[0], what).toBe(publicAddress);
  expect(answer.udp, what).toBe(true);
  expect(answer.ipv6, what).toEqual({ available: false, publicAddress: null });
  expect(answer.summary, what).toMatch(expected.summary);
}

function expectBlocked(answer: Netcheck, what: string): void {
  expect([answer.udp, answer.ipv4], what).toEqual([false, null]);
  expect(answer.summary, what).toMatch(/^UDP does not get out of this network: no direct paths/);
}

test("a machine that moves behind a router of another kind measures it anew", async () => {
  await withLab({ sites: [{ nat: "portrestricted" }, { nat: "symmetric", hosts: 0 }] }, async (lab) => {
    const [agent] = (await startMesh(lab)).agents;
    if (agent === undefined) throw new Error("An agent expected");
    await agent.events.next("nat_detected");
    expect((await agent.status()).self.nat.label).toBe("port-restricted cone");
    const since = performance.now();
    await agent.host.moveTo(lab.site(2));
    const accept = ({ label }: Readonly<Record<string, unknown>>): boolean => label === "symmetric";
    const { at } = await agent.events.next("nat_detected", { since, timeoutMs: 10_000, accept });
    console.log(`known ${(at - since).toFixed(0)} ms after the move began`);
    const { label, allocation, publicAddress } = (await agent.status()).self.nat;
    expect([label, allocation]).toEqual(["symmetric", "random"]);
    expect(publicAddress).toContain(lab.site(2).publicAddress);
  });
});
