/**
 * Networks that change under a connection: a machine is carried to another router, a router restarts and forgets TCP too or gets another
 * public address, an interface that nobody uses comes and goes. 1000 numbered packets a second run inside the TUN, and a file goes over one TCP connection.
 */
import { describe, expect, test } from "vitest";
import { SLACK, withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startPair, transferFile } from "./mesh.ts";
import { faults, type FlowReport, NO_FAULTS, sleep, tellFlow, withFlow } from "./numbered_flow.ts";
import { IS_FULL } from "./series.ts";
import type { Site } from "./topology.ts";

/** PRODUCT.md: roaming and reboots of the router. */
const DIRECT_AGAIN_MS = SLACK * 1000;
/** Of no site. */
const ANOTHER_ADDRESS = "198.51.100.99";
const FLOW_SECONDS = 7;
const FILE = { bytes: 3_000_000, bytesPerSecond: 500_000 };

describe("a machine that is carried to another network", () => {
  test.each([
    ["towards it", 0],
    ["from it", 0],
    ["towards it", 50],
    ["from it", 50],
  ] as const)(
    "keeps its connections and is direct again at once: packets %s, %i ms",
    async (direction, roundTripMs) => {
      const sites = [
        { nat: "portrestricted" },
        { nat: "portrestricted" },
        { nat: "portrestricted", hosts: 0 },
      ] as const;
      await withLab({ sites, ...(roundTripMs === 0 ? {} : { roundTripMs }) }, async (lab) => {
        const { one, two } = await startPair(lab);
        await bothDirect(one, two);
        const [from, to] = direction === "from it" ? [one, two] : [two, one];
        const report = await throughChange(from, to, async () => {
          const leftAt = performance.now();
          await one.host.moveTo(lab.site(3));
          const arrivedAt = performance.now();
          const directMs = await directAt(two, one, lab.site(3), leftAt, arrivedAt);
          return { awayMs: arrivedAt - leftAt, directMs };
        });
        await tell(`moved, ${direction}, ${roundTripMs} ms`, report, one, two);
        expect(report.outcome.directMs).toBeLessThan(DIRECT_AGAIN_MS);
        expect(report.flow.account).toMatchObject({ duplicated: 0 });
        expect(report.fileBytes).toBe(FILE.bytes);
      });
    },
  );
});

const REBOOTS = [
  ["portrestricted", "towards it"],
  ["portrestricted", "from it"],
  ["fullcone", "from it"],
] as const;

describe("a router that restarts and forgets every mapping, those of TCP too", () => {
  test.each(IS_FULL ? [...REBOOTS, ["fullcone", "towards it"] as const] : REBOOTS)(
    "is survived by connections: %s, packets %s",
    async (nat, direction) => {
      await throughRouterChange(nat, direction, async (site, before) => {
        // A router that has forgotten a TCP connection drops its packets, as does one that has just come up.
        const forward = ['iifname "wan" ct state invalid drop', "tcp flags & (syn | ack) == ack ct state new drop"];
        await site.setNat(nat, { forward });
        await site.rebootNat();
        return (address) => address !== before;
      });
    },
  );
});

describe("a router that gets another public address", () => {
  test.each(IS_FULL ? (["towards it", "from it"] as const) : (["from it"] as const))(
    "is survived by connections, packets %s",
    async (direction) => {
      await throughRouterChange("portrestricted", direction, async (site) => {
        await site.changePublicAddress(ANOTHER_ADDRESS);
        return (address) => address.startsWith(`${ANOTHER_ADDRESS}:`);
      });
    },
  );
});

/**
 * Numbered packets and a file through a change at the first machine's router.
 *
 * @param change tells by which address the second machine must find the first one again
 */
async function throughRouterChange(
  nat: "portrestricted" | "fullcone",
  direction: "towards it" | "from it",
  change: (site: Site, before: string | undefined) => Promise<(address: string) => boolean>,
): Promise<void> {
  await withLab({ sites: [{ nat }, { nat: "portrestricted" }] }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const [from, to] = direction === "from it" ? [one, two] : [two, one];
    const report = await throughChange(from, to, async () => {
      const before = (await two.peer(one.name)).path?.remoteAddress;
      const isNew = await change(lab.site(1), before);
      const changedAt = performance.now();
      const event = await two.directEvent(one.name, {
        since: changedAt - 50,
        timeoutMs: 10_000,
        accept: ({ remoteAddress }) => isNew(String(remoteAddress)),
      });
      return { awayMs: 0, directMs: event.at - changedAt };
    });
    await tell(`change at a ${nat} router, packets ${direction}`, report, one, two);
    expect(report.outcome.directMs).toBeLessThan(DIRECT_AGAIN_MS);
    expect(report.flow.account.duplicated).toBe(0);
    expect(report.fileBytes).toBe(FILE.bytes);
  });
}

test("an interface that no path uses comes and goes, and disturbs nothing", async () => {
  await withLab({ sites: [{ nat: "portrestricted" }, { nat: "fullcone" }] }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const since = performance.now();
    const report = await withFlow(two, one, 6, async () => {
      for (let round = 0; round < 3; round++) {
        await one.host.execChecked(["sh", "-e"], {
          input: [
            "ip link add extra0 type veth peer name extra1",
            "ip link set extra0 up",
            "ip link set extra1 up",
            "ip addr add 192.168.77.1/24 dev extra0",
          ].join("\n"),
        });
        await sleep(700);
        await one.host.execChecked(["ip", "link", "del", "extra0"]);
        await sleep(700);
      }
    });
    console.log(tellFlow(report));
    expect(faults(report)).toEqual(NO_FAULTS);
    for (const agent of [one, two]) {
      const moves = agent.events.all("path_changed").filter(({ at }) => at > since);
      expect(moves).toEqual([]);
      expect((await agent.status()).self.coordinator.connected).toBe(true);
    }
  });
});

interface Outcome {
  /** Without any network. */
  readonly awayMs: number;
  /** From the moment that the new network could be used until the peer had a path to it. */
  readonly directMs: number;
}

interface Report {
  readonly flow: FlowReport;
  readonly outcome: Outcome;
  readonly fileBytes: number;
}

/** Numbered packets and a file, both under way when the change comes. */
async function throughChange(from: MeshAgent, to: MeshAgent, change: () => Promise<Outcome>): Promise<Report> {
  const outcomes: Outcome[] = [];
  const file = transferFile(from, to, FILE);
  // Its failure is reported below, after the flow: not as a rejection that nobody waits for.
  file.catch(() => undefined);
  const flow = await withFlow(from, to, FLOW_SECONDS, async () => {
    await sleep(1000);
    outcomes.push(await change());
  });
  const [outcome] = outcomes;
  if (outcome === undefined) throw new Error("The change has happened");
  return { flow, outcome, fileBytes: (await file).bytes };
}

/** How long after `arrivedAt` the agent had a direct path to the peer at its new site. */
async function directAt(
  agent: MeshAgent,
  peer: MeshAgent,
  site: Site,
  since: number,
  arrivedAt: number,
): Promise<number> {
  const event = await agent.directEvent(peer.name, {
    since,
    timeoutMs: 10_000,
    accept: ({ remoteAddress }) => String(remoteAddress).startsWith(`${site.publicAddress}:`),
  });
  return event.at - arrivedAt;
}

async function tell(what: string, { flow, outcome }: Report, one: MeshAgent, two: MeshAgent): Promise<void> {
  const round = (value: number): number => Math.round(value);
  console.log(
    `${what}: away ${round(outcome.awayMs)} ms, direct ${round(outcome.directMs)} ms later, ${tellFlow(flow)}`,
  );
  for (const [agent, peer] of [
    [one, two],
    [two, one],
  ] as const) {
    const { history } = await agent.peer(peer.name);
    console.log(history.map(({ at, from, to, reason }) => `  ${at} ${from} > ${to}: ${reason}`).join("\n"));
  }
}
