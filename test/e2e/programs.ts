/**
 * The product on loopback, driven by nothing but its command line contract: the coordinator under Deno, the compiled agent.
 *
 * Everything that a test file starts belongs to its `Stage` and ends with it, also when the test process is told to stop. Agents run
 * without a TUN device, and every port is a free one, so that the machine that runs the tests is left alone.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { EventLog } from "../lab/json_events.ts";
import { type CommandOutput, type Environment, LabProcess, run } from "../lab/process.ts";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));
export const DENO = join(ROOT, "node_modules", ".bin", "deno");
export const AGENT = join(ROOT, "dist", "tunnelmesh-agent");
/** Anything that takes longer has hung: longer than any `--timeout` that a test gives. */
const PATIENCE_MS = 12_000;
/** Free ports of loopback for everything but `--listen`. */
export const LOOPBACK_PORTS: readonly string[] =
  "--ssh-listen 127.0.0.1:0 --stun-address 127.0.0.1 --stun-port 0 --stun-alternate-port 0".split(" ");

export class Stage {
  readonly #directory = mkdtempSync(join(tmpdir(), "tunnelmesh-e2e-"));
  readonly #processes: LabProcess[] = [];
  readonly #removeAtExit = (): void => this.#killAll();
  #made = 0;

  constructor() {
    process.on("exit", this.#removeAtExit);
  }

  /** A new empty directory, removed with the stage. */
  directory(name: string): string {
    const path = join(this.#directory, `${name}-${this.#made++}`);
    mkdirSync(path, { mode: 0o700 });
    return path;
  }

  spawn(name: string, command: readonly string[], env: Environment = {}): LabProcess {
    const child = new LabProcess(name, command, { cwd: ROOT, env: { ...NO_SETTINGS, ...env } });
    this.#processes.push(child);
    return child;
  }

  /** Starts a coordinator and waits until it is ready. */
  async coordinator(options: { dataDir?: string; listen?: readonly string[]; extra?: readonly string[] } = {}) {
    const dataDir = options.dataDir ?? this.directory("coordinator");
    const child = this.spawn("coordinator", [
      DENO,
      "run",
      "-P",
      "coordinator/main.ts",
      ...(options.listen ?? ["127.0.0.1:0"]).flatMap((listener) => ["--listen", listener]),
      ...LOOPBACK_PORTS,
      "--data-dir",
      dataDir,
      "--log-format",
      "json",
      ...(options.extra ?? []),
    ]);
    const coordinator = new Coordinator(child, dataDir);
    await coordinator.events.next("ready", { timeoutMs: PATIENCE_MS });
    return coordinator;
  }

  /** Starts an agent and returns at once; `joined()` waits for it. */
  agent(
    arguments_: readonly string[],
    options: {
      stateDir?: string;
      env?: Environment;
      /** Descriptors that it may have open unless it asks for more. */
      softDescriptors?: number;
    } = {},
  ): Agent {
    const stateDir = options.stateDir ?? this.directory("agent");
    const limit =
      options.softDescriptors === undefined
        ? []
        : ["sh", "-c", `ulimit -S -n ${options.softDescriptors} && exec "$0" "$@"`];
    const words = ["up", ...arguments_, "--tun", "off", "--state-dir", stateDir, "--log-format", "json"];
    const command = [...limit, AGENT, ...words];
    return new Agent(this.spawn("agent", command, options.env), stateDir);
  }

  /** Starts an agent of that name with the coordinator's reusable key and waits until it has joined. */
  async member(coordinator: Coordinator, name: string, stateDir?: string): Promise<Agent> {
    const agent = this.agent(
      [coordinator.url, "--name", name, "--key", coordinator.joinKey],
      stateDir === undefined ? {} : { stateDir },
    );
    await agent.joined();
    return agent;
  }

  /** Ends every program and removes every file. */
  async end(): Promise<void> {
    await Promise.all(this.#processes.map((child) => child.stop()));
    this.#killAll();
    process.off("exit", this.#removeAtExit);
  }

  #killAll(): void {
    for (const child of this.#processes) if (child.running) child.signal("SIGKILL");
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

export type ListenerKind = "http" | "https" | "ssh" | "stun";

export class Coordinator {
  readonly process: LabProcess;
  readonly events: EventLog;
  readonly dataDir: string;

  constructor(process: LabProcess, dataDir: string) {
    this.process = process;
    this.events = new EventLog(process);
    this.dataDir = dataDir;
  }

  port(kind: ListenerKind): number {
    const [port] = this.ports(kind);
    if (port === undefined) throw new Error(`The coordinator has no ${kind} listener:\n${this.process.log()}`);
    return port;
  }

  ports(kind: ListenerKind): number[] {
    const listening = this.events.all("listening").filter(({ fields }) => fields["kind"] === kind);
    return listening.map(({ fields }) => Number(fields["port"]));
  }

  get url(): string {
    return `http://127.0.0.1:${this.port("http")}`;
  }

  /** The reusable key that the first start prints. */
  get joinKey(): string {
    const [line] = this.events.all("join_line");
    const key = /--key (\S+)$/.exec(String(line?.fields["command"]))?.[1];
    if (key === undefined) throw new Error(`The coordinator printed no join line:\n${this.process.log()}`);
    return key;
  }

  /** Runs a command beside the running coordinator and returns its `--json` output. */
  async admin(...command: readonly string[]): Promise<Record<string, unknown>> {
    const output = await coordinatorCommand([...command, "--data-dir", this.dataDir, "--json"]);
    if (output.code !== 0) throw new Error(`"${command.join(" ")}" ended with ${output.code}: ${output.stderr}`);
    return JSON.parse(output.stdout) as Record<string, unknown>;
  }

  async isHealthy(): Promise<boolean> {
    return (await fetch(`${this.url}/healthz`, { signal: AbortSignal.timeout(PATIENCE_MS) })).status === 200;
  }
}

export class Agent {
  readonly process: LabProcess;
  readonly events: EventLog;
  readonly stateDir: string;

  constructor(process: LabProcess, stateDir: string) {
    this.process = process;
    this.events = new EventLog(process);
    this.stateDir = stateDir;
  }

  async joined(): Promise<Readonly<Record<string, unknown>>> {
    return (await this.events.next("joined", { timeoutMs: PATIENCE_MS })).fields;
  }

  /** A command beside the running agent. */
  async command(...command: readonly string[]): Promise<CommandOutput> {
    return agentCommand([...command, "--state-dir", this.stateDir]);
  }

  async json(...command: readonly string[]): Promise<unknown> {
    const output = await this.command(...command, "--json");
    if (output.code !== 0) throw new Error(`"${command.join(" ")}" ended with ${output.code}: ${output.stderr}`);
    return JSON.parse(output.stdout);
  }

  /** Exit code, and the last line that was logged: what a user reads. */
  async outcome(): Promise<{ code: number; message: string }> {
    const timer = setTimeout(() => this.process.signal("SIGKILL"), PATIENCE_MS);
    const code = await this.process.exited;
    clearTimeout(timer);
    const errors = this.process.lines.flatMap(({ text, source }) => {
      if (source !== "stderr" || !text.startsWith("{")) return [];
      const { level, message } = JSON.parse(text) as { level?: string; message?: string };
      return level === "error" && message !== undefined ? [message] : [];
    });
    return { code, message: errors.at(-1) ?? "" };
  }
}

/** Runs an agent command to its end. */
export const agentCommand = async (command: readonly string[], env: Environment = {}): Promise<CommandOutput> =>
  run([AGENT, ...command], { timeoutMs: PATIENCE_MS, env: { ...NO_SETTINGS, ...env } });

/** Runs a coordinator command to its end. */
export const coordinatorCommand = async (
  command: readonly string[],
  permissions: readonly string[] = ["-P"],
): Promise<CommandOutput> =>
  run([DENO, "run", ...permissions, "coordinator/main.ts", ...command], {
    timeoutMs: PATIENCE_MS,
    cwd: ROOT,
    env: NO_SETTINGS,
  });

/** Resident memory of a program in bytes; undefined where there is no /proc. */
export function residentBytes({ pid }: LabProcess): number | undefined {
  const path = `/proc/${pid}/status`;
  if (!existsSync(path)) return undefined;
  const kilobytes = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(path, "utf8"))?.[1];
  return kilobytes === undefined ? undefined : Number(kilobytes) * 1024;
}

/** Settings of whoever runs the tests, emptied, so that defaults are defaults. */
const NO_SETTINGS: Environment = Object.fromEntries(
  Object.keys(process.env)
    .filter((name) => name.startsWith("TUNNELMESH_"))
    .map((name) => [name, ""]),
);
