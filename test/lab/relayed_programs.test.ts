/**
 * Programs that know nothing of the mesh, between two rootless machines whose path is a relay, because one of them is behind a firewall that drops
 * UDP: curl through the SOCKS port, OpenSSH and scp through `nc`, datagrams through a move of the path. What a bug report says of it all.
 */
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { withLab } from "./lab_case.ts";
import { AGENT, type MeshAgent, serving, startAgent, startCoordinator } from "./mesh.ts";
import { runChecked } from "./process.ts";
import type { Host, Lab } from "./topology.ts";

const TRAFFIC = fileURLToPath(new URL("traffic.ts", import.meta.url));
const missing = ["ssh", "scp", "/usr/sbin/sshd"].find((program) => Bun.which(program) === null);
const FILE_BYTES = 2_000_000;

test(`on a relay: curl, datagrams, scp${missing === undefined ? "" : ` (without: ${missing} is not installed)`}`, async () => {
  await withLab({ sites: [{ nat: "udpblocked" }, { nat: "fullcone" }] }, async (lab) => {
    const [one, two] = lab.hosts;
    if (one === undefined || two === undefined) throw new Error("This lab has not two hosts");
    const coordinator = await startCoordinator(lab);
    const key = await coordinator.createKey({ reusable: true });
    const start = (host: Host, ...extra: string[]) =>
      startAgent(lab, host, { name: host.role, url: coordinator.url, key, extra: ["--tun", "off", ...extra] });
    const [laptop, nas] = await Promise.all([
      start(one, "--socks", "1080", "--forward", `udp:5300:${two.role}:5200`),
      start(two, "--expose", "22,8000,5200"),
    ]);
    expect(await laptop.wait(`peer=${nas.name}`, 10)).toBe(0);
    await expect.poll(() => rungOf(laptop, nas), { timeout: 5000 }).toBe("ssh");

    await serving(two, "127.0.0.1", FILE_BYTES, async (port, sha256) => {
      const proxy = "--silent --max-time 10 --proxy socks5h://127.0.0.1:1080";
      const script = `curl ${proxy} http://${nas.name}:${port}/ | sha256sum`;
      expect((await one.execChecked(["sh", "-c", script])).slice(0, 64)).toBe(sha256);
    });

    // One datagram at a time, each answered or reported as lost, while the path moves to the other relay and back.
    const echo = two.spawn([process.execPath, TRAFFIC, "serve", "127.0.0.1", "5200"]);
    await echo.waitFor("echo", ({ text }) => text === "ready" || undefined, 5000);
    const datagrams = one.spawn([process.execPath, TRAFFIC, "rtt", "127.0.0.1", "5300", "600"]);
    const moves: string[] = [];
    for (const rung of ["websocket", "auto"]) {
      expect((await laptop.command(["path", nas.name, rung])).code).toBe(0);
      moves.push(await rungOf(laptop, nas));
      expect(datagrams.running).toBe(true);
    }
    expect(moves).toEqual(["websocket", "ssh"]);
    expect(await datagrams.exited).toBe(0);
    const answers = JSON.parse(datagrams.lines[0]?.text ?? "[]") as (number | null)[];
    expect([answers.length, answers.filter((ms) => ms === null).length]).toEqual([600, 0]);

    if (missing === undefined) await copiesByScp(lab, laptop, nas);
    expect(await rungOf(laptop, nas)).toBe("ssh");
    await reportsNobody(lab, laptop, nas);
  });
});

const rungOf = async (agent: MeshAgent, peer: MeshAgent): Promise<string> =>
  (await agent.peer(peer.name)).path?.kind ?? "none";

async function copiesByScp(lab: Lab, laptop: MeshAgent, nas: MeshAgent): Promise<void> {
  const directory = lab.directory("ssh");
  for (const name of ["host", "user"]) {
    await runChecked(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", join(directory, name)]);
  }
  mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
  const config = [
    "ListenAddress 127.0.0.1:22",
    `HostKey ${directory}/host`,
    `AuthorizedKeysFile ${directory}/user.pub`,
  ];
  const others = ["PidFile none", "StrictModes no", "UsePAM no", "Subsystem sftp internal-sftp", ""];
  writeFileSync(join(directory, "config"), [...config, ...others].join("\n"));
  const sshd = nas.host.spawn(["/usr/sbin/sshd", "-D", "-e", "-f", join(directory, "config")]);
  await sshd.waitFor("sshd", ({ text }) => (text.includes("Server listening") ? true : undefined), 5000);
  const bytes = randomBytes(FILE_BYTES);
  writeFileSync(join(directory, "sent"), bytes);
  const options = [
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "BatchMode=yes",
    `ProxyCommand=${AGENT} nc %h %p --state-dir ${laptop.stateDir}`,
  ];
  const given = ["-i", join(directory, "user"), ...options.flatMap((option) => ["-o", option])];
  await laptop.host.execChecked(["scp", ...given, join(directory, "sent"), `${nas.name}:${directory}/got`]);
  const sum = (data: Uint8Array): string => createHash("sha256").update(data).digest("hex");
  expect(sum(readFileSync(join(directory, "got")))).toBe(sum(bytes));
}

/** Neither names nor addresses nor ids of anybody here. */
async function reportsNobody(lab: Lab, laptop: MeshAgent, nas: MeshAgent): Promise<void> {
  const { stdout, code } = await laptop.command(["bugreport"]);
  expect(code).toBe(0);
  expect(stdout).toContain('"kind": "ssh"');
  const status = await laptop.status();
  const addresses = [lab.coordinator, ...lab.hosts].flatMap((machine) => machine.addresses);
  const secrets = [
    ...addresses,
    ...lab.sites.map(({ publicAddress }) => publicAddress),
    ...[status.self, ...status.peers].flatMap(({ name, id, meshIPv4, meshIPv6 }) => [name, id, meshIPv4, meshIPv6]),
    ...status.peers.map(({ fingerprint }) => fingerprint),
    nas.stateDir,
  ];
  expect(secrets.filter((secret) => stdout.includes(secret))).toEqual([]);
}
