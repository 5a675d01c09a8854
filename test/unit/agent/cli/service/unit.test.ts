import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { UNIT_NAME, unitText } from "../../../../../agent/cli/service/unit.ts";
import { scratchDir } from "../../state/scratch.ts";

/** What systemd itself calls "OK"; 10 is a program that may do everything. */
const MAX_EXPOSURE = 2.5;
const analyze = Bun.which("systemd-analyze");

test("the unit, line by line", async () => {
  await expect(unitText("/usr/local/bin/tunnelmesh-agent")).toMatchFileSnapshot("tunnelmesh-agent.service");
});

test("a path with a space, a quote and what systemd would replace", () => {
  expect(unitText('/opt/my "mesh" 100%/$agent')).toContain('ExecStart="/opt/my \\"mesh\\" 100%%/$$agent" up\n');
});

describe.skipIf(analyze === null)(
  `systemd says${analyze === null ? " (skipped: systemd-analyze is not installed)" : ""}`,
  () => {
    const file = (): string => {
      const path = join(scratchDir(), UNIT_NAME);
      writeFileSync(path, unitText("/bin/true"));
      return path;
    };

    test("that it is a unit without mistakes", () => {
      const { exitCode, stderr } = Bun.spawnSync(["systemd-analyze", "verify", "--man=no", file()]);
      // Other units of the machine may have mistakes of their own.
      const ours = stderr
        .toString()
        .split("\n")
        .filter((line) => line.includes(UNIT_NAME));
      expect([exitCode, ours]).toEqual([0, []]);
    });

    test(`that it exposes the machine to no more than ${MAX_EXPOSURE}`, () => {
      const command = [
        "systemd-analyze",
        "security",
        "--offline=yes",
        `--threshold=${MAX_EXPOSURE * 10}`,
        "--no-pager",
        file(),
      ];
      const { exitCode, stdout, stderr } = Bun.spawnSync(command);
      const [exposure] = /Overall exposure level.*: ([\d.]+)/.exec(stdout.toString())?.slice(1) ?? [];
      expect(Number(exposure), stderr.toString()).toBeGreaterThan(0);
      expect([exitCode, Number(exposure) <= MAX_EXPOSURE]).toEqual([0, true]);
    });
  },
);
