/** On a machine of the test's own below a directory, with a systemctl that writes down what it is told. */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Service } from "../../../../../agent/cli/service/service.ts";
import { unitText } from "../../../../../agent/cli/service/unit.ts";
import { StateFile } from "../../../../../agent/state/state_file.ts";
import { EXIT } from "../../../../../agent/state/user_error.ts";
import { scratchDir } from "../../state/scratch.ts";

const NOTHING = { url: undefined, key: undefined, name: undefined };
const UNIT = "etc/systemd/system/tunnelmesh-agent.service";
const path = process.env["PATH"];
let root: string;
let service: Service;

beforeEach(() => {
  root = scratchDir();
  mkdirSync(join(root, "run/systemd/system"), { recursive: true });
  mkdirSync(join(root, "bin"));
  writeFileSync(join(root, "home-agent"), "the program");
  writeFileSync(
    join(root, "bin/systemctl"),
    `#!/bin/sh
echo "$*" >> ${root}/calls
case $1 in is-active) echo failed; exit 3;; is-enabled) echo enabled;; restart) [ ! -e ${root}/broken ] || { echo "Job failed" >&2; exit 1; };; esac
`,
  );
  chmodSync(join(root, "bin/systemctl"), 0o755);
  process.env["PATH"] = `${join(root, "bin")}:${path}`;
  service = new Service({ root, isRootUser: true, executable: join(root, "home-agent") });
});
afterEach(() => {
  process.env["PATH"] = path;
});

describe("install", () => {
  test("places program, configuration, key and unit, and starts it", async () => {
    await service.install({ url: "http://c.example:8080", key: "tmk_a_b_c", name: "nas" });
    expect(read("usr/local/bin/tunnelmesh-agent")).toBe("the program");
    expect(read("etc/tunnelmesh/agent.toml")).toMatch(
      /^# .*\nurl = "http:\/\/c\.example:8080"\nname = "nas"\nkey-file = "\/etc\/tunnelmesh\/join\.key"\n/,
    );
    expect(read("etc/tunnelmesh/join.key")).toBe("tmk_a_b_c\n");
    expect(statSync(join(root, "etc/tunnelmesh/join.key")).mode & 0o777).toBe(0o600);
    expect(read(UNIT)).toBe(unitText("/usr/local/bin/tunnelmesh-agent"));
    expect(calls()).toEqual(["daemon-reload", "enable tunnelmesh-agent.service", "restart tunnelmesh-agent.service"]);
  });

  test("again replaces program and unit and leaves the configuration alone", async () => {
    await service.install({ ...NOTHING, url: "http://c" });
    writeFileSync(join(root, "home-agent"), "a newer program");
    await service.install(NOTHING);
    expect(read("usr/local/bin/tunnelmesh-agent")).toBe("a newer program");
    await expect(service.install({ ...NOTHING, url: "http://other" })).rejects.toMatchObject({
      exitCode: EXIT.badConfiguration,
      message: expect.stringContaining("agent.toml exists already"),
    });
    expect(read("etc/tunnelmesh/agent.toml")).toContain("http://c");
  });

  test("needs a URL on a machine that has not joined, and none on one that has", async () => {
    await expect(service.install(NOTHING)).rejects.toMatchObject({ exitCode: EXIT.badConfiguration });
    expect(existsSync(join(root, UNIT))).toBe(false);
    mkdirSync(join(root, "var/lib/tunnelmesh"), { recursive: true });
    new StateFile(join(root, "var/lib/tunnelmesh")).update({ joined: true, name: "nas" });
    await service.install(NOTHING);
    expect(existsSync(join(root, "etc/tunnelmesh"))).toBe(false);
  });

  test("says what is in the way: no root, no systemd, no program, a service that does not start", async () => {
    const wish = { ...NOTHING, url: "http://c" };
    const executable = join(root, "home-agent");
    const refused = async (machine: Service, message: RegExp): Promise<void> => {
      await expect(machine.install(wish)).rejects.toMatchObject({
        exitCode: EXIT.failed,
        message: expect.stringMatching(message),
      });
    };
    await refused(new Service({ root, isRootUser: false, executable }), /that is for root; try again with sudo$/);
    await refused(new Service({ root: join(root, "bin"), isRootUser: true, executable }), /systemd does not run here/);
    await refused(new Service({ root, isRootUser: true, executable: undefined }), /npm run build/);
    writeFileSync(join(root, "broken"), "");
    await refused(service, /"systemctl restart tunnelmesh-agent\.service" failed: Job failed$/);
  });
});

describe("uninstall", () => {
  beforeEach(async () => {
    await service.install({ url: "http://c", key: "tmk_a_b_c", name: undefined });
    mkdirSync(join(root, "var/lib/tunnelmesh"), { recursive: true });
    new StateFile(join(root, "var/lib/tunnelmesh")).update({ joined: true, name: "nas" });
  });

  test("stops it, and keeps configuration and state", async () => {
    const done = await service.uninstall(false);
    expect(calls()).toContain("disable --now tunnelmesh-agent.service");
    expect(existsSync(join(root, UNIT))).toBe(false);
    expect(existsSync(join(root, "etc/tunnelmesh/agent.toml"))).toBe(true);
    expect(done.at(-1)).toMatch(/--purge/);
    expect(await service.uninstall(false)).toContain("There is no service to remove");
  });

  test("--purge leaves nothing, and says what the coordinator still knows", async () => {
    const done = await service.uninstall(true);
    const left = readdirSync(root, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map(({ name }) => name);
    expect(left.toSorted()).toEqual(["calls", "home-agent", "systemctl"]);
    expect(done.at(-1)).toContain('"peer remove nas"');
  });
});

test("status asks systemd", async () => {
  expect(await service.status()).toEqual({ isInstalled: false, isEnabled: true, isActive: false, state: "failed" });
});

const read = (file: string): string => readFileSync(join(root, file), "utf8");
const calls = (): string[] => read("calls").trim().split("\n");
