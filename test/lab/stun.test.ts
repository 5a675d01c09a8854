/**
 * The coordinator's STUN against a client that is not ours, Debian's `stun` (RFC 3489), behind each NAT, with two coordinator addresses
 * and with one; and what our own labels say when there is only one.
 */
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { startCoordinator, startMesh } from "./mesh.ts";
import type { SiteNat } from "./topology.ts";

const NATS: readonly SiteNat[] = [
  "open",
  "firewalled",
  "fullcone",
  "restricted",
  "portrestricted",
  "symmetric",
  "udpblocked",
];

/** First words of the client's verdict. */
const VERDICTS: Readonly<Partial<Record<SiteNat, string>>> = {
  open: "Open",
  firewalled: "Firewall",
  fullcone: "Independent Mapping, Independent Filter",
  restricted: "Independent Mapping, Address Dependent Filter",
  portrestricted: "Independent Mapping, Port Dependent Filter",
  symmetric: "Dependent Mapping",
  udpblocked: "Blocked or could not reach STUN server",
};

/**
 * What one address can tell this client. "From another address" cannot be answered, so filtering looks one step stricter; and its mapping
 * test changes the address alone, never the port, so it asks the same place twice and takes a symmetric NAT for a cone. Our own
 * agents ask the second port too (below).
 */
const VERDICTS_BY_ONE_ADDRESS: typeof VERDICTS = {
  ...VERDICTS,
  open: "Firewall",
  fullcone: "Independent Mapping, Address Dependent Filter",
  symmetric: "Independent Mapping, Port Dependent Filter, random port",
};

test.for([
  [2, VERDICTS],
  [1, VERDICTS_BY_ONE_ADDRESS],
] as const)(
  "Debian's STUN client names every NAT as well as %i coordinator addresses allow",
  async ([addresses, verdicts], { skip }) => {
    if (Bun.which("stun") === null) skip("the client is not installed (Debian package stun-client)");
    await withLab({ sites: NATS.map((nat) => ({ nat })), coordinatorAddresses: addresses }, async (lab) => {
      await startCoordinator(lab);
      const found = await Promise.all(
        lab.sites.map(async ({ nat, host }) => {
          // The exit code is the verdict, as a number.
          const { stdout } = await host.exec(["stun", lab.coordinator.address]);
          return [nat, /^Primary: (.*)$/m.exec(stdout)?.[1] ?? stdout] as const;
        }),
      );
      for (const [nat, verdict] of found)
        expect(verdict.startsWith(verdicts[nat] ?? "?"), `${nat}: ${verdict}`).toBe(true);
    });
  },
);

test("with one coordinator address the stricter of two labels is told as uncertain", async () => {
  const expected: Readonly<Partial<Record<SiteNat, readonly [string, boolean]>>> = {
    open: ["restricted cone", false],
    fullcone: ["restricted cone", false],
    restricted: ["restricted cone", false],
    portrestricted: ["port-restricted cone", true],
    symmetric: ["symmetric", true],
  };
  const sites = Object.keys(expected).map((nat) => ({ nat: nat as SiteNat }));
  await withLab({ sites, coordinatorAddresses: 1 }, async (lab) => {
    const { agents } = await startMesh(lab);
    for (const agent of agents) {
      const { nat } = agent.host.site;
      const { ipv4, summary } = await agent.netcheck();
      expect([ipv4?.label, ipv4?.certain], `${nat}: ${summary}`).toEqual(expected[nat]);
      expect(summary.includes("as far as one coordinator address can tell"), summary).toBe(ipv4?.certain === false);
    }
  });
});
