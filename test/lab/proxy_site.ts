/**
 * A site that only its proxy leads out of: the router forwards nothing, and a real proxy program listens on its LAN address.
 *
 * The HTTP proxies allow tunnels to port 443 alone, as companies do; every log tells which tunnels were asked for. Names are
 * known to the proxy alone: the site itself has no DNS.
 */
import { chmodSync, chownSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { LabProcess } from "./process.ts";
import { runChecked } from "./process.ts";
import type { Lab, Machine, Site } from "./topology.ts";

const PROXY_PORT = 3128;
const SOCKS_PORT = 1080;
const START_TIMEOUT_MS = 5000;
/** Squid refuses to be root; this is Debian's `nobody`. */
const NOBODY = 65_534;

export interface Login {
  readonly user: string;
  readonly password: string;
}

export interface ProxyOptions {
  readonly login?: Login;
  /** Names that the proxy can resolve. */
  readonly names?: Readonly<Record<string, string>>;
}

export class SiteProxy {
  /** Without user and password. */
  readonly url: string;
  readonly process: LabProcess;
  readonly #requests: () => readonly string[];

  constructor(url: string, process: LabProcess, requests: () => readonly string[]) {
    this.url = url;
    this.process = process;
    this.#requests = requests;
  }

  urlWith({ user, password }: Login): string {
    return this.url.replace("://", `://${user}:${password}@`);
  }

  /** What it was asked for so far, by its own log: `CONNECT HOST:PORT`. */
  get requests(): readonly string[] {
    return this.#requests();
  }
}

/** Nothing is forwarded any more, in either address family; the router itself still reaches everything. */
export async function forwardNothing(site: Site): Promise<void> {
  const { router } = placeOf(site);
  await router.execChecked(["nft", "insert", "rule", "inet", "fw", "forward", "iifname", "lan", "counter", "drop"]);
}

/** The router's own tinyproxy is the only way out. */
export async function closeAllButProxy(lab: Lab, site: Site): Promise<SiteProxy> {
  await forwardNothing(site);
  return startTinyproxy(lab, site);
}

export async function startTinyproxy(lab: Lab, site: Site, options: ProxyOptions = {}): Promise<SiteProxy> {
  const { router, gateway, cidr } = placeOf(site);
  const directory = lab.directory("tinyproxy");
  const { login } = options;
  const config = writeLines(join(directory, "tinyproxy.conf"), [
    `Port ${PROXY_PORT}`,
    `Listen ${gateway}`,
    "Timeout 600",
    "LogLevel Connect",
    `Allow ${cidr}`,
    "ConnectPort 443",
    ...(login === undefined ? [] : [`BasicAuth ${login.user} ${login.password}`]),
  ]);
  const process = spawnKnowing(router, directory, ["tinyproxy", "-d", "-c", config], options.names);
  await listening(router, process, gateway, PROXY_PORT);
  return new SiteProxy(`http://${gateway}:${PROXY_PORT}`, process, () =>
    process.lines.flatMap(({ text }) => {
      const [, request] = /Request \(file descriptor \d+\): (\S+ \S+) HTTP/.exec(text) ?? [];
      return request === undefined ? [] : [request];
    }),
  );
}

/** Squid, which caches nothing and asks for a password when given a login. */
export async function startSquid(lab: Lab, site: Site, options: ProxyOptions = {}): Promise<SiteProxy> {
  const { router, gateway, cidr } = placeOf(site);
  const directory = lab.directory("squid");
  const { login, names } = options;
  const accessLog = join(directory, "access.log");
  const passwords = join(directory, "passwords");
  const hosts = writeHosts(directory, names);
  if (login !== undefined) {
    const hash = await runChecked(["openssl", "passwd", "-apr1", login.password]);
    writeLines(passwords, [`${login.user}:${hash.trim()}`]);
  }
  writeLines(accessLog, []);
  const config = writeLines(join(directory, "squid.conf"), [
    `http_port ${gateway}:${PROXY_PORT}`,
    ...(login === undefined
      ? []
      : [
          `auth_param basic program /usr/lib/squid/basic_ncsa_auth ${passwords}`,
          "auth_param basic realm lab",
          "auth_param basic children 1 startup=1",
          "acl known proxy_auth REQUIRED",
        ]),
    `acl lan src ${cidr}`,
    "acl tls_port port 443",
    "http_access deny CONNECT !tls_port",
    `http_access allow lan${login === undefined ? "" : " known"}`,
    "http_access deny all",
    "cache deny all",
    "pid_filename none",
    `hosts_file ${hosts}`,
    // Else it asks for its own name at the start, and waits for an answer that never comes.
    "visible_hostname proxy.example",
    // Squid wants a name server in its configuration, although none will answer.
    "dns_nameservers 127.0.0.1",
    "logformat brief %rm %ru %>Hs",
    `access_log stdio:${accessLog} brief`,
    "buffered_logs off",
    "cache_log /dev/null",
    "pinger_enable off",
    "netdb_filename none",
    "shutdown_lifetime 0 seconds",
    "max_filedescriptors 256",
    `coredump_dir ${directory}`,
  ]);
  chmodSync(dirname(directory), 0o711);
  for (const path of [directory, accessLog, config, hosts, ...(login === undefined ? [] : [passwords])]) {
    chownSync(path, NOBODY, NOBODY);
  }
  const process = router.spawn([
    // Two squids, or one and what another left behind, would fight for one name in shared memory.
    "sh",
    "-c",
    'mount -t tmpfs -o mode=1777 shm /dev/shm && exec "$@"',
    "sh",
    "setpriv",
    `--reuid=${NOBODY}`,
    `--regid=${NOBODY}`,
    "--clear-groups",
    "squid",
    "-N",
    "-d1",
    "-f",
    config,
  ]);
  await listening(router, process, gateway, PROXY_PORT);
  // Squid writes a tunnel down when it ends, and a refusal at once.
  return new SiteProxy(`http://${gateway}:${PROXY_PORT}`, process, () =>
    readFileSync(accessLog, "utf8")
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => line.split(" ").slice(0, 2).join(" ")),
  );
}

/** SOCKS5 by microsocks: resolves names, allows every port, and its log tells which were asked for. */
export async function startSocks(lab: Lab, site: Site, options: ProxyOptions = {}): Promise<SiteProxy> {
  const { router, gateway } = placeOf(site);
  const { login, names } = options;
  const process = spawnKnowing(
    router,
    lab.directory("socks"),
    [
      "microsocks",
      "-i",
      gateway,
      "-p",
      `${SOCKS_PORT}`,
      ...(login === undefined ? [] : ["-u", login.user, "-P", login.password]),
    ],
    names,
  );
  await listening(router, process, gateway, SOCKS_PORT);
  return new SiteProxy(`socks5://${gateway}:${SOCKS_PORT}`, process, () =>
    process.lines.flatMap(({ text }) => {
      const [, target] = /connected to (\S+)/.exec(text) ?? [];
      return target === undefined ? [] : [`CONNECT ${target}`];
    }),
  );
}

function placeOf(site: Site): { readonly router: Machine; readonly gateway: string; readonly cidr: string } {
  const { router, lan } = site;
  if (router === undefined || lan === undefined) throw new Error("A site with a router expected");
  return { router, gateway: lan.gateway, cidr: lan.cidr };
}

/** Each program in a namespace has its own mounts, so a hosts file of its own needs no trace outside. */
function spawnKnowing(
  machine: Machine,
  directory: string,
  command: readonly string[],
  names: Readonly<Record<string, string>> | undefined,
): LabProcess {
  const hosts = writeHosts(directory, names);
  return machine.spawn(["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, ...command]);
}

const writeHosts = (directory: string, names: Readonly<Record<string, string>> = {}): string =>
  writeLines(join(directory, "hosts"), [
    "127.0.0.1 localhost",
    ...Object.entries(names).map(([name, address]) => `${address} ${name}`),
  ]);

function writeLines(path: string, lines: readonly string[]): string {
  writeFileSync(path, lines.map((line) => `${line}\n`).join(""));
  return path;
}

async function listening(machine: Machine, process: LabProcess, address: string, port: number): Promise<void> {
  const deadline = performance.now() + START_TIMEOUT_MS;
  while (performance.now() < deadline && process.running) {
    const { stdout } = await machine.exec(["ss", "-ltnH"]);
    if (stdout.includes(`${address}:${port} `)) return;
  }
  throw new Error(`${process.name} did not start\n${process.log()}`);
}
