/**
 * Child processes of the lab: short commands with captured output, and long-running programs whose lines can be awaited.
 *
 * Each child leads a process group of its own, so that ending it also ends what it started. Nothing here waits without a limit:
 * commands have a timeout, waits have a timeout, and `stop` turns into SIGKILL after a grace period. Times are `performance.now()`
 * of this process, in milliseconds, the one clock that all events of a lab are compared on.
 */

/** Limit of a command that names none: longer than any of the lab's own commands, shorter than a test case. */
const COMMAND_TIMEOUT_MS = 15_000;
/** Time between SIGTERM and SIGKILL, unless the caller says otherwise. */
const STOP_GRACE_MS = 2_000;
/** Lines kept per program: a chatty one loses its oldest lines instead of filling our memory. */
const KEPT_LINES = 20_000;
/** How much of a command's output goes into an error message. */
const QUOTED_CHARACTERS = 2_000;

export type Environment = Readonly<Record<string, string>>;

export interface CommandOptions {
  readonly env?: Environment;
  /** Text for the command's standard input; without it that is empty. */
  readonly input?: string;
  readonly timeoutMs?: number;
  readonly cwd?: string;
}

export interface CommandOutput {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command to its end. A non-zero exit is a value; a command that cannot be started or runs too long is an error. */
export async function run(command: readonly string[], options: CommandOptions = {}): Promise<CommandOutput> {
  const timeoutMs = options.timeoutMs ?? COMMAND_TIMEOUT_MS;
  const child = Bun.spawn([...command], {
    stdin: options.input === undefined ? "ignore" : new TextEncoder().encode(options.input),
    stdout: "pipe",
    stderr: "pipe",
    detached: true,
    env: { ...process.env, ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    killGroup(child.pid, "SIGKILL");
  }, timeoutMs);
  try {
    const [stdout, stderr, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    if (timedOut) {
      throw new Error(
        `Command ran longer than ${timeoutMs} ms and was killed: ${command.join(" ")}\n${quote(stdout)}${quote(stderr)}`,
      );
    }
    return { code, stdout, stderr };
  } finally {
    clearTimeout(timer);
  }
}

/** Runs a command that must succeed and returns its standard output. */
export async function runChecked(command: readonly string[], options: CommandOptions = {}): Promise<string> {
  const output = await run(command, options);
  if (output.code !== 0) {
    throw new Error(
      `Command failed with exit code ${output.code}: ${command.join(" ")}\n${quote(output.stderr)}${quote(output.stdout)}${quote(options.input ?? "")}`,
    );
  }
  return output.stdout;
}

export interface Line {
  readonly source: "stdout" | "stderr";
  readonly text: string;
  /** When this process read the line. */
  readonly at: number;
}

/** A program that keeps running; its output is split into lines as it arrives. */
export class LabProcess {
  readonly name: string;
  readonly pid: number;
  readonly startedAt = performance.now();
  /** Settles with the exit code once the program has ended and all of its output has been read. */
  readonly exited: Promise<number>;
  readonly #child: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly #lines: Line[] = [];
  #dropped = 0;
  #exitCode: number | undefined;
  #watchers = new Set<() => void>();

  constructor(name: string, command: readonly string[], options: { env?: Environment; cwd?: string } = {}) {
    this.name = name;
    this.#child = Bun.spawn([...command], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
      detached: true,
      env: { ...process.env, ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    this.pid = this.#child.pid;
    this.exited = Promise.all([
      this.#read(this.#child.stdout, "stdout"),
      this.#read(this.#child.stderr, "stderr"),
      this.#child.exited,
    ]).then(([, , code]) => {
      this.#exitCode = code;
      this.#wake();
      return code;
    });
  }

  get exitCode(): number | undefined {
    return this.#exitCode;
  }

  get running(): boolean {
    return this.#exitCode === undefined;
  }

  /** Every line so far, both streams in order of arrival. */
  get lines(): readonly Line[] {
    return this.#lines;
  }

  /** The whole output as text for a person, each line with its stream and its age in milliseconds. */
  log(): string {
    const head = this.#dropped > 0 ? [`(${this.#dropped} earlier lines dropped)`] : [];
    const body = this.#lines.map(
      (line) =>
        `${(line.at - this.startedAt).toFixed(0).padStart(6)} ${line.source === "stderr" ? "!" : " "} ${line.text}`,
    );
    return [...head, ...body].join("\n");
  }

  /** The program reads the end of its input. */
  closeInput(): void {
    void this.#child.stdin.end();
  }

  write(text: string): void {
    // Without the catch a program that has just ended would fail the test that tells it something.
    try {
      void this.#child.stdin.write(text);
      void this.#child.stdin.flush();
    } catch {
      // The exit code says it better.
    }
  }

  /**
   * The first value that `pick` finds in a line, those already here included. Fails when the program ends or the time is up, with
   * the output so far in the message.
   */
  async waitFor<T>(what: string, pick: (line: Line) => T | undefined, timeoutMs: number): Promise<T> {
    const deadline = performance.now() + timeoutMs;
    let seen = 0;
    for (;;) {
      const total = this.#dropped + this.#lines.length;
      for (let index = Math.max(0, seen - this.#dropped); index < this.#lines.length; index += 1) {
        const line = this.#lines[index];
        const value = line === undefined ? undefined : pick(line);
        if (value !== undefined) return value;
      }
      seen = total;
      if (this.#exitCode !== undefined) {
        throw new Error(`${this.name} ended with exit code ${this.#exitCode} before ${what}\n${this.log()}`);
      }
      const left = deadline - performance.now();
      if (left <= 0) throw new Error(`${this.name}: no ${what} within ${timeoutMs} ms\n${this.log()}`);
      await this.#change(left);
    }
  }

  signal(signal: "SIGTERM" | "SIGINT" | "SIGKILL" | "SIGSTOP" | "SIGCONT"): void {
    killGroup(this.pid, signal);
  }

  /** Ends the program and what it started: SIGTERM, then SIGKILL after the grace period. Returns the exit code. */
  async stop(graceMs: number = STOP_GRACE_MS): Promise<number> {
    if (this.running) {
      const timer = setTimeout(() => this.signal("SIGKILL"), graceMs);
      this.signal("SIGTERM");
      await this.exited;
      clearTimeout(timer);
    }
    return this.exited;
  }

  async #read(stream: ReadableStream<Uint8Array>, source: Line["source"]): Promise<void> {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const chunk of stream) {
      const at = performance.now();
      const parts = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = parts.pop() ?? "";
      for (const text of parts) this.#push({ source, text, at });
      this.#wake();
    }
    if (rest !== "") this.#push({ source, text: rest, at: performance.now() });
    this.#wake();
  }

  #push(line: Line): void {
    this.#lines.push(line);
    if (this.#lines.length > KEPT_LINES) {
      this.#lines.splice(0, KEPT_LINES / 4);
      this.#dropped += KEPT_LINES / 4;
    }
  }

  #wake(): void {
    const watchers = this.#watchers;
    this.#watchers = new Set();
    for (const watcher of watchers) watcher();
  }

  /** Settles at the next output or exit, or after `timeoutMs`. */
  async #change(timeoutMs: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      this.#watchers.add(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}

/** Signals a process group that we lead; one that has ended already is fine. */
export function killGroup(pid: number, signal: "SIGTERM" | "SIGINT" | "SIGKILL" | "SIGSTOP" | "SIGCONT"): void {
  try {
    process.kill(-pid, signal);
  } catch {
    // Gone already.
  }
}

const quote = (text: string): string => {
  const trimmed = text.trim();
  if (trimmed === "") return "";
  return `${trimmed.length > QUOTED_CHARACTERS ? `${trimmed.slice(0, QUOTED_CHARACTERS)} ...` : trimmed}\n`;
};
