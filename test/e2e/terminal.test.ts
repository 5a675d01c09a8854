/** What people see on a real terminal: the story of `up`, `status --watch` drawn in place, colours, moves during `ping`. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { AGENT, type Agent, type Coordinator, Stage } from "./programs.ts";
import { hasTmux, Terminal } from "./terminal.ts";

const ESCAPE = "\u001b";
const GREEN = `${ESCAPE}[32m`;
const stage = new Stage();
let coordinator: Coordinator;
let nas: Agent;
let laptop: Agent;
const terminals: Terminal[] = [];

describe.skipIf(!hasTmux)(`on a terminal${hasTmux ? "" : " (skipped: tmux is not installed)"}`, () => {
  beforeAll(async () => {
    coordinator = await stage.coordinator();
    [nas, laptop] = await Promise.all([stage.member(coordinator, "nas"), stage.member(coordinator, "laptop")]);
    await laptop.command("wait", "--for", "direct=nas", "--timeout", "10");
  });
  afterEach(async () => {
    await Promise.all(terminals.splice(0).map((terminal) => terminal.close()));
  });
  afterAll(() => stage.end());

  test("up tells its story in at most five lines, and Ctrl-C ends it", async () => {
    const terminal = await open([
      "up",
      coordinator.url,
      "--key",
      coordinator.joinKey,
      "--name",
      "guest",
      "--tun",
      "off",
    ]);
    await terminal.shows(/"nas" is (online, )?direct after [\d.]+ s at [\d.]+ ms/);
    const lines = (await terminal.screen()).split("\n");
    expect(lines.length).toBeLessThanOrEqual(5);
    expect(lines[0]).toMatch(/^Joined as "guest": 100\.[\d.]+ without a network device$/);
    for (const line of lines.slice(1)) {
      expect(line).toMatch(/^"(nas|laptop)" is (online, )?(direct|relayed by \w+) after [\d.]+ s( at [\d.]+ ms)?$/);
    }
    await terminal.press("C-c");
    await terminal.shows(/\(ended 0\)/);
  });

  test("status --watch draws in place, in colour, and leaves the terminal as it was", async () => {
    const terminal = await open(["status", "--watch", "--state-dir", laptop.stateDir]);
    await terminal.shows(/^nas +direct/m);
    expect(await terminal.isCursorVisible()).toBe(false);
    expect(await terminal.colouredScreen()).toContain(`${GREEN}direct`);
    const before = await terminal.screen();
    expect((await laptop.command("path", "nas", "ssh")).code).toBe(0);
    const after = await terminal.shows(/^nas +relayed by ssh/m);
    // The same picture with another path in it: nothing scrolled, nothing twice.
    expect(after.split("\n")).toHaveLength(before.split("\n").length);
    expect(after.match(/^Network /gm)).toHaveLength(1);
    expect(await terminal.scrolledLines()).toBe(0);
    await terminal.press("C-c");
    await terminal.shows(/\(ended 0\)/);
    expect(await terminal.isCursorVisible()).toBe(true);
    expect((await laptop.command("path", "nas", "auto")).code).toBe(0);
  });

  test("NO_COLOR is honoured, and 80 columns are enough for the reason", async () => {
    const terminal = await open(["status", "--state-dir", laptop.stateDir], { NO_COLOR: "1" }, 80);
    const screen = await terminal.shows(/\(ended 0\)/);
    expect(screen).toMatch(/^nas +direct .*\n {4}Direct path .{20,}$/m);
    expect(await terminal.colouredScreen()).not.toContain(ESCAPE);
  });

  test("ping tells of a move as it happens", async () => {
    expect((await laptop.command("path", "nas", "ssh")).code).toBe(0);
    const terminal = await open(["ping", "nas", "-i", "0.2", "--state-dir", laptop.stateDir]);
    await terminal.shows(/^\d+ nas: [\d.]+ ms relayed by ssh$/m);
    expect((await laptop.command("path", "nas", "auto")).code).toBe(0);
    const screen = await terminal.shows(/^\d+ nas: [\d.]+ ms direct$/m);
    expect(screen.match(/^-> nas moves from relayed by ssh to direct: .+$/gm)).toHaveLength(1);
    await terminal.press("C-c");
    await terminal.shows(/\d+ sent, \d+ answered, 0 % lost.*\n.*\(ended 0\)/);
    expect(nas.process.running).toBe(true);
  });
});

async function open(command: readonly string[], env: Record<string, string> = {}, columns = 140): Promise<Terminal> {
  const directory = stage.directory("terminal");
  const stateDir = command[0] === "up" ? ["--state-dir", stage.directory("agent")] : [];
  const terminal = await Terminal.open(directory, [AGENT, ...command, ...stateDir], { columns, rows: 24, env });
  terminals.push(terminal);
  return terminal;
}
