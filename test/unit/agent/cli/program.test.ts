import { describe, expect, test } from "vitest";
import { parseArguments } from "../../../../agent/cli/program.ts";
import { coordinatorUrl, joinKey } from "../../../../agent/cli/values.ts";
import { EXIT } from "../../../../agent/state/user_error.ts";

const FINGERPRINT = "abcdefghijklmnopqrstuvwxyz";
const KEY = `tmk_k7_s3cr3ts3cr3t_${FINGERPRINT}`.replaceAll("3", "e");
const URL_TEXT = "http://c.example:8080";

describe("commands", () => {
  test("up: every flag", () => {
    const argv = ["up", `${URL_TEXT}/`, "--key", KEY, "--name", "NAS", "--tun", "on", "--tun-name", "mesh0"];
    argv.push("--no-ssh", "--no-websocket", "--proxy", "socks5://user:pass@proxy.example:1080");
    argv.push(
      "--udp-port",
      "0",
      "--no-direct",
      "--no-port-mapping",
      "--ca-file",
      "ca.pem",
      "--timeout",
      "2.5",
      "--log-level",
      "debug",
    );
    argv.push("--log-format", "json", "--state-dir", "/s", "--socket", "/a.sock");
    argv.push("--punch-sockets", "64", "--punch-packets", "0", "--punch-rate", "2000");
    expect(parseArguments(argv, {})).toEqual({
      command: "up",
      options: {
        url: URL_TEXT,
        key: KEY,
        name: "nas",
        tun: "on",
        tunName: "mesh0",
        udpPort: 0,
        direct: false,
        dns: true,
        allowJump: [],
        portMapping: false,
        punchSockets: 64,
        punchPackets: 0,
        punchRate: 2000,
        forward: [],
        socks: [],
        expose: [],
        ssh: false,
        websocket: false,
        proxy: "socks5://user:pass@proxy.example:1080",
        caFile: "ca.pem",
        timeout: 2.5,
        logLevel: "debug",
        logFormat: "json",
        stateDir: "/s",
        socket: "/a.sock",
      },
    });
  });

  test("up: nothing but its defaults", () => {
    const options = {
      tun: "auto",
      direct: true,
      dns: true,
      allowJump: [],
      portMapping: true,
      forward: [],
      socks: [],
      expose: [],
      ssh: true,
      websocket: true,
      logLevel: "info",
      logFormat: "text",
    };
    expect(parseArguments(["up"], {})).toEqual({ command: "up", options });
  });

  test.each([
    [["down"], { command: "down", options: {} }],
    [["status", "--json", "--watch"], { command: "status", options: { json: true, watch: true } }],
    [["peers"], { command: "peers", options: { json: false } }],
    [["wait"], { command: "wait", options: { for: { for: "joined" } } }],
    [
      ["wait", "--for", "direct=Nas", "--timeout", "3"],
      { command: "wait", options: { for: { for: "direct", peer: "nas" }, timeout: 3 } },
    ],
    [["why", "NAS", "--json"], { command: "why", options: { peer: "nas", json: true } }],
    [
      ["ping", "nas", "-c", "3", "-i", ".2", "--until-direct"],
      { command: "ping", options: { peer: "nas", count: 3, interval: 0.2, untilDirect: true, json: false } },
    ],
    [
      ["ping", "100.96.0.2"],
      { command: "ping", options: { peer: "100.96.0.2", interval: 1, untilDirect: false, json: false } },
    ],
    [
      ["netcheck", "--coordinator", `${URL_TEXT}/`],
      { command: "netcheck", options: { coordinator: URL_TEXT, json: false } },
    ],
    [["path", "Nas", "websocket"], { command: "path", options: { peer: "nas", rung: "websocket" } }],
    [["trust", "nas"], { command: "trust", options: { name: "nas" } }],
    [["block", "nas"], { command: "block", options: { name: "nas" } }],
    [["version"], { command: "version", options: { json: false } }],
    [["--version"], { command: "version", options: { json: false } }],
  ])("%j", (argv, expected) => {
    expect(parseArguments(argv, {})).toEqual(expected);
  });

  test("help names every command, has examples, and each command has its own", () => {
    const help = parseArguments(["--help"], {});
    if (!("command" in help) || help.command !== "help") throw new Error("no help");
    for (const name of [
      "up",
      "down",
      "status",
      "peers",
      "wait",
      "why",
      "ping",
      "bench",
      "netcheck",
      "path",
      "forward",
      "socks",
      "nc",
      "trust",
      "block",
      "version",
    ]) {
      expect(help.options.text).toMatch(new RegExp(`^ {2}${name} `, "m"));
      expect(parseArguments([name, "--help"], {})).toMatchObject({ command: "help" });
    }
    expect(help.options.text).toContain("Examples:");
  });
});

describe("forwards, proxy ports and open ports", () => {
  const nas80 = { peer: "nas", peerPort: 80 } as const;
  test.each([
    ["8080:nas:80", { protocol: "tcp", bind: "127.0.0.1", port: 8080, ...nas80 }],
    ["0:NAS.mesh:80", { protocol: "tcp", bind: "127.0.0.1", port: 0, ...nas80 }],
    ["0.0.0.0:8080:nas:80", { protocol: "tcp", bind: "0.0.0.0", port: 8080, ...nas80 }],
    ["[::1]:8080:nas:80", { protocol: "tcp", bind: "::1", port: 8080, ...nas80 }],
    ["udp:5353:nas:53", { protocol: "udp", bind: "127.0.0.1", port: 5353, peer: "nas", peerPort: 53 }],
    ["localhost:1:[fd00::5]:2", { protocol: "tcp", bind: "127.0.0.1", port: 1, peer: "fd00::5", peerPort: 2 }],
    ["*:1:100.96.0.2:2", { protocol: "tcp", bind: "0.0.0.0", port: 1, peer: "100.96.0.2", peerPort: 2 }],
  ])("--forward %s", (text, spec) => {
    expect(parseArguments(["up", "--forward", text], {})).toMatchObject({ options: { forward: [spec] } });
    const [remotePort, remote, ...local] = text.split(/:(?![^[]*\])/).toReversed();
    const command = ["forward", local.toReversed().join(":"), `${remote}:${remotePort}`];
    expect(parseArguments(command, {})).toMatchObject({ command: "forward", options: { spec } });
  });

  test.each(["nas:80", "x:nas:80", "8080:nas:0", "8080:nas:70000", "1:2:3:4:5", "8080::80", "host:1:nas:2", ""])(
    "--forward %s is none",
    (text) => {
      expect(parseArguments(["up", "--forward", text], {})).toMatchObject({ exitCode: EXIT.usage });
    },
  );

  test("repeated, behind commas, and from the environment", () => {
    const forwards = { forward: [{ port: 1 }, { port: 2 }, { port: 3 }] };
    expect(parseArguments(["up", "--forward", "1:a:1,2:b:2", "--forward", "3:c:3"], {})).toMatchObject({
      options: forwards,
    });
    expect(parseArguments(["up"], { TUNNELMESH_FORWARD: "1:a:1,2:b:2,3:c:3" })).toMatchObject({ options: forwards });
    expect(parseArguments(["up", "--socks", "[::1]:1080", "--expose", "22,80", "--expose", "443"], {})).toMatchObject({
      options: { socks: [{ bind: "::1", port: 1080 }], expose: [22, 80, 443] },
    });
    expect(parseArguments(["up"], { TUNNELMESH_EXPOSE: "all" })).toMatchObject({ options: { expose: ["all"] } });
  });

  test("the commands", () => {
    expect(parseArguments(["socks", "1080"], {})).toMatchObject({
      command: "socks",
      options: { spec: { bind: "127.0.0.1", port: 1080 } },
    });
    expect(parseArguments(["nc", "nas.mesh", "22"], {})).toMatchObject({
      command: "nc",
      options: { peer: "nas", port: 22 },
    });
    for (const wrong of [
      ["nc", "nas"],
      ["nc", "nas", "0"],
      ["socks", "a:b:c"],
      ["up", "--expose", "some"],
    ]) {
      expect([wrong, parseArguments(wrong, {})]).toMatchObject([wrong, { exitCode: EXIT.usage }]);
    }
  });
});

describe("usage errors, code 2", () => {
  test.each([
    [["statsu"], 'Unknown command "statsu" (Did you mean status?)'],
    [["status", "--jsn"], 'Unknown option "--jsn" (Did you mean --json?)'],
    [["ping"], 'Missing required argument "peer"'],
    [["status", "x"], 'Too many arguments for "status"'],
    [["up", URL_TEXT, "--tun", "maybe"], "Allowed choices are auto, on, off"],
    [["up", URL_TEXT, "--udp-port", "65536"], "port number from 0"],
    [["up", URL_TEXT, "--udp-port", "1e3"], "port number from 0"],
    [["up", URL_TEXT, "--timeout", "0"], "number of seconds above 0"],
    [["up", URL_TEXT, "--timeout", "Infinity"], "number of seconds above 0"],
    [["up", URL_TEXT, "--name", "a_b"], "letters, digits and hyphens"],
    [["up", URL_TEXT, "--tun-name", "a/../b"], "letters, digits, hyphens"],
    [["ping", "nas", "-c", "0"], "whole number above 0"],
    [["ping", "../x"], "name, the id or the mesh address"],
    [["wait", "--for", "peer="], '"joined", "peer=NAME" or "direct=NAME"'],
  ])("%j", (argv, message) => {
    const parsed = parseArguments(argv, {});
    expect(parsed).toEqual({ exitCode: EXIT.usage, error: expect.stringContaining(message) });
    expect("error" in parsed && parsed.error).not.toMatch(/\n|\.$/);
  });

  test("no command at all shows the help", () => {
    expect(parseArguments([], {})).toEqual({ exitCode: EXIT.usage, error: expect.stringContaining("Commands:") });
  });

  test("no error repeats a key", () => {
    for (const argv of [
      ["up", URL_TEXT, `--kye=${KEY}`],
      [KEY],
      ["up", URL_TEXT, KEY],
      ["up", KEY],
      ["wait", "--for", KEY],
    ]) {
      const parsed = parseArguments(argv, {});
      expect(JSON.stringify(parsed)).not.toContain("secret");
      expect(parsed).toHaveProperty("error");
    }
  });
});

describe("bad configuration", () => {
  test.each([
    "nas:8080",
    "ftp://x",
    "ws://x",
    "http://",
    "http://user:pw@x",
    "http://x?a=1",
    "http://x#a",
    "http://x:0",
    "http://x:99999",
    "http://a b",
  ])("the URL %s cannot be used: code 78", (url) => {
    const parsed = parseArguments(["up", url], {});
    expect(parsed).toEqual({
      exitCode: EXIT.badConfiguration,
      error: expect.stringContaining("The coordinator URL cannot be used"),
    });
    expect(JSON.stringify(parsed)).not.toContain("pw");
  });

  test("URLs are brought into one form", () => {
    expect(coordinatorUrl("HTTPS://C.Example:443//")).toBe("https://c.example");
    expect(coordinatorUrl("http://[2001:DB8::1]:8080/mesh/")).toBe("http://[2001:db8::1]:8080/mesh");
  });

  test.each([
    [["--key", KEY, "--key-file", "f"], "--key and --key-file"],
    [["--tun", "off", "--tun-name", "mesh0"], "--tun off and --tun-name"],
  ])("%j contradict each other: code 78", (flags, which) => {
    expect(parseArguments(["up", URL_TEXT, ...flags], {})).toEqual({
      exitCode: EXIT.badConfiguration,
      error: expect.stringContaining(which),
    });
  });

  test.each([
    "tmk_a",
    "x",
    KEY.toUpperCase(),
    `${KEY}a`,
    `${KEY} x`,
    KEY.replace("tmk", "tmx"),
    `tmk_a_${"b".repeat(200)}_${FINGERPRINT}`,
  ])("the key %s is malformed: code 4", (key) => {
    expect(parseArguments(["up", URL_TEXT, "--key", key], {})).toMatchObject({ exitCode: EXIT.keyRefused });
  });

  test("a good key is taken apart", () => {
    expect(joinKey(KEY)).toEqual({ id: "k7", text: KEY, fingerprint: FINGERPRINT });
  });
});

describe("the environment", () => {
  const env = {
    TUNNELMESH_URL: URL_TEXT,
    TUNNELMESH_KEY: KEY,
    TUNNELMESH_NO_DIRECT: "1",
    TUNNELMESH_UDP_PORT: "5000",
    TUNNELMESH_TUN: "off",
    TUNNELMESH_STATE_DIR: "/env",
    TUNNELMESH_LOG_FORMAT: "json",
    TUNNELMESH_NAME: "",
  };

  test("fills in what no flag says; an empty variable counts as none", () => {
    expect(parseArguments(["up"], env)).toEqual({
      command: "up",
      options: {
        url: URL_TEXT,
        key: KEY,
        direct: false,
        dns: true,
        allowJump: [],
        portMapping: true,
        forward: [],
        socks: [],
        expose: [],
        ssh: true,
        websocket: true,
        udpPort: 5000,
        tun: "off",
        stateDir: "/env",
        logFormat: "json",
        logLevel: "info",
      },
    });
  });

  test("a flag wins", () => {
    const parsed = parseArguments(["up", "http://other", "--udp-port", "1", "--tun", "on", "--key-file", "f"], env);
    expect(parsed).toMatchObject({ options: { url: "http://other", udpPort: 1, tun: "on", keyFile: "f" } });
    expect(parsed).not.toHaveProperty("options.key");
  });

  test("switches take 1 and 0", () => {
    expect(parseArguments(["status"], { TUNNELMESH_JSON: "yes" })).toMatchObject({ options: { json: true } });
    expect(parseArguments(["status"], { TUNNELMESH_JSON: "0" })).toMatchObject({ options: { json: false } });
    expect(parseArguments(["up"], { TUNNELMESH_NO_DIRECT: "0" })).toMatchObject({ options: { direct: true } });
  });

  test("the caps of guessing ports are only ever lowered", () => {
    const refused = (...argv: string[]) => parseArguments(["up", ...argv], {});
    expect(refused("--punch-sockets", "385")).toMatchObject({ exitCode: EXIT.usage });
    expect(refused("--punch-sockets", "0")).toMatchObject({ exitCode: EXIT.usage });
    expect(refused("--punch-packets", "4001")).toMatchObject({ exitCode: EXIT.usage });
    expect(refused("--punch-rate", "0")).toMatchObject({ exitCode: EXIT.usage });
    expect(parseArguments(["up"], { TUNNELMESH_PUNCH_PACKETS: "5000" })).toEqual({
      exitCode: EXIT.usage,
      error: 'TUNNELMESH_PUNCH_PACKETS has the value "5000": it must be a whole number from 0 to 4000',
    });
    expect(parseArguments(["up"], { TUNNELMESH_PUNCH_PACKETS: "100" })).toMatchObject({
      options: { punchPackets: 100 },
    });
  });

  test("a bad value is refused by the name of its variable", () => {
    expect(parseArguments(["up"], { TUNNELMESH_UDP_PORT: "x" })).toEqual({
      exitCode: EXIT.usage,
      error: 'TUNNELMESH_UDP_PORT has the value "x": it must be a port number from 0 (any free one) to 65535',
    });
    expect(parseArguments(["up"], { TUNNELMESH_NO_DIRECT: "perhaps" })).toMatchObject({ exitCode: EXIT.usage });
  });
});
