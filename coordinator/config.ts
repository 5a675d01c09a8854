/**
 * Turns the command line and the environment into an invocation, or into plain errors with their exit code. Pure: files, addresses
 * and ports are tried by whoever uses them.
 *
 * A flag beats its variable (TUNNELMESH_ and the flag's name). In a variable, repeatable flags are separated by commas.
 */
import { canonicalIp } from "../shared/address.ts";
import { parseMeshIPv4, parseMeshIPv6 } from "./registry/mesh_addresses.ts";

export const EXIT_FAILED = 1;
export const EXIT_USAGE = 2;
export const EXIT_BAD_CONFIG = 78;

export type LogLevel = "debug" | "info" | "warn" | "error";
export type LogFormat = "text" | "json";

export interface Listener {
  readonly scheme: "http" | "https";
  readonly host: string;
  readonly port: number;
}

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

export interface ServeConfig {
  readonly listeners: readonly Listener[];
  readonly tls: { readonly certFile: string; readonly keyFile: string } | undefined;
  readonly sshListen: HostPort;
  /** Empty: choose by the machine's routes. */
  readonly stunAddresses: readonly string[];
  /** Local address to the one that the world sees. */
  readonly stunPublic: ReadonlyMap<string, string>;
  readonly stunPorts: readonly [number, number];
  readonly publicHost: string | undefined;
  readonly meshIPv4: string | undefined;
  readonly meshIPv6: string | undefined;
  readonly dataDir: string;
  readonly logLevel: LogLevel;
  readonly logFormat: LogFormat;
}

interface CommandOptions {
  readonly dataDir: string;
  readonly json: boolean;
}

export type Command =
  | (CommandOptions & { readonly type: "key_create"; readonly reusable: boolean; readonly lifetimeMs: number })
  | (CommandOptions & { readonly type: "key_list" })
  | (CommandOptions & { readonly type: "key_revoke"; readonly id: string })
  | (CommandOptions & { readonly type: "peer_list" })
  | (CommandOptions & { readonly type: "peer_approve"; readonly codeOrName: string })
  | (CommandOptions & { readonly type: "peer_remove"; readonly name: string });

export type Invocation =
  | { readonly type: "serve"; readonly config: ServeConfig }
  | { readonly type: "command"; readonly command: Command }
  | { readonly type: "help"; readonly text: string }
  | { readonly type: "error"; readonly exitCode: number; readonly messages: readonly string[] };

type Kind = "value" | "list" | "switch";
type Flags = Readonly<Record<string, Kind>>;
type Environment = Readonly<Record<string, string | undefined>>;

const SERVE_FLAGS: Flags = {
  listen: "list",
  "tls-cert": "value",
  "tls-key": "value",
  "ssh-listen": "value",
  "stun-address": "list",
  "stun-public": "list",
  "stun-port": "value",
  "stun-alternate-port": "value",
  "public-host": "value",
  "mesh-ipv4": "value",
  "mesh-ipv6": "value",
  "data-dir": "value",
  "log-level": "value",
  "log-format": "value",
};
const COMMAND_FLAGS: Flags = { "data-dir": "value", json: "switch" };
const KEY_CREATE_FLAGS: Flags = { ...COMMAND_FLAGS, reusable: "switch", expires: "value" };

export const DEFAULT_KEY_LIFETIME_MS = 24 * 3_600_000;
const MAX_KEY_LIFETIME_MS = 10 * 365 * 24 * 3_600_000;
const MAX_LISTENERS = 16;

const HELP = `TunnelMesh coordinator

  deno run -P coordinator/main.ts [serve] [flags]
  deno run -P coordinator/main.ts key create [--reusable] [--expires 24h] | key list | key revoke ID
  deno run -P coordinator/main.ts peer list | peer approve CODE|NAME | peer remove NAME

Flags of serve
  --listen [http://|https://]HOST:PORT  HTTP and WebSocket; repeatable (default http://0.0.0.0:8080)
  --tls-cert FILE --tls-key FILE        for https listeners
  --ssh-listen HOST:PORT                SSH relay (default 0.0.0.0:2222)
  --stun-address IP                     repeatable (default: each global address with a default route)
  --stun-public ADDR=PUBLIC             for clouds that map addresses one to one; repeatable
  --stun-port N                         (default 3478)
  --stun-alternate-port N               (default 3479)
  --public-host HOST                    what agents are told, where it differs from the URL they used
  --mesh-ipv4 CIDR --mesh-ipv6 CIDR     (default 100.96.0.0/12 and a random one made at first start)
  --log-level debug|info|warn|error     (default info)
  --log-format text|json                (default text)

Flags of all commands
  --data-dir DIR                        database and keys (default /var/lib/tunnelmesh-coordinator as root,
                                        else $XDG_STATE_HOME/tunnelmesh-coordinator)
  --json                                of key and peer: machine-readable output

Every flag can also be set as TUNNELMESH_ and its name, for example TUNNELMESH_DATA_DIR`;

/** @param isRoot decides the default data directory */
export function parseInvocation(argv: readonly string[], env: Environment, isRoot: boolean): Invocation {
  if (argv.includes("--help") || argv.includes("-h") || argv[0] === "help") return { type: "help", text: HELP };
  const words: string[] = [];
  let rest = [...argv];
  while (rest[0] !== undefined && !rest[0].startsWith("-") && words.length < 2) {
    words.push(rest[0]);
    rest = rest.slice(1);
    if (words[0] !== "key" && words[0] !== "peer") break;
  }
  const name = words.join(" ");
  switch (name) {
    case "":
    case "serve":
      return parseWith(SERVE_FLAGS, rest, env, 0, (flags) => serveOf(flags, env, isRoot));
    case "key create":
      return parseWith(KEY_CREATE_FLAGS, rest, env, 0, (flags) => {
        const lifetimeMs = flags.read(
          "expires",
          parseDuration,
          "24h",
          'a time such as "90m", "24h" or "7d", at most 10y',
        );
        return commandOf(flags, env, isRoot, { type: "key_create", reusable: flags.has("reusable"), lifetimeMs });
      });
    case "key list":
    case "peer list":
      return parseWith(COMMAND_FLAGS, rest, env, 0, (flags) =>
        commandOf(flags, env, isRoot, { type: name === "key list" ? "key_list" : "peer_list" }),
      );
    case "key revoke":
      return parseWith(COMMAND_FLAGS, rest, env, 1, (flags, [id = ""]) =>
        commandOf(flags, env, isRoot, { type: "key_revoke", id }),
      );
    case "peer approve":
      return parseWith(COMMAND_FLAGS, rest, env, 1, (flags, [codeOrName = ""]) =>
        commandOf(flags, env, isRoot, { type: "peer_approve", codeOrName }),
      );
    case "peer remove":
      return parseWith(COMMAND_FLAGS, rest, env, 1, (flags, [peer = ""]) =>
        commandOf(flags, env, isRoot, { type: "peer_remove", name: peer }),
      );
    default:
      return usage(`Unknown command "${name}"; run with --help to see all`);
  }
}

/** The flags of one command as given, read one by one into values; what is wrong collects in `errors`. */
class FlagValues {
  readonly errors: string[] = [];
  readonly #values: ReadonlyMap<string, readonly string[]>;

  constructor(values: ReadonlyMap<string, readonly string[]>) {
    this.#values = values;
  }

  has(flag: string): boolean {
    return this.#values.has(flag);
  }

  all(flag: string): readonly string[] {
    return this.#values.get(flag) ?? [];
  }

  one(flag: string): string | undefined {
    return this.all(flag).at(-1);
  }

  /** @param expected what the value should be, for the error */
  read<T>(flag: string, parse: (text: string) => T | undefined, fallback: string, expected: string): T {
    const value = this.optional(flag, parse, expected) ?? parse(fallback);
    if (value === undefined) throw new Error(`The default of --${flag} does not parse`);
    return value;
  }

  optional<T>(flag: string, parse: (text: string) => T | undefined, expected: string): T | undefined {
    const text = this.one(flag);
    if (text === undefined) return undefined;
    const value = parse(text);
    if (value === undefined) this.errors.push(`--${flag} is "${text}"; it must be ${expected}`);
    return value;
  }

  list<T>(flag: string, parse: (text: string) => T | undefined, expected: string): T[] {
    const values: T[] = [];
    for (const text of this.all(flag)) {
      const value = parse(text);
      if (value === undefined) this.errors.push(`--${flag} is "${text}"; it must be ${expected}`);
      else values.push(value);
    }
    return values;
  }
}

function parseWith(
  known: Flags,
  argv: readonly string[],
  env: Environment,
  operandCount: number,
  build: (flags: FlagValues, operands: readonly string[]) => Invocation,
): Invocation {
  const values = new Map<string, string[]>();
  const operands: string[] = [];
  for (let i = 0; i < argv.length; i++) {
    const argument = argv[i] ?? "";
    if (!argument.startsWith("--")) {
      operands.push(argument);
      continue;
    }
    const [flag, inline] = splitOnce(argument.slice(2), "=");
    const kind = known[flag];
    if (kind === undefined) return usage(`Unknown flag --${flag}; run with --help to see all`);
    if (kind === "switch" && inline !== undefined) return usage(`--${flag} takes no value`);
    const value = kind === "switch" ? "true" : (inline ?? argv[++i]);
    if (value === undefined || (inline === undefined && value.startsWith("--")))
      return usage(`--${flag} needs a value`);
    values.set(flag, [...(kind === "list" ? (values.get(flag) ?? []) : []), value]);
  }
  if (operands.length > operandCount) return usage(`Unexpected argument "${operands[operandCount] ?? ""}"`);
  if (operands.length < operandCount) return usage("An argument is missing; run with --help to see which");

  for (const [flag, kind] of Object.entries(known)) {
    const text = env[`TUNNELMESH_${flag.toUpperCase().replaceAll("-", "_")}`];
    if (text === undefined || text === "" || values.has(flag)) continue;
    if (kind === "switch") {
      if (!["0", "false", "no", "off"].includes(text.toLowerCase())) values.set(flag, ["true"]);
    } else if (kind === "value") values.set(flag, [text]);
    else
      values.set(
        flag,
        text
          .split(",")
          .map((part) => part.trim())
          .filter((part) => part !== ""),
      );
  }
  const flags = new FlagValues(values);
  const invocation = build(flags, operands);
  return flags.errors.length > 0 ? { type: "error", exitCode: EXIT_BAD_CONFIG, messages: flags.errors } : invocation;
}

function serveOf(flags: FlagValues, env: Environment, isRoot: boolean): Invocation {
  const given = flags.list("listen", parseListener, "[http://|https://]HOST:PORT");
  const listeners: Listener[] = given.length > 0 ? given : [{ scheme: "http", host: "0.0.0.0", port: 8080 }];
  const certFile = flags.one("tls-cert");
  const keyFile = flags.one("tls-key");
  if ((certFile === undefined) !== (keyFile === undefined))
    flags.errors.push("--tls-cert and --tls-key go together; only one of them is given");
  const isSecure = listeners.some(({ scheme }) => scheme === "https");
  if (isSecure && certFile === undefined && keyFile === undefined)
    flags.errors.push("An https listener needs --tls-cert and --tls-key");
  if (listeners.length > MAX_LISTENERS) flags.errors.push(`--listen is given more than ${MAX_LISTENERS} times`);
  for (const [index, listener] of listeners.entries()) {
    const twin = listeners
      .slice(0, index)
      .find((other) => listener.port !== 0 && other.port === listener.port && clashes(other.host, listener.host));
    if (twin !== undefined)
      flags.errors.push(`--listen names ${hostAndPort(twin)} and ${hostAndPort(listener)}; the one covers the other`);
  }

  const aPort = "a port from 0 to 65535";
  const stunPorts = [
    flags.read("stun-port", parsePort, "3478", aPort),
    flags.read("stun-alternate-port", parsePort, "3479", aPort),
  ] as const;
  if (stunPorts[0] === stunPorts[1] && stunPorts[0] !== 0)
    flags.errors.push(`--stun-port and --stun-alternate-port are both ${stunPorts[0]}; they must differ`);
  const stunAddresses = [
    ...new Set(flags.list("stun-address", parseStunAddress, "one address of this machine, not 0.0.0.0")),
  ];
  const stunPublic = new Map(
    flags.list("stun-public", parseAddressPair, "ADDR=PUBLIC, two addresses of the same family"),
  );

  return {
    type: "serve",
    config: {
      listeners,
      tls: certFile === undefined || keyFile === undefined ? undefined : { certFile, keyFile },
      sshListen: flags.read("ssh-listen", parseHostPort, "0.0.0.0:2222", "HOST:PORT"),
      stunAddresses,
      stunPublic,
      stunPorts,
      publicHost: flags.optional("public-host", parseHost, "a host name or an address, without a port"),
      meshIPv4: flags.optional(
        "mesh-ipv4",
        parseMeshIPv4,
        "a private IPv4 range from /8 to /29, such as 100.96.0.0/12",
      ),
      meshIPv6: flags.optional(
        "mesh-ipv6",
        parseMeshIPv6,
        "a unique local IPv6 range from /16 to /64, such as fd12:3456:789a::/48",
      ),
      dataDir: dataDirOf(flags, env, isRoot),
      logLevel: flags.read("log-level", parseLogLevel, "info", "debug, info, warn or error"),
      logFormat: flags.read("log-format", parseLogFormat, "text", "text or json"),
    },
  };
}

type WithoutOptions<T> = T extends unknown ? Omit<T, keyof CommandOptions> : never;

function commandOf(flags: FlagValues, env: Environment, isRoot: boolean, command: WithoutOptions<Command>): Invocation {
  const options = { dataDir: dataDirOf(flags, env, isRoot), json: flags.has("json") };
  return { type: "command", command: { ...command, ...options } as Command };
}

function dataDirOf(flags: FlagValues, env: Environment, isRoot: boolean): string {
  const given = flags.one("data-dir");
  if (given !== undefined) return given;
  if (isRoot) return "/var/lib/tunnelmesh-coordinator";
  const state = env["XDG_STATE_HOME"] || (env["HOME"] ? `${env["HOME"]}/.local/state` : undefined);
  if (state === undefined)
    flags.errors.push("Cannot tell where to keep the database: HOME is not set; give --data-dir");
  return `${state ?? ""}/tunnelmesh-coordinator`;
}

const hostAndPort = ({ host, port }: HostPort): string => `${host.includes(":") ? `[${host}]` : host}:${port}`;

/** Deno listens on IPv4 too when it listens on `::`. */
const clashes = (a: string, b: string): boolean =>
  a === b || (a === "::" && b === "0.0.0.0") || (a === "0.0.0.0" && b === "::");

function parseListener(text: string): Listener | undefined {
  const match = /^(?:(https?):\/\/)?(.+?)\/?$/.exec(text);
  const address = parseHostPort(match?.[2] ?? "");
  return address === undefined ? undefined : { scheme: match?.[1] === "https" ? "https" : "http", ...address };
}

function parseHostPort(text: string): HostPort | undefined {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d+)$/.exec(text);
  const host = parseHost(match?.[1] ?? match?.[2] ?? "");
  const port = parsePort(match?.[3] ?? "");
  return host === undefined || port === undefined ? undefined : { host, port };
}

/** A host name or an address, the latter in canonical text. */
function parseHost(text: string): string | undefined {
  const bare = text.replace(/^\[(.+)\]$/, "$1");
  return (
    canonicalIp(bare) ??
    (/^(?!\d+(\.\d+)*$)[a-zA-Z0-9]([a-zA-Z0-9.-]{0,252})$/.test(bare) ? bare.toLowerCase() : undefined)
  );
}

function parsePort(text: string): number | undefined {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : -1;
  return port >= 0 && port <= 65_535 ? port : undefined;
}

function parseStunAddress(text: string): string | undefined {
  const ip = canonicalIp(text);
  return ip === "0.0.0.0" || ip === "::" ? undefined : ip;
}

function parseAddressPair(text: string): [string, string] | undefined {
  const [local, reported] = splitOnce(text, "=").map((part) => canonicalIp(part ?? ""));
  if (local === undefined || reported === undefined || local.includes(":") !== reported.includes(":")) return undefined;
  return [local, reported];
}

const UNITS: Readonly<Record<string, number>> = {
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  y: 365 * 86_400_000,
};

function parseDuration(text: string): number | undefined {
  const match = /^(\d{1,9})([smhdy])$/.exec(text);
  const milliseconds = Number(match?.[1] ?? 0) * (UNITS[match?.[2] ?? ""] ?? 0);
  return milliseconds > 0 && milliseconds <= MAX_KEY_LIFETIME_MS ? milliseconds : undefined;
}

const parseLogLevel = (text: string): LogLevel | undefined =>
  text === "debug" || text === "info" || text === "warn" || text === "error" ? text : undefined;
const parseLogFormat = (text: string): LogFormat | undefined => (text === "text" || text === "json" ? text : undefined);

const usage = (message: string): Invocation => ({ type: "error", exitCode: EXIT_USAGE, messages: [message] });

function splitOnce(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + separator.length)];
}
