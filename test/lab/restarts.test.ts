/**
 * What happens to a direct path, and to everything around it, when a program or a router goes down: the coordinator by a crash, an agent
 * by a crash, an agent by its user, a router that forgets its mappings.
 */
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { bothDirect, type MeshAgent, startAgent, startCoordinator, startPair, transferFile } from "./mesh.ts";
import { faults, NO_FAULTS, tellFlow, withFlow } from "./numbered_flow.ts";

/** Limits on time are generous: two cores carry two labs. The measured times are printed. */
const BACK_DIRECT_SECONDS = 5;
const TOLD_AT_ONCE_MS = 1_000;

test("the coordinator crashes: the direct path goes on, and everything else comes back with it", async () => {
  await withLab({ sites: [{ nat: "portrestricted" }, { nat: "restricted" }, { nat: "fullcone" }] }, async (lab) => {
    const [first, second, third] = lab.hosts;
    if (first === undefined || second === undefined || third === undefined) throw new Error("Three hosts expected");
    const coordinator = await startCoordinator(lab);
    const key = await coordinator.createKey({ reusable: true });
    const join = async (host: typeof first): Promise<MeshAgent> =>
      startAgent(lab, host, { name: host.role, url: coordinator.url, key });
    const [one, two] = await Promise.all([join(first), join(second)]);
    await bothDirect(one, two);
    const before = await Promise.all([snapshot(one, two), snapshot(two, one)]);

    const report = await withFlow(one, two, 7, async () => {
      coordinator.process.signal("SIGKILL");
      await coordinator.process.exited;
      await one.process.waitFor("warning", ({ text }) => (text.includes("Cannot reach") ? true : undefined), 5_000);
      expect((await one.status()).self.coordinator.connected).toBe(false);
      // A connection that begins without a coordinator, and slow enough that it takes nothing from the packets beside it.
      const { bytes } = await transferFile(one, two, { bytes: 1_000_000, bytesPerSecond: 1_000_000 });
      expect(bytes).toBe(1_000_000);

      const downAt = performance.now();
      const again = await startCoordinator(lab, { dataDir: coordinator.dataDir });
      const readyAt = performance.now();
      const rejoined = await Promise.all(
        [one, two].map(async ({ name }) =>
          again.events.next("agent_joined", {
            accept: (fields) => fields["name"] === name && fields["isNew"] === false,
          }),
        ),
      );
      const lastAt = Math.max(...rejoined.map(({ at }) => at));
      console.log(
        `coordinator ready ${(readyAt - downAt).toFixed(0)} ms after its start, both agents back ${(lastAt - readyAt).toFixed(0)} ms later`,
      );
    });
    console.log(tellFlow(report));
    expect(faults(report)).toEqual(NO_FAULTS);
    expect(await Promise.all([snapshot(one, two), snapshot(two, one)])).toEqual(before);

    const newcomer = await join(third);
    await Promise.all([bothDirect(newcomer, one), bothDirect(newcomer, two)]);
    expect((await transferFile(newcomer, one, { bytes: 1_000_000 })).bytes).toBe(1_000_000);
  });
});

test("an agent crashes: it leaves no device behind, and is back directly with the same addresses", async () => {
  await withLab({ sites: [{ nat: "portrestricted" }, { nat: "restricted" }] }, async (lab) => {
    const { coordinator, one, two } = await startPair(lab);
    await bothDirect(one, two);
    const before = await snapshot(one, two);
    const { tun } = (await two.status()).self;
    expect(tun).not.toBeNull();

    const killedAt = performance.now();
    await two.kill();
    expect(await two.host.execChecked(["ip", "-brief", "link"])).not.toContain(`${tun}`);
    expect(await two.host.execChecked(["ip", "route"])).not.toContain(before.meshIPv4);
    const restarted = await startAgent(lab, two.host, { name: two.name, url: coordinator.url, stateDir: two.stateDir });
    const joinedAt = performance.now();
    await bothDirect(one, restarted, BACK_DIRECT_SECONDS);
    const backAt = Math.max(
      (await one.directEvent(two.name, { since: killedAt })).at,
      (await restarted.directEvent(one.name)).at,
    );
    console.log(
      `agent killed: joined again after ${(joinedAt - killedAt).toFixed(0)} ms, direct at both ends ${(backAt - joinedAt).toFixed(0)} ms later`,
    );
    expect(backAt - joinedAt).toBeLessThan(BACK_DIRECT_SECONDS * 1_000);
    const after = await snapshot(one, restarted);
    expect({ ...after, since: "" }).toEqual({ ...before, since: "" });
    expect((await transferFile(restarted, one)).bytes).toBe(10_000_000);
  });
});

test("an agent is stopped: its peer knows at once and says so", async () => {
  await withLab({ sites: [{ nat: "portrestricted" }, { nat: "restricted" }] }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const stoppedAt = performance.now();
    expect((await two.command(["down"])).code).toBe(0);
    expect(await two.process.exited).toBe(0);
    const lost = await one.lostEvent(two.name, { since: stoppedAt });
    console.log(`down: the peer's path was gone ${(lost.at - stoppedAt).toFixed(0)} ms after the command started`);
    expect(lost.at - stoppedAt).toBeLessThan(TOLD_AT_ONCE_MS);
    await one.process.waitFor("offline", ({ text }) => (text.includes("is offline") ? true : undefined), 2_000);
    const peer = await one.peer(two.name);
    expect({ path: peer.path, online: peer.online, why: peer.why }).toEqual({
      path: null,
      online: false,
      why: `"${two.name}" is offline`,
    });
    expect(peer.history.at(-1)?.reason).toBe("the peer has stopped");
    expect((await one.command(["ping", two.name, "-c", "1"])).code).toBe(5);
  });
});

test.each([
  ["restricted", "portrestricted"],
  ["portrestricted", "fullcone"],
] as const)("a %s router restarts and maps anew: the path to a %s peer comes back by itself", async (nat, other) => {
  await withLab({ sites: [{ nat }, { nat: other }] }, async (lab) => {
    const { one, two } = await startPair(lab);
    await bothDirect(one, two);
    const before = (await two.peer(one.name)).path?.remoteAddress;
    const [there, back] = [
      one.startPing(two.name, { count: 1_000, intervalSeconds: 0.05 }),
      two.startPing(one.name, { count: 1_000, intervalSeconds: 0.05 }),
    ];
    await Promise.all([there.moreAnswers(5, 5_000), back.moreAnswers(5, 5_000)]);

    const rebootedAt = performance.now();
    await lab.site(1).rebootNat();
    const moved = await two.directEvent(one.name, {
      since: rebootedAt,
      accept: (fields) => fields["remoteAddress"] !== before,
    });
    await Promise.all([there.moreAnswers(10, 5_000), back.moreAnswers(10, 5_000)]);
    console.log(
      `${nat} router restarted, peer ${other}: the path has the new address ${(moved.at - rebootedAt).toFixed(0)} ms later, pings lost: ${there.lost} there, ${back.lost} back`,
    );
    await Promise.all([there.stop(), back.stop()]);
    await bothDirect(one, two);
    expect((await transferFile(one, two)).bytes).toBe(10_000_000);
    expect((await one.peer(two.name)).path?.kind).toBe("direct");
    expect((await two.peer(one.name)).path?.remoteAddress).not.toBe(before);
  });
});

interface Snapshot {
  readonly meshIPv4: string;
  readonly meshIPv6: string;
  readonly fingerprint: string;
  readonly kind: string | undefined;
  readonly since: string | undefined;
}

/** What a restart must not change, as `agent` sees its peer. */
async function snapshot(agent: MeshAgent, other: MeshAgent): Promise<Snapshot> {
  const { meshIPv4, meshIPv6, fingerprint, path } = await agent.peer(other.name);
  return { meshIPv4, meshIPv6, fingerprint, kind: path?.kind, since: path?.since };
}
