/**
 * A carrier's NAT over the home router's, on one side or on both: a pair becomes direct as the stricter of the two NATs of each side allows.
 *
 * And two homes behind one carrier: they have one public address, so a direct path between them takes hairpin at the carrier, as RFC 6888
 * REQ-9 asks for; the homes' own addresses lead nowhere.
 */
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, startPair, transferFile } from "./mesh.ts";
import type { SiteOptions } from "./topology.ts";

const home = (carrier: SiteOptions["carrier"]): SiteOptions =>
  carrier === undefined ? { nat: "portrestricted" } : { nat: "portrestricted", carrier };
const FILE_BYTES = 1_000_000;

describe("a carrier's NAT over the home's", () => {
  test.each<[SiteOptions["carrier"], SiteOptions["carrier"]]>([
    ["fullcone", undefined],
    ["portrestricted", "portrestricted"],
    ["symmetric", undefined],
    ["symblock512", "portrestricted"],
    ["symblock512", "symblock512"],
  ])("that is %s x one that is %s (undefined: none) connects directly", async (a, b) => {
    await withLab({ sites: [home(a), home(b)] }, async (lab) => {
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      expect((await transferFile(one, two, { bytes: FILE_BYTES })).bytes).toBe(FILE_BYTES);
      for (const [agent, peer] of [
        [one, two],
        [two, one],
      ] as const) {
        const { path } = await agent.peer(peer.name);
        expect(path?.kind).toBe("direct");
        expect(path?.remoteAddress.split(":")[0]).toBe(peer.host.site.publicAddress);
      }
    });
  });
});

describe("two homes behind one carrier", () => {
  const sites = (carrierHairpin: boolean): readonly SiteOptions[] => [
    { nat: "portrestricted", carrier: "portrestricted", carrierHairpin },
    { nat: "portrestricted", carrierOf: 1 },
  ];

  test("meet at its public address, if it turns packets round", async () => {
    await withLab({ sites: sites(true) }, async (lab) => {
      const { one, two } = await startPair(lab);
      await bothDirect(one, two);
      expect((await transferFile(one, two, { bytes: FILE_BYTES })).bytes).toBe(FILE_BYTES);
      for (const [agent, peer] of [
        [one, two],
        [two, one],
      ] as const) {
        const { path } = await agent.peer(peer.name);
        expect([path?.kind, path?.remoteAddress.split(":")[0]]).toEqual(["direct", lab.site(1).publicAddress]);
      }
    });
  });

  test("are relayed otherwise, and told so without blame for anybody's firewall", async () => {
    await withLab({ sites: sites(false) }, async (lab) => {
      const { one, two } = await startPair(lab);
      expect(await one.wait(`direct=${two.name}`, 5)).toBe(7);
      const { path, why } = await one.peer(two.name);
      expect(path?.kind).toBe("ssh");
      expect(why).toMatch(/both machines are behind one public address, .* hairpin/);
    });
  });
});
