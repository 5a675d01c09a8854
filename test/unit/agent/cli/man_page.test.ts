import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { createProgram } from "../../../../agent/cli/commands.ts";
import { manPage } from "../../../../agent/cli/man_page.ts";
import { VERSION } from "../../../../agent/cli/version.ts";

const FILE = join(import.meta.dirname, "../../../../docs/tunnelmesh-agent.1");
const program = createProgram(() => {});

test('docs has the page of these commands; "npm run man" writes it', () => {
  expect(readFileSync(FILE, "utf8")).toBe(manPage(program, VERSION));
});

const reason = Bun.which("groff") === null ? " (skipped: groff is not installed)" : "";
describe.skipIf(reason !== "")(`as people read it${reason}`, () => {
  const groff = (...options: readonly string[]) =>
    Bun.spawnSync(["groff", "-man", "-Tascii", ...options, FILE], {
      env: { PATH: process.env["PATH"] ?? "", GROFF_NO_SGR: "1" },
    });

  test("without a warning", () => {
    const { exitCode, stderr } = groff("-ww", "-z");
    expect([exitCode, stderr.toString()]).toEqual([0, ""]);
  });

  test("with every command and option that the help has, as they are typed", () => {
    // Without the overstrikes that make bold on a line printer.
    const page = groff("-P-cbu").stdout.toString();
    // Two are for programs: the shell's completion, and what cleans up after an agent that was killed.
    for (const command of program.commands.filter((each) => !["complete", "forget-names"].includes(each.name()))) {
      expect(page).toContain(`tunnelmesh-agent ${command.name()}`);
      for (const { flags } of command.options) expect(page.replace(/\s+/g, " ")).toContain(flags);
    }
    expect(page).toMatch(/^ {7}78 {5}bad configuration$/m);
  });
});
