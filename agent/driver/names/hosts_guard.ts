/**
 * Takes the agent's names out of /etc/hosts when the agent is killed, and so cannot do it itself: a shell of its own, a megabyte while it waits, that
 * reads from a pipe which ends with the agent. Only while there are names in /etc/hosts.
 */
const SHELL = "/bin/sh";
/** What comes is good-bye; an end without it is a crash. What ends the agent by name or by terminal must not end the watcher with it. */
const WATCH = 'trap "" HUP INT TERM; read -r word || exec "$0" forget-names --state-dir "$1"';

export class HostsGuard {
  readonly #stateDir: string;
  #watcher: Bun.Subprocess<"pipe", "ignore", "ignore"> | undefined;

  constructor(stateDir: string) {
    this.#stateDir = stateDir;
  }

  /** Throws what the system says when there is no shell. */
  start(): void {
    this.#watcher ??= Bun.spawn([SHELL, "-c", WATCH, process.execPath, this.#stateDir], {
      stdin: "pipe",
      stdout: "ignore",
      stderr: "ignore",
      // A session of its own: it outlives the group and the terminal of the agent.
      detached: true,
      env: {},
    });
    this.#watcher.unref();
  }

  /** The agent has taken its names out itself. */
  stop(): void {
    const watcher = this.#watcher;
    this.#watcher = undefined;
    if (watcher === undefined) return;
    void watcher.stdin.write("bye\n");
    void watcher.stdin.end();
  }
}
