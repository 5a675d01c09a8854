/**
 * `nas` and `nas.mesh` in programs that know nothing of the mesh: by getent, that is by the system's own resolver, with the real systemd-resolved
 * and with /etc/hosts. Whatever happens to the agent, the names of the world outside go on resolving, and mesh names never leave.
 */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { unitText } from "../../agent/cli/service/unit.ts";
import { withLab } from "./lab_case.ts";
import {
  AGENT,
  bothDirect,
  type MeshAgent,
  serving,
  startAgent,
  startCoordinator,
  startPair,
  transferFile,
} from "./mesh.ts";
import { NameWorld, noResolvedBecause } from "./name_world.ts";
import type { Lab } from "./topology.ts";

const SITES = { sites: [{ nat: "restricted" }, { nat: "fullcone" }] } as const;
const DNS_PROBE = fileURLToPath(new URL("dns_probe.ts", import.meta.url));

describe.skipIf(noResolvedBecause !== undefined)(
  `with systemd-resolved${noResolvedBecause === undefined ? "" : ` (skipped: ${noResolvedBecause})`}`,
  () => {
    test("names resolve while the agent runs, before and after only those of others, also after kill -9", async () => {
      await withLab(SITES, async (lab) => {
        const { world, one, two, start } = await pairIn(lab, true);
        const { meshIPv4, meshIPv6 } = (await two.status()).self;
        await installed(one, "systemd-resolved");
        expect(await world.lookup("h2-1.mesh", "ahostsv4")).toMatch(new RegExp(`^${meshIPv4} `));
        expect(await world.lookup("h2-1", "ahostsv4")).toMatch(new RegExp(`^${meshIPv4} `));
        expect(await world.lookup("h2-1.mesh", "ahostsv6")).toMatch(new RegExp(`^${meshIPv6} `));
        expect(await world.lookup(meshIPv4)).toBe(`${meshIPv4} h2-1.mesh`);
        expect(await world.lookup(meshIPv6)).toBe(`${meshIPv6} h2-1.mesh`);
        expect(await world.lookup("nobody.mesh")).toBeUndefined();
        expect(await world.lookup("during.example")).toBe("192.0.2.80 during.example");
        // Really by that name, really through the tunnel.
        expect(await fetched(world, two, "h2-1.mesh")).toBe(100_000);

        await one.kill();
        expect(await world.lookup("crashed.example")).toBe("192.0.2.80 crashed.example");
        expect(await world.lookup("h2-1.mesh")).toBeUndefined();
        const again = await start();
        await installed(again, "systemd-resolved");
        expect(await world.lookup("h2-1.mesh", "ahostsv4")).toMatch(new RegExp(`^${meshIPv4} `));
        expect(await again.stop()).toBe(0);
        expect(await world.lookup("stopped.example")).toBe("192.0.2.80 stopped.example");
        expect(await world.lookup("h2-1.mesh")).toBeUndefined();

        // The names of the world went outside, and those of the mesh never while it was there.
        expect(world.askedOutside).toEqual(
          expect.arrayContaining(["during.example", "crashed.example", "stopped.example"]),
        );
        expect(world.askedOutside).not.toContain("nobody.mesh");
        expect(world.hosts).toBe(world.hostsAtFirst);
      });
    });
  },
);

describe("without systemd-resolved", () => {
  test("/etc/hosts has the members while the agent runs, and is as it was afterwards, also after kill -9", async () => {
    await withLab(SITES, async (lab) => {
      const { world, one, two, start } = await pairIn(lab, false);
      const resolvConf = world.resolvConf;
      const { meshIPv4 } = (await two.status()).self;
      await installed(one, "hosts file");
      expect(await world.lookup("h2-1.mesh", "ahostsv4")).toMatch(new RegExp(`^${meshIPv4} `));
      expect(await world.lookup("h2-1", "ahostsv4")).toMatch(new RegExp(`^${meshIPv4} `));
      expect(await world.lookup(meshIPv4)).toBe(`${meshIPv4} h2-1.mesh h2-1`);
      expect(await world.lookup("printer")).toBe("192.0.2.99 printer");
      expect(await world.lookup("during.example")).toBe("192.0.2.80 during.example");
      expect(world.hosts.startsWith(world.hostsAtFirst)).toBe(true);
      expect(await fetched(world, two, "h2-1")).toBe(100_000);

      // What watches it takes its names out, although it got no chance to.
      await one.kill();
      await expect.poll(() => world.hosts, { timeout: 5000 }).toBe(world.hostsAtFirst);
      expect(await world.lookup("crashed.example")).toBe("192.0.2.80 crashed.example");

      // With everything killed at once, what the unit runs after the service does the same,
      const second = await start();
      await installed(second, "hosts file");
      await killWithWatcher(second);
      expect(world.hosts).toContain("h2-1.mesh");
      await world.run([...afterService(), "--state-dir", second.stateDir]);
      expect(world.hosts).toBe(world.hostsAtFirst);

      // and the next start, even one that leaves names alone.
      const third = await start();
      await installed(third, "hosts file");
      // Not while an agent runs.
      await world.run([...afterService(), "--state-dir", third.stateDir]);
      expect(world.hosts).toContain("h2-1.mesh");
      await killWithWatcher(third);
      expect(world.hosts).toContain("h2-1.mesh");
      const without = await start("--no-dns");
      expect(world.hosts).toBe(world.hostsAtFirst);
      expect((await namesOf(without)).message).toBe("switched off by --no-dns");
      await without.stop();
      const again = await start();
      await installed(again, "hosts file");
      expect(await again.stop()).toBe(0);
      expect(world.hosts).toBe(world.hostsAtFirst);
      expect(world.resolvConf).toBe(resolvConf);
    });
  });

  test("a name never leads to an address that this machine reaches in another network", async () => {
    await withLab(SITES, async (lab) => {
      const { host, lan } = lab.site(1);
      await host.execChecked(["ip", "route", "add", "100.64.0.0/10", "via", lan?.gateway ?? ""]);
      const { world, one, two } = await pairIn(lab, false);
      const { meshIPv6 } = (await two.status()).self;
      await installed(one, "hosts file");
      expect(await world.lookup("h2-1.mesh", "ahostsv6")).toMatch(new RegExp(`^${meshIPv6} `));
      expect(world.hosts).not.toMatch(/^100\./m);
      expect((await namesOf(one)).server).toBe((await one.status()).self.meshIPv6);
      expect(await one.stop()).toBe(0);
      expect(world.hosts).toBe(world.hostsAtFirst);
    });
  });

  test("in a network namespace that shares the machine's files, nothing is installed; the resolver itself answers", async () => {
    const hosts = readFileSync("/etc/hosts", "utf8");
    await withLab(SITES, async (lab) => {
      const { one, two } = await startPair(lab);
      const { meshIPv4 } = (await two.status()).self;
      await expect
        .poll(async () => (await namesOf(one)).message, { timeout: 5000 })
        .toMatch(/another network namespace/);
      const { how, server } = await namesOf(one);
      expect([how, server]).toEqual([null, (await one.status()).self.meshIPv4]);
      const ask = async (agent: MeshAgent, ...words: string[]): Promise<string> =>
        (await agent.host.execChecked([process.execPath, DNS_PROBE, ...words])).trim();
      expect(await ask(one, "udp", server ?? "", "h2-1.mesh")).toBe(`NOERROR ${meshIPv4}`);
      expect(await ask(one, "tcp", server ?? "", "h2-1.mesh")).toBe(`NOERROR ${meshIPv4}`);
      expect(await ask(one, "tcp", server ?? "", "www.example")).toBe("REFUSED");
      // A peer is no program of this machine, however good the path is.
      await bothDirect(one, two);
      expect((await transferFile(one, two, { bytes: 100_000 })).bytes).toBe(100_000);
      expect(await ask(two, "udp", server ?? "", "h2-1.mesh")).toBe("no answer");
      expect(await ask(two, "tcp", server ?? "", "h2-1.mesh")).toBe("no answer");
      const { stdout } = await one.command(["status"]);
      expect(stdout).toMatch(
        /^Names .*\/etc\/hosts belongs to another network namespace; ask with "dig @100\.\S+ h2-1\.mesh"$/m,
      );
    });
    expect(readFileSync("/etc/hosts", "utf8")).toBe(hosts);
  });
});

interface Names {
  readonly how: string | null;
  readonly server: string | null;
  readonly message: string | null;
}
const namesOf = async (agent: MeshAgent): Promise<Names> =>
  ((await agent.status()).self as unknown as { names: Names }).names;

const installed = async (agent: MeshAgent, how: string): Promise<void> => {
  await expect.poll(async () => (await namesOf(agent)).how, { timeout: 8000, interval: 100 }).toBe(how);
};

/** As `systemctl kill --signal=KILL` does, with all that the agent has started. */
async function killWithWatcher(agent: MeshAgent): Promise<void> {
  const children = readFileSync(`/proc/${agent.process.pid}/task/${agent.process.pid}/children`, "utf8");
  for (const child of children.trim().split(" ").map(Number)) process.kill(child, "SIGKILL");
  await agent.kill();
}

/** The words of the unit's ExecStopPost, for the program that is tested. */
function afterService(): string[] {
  const words = /^ExecStopPost=-(.+)$/m.exec(unitText(AGENT))?.[1];
  if (words === undefined) throw new Error("The unit has no ExecStopPost");
  return words.split(" ");
}

/** Bytes that curl gets from this agent's machine by that name. */
const fetched = async (world: NameWorld, from: MeshAgent, name: string): Promise<number> =>
  serving(from.host, (await from.status()).self.meshIPv4, 100_000, async (port) => {
    const curl = ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{size_download}"];
    return Number(await world.run([...curl, `http://${name}:${port}/`]));
  });

/** A mesh of two, the first of which lives in a world of names of its own; `start` starts that one again. */
async function pairIn(lab: Lab, resolved: boolean) {
  const [host, other] = lab.hosts;
  if (host === undefined || other === undefined) throw new Error("This lab has not two hosts");
  const world = await NameWorld.create(lab, host, { resolved });
  const coordinator = await startCoordinator(lab);
  const key = await coordinator.createKey({ reusable: true });
  const stateDir = lab.directory("agent-h1-1");
  const start = (...extra: readonly string[]): Promise<MeshAgent> =>
    startAgent(lab, host, { name: host.role, url: coordinator.url, key, stateDir, extra, ...world.agentOptions });
  expect(await world.lookup("before.example")).toBe("192.0.2.80 before.example");
  const two = await startAgent(lab, other, { name: other.role, url: coordinator.url, key });
  const one = await start();
  return { world, one, two, start };
}
