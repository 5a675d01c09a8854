/** A terminal that tests can read: tmux on a server of its own, so that nobody else's sessions are touched. */
import { join } from "node:path";
import { type CommandOutput, run, runChecked } from "../lab/process.ts";

const POLL_MS = 50;

export const hasTmux = Bun.which("tmux") !== null;

export class Terminal {
  readonly #socket: string;

  private constructor(socket: string) {
    this.#socket = socket;
  }

  /** Runs a command in a new terminal of that size; the shell that follows keeps the last picture. */
  static async open(
    directory: string,
    command: readonly string[],
    options: { readonly columns: number; readonly rows: number; readonly env?: Readonly<Record<string, string>> },
  ): Promise<Terminal> {
    const terminal = new Terminal(join(directory, "tmux"));
    const size = ["-x", String(options.columns), "-y", String(options.rows)];
    await runChecked(
      [
        "tmux",
        "-S",
        terminal.#socket,
        "-f",
        "/dev/null",
        "new-session",
        "-d",
        ...size,
        "--",
        "sh",
        "-c",
        'trap : INT; "$@"; echo "(ended $?)"; exec cat',
        "sh",
        ...command,
      ],
      // Of whoever runs the tests.
      { env: { NO_COLOR: "", TMUX: "", ...options.env } },
    );
    return terminal;
  }

  /** What a person sees, without the empty lines below. */
  async screen(): Promise<string> {
    return (await this.#tmux("capture-pane", "-p")).stdout.trimEnd();
  }

  /** The same with its colours. */
  async colouredScreen(): Promise<string> {
    return (await this.#tmux("capture-pane", "-p", "-e")).stdout.trimEnd();
  }

  /** Lines that have scrolled off the top. */
  async scrolledLines(): Promise<number> {
    return Number((await this.#tmux("display-message", "-p", "#{history_size}")).stdout);
  }

  async isCursorVisible(): Promise<boolean> {
    return (await this.#tmux("display-message", "-p", "#{cursor_flag}")).stdout.trim() === "1";
  }

  async type(text: string): Promise<void> {
    await this.#tmux("send-keys", "-l", text);
  }

  async press(key: string): Promise<void> {
    await this.#tmux("send-keys", key);
  }

  /** Waits until the screen matches, and returns it. */
  async shows(pattern: RegExp, timeoutMs = 8000): Promise<string> {
    const giveUpAt = performance.now() + timeoutMs;
    for (;;) {
      const screen = await this.screen();
      if (pattern.test(screen)) return screen;
      if (performance.now() > giveUpAt) throw new Error(`The terminal does not show ${pattern}:\n${screen}`);
      await Bun.sleep(POLL_MS);
    }
  }

  async close(): Promise<void> {
    await this.#tmux("kill-server");
  }

  #tmux(...command: readonly string[]): Promise<CommandOutput> {
    return run(["tmux", "-S", this.#socket, ...command]);
  }
}
