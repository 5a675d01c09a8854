/**
 * Who is measured: the bare path, TunnelMesh on each of its rungs, and other userspace tunnels of the system's packages, all between the same
 * two hosts of one lab and all running at once, so that they meet the same machine.
 */
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bothDirect, type PathKind, startPair } from "../../test/lab/mesh.ts";
import { type LabProcess, runChecked } from "../../test/lab/process.ts";
import type { Host, Lab } from "../../test/lab/topology.ts";

export interface Rival {
  readonly name: string;
  /** Address of the second host on this path, reached from the first. */
  readonly address: string;
  /** Whose CPU time its traffic costs; none for the kernel's own. */
  readonly processes: readonly LabProcess[];
  /** Makes this path carry what goes to the address, or fails. */
  readonly prepare: () => Promise<void>;
  /** Fails unless the path is still the one that is measured. */
  readonly verify: () => Promise<void>;
}

export interface Rivals {
  readonly rivals: readonly Rival[];
  /** Those that this machine does not have, each with the package to install. */
  readonly missing: readonly string[];
}

const READY_MS = 5_000;
const nothing = async (): Promise<void> => {};

/** @param ipv6 inside and outside; the other tunnels are left out then */
export async function startRivals(lab: Lab, ipv6: boolean): Promise<Rivals> {
  const [one, two] = lab.hosts;
  if (one === undefined || two === undefined) throw new Error("The bench needs two hosts");
  const hosts = [one, two] as const;
  if (ipv6) await Promise.all(hosts.map(dropUdpOverIPv4));
  const others: [string, string, string, () => Promise<Rival>][] = [
    ["wireguard-go", "wireguard-go", "wireguard-go and wireguard-tools", () => wireguardGo(lab, hosts)],
    ["tinc", "tincd", "tinc", () => tinc(lab, hosts)],
    ["nebula", "nebula", "nebula", () => nebula(lab, hosts)],
  ];
  const rivals: Rival[] = [
    { name: "bare path", address: addressOf(two, ipv6), processes: [], prepare: nothing, verify: nothing },
    ...(await tunnelMesh(lab, ipv6)),
  ];
  const missing: string[] = [];
  if (ipv6) return { rivals, missing };
  for (const [name, program, packages, start] of others) {
    if (Bun.which(program) === null) missing.push(`${name} (install ${packages})`);
    else rivals.push(await start());
  }
  return { rivals, missing };
}

function addressOf(host: Host, ipv6: boolean): string {
  const address = ipv6 ? host.ipv6Address : host.address;
  if (address === undefined) throw new Error(`Host ${host.role} has no IPv6`);
  return address;
}

/** So that a direct path is one over IPv6. */
async function dropUdpOverIPv4(host: Host): Promise<void> {
  const rule = 'type filter hook output priority 0; oifname "wan" meta nfproto ipv4 meta l4proto udp drop';
  await host.execChecked(["nft", "-f", "-"], { input: `table inet bench {\nchain output {\n${rule}\n}\n}\n` });
}

async function tunnelMesh(lab: Lab, ipv6: boolean): Promise<Rival[]> {
  const { one, two, coordinator } = await startPair(lab);
  await bothDirect(one, two);
  const { meshIPv4, meshIPv6 } = (await two.status()).self;
  const address = ipv6 ? meshIPv6 : meshIPv4;
  const rung = (kind: PathKind): Rival => {
    const verify = async (): Promise<void> => {
      for (const [from, to] of [
        [one, two],
        [two, one],
      ] as const) {
        const actual = (await from.peer(to.name))?.path?.kind;
        if (actual !== kind) throw new Error(`The path is ${actual} and not ${kind}, so the figures mean nothing`);
      }
    };
    return {
      name: kind,
      address,
      processes: kind === "direct" ? [one.process, two.process] : [one.process, two.process, coordinator.process],
      prepare: async () => {
        const { code, stderr } = await one.command(["path", two.name, kind]);
        if (code !== 0) throw new Error(`Cannot move to ${kind}: ${stderr}`);
        await verify();
      },
      verify,
    };
  };
  return [rung("direct"), rung("ssh"), rung("websocket")];
}

async function wireguardGo(lab: Lab, hosts: readonly [Host, Host]): Promise<Rival> {
  const directory = lab.directory("wireguard");
  const ends = await Promise.all(
    hosts.map(async (host, index) => {
      const key = (await runChecked(["wg", "genkey"])).trim();
      const publicKey = (await runChecked(["wg", "pubkey"], { input: key })).trim();
      const keyFile = join(directory, `key${index}`);
      writeFileSync(keyFile, key, { mode: 0o600 });
      // Its control socket lies in the file system, which the namespaces share.
      return {
        host,
        publicKey,
        keyFile,
        device: `wgb${process.pid % 100_000}${index}`,
        address: `10.201.0.${index + 1}`,
      };
    }),
  );
  const processes: LabProcess[] = [];
  for (const { host, device } of ends) {
    processes.push(host.spawn(["wireguard-go", "--foreground", device], { LOG_LEVEL: "error" }));
    await until(host, `ip link show dev ${device} && wg show ${device}`);
  }
  for (const [index, end] of ends.entries()) {
    const peer = ends[1 - index];
    if (peer === undefined) continue;
    const own = ["private-key", end.keyFile, "listen-port", "51820"];
    const other = [
      "peer",
      peer.publicKey,
      "allowed-ips",
      `${peer.address}/32`,
      "endpoint",
      `${peer.host.address}:51820`,
    ];
    await end.host.execChecked(["wg", "set", end.device, ...own, ...other]);
    await end.host.execChecked([
      "sh",
      "-c",
      `ip addr add ${end.address}/24 dev ${end.device} && ip link set ${end.device} mtu 1420 up`,
    ]);
  }
  return { name: "wireguard-go", address: "10.201.0.2", processes, prepare: nothing, verify: nothing };
}

async function tinc(lab: Lab, hosts: readonly [Host, Host]): Promise<Rival> {
  const names = ["one", "two"] as const;
  const directories: string[] = names.map((name) => lab.directory(`tinc-${name}`));
  const publicKeys: string[] = [];
  for (const [index, directory] of directories.entries()) {
    const address = `10.202.0.${index + 1}`;
    mkdirSync(join(directory, "hosts"));
    const connect = index === 0 ? "ConnectTo = two\n" : "";
    writeFileSync(
      join(directory, "tinc.conf"),
      `Name = ${names[index]}\nInterface = tinc0\nAddressFamily = ipv4\n${connect}`,
    );
    writeFileSync(join(directory, "tinc-up"), `#!/bin/sh\nip addr add ${address}/24 dev tinc0\nip link set tinc0 up\n`);
    chmodSync(join(directory, "tinc-up"), 0o755);
    const own = join(directory, "hosts", names[index] ?? "");
    writeFileSync(own, `Address = ${hosts[index]?.address}\nSubnet = ${address}/32\n`);
    // Asks where to write; its own answers are the right ones.
    await runChecked(["tincd", "-c", directory, "-K", "2048"], { input: "\n\n", timeoutMs: 60_000 });
    publicKeys.push(await Bun.file(own).text());
  }
  const processes = directories.map((directory, index) => {
    writeFileSync(join(directory, "hosts", names[1 - index] ?? ""), publicKeys[1 - index] ?? "");
    const command = ["tincd", "-c", directory, "-D", `--pidfile=${join(directory, "pid")}`];
    return (hosts[index] ?? hosts[0]).spawn(command);
  });
  for (const host of hosts) await until(host, "ip addr show dev tinc0 | grep -q 'inet '");
  return { name: "tinc", address: "10.202.0.2", processes, prepare: nothing, verify: nothing };
}

async function nebula(lab: Lab, hosts: readonly [Host, Host]): Promise<Rival> {
  const directory = lab.directory("nebula");
  const certify = (...command: string[]): Promise<string> =>
    runChecked(["nebula-cert", ...command], { cwd: directory });
  await certify("ca", "-name", "bench");
  const processes: LabProcess[] = [];
  for (const [index, host] of hosts.entries()) {
    await certify("sign", "-name", `host${index}`, "-ip", `10.203.0.${index + 1}/24`);
    const file = (name: string): string => JSON.stringify(join(directory, name));
    const other = hosts[1 - index]?.address;
    writeFileSync(
      join(directory, `host${index}.yml`),
      [
        `pki: { ca: ${file("ca.crt")}, cert: ${file(`host${index}.crt`)}, key: ${file(`host${index}.key`)} }`,
        `static_host_map: { "10.203.0.${2 - index}": ["${other}:4242"] }`,
        "lighthouse: { am_lighthouse: false, hosts: [] }",
        "listen: { host: 0.0.0.0, port: 4242 }",
        "tun: { dev: nebula0, mtu: 1300 }",
        "firewall: { outbound: [{ port: any, proto: any, host: any }], inbound: [{ port: any, proto: any, host: any }] }",
        "",
      ].join("\n"),
    );
    processes.push(host.spawn(["nebula", "-config", join(directory, `host${index}.yml`)]));
    await until(host, "ip addr show dev nebula0 | grep -q 'inet '");
  }
  return { name: "nebula", address: "10.203.0.2", processes, prepare: nothing, verify: nothing };
}

/** Waits for a shell condition. */
async function until(host: Host, condition: string): Promise<void> {
  const loop = `for i in $(seq 100); do (${condition}) >/dev/null 2>&1 && exit 0; sleep 0.05; done; exit 1`;
  await host.execChecked(["sh", "-c", loop], { timeoutMs: READY_MS + 1_000 });
}
