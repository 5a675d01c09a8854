import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { type Invocation, parseInvocation, type ServeConfig } from "../../../coordinator/config.ts";
import { ENVIRONMENT, missingPermissions, PERMISSIONS } from "../../../coordinator/permissions.ts";

const root = (argv: string[], env: Record<string, string> = {}): Invocation => parseInvocation(argv, env, true);
const serve = (argv: string[], env: Record<string, string> = {}): ServeConfig => {
  const invocation = root(argv, env);
  if (invocation.type !== "serve") throw new Error(JSON.stringify(invocation));
  return invocation.config;
};
const errors = (argv: string[], env: Record<string, string> = {}): [number, string] => {
  const invocation = root(argv, env);
  return invocation.type === "error" ? [invocation.exitCode, invocation.messages.join("\n")] : [0, ""];
};

describe("serve", () => {
  test("has the documented defaults", () => {
    expect(serve([])).toEqual({
      listeners: [{ scheme: "http", host: "0.0.0.0", port: 8080 }],
      tls: undefined,
      sshListen: { host: "0.0.0.0", port: 2222 },
      stunAddresses: [],
      stunPublic: new Map(),
      stunPorts: [3478, 3479],
      publicHost: undefined,
      meshIPv4: undefined,
      meshIPv6: undefined,
      dataDir: "/var/lib/tunnelmesh-coordinator",
      logLevel: "info",
      logFormat: "text",
    });
    expect(serve(["serve"])).toEqual(serve([]));
  });

  test("takes every flag, repeated where it may be", () => {
    const config = serve(
      `serve --listen 127.0.0.1:0 --listen=https://[2001:db8::1]:443 --tls-cert c --tls-key k --ssh-listen :: --stun-address 10.0.0.1`
        .replace("--ssh-listen ::", "--ssh-listen [::]:22")
        .split(" ")
        .concat(
          "--stun-address 10.0.0.2 --stun-public 10.0.0.1=203.0.113.1 --stun-port 1 --stun-alternate-port 2 --public-host Tm.Example".split(
            " ",
          ),
          "--mesh-ipv4 10.9.8.7/16 --mesh-ipv6 fd00::/48 --data-dir /d --log-level debug --log-format json".split(" "),
        ),
    );
    expect(config).toEqual({
      listeners: [
        { scheme: "http", host: "127.0.0.1", port: 0 },
        { scheme: "https", host: "2001:db8::1", port: 443 },
      ],
      tls: { certFile: "c", keyFile: "k" },
      sshListen: { host: "::", port: 22 },
      stunAddresses: ["10.0.0.1", "10.0.0.2"],
      stunPublic: new Map([["10.0.0.1", "203.0.113.1"]]),
      stunPorts: [1, 2],
      publicHost: "tm.example",
      meshIPv4: "10.9.0.0/16",
      meshIPv6: "fd00::/48",
      dataDir: "/d",
      logLevel: "debug",
      logFormat: "json",
    });
  });

  test("reads each flag from its variable, where a flag beats it", () => {
    const env = {
      TUNNELMESH_LISTEN: "127.0.0.1:1, 127.0.0.2:2",
      TUNNELMESH_DATA_DIR: "/e",
      TUNNELMESH_STUN_ALTERNATE_PORT: "7",
      TUNNELMESH_LOG_FORMAT: "json",
    };
    const config = serve(["--data-dir", "/f"], env);
    expect(config.listeners.map(({ port }) => port)).toEqual([1, 2]);
    expect([config.dataDir, config.stunPorts, config.logFormat]).toEqual(["/f", [3478, 7], "json"]);
    expect(serve(["--listen", "127.0.0.3:3"], env).listeners.length).toBe(1);
  });

  test("keeps its data in the user's state directory when it is not root", () => {
    const dir = (env: Record<string, string>) => {
      const invocation = parseInvocation([], env, false);
      return invocation.type === "serve" ? invocation.config.dataDir : invocation.type;
    };
    expect(dir({ HOME: "/home/a" })).toBe("/home/a/.local/state/tunnelmesh-coordinator");
    expect(dir({ HOME: "/home/a", XDG_STATE_HOME: "/s" })).toBe("/s/tunnelmesh-coordinator");
    expect(dir({})).toBe("error");
  });

  test.each([
    [["--listen", "8080"], '--listen is "8080"; it must be [http://|https://]HOST:PORT'],
    [["--listen", "https://0.0.0.0:443"], "An https listener needs --tls-cert and --tls-key"],
    [["--tls-cert", "x"], "--tls-cert and --tls-key go together; only one of them is given"],
    [["--listen", "a:1", "--listen", "a:1"], "--listen names a:1 and a:1; the one covers the other"],
    [["--listen", "0.0.0.0:1", "--listen", "[::]:1"], "--listen names 0.0.0.0:1 and [::]:1; the one covers the other"],
    [["--stun-port", "70000"], '--stun-port is "70000"; it must be a port from 0 to 65535'],
    [["--stun-port", "3479"], "--stun-port and --stun-alternate-port are both 3479; they must differ"],
    [["--stun-address", "0.0.0.0"], '--stun-address is "0.0.0.0"; it must be one address of this machine, not 0.0.0.0'],
    [["--stun-public", "10.0.0.1=::1"], "--stun-public is"],
    [["--mesh-ipv4", "10.0.0.0/31"], "--mesh-ipv4 is"],
    [["--mesh-ipv6", "fd00::/96"], "--mesh-ipv6 is"],
    [["--log-level", "loud"], '--log-level is "loud"; it must be debug, info, warn or error'],
  ])("%j is bad configuration, exit 78", (argv, message) => {
    const [exitCode, text] = errors(argv);
    expect(exitCode).toBe(78);
    expect(text).toContain(message);
  });

  test("a bad value in a variable is told like one in a flag", () => {
    expect(errors([], { TUNNELMESH_STUN_PORT: "x" })).toEqual([
      78,
      '--stun-port is "x"; it must be a port from 0 to 65535',
    ]);
  });

  test.each([
    [["--lisen", "x"], "Unknown flag --lisen; run with --help to see all"],
    [["--listen"], "--listen needs a value"],
    [["--listen", "--tls-key"], "--listen needs a value"],
    [["start"], 'Unknown command "start"; run with --help to see all'],
    [["key"], 'Unknown command "key"; run with --help to see all'],
    [["key", "make"], 'Unknown command "key make"; run with --help to see all'],
    [["key", "revoke"], "An argument is missing; run with --help to see which"],
    [["peer", "remove", "a", "b"], 'Unexpected argument "b"'],
    [["key", "list", "--json=yes"], "--json takes no value"],
  ])("%j is wrong usage, exit 2", (argv, message) => {
    expect(errors(argv)).toEqual([2, message]);
  });
});

describe("commands", () => {
  test("are read with their flags and operands in any order", () => {
    const command = (argv: string) => {
      const invocation = root(argv.split(" "));
      return invocation.type === "command" ? invocation.command : invocation;
    };
    const common = { dataDir: "/d", json: false };
    expect(command("key create --reusable --expires 7d --data-dir /d --json")).toEqual({
      type: "key_create",
      reusable: true,
      lifetimeMs: 7 * 86_400_000,
      dataDir: "/d",
      json: true,
    });
    expect(command("key create --data-dir /d")).toMatchObject({ reusable: false, lifetimeMs: 86_400_000 });
    expect(command("key revoke --data-dir /d abc")).toEqual({ ...common, type: "key_revoke", id: "abc" });
    expect(command("peer approve ABCD --data-dir /d")).toEqual({ ...common, type: "peer_approve", codeOrName: "ABCD" });
    expect(command("peer list --data-dir /d")).toEqual({ ...common, type: "peer_list" });
  });

  test("refuse a lifetime that is no time, or endless", () => {
    for (const text of ["0h", "5", "h", "-1h", "99y", "1e9s"])
      expect(errors(["key", "create", "--expires", text])[0], text).toBe(78);
  });

  test("--help shows every flag", () => {
    const help = root(["serve", "--help"]);
    for (const name of ENVIRONMENT.filter((variable) => variable.startsWith("TUNNELMESH_"))) {
      const flag = name.replace("TUNNELMESH_", "--").toLowerCase().replaceAll("_", "-");
      expect(help.type === "help" ? help.text : "", flag).toContain(flag);
    }
  });
});

describe("permissions", () => {
  test("deno.json grants exactly what is asked for", () => {
    const manifest = JSON.parse(readFileSync(new URL("../../../deno.json", import.meta.url), "utf8"));
    const { env, ...others } = manifest.permissions.default;
    expect(env).toEqual([...ENVIRONMENT]);
    expect(others).toEqual(Object.fromEntries(Object.keys(PERMISSIONS).map((name) => [name, true])));
  });

  test("nothing is told when all is granted, and what is missing with the command that grants it", () => {
    expect(missingPermissions(() => true, "coordinator/main.ts")).toBeUndefined();
    const text = missingPermissions(
      (query) => query.name !== "write" && !(query.name === "env" && query.variable === "HOME"),
      "coordinator/main.ts --listen x",
    );
    expect(text).toContain("  write  to write its database\n  env    to read HOME\n");
    expect(text).toContain("\n  deno run -P coordinator/main.ts --listen x\n");
  });
});
