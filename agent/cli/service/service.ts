/**
 * `service install|uninstall|status`: the agent as a service of systemd, with everything that belongs to it, and without leaving any of it.
 *
 *   /usr/local/bin/tunnelmesh-agent               the program, unless it is already where programs of the system are
 *   /etc/systemd/system/tunnelmesh-agent.service  the unit (unit.ts)
 *   /etc/tunnelmesh/                              agent.toml and the join key, if they were given here
 *   /var/lib/tunnelmesh/                          its state, which `uninstall` keeps and `uninstall --purge` removes
 */
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { stringify } from "smol-toml";
import { isStateDirInUse, ROOT_STATE_DIR } from "../../state/state_dir.ts";
import { readState } from "../../state/state_file.ts";
import { EXIT, systemReason, UserError } from "../../state/user_error.ts";
import { SYSTEM_CONFIG_FILE } from "../config_file.ts";
import { UNIT_NAME, unitText } from "./unit.ts";

const PROGRAM = "/usr/local/bin/tunnelmesh-agent";
const UNIT_DIR = "/etc/systemd/system";
const CONFIG_DIR = dirname(SYSTEM_CONFIG_FILE);
const JOIN_KEY_FILE = join(CONFIG_DIR, "join.key");
/** Where programs are that an update of the system, not we, puts there. */
const SYSTEM_PROGRAMS = /^\/(?:usr|opt|nix|bin)\//;
const COMMAND_TIMEOUT_MS = 30_000;

export interface InstallWish {
  readonly url: string | undefined;
  /** A join key, not a file of one. */
  readonly key: string | undefined;
  readonly name: string | undefined;
}

export interface ServiceStatus {
  readonly isInstalled: boolean;
  /** Starts with the machine. */
  readonly isEnabled: boolean;
  readonly isActive: boolean;
  /** In systemd's own words: "active", "failed", "activating", ... */
  readonly state: string;
}

/** The machine as the service sees it; tests have one of their own, below `root`. */
export interface Machine {
  readonly root: string;
  readonly isRootUser: boolean;
  /** The program that runs: it is what gets installed. Undefined: not a program of its own, but a source file. */
  readonly executable: string | undefined;
}

export class Service {
  readonly #machine: Machine;

  constructor(machine: Machine) {
    this.#machine = machine;
  }

  /** Returns what has been done, a line each. */
  async install(wish: InstallWish): Promise<string[]> {
    this.#require("install");
    const { executable } = this.#machine;
    if (executable === undefined) {
      throw new UserError(EXIT.failed, 'Only the built program can be installed; run "npm run build -- --agent"');
    }
    const done: string[] = [];
    try {
      this.#configure(wish, done);
      const program = this.#placeProgram(executable, done);
      const unit = this.#path(join(UNIT_DIR, UNIT_NAME));
      mkdirSync(dirname(unit), { recursive: true });
      writeFileSync(unit, unitText(program), { mode: 0o644 });
      done.push(`Wrote ${join(UNIT_DIR, UNIT_NAME)}`);
    } catch (error) {
      if (error instanceof UserError) throw error;
      throw new UserError(EXIT.failed, `Cannot install the service: ${systemReason(error)}`, { cause: error });
    }
    await this.#systemctl("daemon-reload");
    await this.#systemctl("enable", UNIT_NAME);
    // Also where an older one runs.
    await this.#systemctl("restart", UNIT_NAME);
    done.push(`Started it, and it starts with the machine; "journalctl -u ${UNIT_NAME}" shows its log`);
    return done;
  }

  async uninstall(purge: boolean): Promise<string[]> {
    this.#require("uninstall");
    const done: string[] = [];
    const unit = this.#path(join(UNIT_DIR, UNIT_NAME));
    if (existsSync(unit)) {
      await this.#systemctl("disable", "--now", UNIT_NAME);
      rmSync(unit);
      await this.#systemctl("daemon-reload");
      done.push("Stopped and removed the service");
    } else done.push("There is no service to remove");
    if (!purge) return [...done, `Kept ${CONFIG_DIR} and ${ROOT_STATE_DIR}; "service uninstall --purge" removes them`];
    const stateDir = this.#path(ROOT_STATE_DIR);
    if (existsSync(stateDir) && isStateDirInUse(stateDir)) {
      throw new UserError(
        EXIT.failed,
        `An agent still runs in ${ROOT_STATE_DIR}; stop it with "tunnelmesh-agent down" and try again`,
      );
    }
    const name = existsSync(stateDir) ? nameIn(stateDir) : undefined;
    for (const path of [CONFIG_DIR, ROOT_STATE_DIR, PROGRAM]) {
      if (!existsSync(this.#path(path))) continue;
      rmSync(this.#path(path), { recursive: true });
      done.push(`Removed ${path}`);
    }
    if (name !== undefined) {
      done.push(`The mesh still knows this machine: on the coordinator, "peer remove ${name}" makes it forget`);
    }
    return done;
  }

  async status(): Promise<ServiceStatus> {
    const state = await this.#ask("is-active");
    return {
      isInstalled: existsSync(this.#path(join(UNIT_DIR, UNIT_NAME))),
      isEnabled: (await this.#ask("is-enabled")) === "enabled",
      isActive: state === "active",
      state: state === "" ? "unknown" : state,
    };
  }

  #require(what: string): void {
    if (Bun.which("systemctl") === null || !existsSync(this.#path("/run/systemd/system"))) {
      throw new UserError(
        EXIT.failed,
        `Cannot ${what} the service: systemd does not run here; start "tunnelmesh-agent up" by whatever starts services on this machine`,
      );
    }
    if (!this.#machine.isRootUser) {
      throw new UserError(EXIT.failed, `Cannot ${what} the service: that is for root; try again with sudo`);
    }
  }

  /** The configuration that the first start needs. One that exists is the user's, and stays. */
  #configure({ url, key, name }: InstallWish, done: string[]): void {
    const file = this.#path(SYSTEM_CONFIG_FILE);
    if (url === undefined && key === undefined && name === undefined) {
      if (existsSync(file) || isJoined(this.#path(ROOT_STATE_DIR))) return;
      throw new UserError(
        EXIT.badConfiguration,
        'This machine has joined no mesh yet; run "tunnelmesh-agent service install URL --key KEY"',
      );
    }
    if (existsSync(file)) {
      throw new UserError(
        EXIT.badConfiguration,
        `${SYSTEM_CONFIG_FILE} exists already; change it there and run "tunnelmesh-agent service install" without URL, --key and --name`,
      );
    }
    mkdirSync(dirname(file), { recursive: true, mode: 0o755 });
    if (key !== undefined) writeFileSync(this.#path(JOIN_KEY_FILE), `${key}\n`, { mode: 0o600 });
    const settings = {
      ...(url === undefined ? {} : { url }),
      ...(name === undefined ? {} : { name }),
      ...(key === undefined ? {} : { "key-file": JOIN_KEY_FILE }),
    };
    const head = '# Options of "tunnelmesh-agent up" by their names; "tunnelmesh-agent help up" lists them.\n';
    writeFileSync(file, `${head}${stringify(settings)}\n`, { mode: 0o644 });
    done.push(`Wrote ${SYSTEM_CONFIG_FILE}${key === undefined ? "" : ` and ${JOIN_KEY_FILE}`}`);
  }

  /** A service must not run what a user's home directory or /tmp holds. Returns where it is. */
  #placeProgram(executable: string, done: string[]): string {
    const from = realpathSync(executable);
    if (SYSTEM_PROGRAMS.test(from)) return from;
    const to = this.#path(PROGRAM);
    mkdirSync(dirname(to), { recursive: true });
    // Beside it and renamed: a program that runs cannot be overwritten.
    copyFileSync(from, `${to}.new`);
    chmodSync(`${to}.new`, 0o755);
    renameSync(`${to}.new`, to);
    done.push(`Copied the program to ${PROGRAM}`);
    return PROGRAM;
  }

  async #systemctl(...command: readonly string[]): Promise<void> {
    const { code, text } = await run(["systemctl", ...command]);
    if (code !== 0) {
      throw new UserError(
        EXIT.failed,
        `"systemctl ${command.join(" ")}" failed: ${text.trim().split("\n").at(-1) ?? ""}`,
      );
    }
  }

  /** The one word that systemd answers; its exit code says the same. */
  async #ask(question: "is-active" | "is-enabled"): Promise<string> {
    if (Bun.which("systemctl") === null) return "";
    return (await run(["systemctl", question, UNIT_NAME])).text.trim().split("\n")[0] ?? "";
  }

  #path(path: string): string {
    return join(this.#machine.root, path);
  }
}

async function run(command: readonly string[]): Promise<{ code: number; text: string }> {
  const child = Bun.spawn([...command], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: COMMAND_TIMEOUT_MS,
    env: { PATH: process.env["PATH"] ?? "", LC_ALL: "C" },
  });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, text: out === "" ? err : out };
}

function isJoined(stateDir: string): boolean {
  return existsSync(stateDir) && readState(stateDir).joined;
}

/** The name of a state directory that is about to go; a broken one has none. */
function nameIn(stateDir: string): string | undefined {
  try {
    return readState(stateDir).name ?? undefined;
  } catch {
    return undefined;
  }
}

/** This machine, and the program that runs. */
export function thisMachine(isRootUser: boolean): Machine {
  // A compiled program has its sources in a file system of its own.
  const isCompiled = Bun.main.startsWith("/$bunfs/");
  return { root: "/", isRootUser, executable: isCompiled ? process.execPath : undefined };
}
