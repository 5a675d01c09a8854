import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { type ConfigFile, findConfigFile } from "../../../../agent/cli/config_file.ts";
import { parseArguments } from "../../../../agent/cli/program.ts";
import { EXIT, UserError } from "../../../../agent/state/user_error.ts";
import { scratchDir } from "../state/scratch.ts";

const KEY = "tmk_k7_hushhush_abcdefghijklmnopqrstuvwxyz";
const file = (text: string, isPrivate = true): ConfigFile => ({ path: "/etc/agent.toml", text, isPrivate });
const parse = (argv: readonly string[], text: string, env: Record<string, string> = {}) =>
  parseArguments(argv, env, () => file(text));

describe("what stands in the file", () => {
  test("is an option of up, by its own name", () => {
    const text = `
# The server in the cellar.
url = "http://c.example:8080/"
name = "nas"
udp-port = 41641
timeout = 2.5
no-websocket = true
no-ssh = false
tun = 'off'
key-file = "/k"
`;
    expect(parse(["up"], text)).toMatchObject({
      command: "up",
      options: {
        url: "http://c.example:8080",
        name: "nas",
        udpPort: 41641,
        timeout: 2.5,
        websocket: false,
        ssh: true,
        direct: true,
        tun: "off",
        keyFile: "/k",
      },
    });
  });

  test("may be a list, where the option may be repeated", () => {
    const forward = { protocol: "tcp", bind: "127.0.0.1", port: 8080, peer: "nas", peerPort: 80 };
    expect(
      parse(["up"], 'forward = ["8080:nas:80", "udp:53:nas:53"]\nexpose = [22, "80"]\nsocks = 1080'),
    ).toMatchObject({
      options: { forward: [forward, { protocol: "udp" }], expose: [22, 80], socks: [{ port: 1080 }] },
    });
    // A flag replaces the list, it does not add to it.
    expect(parse(["up"], "punch-packets = 0\npunch-sockets = 32\npunch-rate = 500")).toMatchObject({
      options: { punchPackets: 0, punchSockets: 32, punchRate: 500 },
    });
    const parsed = parse(["up", "--expose", "443"], "expose = [22, 80]");
    expect(parsed).toMatchObject({ options: { expose: [443] } });
  });

  test("loses to the environment, which loses to a flag", () => {
    const text = 'name = "of-file"\nudp-port = 1\ntun = "off"\nurl = "http://file"';
    const env = { TUNNELMESH_NAME: "of-env", TUNNELMESH_UDP_PORT: "2", TUNNELMESH_URL: "http://env" };
    expect(parse(["up", "--udp-port", "3"], text, env)).toMatchObject({
      options: { name: "of-env", udpPort: 3, tun: "off", url: "http://env" },
    });
    expect(parse(["up", "http://flag", "--tun", "on"], text, env)).toMatchObject({
      options: { tun: "on", url: "http://flag" },
    });
  });

  test("a key of the file loses to a key file of the environment, without a contradiction", () => {
    const parsed = parse(["up"], `key = "${KEY}"`, { TUNNELMESH_KEY_FILE: "/k" });
    expect(parsed).toMatchObject({ options: { keyFile: "/k" } });
    expect(parsed).not.toHaveProperty("options.key");
  });

  test("tells other commands which agent is meant, and nothing else", () => {
    const text = 'state-dir = "/srv/mesh"\nsocket = "/run/mesh.sock"\ntimeout = 5\nname = "nas"';
    expect(parse(["wait"], text)).toEqual({
      command: "wait",
      options: { stateDir: "/srv/mesh", socket: "/run/mesh.sock", for: { for: "joined" } },
    });
  });

  test("a mistake in it is told by up, and does not keep anybody from status", () => {
    for (const text of ["nonsense", "nmae = 1", "udp-port = true"]) {
      expect(parse(["status"], text)).toMatchObject({ command: "status" });
      expect(parse(["up"], text)).toMatchObject({ exitCode: EXIT.badConfiguration });
    }
  });
});

describe("mistakes have a line and code 78", () => {
  test.each([
    [
      '\nname = "a"\nnmae = "b"\n',
      '/etc/agent.toml, line 3: "nmae" cannot be used: there is no such option; "tunnelmesh-agent help up" lists them',
    ],
    [
      'name = "a"\n[forward]\nx = 1',
      '/etc/agent.toml, line 2: "forward" cannot be used: it must be a text or a number',
    ],
    ['forward = ["8080:nas:80", "nas"]', '/etc/agent.toml, line 1: "forward" cannot be used: '],
    ['name = "a"\nname = "b"', "/etc/agent.toml, line 2: this is not TOML: "],
    ["name = ", "/etc/agent.toml, line 1: this is not TOML: "],
    ["udp-port = 70000", '/etc/agent.toml, line 1: "udp-port" cannot be used: it must be a port number'],
    ["udp-port = true", '"udp-port" cannot be used: it must be a text or a number'],
    ['"no-ssh" = "yes"', '"no-ssh" cannot be used: it must be true or false'],
    ['tun = "maybe"', '"tun" cannot be used: allowed choices are auto, on, off'],
    ['name = ["a", "b"]', '"name" cannot be used: it takes one value, not a list'],
    ["url = 5.5.5", "this is not TOML"],
    ["url = [1]", '"url" cannot be used: it must be a text or a number'],
    ["direct = true", '"direct" cannot be used: there is no such option'],
    ['config = "x"', '"config" cannot be used: there is no such option'],
  ])("%j", (text, message) => {
    const parsed = parse(["up", "http://c"], text);
    expect(parsed).toEqual({ exitCode: EXIT.badConfiguration, error: expect.stringContaining(message) });
    expect("error" in parsed && parsed.error).not.toMatch(/\n|\.$/);
  });

  test("a key that others may read is refused, and never printed", () => {
    const parsed = parseArguments(["up", "http://c"], {}, () => file(`key = "${KEY}"`, false));
    expect(parsed).toEqual({
      exitCode: EXIT.badConfiguration,
      error: expect.stringContaining('others may read this file; run "chmod 600 /etc/agent.toml"'),
    });
    expect(JSON.stringify(parse(["up", "http://c"], `key = "${KEY}x"`))).not.toContain("hushhush");
  });
});

describe("which file it is", () => {
  const account = (home: string) => ({ uid: 1000, home, env: {} });

  test("that of --config, which must exist", () => {
    const path = join(scratchDir(), "mine.toml");
    expect(() => findConfigFile({ config: path }, account("/h"))).toThrow(UserError);
    writeFileSync(path, "name = 'x'", { mode: 0o644 });
    expect(findConfigFile({ config: path }, account("/h"))).toEqual({ path, text: "name = 'x'", isPrivate: false });
    chmodSync(path, 0o600);
    expect(findConfigFile({ config: path }, account("/h"))?.isPrivate).toBe(true);
  });

  test("none, where the state directory is somebody else's or is none: the command itself says that better", () => {
    const stateDir = join(scratchDir(), "file");
    writeFileSync(stateDir, "");
    expect(findConfigFile({ stateDir }, account("/h"))).toBeUndefined();
    expect(() => findConfigFile({ config: join(stateDir, "x") }, account("/h"))).toThrow(UserError);
  });

  test("else agent.toml in the state directory, given or the account's own; none is fine", () => {
    const home = scratchDir();
    expect(findConfigFile({}, account(home))).toBeUndefined();
    const stateDir = join(home, ".local/state/tunnelmesh");
    mkdirSync(stateDir, { recursive: true });
    writeFileSync(join(stateDir, "agent.toml"), "");
    expect(findConfigFile({}, account(home))?.path).toBe(join(stateDir, "agent.toml"));
    expect(findConfigFile({ stateDir }, account("/h"))?.path).toBe(join(stateDir, "agent.toml"));
  });
});
