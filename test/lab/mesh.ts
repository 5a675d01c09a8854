/**
 * The product inside a lab: the real coordinator under Deno and the real compiled agents, driven by nothing but the command line
 * contract (options, exit codes, `--json` output, events), as any user's scripts would.
 *
 * Everything is bounded by a timeout, and everything ends with the lab. Times are `performance.now()` of the test process.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { EventLog, type LoggedEvent } from "./json_events.ts";
import { type CommandOutput, type Environment, type LabProcess, runChecked } from "./process.ts";
import type { Host, Lab, Machine } from "./topology.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const DENO = join(ROOT, "node_modules", ".bin", "deno");
/** The agent under test; LAB_AGENT names another build, such as that of a release. */
export const AGENT = process.env["LAB_AGENT"] ?? join(ROOT, "dist", "tunnelmesh-agent");
const TRAFFIC = fileURLToPath(new URL("traffic.ts", import.meta.url));
/** Deno checks and starts the coordinator in about a second, on a machine that two labs share. */
const READY_TIMEOUT_MS = 15_000;
const JOIN_TIMEOUT_MS = 10_000;
/** Added to the seconds that a command was told to wait, before we take it for hung. */
const HANG_MS = 3_000;
/** Each question starts a program. */
const WHY_EVERY_MS = 200;
const HTTP_PORT = 8000;

export interface CoordinatorOptions {
  /** HTTP listeners; default `http://0.0.0.0:8080`. The first one names the port of `url`. */
  readonly listen?: readonly string[];
  /** Addresses that answer STUN; default all of the coordinator's. */
  readonly stunAddresses?: readonly string[];
  /** State of an earlier coordinator, to start it again. */
  readonly dataDir?: string;
  readonly extra?: readonly string[];
  readonly env?: Environment;
  /** Where it runs; default the lab's coordinator. */
  readonly machine?: Machine;
}

export class MeshCoordinator {
  readonly machine: Machine;
  readonly process: LabProcess;
  readonly events: EventLog;
  readonly dataDir: string;
  /** What agents are given. */
  readonly url: string;

  constructor(machine: Machine, process: LabProcess, dataDir: string, url: string) {
    this.machine = machine;
    this.process = process;
    this.events = new EventLog(process);
    this.dataDir = dataDir;
    this.url = url;
  }

  /** Runs another coordinator command beside the running one, such as `["peer", "list"]`, and returns its `--json` output. */
  async admin(command: readonly string[]): Promise<unknown> {
    const output = await this.machine.execChecked(
      [DENO, ...COORDINATOR, ...command, "--data-dir", this.dataDir, "--json"],
      { cwd: ROOT, timeoutMs: READY_TIMEOUT_MS },
    );
    return JSON.parse(output);
  }

  async createKey(options: { readonly reusable?: boolean; readonly expires?: string } = {}): Promise<string> {
    const created = await this.admin([
      "key",
      "create",
      ...(options.reusable === true ? ["--reusable"] : []),
      ...(options.expires === undefined ? [] : ["--expires", options.expires]),
    ]);
    if (typeof created === "object" && created !== null && "key" in created && typeof created.key === "string") {
      return created.key;
    }
    throw new Error(`"key create --json" printed no key: ${JSON.stringify(created)}`);
  }

  async stop(): Promise<number> {
    return this.process.stop();
  }
}

const COORDINATOR = ["run", "-P", "coordinator/main.ts"] as const;

/** Starts the coordinator and waits for its `ready` event. */
export async function startCoordinator(lab: Lab, options: CoordinatorOptions = {}): Promise<MeshCoordinator> {
  const machine = options.machine ?? lab.coordinator;
  const listen = options.listen ?? ["http://0.0.0.0:8080"];
  const dataDir = options.dataDir ?? lab.directory("coordinator");
  const stun = options.stunAddresses ?? [...machine.addresses, ...machine.ipv6Addresses];
  const child = machine.spawn(
    [
      DENO,
      ...COORDINATOR,
      ...listen.flatMap((value) => ["--listen", value]),
      ...stun.flatMap((value) => ["--stun-address", value]),
      "--data-dir",
      dataDir,
      "--log-format",
      "json",
      ...(options.extra ?? []),
    ],
    options.env,
    ROOT,
  );
  const [, scheme = "http", port = "8080"] = /^(https?):\/\/.*:(\d+)$/.exec(listen[0] ?? "") ?? [];
  const coordinator = new MeshCoordinator(machine, child, dataDir, `${scheme}://${machine.address}:${port}`);
  await coordinator.events.next("ready", { timeoutMs: READY_TIMEOUT_MS });
  return coordinator;
}

export type PathKind = "direct" | "ssh" | "websocket";

/** `status --json`; fields may be added, so tests name those they look at. */
export interface AgentStatus {
  readonly schema: 1;
  readonly self: {
    readonly name: string;
    readonly id: string;
    readonly meshIPv4: string;
    readonly meshIPv6: string;
    readonly tun: string | null;
    readonly nat: {
      readonly label: string;
      readonly certain: boolean;
      readonly mapping: string;
      readonly filtering: string;
      readonly allocation: string | null;
      readonly ports?: { readonly first: number; readonly last: number; readonly stride: number } | null;
      readonly publicAddress: string | null;
      readonly mappingLifetimeSeconds?: number | null;
      readonly mappingForgottenSeconds?: number | null;
    };
    readonly portMapping?: {
      readonly protocol: string | null;
      readonly address: string | null;
      readonly note: string | null;
    };
    readonly coordinator: { readonly url: string; readonly connected: boolean; readonly rttMs: number };
  };
  readonly peers: readonly PeerStatus[];
}

export interface PeerStatus {
  readonly name: string;
  readonly id: string;
  readonly fingerprint: string;
  readonly meshIPv4: string;
  readonly meshIPv6: string;
  readonly online: boolean;
  readonly path: {
    readonly kind: PathKind;
    readonly legs: { readonly local: string; readonly remote: string } | null;
    readonly localAddress: string;
    readonly remoteAddress: string;
    readonly rttMs: number;
    readonly mtu: number | null;
    readonly since: string;
  } | null;
  readonly why: string;
  readonly rxBytes: number;
  readonly txBytes: number;
  readonly history: readonly {
    readonly at: string;
    readonly from: string | null;
    readonly to: string | null;
    readonly reason: string;
  }[];
}

export interface AgentOptions {
  readonly name: string;
  readonly url: string;
  /** Not needed with the state of an earlier agent. */
  readonly key?: string;
  readonly stateDir?: string;
  readonly extra?: readonly string[];
  readonly env?: Environment;
  /** Words in front of the command line, such as `nsenter` and its options. */
  readonly prefix?: readonly string[];
  /** Waits for the `joined` event; default true. */
  readonly waitJoined?: boolean;
}

export class MeshAgent {
  readonly host: Host;
  readonly name: string;
  readonly stateDir: string;
  readonly process: LabProcess;
  readonly events: EventLog;

  constructor(host: Host, name: string, stateDir: string, process: LabProcess) {
    this.host = host;
    this.name = name;
    this.stateDir = stateDir;
    this.process = process;
    this.events = new EventLog(process);
  }

  /** Runs a command of the agent beside the running one. A non-zero exit code is part of the answer. */
  async command(command: readonly string[], timeoutMs = 10_000): Promise<CommandOutput> {
    return this.host.exec([AGENT, ...command, "--state-dir", this.stateDir], { timeoutMs });
  }

  async status(): Promise<AgentStatus> {
    const output = await this.command(["status", "--json"]);
    if (output.code !== 0) {
      throw new Error(`"status --json" of ${this.name} ended with exit code ${output.code}: ${output.stderr.trim()}`);
    }
    return JSON.parse(output.stdout) as AgentStatus;
  }

  async peer(name: string): Promise<PeerStatus> {
    const { peers } = await this.status();
    const peer = peers.find((candidate) => candidate.name === name);
    if (peer === undefined) throw new Error(`${this.name} knows no peer "${name}"`);
    return peer;
  }

  /** Waits until `why` says so of a peer; fails with what it says instead. */
  async waitWhy(peer: string, words: RegExp, timeoutMs = 8_000): Promise<void> {
    const endsAt = performance.now() + timeoutMs;
    let why = "";
    for (; !words.test(why) && performance.now() < endsAt; await Bun.sleep(WHY_EVERY_MS)) {
      // Who joined last may not have been told yet.
      why = (await this.status()).peers.find(({ name }) => name === peer)?.why ?? "it is not known";
    }
    if (!words.test(why)) throw new Error(`${this.name} says of ${peer}, after ${timeoutMs} ms: ${why}`);
  }

  /** `wait --for ...`, whose exit code says whether it came to pass. */
  async wait(what: "joined" | `peer=${string}` | `direct=${string}`, timeoutSeconds: number): Promise<number> {
    const command = ["wait", "--for", what, "--timeout", `${timeoutSeconds}`];
    return (await this.command(command, timeoutSeconds * 1_000 + HANG_MS)).code;
  }

  /** Fails, with what the agent says about the path, when there is no direct one in time. */
  async waitDirect(peer: string, timeoutSeconds = 10): Promise<void> {
    const code = await this.wait(`direct=${peer}`, timeoutSeconds);
    if (code === 0) return;
    const why = (await this.command(["why", peer])).stdout.trim();
    throw new Error(
      `No direct path from ${this.name} to ${peer} within ${timeoutSeconds} s (exit code ${code}): ${why}`,
    );
  }

  /** The first time a path to `peer` became direct, or moved to another direct path, at or after `since`. */
  async directEvent(
    peer: string,
    options: {
      since?: number;
      timeoutMs?: number;
      accept?: (fields: Readonly<Record<string, unknown>>) => boolean;
    } = {},
  ): Promise<LoggedEvent> {
    const accept = (fields: Readonly<Record<string, unknown>>): boolean =>
      fields["peer"] === peer && fields["to"] === "direct" && (options.accept?.(fields) ?? true);
    return this.events.next("path_changed", { ...options, accept });
  }

  /** The first path change to no path from direct, at or after `since`. */
  async lostEvent(peer: string, options: { since?: number; timeoutMs?: number } = {}): Promise<LoggedEvent> {
    const accept = (fields: Readonly<Record<string, unknown>>): boolean =>
      fields["peer"] === peer && fields["to"] === "none";
    return this.events.next("path_changed", { accept, ...options });
  }

  /** Starts `ping`, which goes on beside what the test does; ends by itself after `count`. */
  startPing(peer: string, options: { readonly count: number; readonly intervalSeconds: number }): RunningPing {
    const { count, intervalSeconds } = options;
    const command = ["ping", peer, "-c", `${count}`, "-i", `${intervalSeconds}`, "--json"];
    return new RunningPing(this.host.spawn([AGENT, ...command, "--state-dir", this.stateDir]));
  }

  async netcheck(): Promise<Netcheck> {
    const output = await this.command(["netcheck", "--json"]);
    if (output.code !== 0) throw new Error(`"netcheck --json" of ${this.name} failed: ${output.stderr.trim()}`);
    return JSON.parse(output.stdout) as Netcheck;
  }

  /** SIGTERM; the exit code of a clean shutdown is 0. */
  async stop(): Promise<number> {
    return this.process.stop();
  }

  /** SIGKILL, as a crash. */
  async kill(): Promise<void> {
    this.process.signal("SIGKILL");
    await this.process.exited;
  }
}

/** One line of `ping --json`. */
export type PingLine =
  | { readonly seq: number; readonly rttMs: number; readonly path: PathKind }
  | { readonly seq: number; readonly lost: true };

export class RunningPing {
  readonly process: LabProcess;

  constructor(process: LabProcess) {
    this.process = process;
  }

  /** Answers and losses so far. */
  get results(): readonly PingLine[] {
    return this.process.lines.flatMap(({ source, text }) =>
      source === "stdout" && text.startsWith("{") ? [JSON.parse(text) as PingLine] : [],
    );
  }

  get lost(): number {
    return this.results.filter((line) => "lost" in line).length;
  }

  /** Waits until `count` more answers have come. */
  async moreAnswers(count: number, timeoutMs: number): Promise<void> {
    let left = count;
    const from = this.process.lines.length;
    await this.process.waitFor(
      `${count} more answers`,
      (line) => {
        if (this.process.lines.indexOf(line) < from || !line.text.includes("rttMs")) return undefined;
        left -= 1;
        return left <= 0 ? true : undefined;
      },
      timeoutMs,
    );
  }

  /** Interrupts it. Returns every line. */
  async stop(): Promise<readonly PingLine[]> {
    this.process.signal("SIGINT");
    return this.end();
  }

  /** Every line, once it has ended. */
  async end(): Promise<readonly PingLine[]> {
    await this.process.exited;
    return this.results;
  }
}

/** `netcheck --json`, as far as tests look at it. */
export interface Netcheck {
  readonly schema: 1;
  readonly udp: boolean;
  readonly ipv4: (AgentStatus["self"]["nat"] & { readonly hairpin: boolean | null }) | null;
  readonly ipv6: { readonly available: boolean; readonly publicAddress: string | null };
  readonly portMapping: {
    readonly upnp: boolean | null;
    readonly natPmp: boolean | null;
    readonly pcp: boolean | null;
    readonly address: string | null;
  };
  readonly ssh: boolean | null;
  readonly websocket: boolean;
  readonly proxy: string | null;
  readonly summary: string;
}

/** `netcheck` of a machine where no agent runs. */
export async function netcheckWithoutAgent(lab: Lab, host: Machine, url: string): Promise<Netcheck> {
  const stateDir = lab.directory("no-agent");
  const command = ["netcheck", "--coordinator", url, "--json", "--state-dir", stateDir];
  return JSON.parse(await host.execChecked([AGENT, ...command])) as Netcheck;
}

/** Starts `tunnelmesh-agent up` and, unless told otherwise, waits until it has joined. */
export async function startAgent(lab: Lab, host: Host, options: AgentOptions): Promise<MeshAgent> {
  if (!existsSync(AGENT)) throw new Error(`No agent at ${AGENT}: run "npm run build" first`);
  const stateDir = options.stateDir ?? lab.directory(`agent-${options.name}`);
  const child = host.spawn(
    [
      ...(options.prefix ?? []),
      AGENT,
      "up",
      options.url,
      "--name",
      options.name,
      ...(options.key === undefined ? [] : ["--key", options.key]),
      "--state-dir",
      stateDir,
      "--log-format",
      "json",
      ...(options.extra ?? []),
    ],
    options.env,
  );
  const agent = new MeshAgent(host, options.name, stateDir, child);
  if (options.waitJoined !== false) await agent.events.next("joined", { timeoutMs: JOIN_TIMEOUT_MS });
  return agent;
}

/** Coordinator and one agent per host, named `h1-1`, `h2-1` and so on as the hosts, all joined. */
export async function startMesh(
  lab: Lab,
  options: { readonly coordinator?: CoordinatorOptions; readonly agent?: Partial<AgentOptions> } = {},
): Promise<{ coordinator: MeshCoordinator; agents: readonly MeshAgent[]; key: string }> {
  const coordinator = await startCoordinator(lab, options.coordinator);
  const key = await coordinator.createKey({ reusable: true });
  const agents = await Promise.all(
    lab.hosts.map(async (host) =>
      startAgent(lab, host, { name: host.role, url: coordinator.url, key, ...options.agent }),
    ),
  );
  return { coordinator, agents, key };
}

/** `startMesh` of a lab with two hosts. */
export async function startPair(
  lab: Lab,
  options: Parameters<typeof startMesh>[1] = {},
): Promise<{ coordinator: MeshCoordinator; one: MeshAgent; two: MeshAgent; key: string }> {
  const { coordinator, agents, key } = await startMesh(lab, options);
  const [one, two] = agents;
  if (one === undefined || two === undefined || agents.length > 2) throw new Error("This lab has not two hosts");
  return { coordinator, one, two, key };
}

/** Both ends have a direct path. */
export async function bothDirect(one: MeshAgent, two: MeshAgent, timeoutSeconds = 10): Promise<void> {
  await Promise.all([one.waitDirect(two.name, timeoutSeconds), two.waitDirect(one.name, timeoutSeconds)]);
}

export interface Transfer {
  readonly milliseconds: number;
  readonly bytes: number;
}

/** Fetches a random file over HTTP from one agent's mesh address to the other's host; fails unless every byte is right. */
export async function transferFile(
  from: MeshAgent,
  to: MeshAgent,
  options: {
    readonly bytes?: number;
    readonly ipv6?: boolean;
    readonly timeoutMs?: number;
    /** Sends no faster, so that the connection lives long enough for something to happen to it. */
    readonly bytesPerSecond?: number;
  } = {},
): Promise<Transfer> {
  const { meshIPv4, meshIPv6 } = (await from.status()).self;
  const address = options.ipv6 === true ? meshIPv6 : meshIPv4;
  const bytes = options.bytes ?? 10_000_000;
  const rate = options.bytesPerSecond === undefined ? [] : [`${options.bytesPerSecond}`];
  const serve = [process.execPath, TRAFFIC, "http-serve", address, `${HTTP_PORT}`, `${bytes}`, ...rate];
  const server = from.host.spawn(serve);
  try {
    const checksum = await server.waitFor(
      "checksum",
      (line) => (/^[0-9a-f]{64}$/.test(line.text) ? line.text : undefined),
      5_000,
    );
    const output = await to.host.execChecked([process.execPath, TRAFFIC, "http-get", address, `${HTTP_PORT}`], {
      timeoutMs: options.timeoutMs ?? 15_000,
    });
    const got = JSON.parse(output) as { sha256: string; bytes: number; milliseconds: number };
    if (got.sha256 !== checksum || got.bytes !== bytes) {
      throw new Error(`The file arrived damaged: ${got.bytes} of ${bytes} bytes, checksum ${got.sha256}`);
    }
    return got;
  } finally {
    await server.stop();
  }
}

/** Serves a random file over HTTP on that address for as long as `body` takes, which is told the port and the file's SHA-256. */
export async function serving<T>(
  host: Host,
  address: string,
  bytes: number,
  body: (port: number, sha256: string) => Promise<T>,
  /** Sends each copy no faster. */
  bytesPerSecond?: number,
): Promise<T> {
  const rate = bytesPerSecond === undefined ? [] : [`${bytesPerSecond}`];
  const server = host.spawn([process.execPath, TRAFFIC, "http-serve", address, `${HTTP_PORT}`, `${bytes}`, ...rate]);
  try {
    const sha256 = await server.waitFor(
      "checksum",
      ({ text }) => (/^[0-9a-f]{64}$/.test(text) ? text : undefined),
      5_000,
    );
    return await body(HTTP_PORT, sha256);
  } finally {
    await server.stop();
  }
}

/** Compiles the agent unless that has been done; for tests that start it. */
export async function ensureAgentBuilt(): Promise<void> {
  if (existsSync(AGENT)) return;
  await runChecked([process.execPath, join(ROOT, "scripts", "build.ts")], { cwd: ROOT, timeoutMs: 120_000 });
}
