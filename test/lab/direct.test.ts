/**
 * The direct matrix: real NATs, the real coordinator, the compiled agents. Each pair of NATs must end on the path that physics
 * allows, and a direct path must carry a file over HTTP through the TUN with the right checksum.
 *
 * The path in use is asserted, not only that data arrived.
 */
import { describe, expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { startMesh, transferFile } from "./mesh.ts";
import type { SiteNat } from "./topology.ts";

const CONES: readonly SiteNat[] = ["open", "fullcone", "restricted", "portrestricted"];
const LABELS: Readonly<Partial<Record<SiteNat, string>>> = {
  open: "open",
  fullcone: "full cone",
  restricted: "restricted cone",
  portrestricted: "port-restricted cone",
  symmetric: "symmetric",
  udpblocked: "udp blocked",
};

const direct: [SiteNat, SiteNat][] = [
  ...CONES.flatMap((a, i) => CONES.slice(i).map((b): [SiteNat, SiteNat] => [a, b])),
  ["symmetric", "open"],
  ["symmetric", "fullcone"],
  ["symmetric", "restricted"],
];
const relayed: [SiteNat, SiteNat, RegExp][] = [
  ["symmetric", "symmetric", /[Bb]oth routers use a different port per destination/],
  ["udpblocked", "fullcone", /blocks UDP/],
];

describe("pairs of NATs", () => {
  test.each(direct)("%s x %s connects directly", async (a, b) => {
    await withLab({ sites: [{ nat: a }, { nat: b }] }, async (lab) => {
      const { agents } = await startMesh(lab);
      const [one, two] = agents;
      if (one === undefined || two === undefined) throw new Error("Two agents expected");
      await one.waitDirect(two.name, 10);
      await two.waitDirect(one.name, 10);
      const online = await one.events.next("peer_online", { accept: (event) => event["peer"] === two.name });
      const changed = await one.directEvent(two.name);
      console.log(`${a} x ${b}: direct ${(changed.at - online.at).toFixed(0)} ms after both were online`);
      const file = await transferFile(one, two);
      expect(file.bytes).toBe(10_000_000);
      expect((await one.peer(two.name))?.path?.kind).toBe("direct");
      expect((await two.peer(one.name))?.path?.kind).toBe("direct");
      // A path is there before all tests of the NAT have ended.
      await Promise.all([one, two].map(async (agent) => agent.events.next("nat_detected")));
      expect((await one.status()).self.nat.label).toBe(LABELS[a]);
      expect((await two.status()).self.nat.label).toBe(LABELS[b]);
    });
  });

  test.each(relayed)("%s x %s says plainly why there is no direct path", async (a, b, reason) => {
    await withLab({ sites: [{ nat: a }, { nat: b }] }, async (lab) => {
      const { agents } = await startMesh(lab);
      const [one, two] = agents;
      if (one === undefined || two === undefined) throw new Error("Two agents expected");
      expect(await one.wait(`direct=${two.name}`, 8)).toBe(7);
      const peer = await one.peer(two.name);
      expect(peer?.path?.kind).toBe("ssh");
      expect(peer?.why).toMatch(reason);
      expect((await one.status()).self.nat.label).toBe(LABELS[a]);
      expect((await two.status()).self.nat.label).toBe(LABELS[b]);
    });
  });
});
