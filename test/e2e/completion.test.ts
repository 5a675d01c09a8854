/** Completion as people get it: a real shell in a real terminal, the Tab key, and the peers of a running agent. */
import { dirname, join } from "node:path";
import { writeFileSync } from "node:fs";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { AGENT, type Agent, agentCommand, Stage } from "./programs.ts";
import { hasTmux, Terminal } from "./terminal.ts";

const stage = new Stage();
let laptop: Agent;
let terminal: Terminal | undefined;
beforeAll(async () => {
  const coordinator = await stage.coordinator();
  [laptop] = await Promise.all([stage.member(coordinator, "laptop"), stage.member(coordinator, "homelab")]);
  expect((await laptop.command("wait", "--for", "peer=homelab", "--timeout", "10")).code).toBe(0);
});
afterEach(() => terminal?.close());
afterAll(() => stage.end());

/** Each with none of its user's own settings, a prompt to wait for, and the script that `completion` printed. */
const SHELLS: Readonly<Record<string, (script: string) => readonly string[]>> = {
  bash: (script) => [
    "bash",
    "--noprofile",
    "--norc",
    "-i",
    "-c",
    `exec bash --rcfile <(echo 'PS1="ready> "'; echo 'source ${script}') -i`,
  ],
  zsh: (script) => ["zsh", "-f", "-i", "-c", `ZDOTDIR=${dirname(script)} exec zsh -i`],
  fish: (script) => [
    "fish",
    "--no-config",
    "-i",
    "-C",
    `function fish_prompt; echo -n "ready> "; end; source ${script}`,
  ],
};

describe.each(Object.keys(SHELLS))("%s", (shell) => {
  const missing = hasTmux
    ? Bun.which(shell) === null
      ? `${shell} is not installed`
      : undefined
    : "tmux is not installed";

  test.skipIf(missing !== undefined)(
    `completes commands, options, values and peers${missing === undefined ? "" : ` (skipped: ${missing})`}`,
    async () => {
      const directory = stage.directory(shell);
      const script = join(directory, "completion");
      writeFileSync(script, (await agentCommand(["completion", shell])).stdout);
      writeFileSync(
        join(directory, ".zshrc"),
        `PS1="ready> "\nautoload -Uz compinit && compinit -u\nsource ${script}\n`,
      );
      terminal = await Terminal.open(directory, SHELLS[shell]?.(script) ?? [], {
        columns: 160,
        rows: 24,
        env: {
          PATH: `${dirname(AGENT)}:${process.env["PATH"]}`,
          HOME: directory,
          TUNNELMESH_STATE_DIR: laptop.stateDir,
        },
      });
      await terminal.shows(/ready>/);
      await completes(terminal, "tunnelmesh-agent netch", "tunnelmesh-agent netcheck");
      await completes(terminal, "tunnelmesh-agent status --w", "tunnelmesh-agent status --watch");
      await completes(terminal, "tunnelmesh-agent path homelab web", "tunnelmesh-agent path homelab websocket");
      await completes(terminal, "tunnelmesh-agent why ho", "tunnelmesh-agent why homelab");
      await completes(terminal, "tunnelmesh-agent wait --for direct=h", "tunnelmesh-agent wait --for direct=homelab");
      await completes(terminal, `tunnelmesh-agent status --state-dir ${directory}/compl`, `${directory}/completion`);
    },
  );
});

/** Types, presses Tab, waits for the line, and throws it away. */
async function completes(shell: Terminal, typed: string, completed: string): Promise<void> {
  await shell.type(typed);
  await shell.press("Tab");
  await shell.shows(new RegExp(`ready> .*${RegExp.escape(completed)}\\s*$`));
  // Not by Ctrl-C: with it the kernel throws away what was typed after it.
  await shell.press("C-u");
  await shell.press("C-l");
  await shell.shows(/^ready>\s*$/);
}
