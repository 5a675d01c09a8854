/**
 * Network namespaces of one lab: made together, entered by role name, and removed without a trace.
 *
 * A namespace is called `tm<pid>_<start>_<count>-<role>`, the first three in base 36: process id and start time (clock ticks since
 * boot, /proc/<pid>/stat field 22) of the process that owns the lab, and how many it made before. So any later lab can tell that
 * the owner is gone, pid reuse included, and removes what a crash has left behind. Files of the lab's programs live under the same
 * name in the temporary directory and go with it.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CommandOptions, type CommandOutput, type Environment, LabProcess, run, runChecked } from "./process.ts";

const NETNS_DIR = "/run/netns";
const LAB_NAME = /^tm([0-9a-z]+)_([0-9a-z]+)_[0-9a-z]+-[a-z0-9-]+$/;

let labsMade = 0;
const live = new Set<Namespaces>();

export class Namespaces {
  readonly prefix: string;
  readonly #roles: string[] = [];
  readonly #processes: LabProcess[] = [];
  #directories = 0;

  private constructor(prefix: string) {
    this.prefix = prefix;
  }

  /** Makes the named namespaces, each with loopback still down and nothing in it, after removing stale labs. */
  static async create(roles: readonly string[]): Promise<Namespaces> {
    await removeStaleLabs();
    const own = `tm${process.pid.toString(36)}_${(startTicks(process.pid) ?? 0).toString(36)}`;
    const namespaces = new Namespaces(`${own}_${(labsMade++).toString(36)}-`);
    live.add(namespaces);
    removeAtExit();
    try {
      namespaces.#roles.push(...roles);
      await runChecked(["ip", "-batch", "-"], {
        input: roles.map((role) => `netns add ${namespaces.name(role)}\n`).join(""),
      });
    } catch (error) {
      await namespaces.remove();
      throw error;
    }
    return namespaces;
  }

  name(role: string): string {
    if (!this.#roles.includes(role)) throw new Error(`No namespace of role "${role}" in this lab`);
    return this.prefix + role;
  }

  async exec(role: string, command: readonly string[], options: CommandOptions = {}): Promise<CommandOutput> {
    return run(this.#inside(role, command), options);
  }

  async execChecked(role: string, command: readonly string[], options: CommandOptions = {}): Promise<string> {
    return runChecked(this.#inside(role, command), options);
  }

  /** Starts a program that lives at most as long as the lab. */
  spawn(role: string, command: readonly string[], options: { env?: Environment; cwd?: string } = {}): LabProcess {
    const child = new LabProcess(`${role}: ${command[0] ?? ""}`, this.#inside(role, command), options);
    this.#processes.push(child);
    return child;
  }

  /** A new empty directory that is removed with the lab; `name` tells people whose it is. */
  directory(name: string): string {
    const path = join(tmpdir(), `${this.prefix}files`, `${name}-${this.#directories++}`);
    mkdirSync(path, { recursive: true, mode: 0o700 });
    return path;
  }

  /** Every program started by `spawn`, for the logs of a failed test. */
  get processes(): readonly LabProcess[] {
    return this.#processes;
  }

  /** Kills everything inside and removes the namespaces, with the devices in them. May be called twice. */
  async remove(): Promise<void> {
    for (const child of this.#processes) if (child.running) child.signal("SIGKILL");
    await removeNamespaces(this.#roles.map((role) => this.prefix + role));
    await Promise.all(this.#processes.map((child) => child.exited));
    removeFiles(this.prefix);
    live.delete(this);
  }

  /** The last resort, when this process exits with a lab still standing: no promise runs any more then. */
  removeNow(): void {
    for (const child of this.#processes) if (child.running) child.signal("SIGKILL");
    for (const role of this.#roles) {
      killAll(Bun.spawnSync(["ip", "netns", "pids", this.prefix + role]).stdout.toString());
      Bun.spawnSync(["ip", "netns", "delete", this.prefix + role]);
    }
    removeFiles(this.prefix);
    live.delete(this);
  }

  #inside(role: string, command: readonly string[]): string[] {
    return ["ip", "netns", "exec", this.name(role), ...command];
  }
}

/** Removes the namespaces of every lab whose owner no longer runs. Returns their names. */
export async function removeStaleLabs(): Promise<string[]> {
  const stale = labNamespaces().filter(({ pid, ticks }) => startTicks(pid) !== ticks);
  await removeNamespaces(stale.map(({ name }) => name));
  for (const { name, pid, ticks } of labsAmong(readdirSync(tmpdir()))) {
    if (startTicks(pid) !== ticks) removeFiles(name.slice(0, name.indexOf("-") + 1));
  }
  return stale.map(({ name }) => name);
}

/** Namespaces of labs on this machine, whoever owns them. */
export function labNamespaces(): { name: string; pid: number; ticks: number }[] {
  let names: string[];
  try {
    names = readdirSync(NETNS_DIR);
  } catch {
    return []; // Nobody has made a namespace since boot.
  }
  return labsAmong(names);
}

function labsAmong(names: readonly string[]): { name: string; pid: number; ticks: number }[] {
  return names.flatMap((name) => {
    const match = LAB_NAME.exec(name);
    return match === null
      ? []
      : [{ name, pid: Number.parseInt(match[1] ?? "", 36), ticks: Number.parseInt(match[2] ?? "", 36) }];
  });
}

const removeFiles = (prefix: string): void =>
  rmSync(join(tmpdir(), `${prefix}files`), { recursive: true, force: true });

async function removeNamespaces(names: readonly string[]): Promise<void> {
  await Promise.all(
    names.map(async (name) => {
      killAll((await run(["ip", "netns", "pids", name])).stdout);
      const { code, stderr } = await run(["ip", "netns", "delete", name]);
      // Two labs that start at once both see the same stale ones: the second finds them gone.
      if (code !== 0 && labNamespaces().some((other) => other.name === name)) {
        throw new Error(`Cannot remove network namespace ${name}: ${stderr.trim()}`);
      }
    }),
  );
}

/** Kills the processes that `ip netns pids` listed. They are ours by construction: only the lab enters its namespaces. */
function killAll(pids: string): void {
  for (const pid of pids.split(/\s+/).map(Number)) {
    if (pid <= 1 || pid === process.pid || !Number.isInteger(pid)) continue;
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // Ended in between.
    }
  }
}

/** When a process started, in clock ticks since boot; undefined when there is no such process. */
function startTicks(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The program name, field 2, may contain spaces and parentheses: count from its last one.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    // A zombie (field 3) will never clean up after itself.
    return fields[0] === "Z" ? undefined : Number(fields[19]);
  } catch {
    return undefined;
  }
}

let exitHandlerSet = false;
function removeAtExit(): void {
  if (exitHandlerSet) return;
  exitHandlerSet = true;
  process.on("exit", () => {
    for (const namespaces of live) namespaces.removeNow();
  });
}
