/**
 * The command line: argv and environment in, one typed invocation or one error out. Nothing is read, started or printed here.
 *
 * Every option also reads TUNNELMESH_<OPTION>, and a flag wins over the environment. Contradictions between options are found here too, with
 * exit code 78; single values that make no sense are usage errors, code 2.
 */
import { Argument, Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { RUNG_WISHES, type RungWish } from "../../shared/wire/control.ts";
import { LOG_FORMATS, LOG_LEVELS, type LogFormat, type LogLevel } from "../log.ts";
import type { WaitCondition } from "../local/contract.ts";
import { EXIT, type ExitCode, UserError, withoutKeys } from "../state/user_error.ts";
import { TUN_MODES, type TunMode } from "./config.ts";
import * as values from "./values.ts";

/** Which agent is meant. Undefined: the defaults of the account. */
export interface AgentChoice {
  readonly stateDir?: string;
  readonly socket?: string;
}

export interface UpOptions extends AgentChoice {
  readonly url?: string;
  readonly key?: string;
  readonly keyFile?: string;
  readonly name?: string;
  readonly tun: TunMode;
  readonly tunName?: string;
  readonly dns: boolean;
  readonly udpPort?: number;
  readonly direct: boolean;
  readonly ssh: boolean;
  readonly websocket: boolean;
  readonly proxy?: string;
  readonly caFile?: string;
  /** Seconds. */
  readonly timeout?: number;
  readonly logLevel: LogLevel;
  readonly logFormat: LogFormat;
}
export interface StatusOptions extends AgentChoice {
  readonly json: boolean;
  readonly watch: boolean;
}
export interface PeersOptions extends AgentChoice {
  readonly json: boolean;
}
export interface WaitOptions extends AgentChoice {
  readonly for: WaitCondition;
  /** Seconds. */
  readonly timeout?: number;
}
export interface WhyOptions extends AgentChoice {
  readonly peer: string;
  readonly json: boolean;
}
export interface PingCommandOptions extends AgentChoice {
  readonly peer: string;
  readonly count?: number;
  /** Seconds, as is `timeout`. */
  readonly interval: number;
  readonly untilDirect: boolean;
  readonly timeout?: number;
  readonly json: boolean;
}
export interface NetcheckOptions extends AgentChoice {
  readonly coordinator?: string;
  readonly caFile?: string;
  readonly json: boolean;
}
export interface NameOptions extends AgentChoice {
  readonly name: string;
}

export interface PathOptions extends AgentChoice {
  readonly peer: string;
  readonly rung: RungWish;
}

export type Invocation =
  | { readonly command: "up"; readonly options: UpOptions }
  | { readonly command: "down"; readonly options: AgentChoice }
  | { readonly command: "status"; readonly options: StatusOptions }
  | { readonly command: "peers"; readonly options: PeersOptions }
  | { readonly command: "wait"; readonly options: WaitOptions }
  | { readonly command: "why"; readonly options: WhyOptions }
  | { readonly command: "ping"; readonly options: PingCommandOptions }
  | { readonly command: "netcheck"; readonly options: NetcheckOptions }
  | { readonly command: "path"; readonly options: PathOptions }
  | { readonly command: "trust" | "block"; readonly options: NameOptions }
  | { readonly command: "version"; readonly options: { readonly json: boolean } }
  | { readonly command: "help"; readonly options: { readonly text: string } };

export type Parsed = Invocation | { readonly error: string; readonly exitCode: ExitCode };
export type Environment = Readonly<Record<string, string | undefined>>;

/** Also without a terminal, so that help reads the same in a file. */
const HELP_WIDTH = 110;

/** @param argv without the program's own name */
export function parseArguments(argv: readonly string[], env: Environment): Parsed {
  let found: Invocation | undefined;
  let text = "";
  const program = createProgram(env, (invocation) => {
    found = invocation;
  });
  const output = {
    getOutHelpWidth: () => HELP_WIDTH,
    getErrHelpWidth: () => HELP_WIDTH,
    writeOut: (part: string) => {
      text += part;
    },
    writeErr: (part: string) => {
      text += part;
    },
  };
  for (const command of [program, ...program.commands]) command.exitOverride().configureOutput(output);
  try {
    program.parse([...argv], { from: "user" });
  } catch (error) {
    if (error instanceof UserError) return { error: error.message, exitCode: error.exitCode };
    if (!(error instanceof CommanderError)) throw error;
    if (error.code === "commander.version") return { command: "version", options: { json: false } };
    if (error.exitCode === 0) return { command: "help", options: { text } };
    // A command alone prints its help as an error; anything else is one line and where to look.
    const message = error.code === "commander.help" ? text : asMessage(error.message);
    return { error: withoutKeys(message.trimEnd()), exitCode: EXIT.usage };
  }
  return found ?? { error: withoutKeys(text.trimEnd()), exitCode: EXIT.usage };
}

/** Commander's "error: unknown option '--x'\n(Did you mean --y?)" in the form of our messages. */
function asMessage(message: string): string {
  const plain = message
    .replace(/^error: /, "")
    .replace(/\.(?=$|\n)/g, "")
    .replace(/\. /g, ": ")
    .replace(/\s*\n\s*/g, " ")
    .replaceAll("'", '"');
  return `${plain.charAt(0).toUpperCase()}${plain.slice(1)}; "tunnelmesh-agent --help" shows what is possible`;
}

const EXAMPLES = `
Examples:
  tunnelmesh-agent up http://coordinator.example:8080 --key tmk_...   join and run in the foreground
  tunnelmesh-agent up                                                  run again, once joined
  tunnelmesh-agent status --watch                                      who is reached over which path
  tunnelmesh-agent wait --for direct=nas --timeout 30                  in scripts
  tunnelmesh-agent why nas                                             why a path is not direct

Every option also reads an environment variable: --udp-port reads TUNNELMESH_UDP_PORT.
Exit codes: 0 ok, 1 failed, 2 usage, 3 agent not running, 4 key or fingerprint refused, 5 peer unknown or offline,
6 reached but not direct, 7 timed out, 78 bad configuration.`;

function createProgram(env: Environment, found: (invocation: Invocation) => void): Command {
  const program = new Command("tunnelmesh-agent")
    .description("Joins this machine to a mesh of direct, end-to-end encrypted paths")
    .enablePositionalOptions()
    .configureHelp({ sortSubcommands: false })
    .version("", "-V, --version", "print the version")
    .helpCommand("help [command]", "show what a command does")
    .addHelpText("after", EXAMPLES);

  const define = (
    usage: string,
    description: string,
    examples: readonly string[],
    build: (command: Command) => void,
    invoke: (options: never, first: never, second: never) => Invocation,
  ): void => {
    const command = program.command(usage).description(description);
    build(command);
    if (examples.length > 0) command.addHelpText("after", `\nExamples:\n${examples.map((e) => `  ${e}`).join("\n")}`);
    command.action((...given: unknown[]) => {
      readEnvironment(command, env);
      // Positional arguments come first, then the options and the command.
      found(invoke(command.opts<never>(), given[0] as never, given[1] as never));
    });
  };
  const agent = (command: Command): Command =>
    command
      .option("--state-dir <dir>", "where the agent keeps its keys and state")
      .option("--socket <path>", 'the agent\'s socket (default: "agent.sock" in the state directory)');
  const json = (command: Command): Command => command.option("--json", "print JSON for programs");
  const peer = (name: string): Argument =>
    new Argument(`<${name}>`, "name, id or mesh address").argParser(values.peerReference);

  define(
    "up",
    "join the mesh (first time) and run in the foreground",
    [
      "tunnelmesh-agent up http://coordinator.example:8080 --key-file key.txt --name nas",
      "tunnelmesh-agent up --tun off --state-dir ./state        without root",
    ],
    (command) =>
      agent(command)
        .addArgument(new Argument("[url]", "of the coordinator; known once joined (TUNNELMESH_URL)"))
        .option("--key <key>", "join key; visible to other users of this machine, so rather use --key-file")
        .option("--key-file <file>", "file that holds the join key")
        .option("--name <name>", "of this machine in the mesh (default: its host name)", values.machineName)
        .addOption(
          new Option("--tun <mode>", "network device: when permitted, always, never")
            .choices(TUN_MODES)
            .default("auto"),
        )
        .option("--tun-name <name>", "of the network device (default: the first free tm0, tm1, ...)", values.tunName)
        .option("--no-dns", "leave this machine's name resolution alone; names then work in this program only")
        .option("--udp-port <port>", "local UDP port; 0 for any", values.portNumber)
        .option("--no-direct", "never use direct paths")
        .option("--no-ssh", "never relay through the coordinator's SSH endpoint")
        .option("--no-websocket", "never relay through the coordinator's WebSocket")
        .option(
          "--proxy <url>",
          "http://, https:// or socks5:// proxy to the coordinator (default: HTTPS_PROXY, ALL_PROXY ...)",
          values.proxyUrl,
        )
        .option("--ca-file <file>", "PEM file with certificates for https coordinators")
        .option("--timeout <seconds>", "give up when not joined by then (default: never)", values.seconds)
        .addOption(
          new Option("--log-level <level>", "least important lines to log").choices(LOG_LEVELS).default("info"),
        )
        .addOption(new Option("--log-format <format>", "of the log on stderr").choices(LOG_FORMATS).default("text")),
    (options: UpOptions, url: string | undefined) => upInvocation(options, url, env),
  );
  define("down", "stop the running agent and wait until it has", [], agent, (options: AgentChoice) => ({
    command: "down",
    options,
  }));
  define(
    "status",
    "this machine, its peers, and the path to each",
    ["tunnelmesh-agent status --json | jq '.peers[] | {name, path: .path.kind, why}'"],
    (command) => json(agent(command)).option("--watch", "show it again each second, until Ctrl-C"),
    (options: StatusOptions) => ({ command: "status", options }),
  );
  define(
    "peers",
    "all machines of the mesh and their addresses",
    [],
    (command) => json(agent(command)),
    (options: PeersOptions) => ({
      command: "peers",
      options,
    }),
  );
  define(
    "wait",
    "return once something is true, for scripts",
    ["tunnelmesh-agent wait --for joined --timeout 10", "tunnelmesh-agent wait --for direct=nas"],
    (command) =>
      agent(command)
        .addOption(
          new Option("--for <condition>", "joined, peer=NAME or direct=NAME")
            .argParser(values.waitCondition)
            .default({ for: "joined" }, "joined"),
        )
        .option("--timeout <seconds>", "give up with exit code 7 (default: never)", values.seconds),
    (options: WaitOptions) => ({ command: "wait", options }),
  );
  define(
    "why",
    "which path a peer has, since when, why not a better one, what would help",
    [],
    (command) => json(agent(command)).addArgument(peer("peer")),
    (options: WhyOptions, peer: string) => ({ command: "why", options: { ...options, peer } }),
  );
  define(
    "ping",
    "measure the round trip to a peer and show the path it took",
    ["tunnelmesh-agent ping nas -c 5", "tunnelmesh-agent ping nas --until-direct --timeout 30"],
    (command) =>
      json(agent(command))
        .addArgument(peer("peer"))
        .option("-c, --count <n>", "stop after so many (default: on Ctrl-C)", values.count)
        .option("-i, --interval <seconds>", "between two pings", values.seconds, 1)
        .option("--until-direct", "stop with the first answer on a direct path; exit code 6 if none comes")
        .option("--timeout <seconds>", "stop after this time", values.seconds),
    (options: PingCommandOptions, peer: string) => ({ command: "ping", options: { ...options, peer } }),
  );
  define(
    "path",
    "choose the rung that carries a peer's traffic; returns when the switch is complete",
    ["tunnelmesh-agent path nas websocket", "tunnelmesh-agent path nas auto"],
    (command) => agent(command).addArgument(peer("peer")).addArgument(new Argument("<rung>").choices(RUNG_WISHES)),
    (options: AgentChoice, peer: string, rung: RungWish) => ({ command: "path", options: { ...options, peer, rung } }),
  );
  define(
    "netcheck",
    "how this network treats us: NAT behaviour and reachability",
    ["tunnelmesh-agent netcheck --coordinator http://coordinator.example:8080"],
    (command) =>
      json(agent(command))
        .option("--coordinator <url>", "test against this one (default: that of the agent)")
        .option("--ca-file <file>", "PEM file with certificates for https coordinators"),
    (options: NetcheckOptions) => ({
      command: "netcheck",
      options:
        options.coordinator === undefined
          ? options
          : { ...options, coordinator: values.coordinatorUrl(options.coordinator) },
    }),
  );
  for (const name of ["trust", "block"] as const) {
    const description = name === "trust" ? "accept the changed key of a peer, or lift a block" : "refuse a peer";
    define(
      name,
      description,
      [],
      (command) => agent(command).addArgument(peer("name")),
      (options: AgentChoice, peer: string) => ({
        command: name,
        options: { ...options, name: peer },
      }),
    );
  }
  define("version", "print the version", [], json, (options: { json: boolean }) => ({ command: "version", options }));
  return program;
}

function upInvocation(options: UpOptions, argument: string | undefined, env: Environment): Invocation {
  const contradict = (first: string, second: string, why: string): never => {
    throw new UserError(EXIT.badConfiguration, `${first} and ${second} contradict each other: ${why}`);
  };
  if (options.key !== undefined && options.keyFile !== undefined) {
    contradict("--key", "--key-file", "give the join key in one place");
  }
  if (options.tun === "off" && options.tunName !== undefined) {
    contradict("--tun off", "--tun-name", "there is no network device to name");
  }
  const text = argument ?? (env["TUNNELMESH_URL"] || undefined);
  const url = text === undefined ? {} : { url: values.coordinatorUrl(text) };
  if (options.key !== undefined) values.joinKey(options.key);
  return { command: "up", options: { ...options, ...url } };
}

/** Fills in from the environment what no flag has set. An empty variable counts as none. */
function readEnvironment(command: Command, env: Environment): void {
  const given = (attribute: string): boolean => command.getOptionValueSource(attribute) === "cli";
  // A key on the command line wins over a key file in the environment, and the other way round.
  const isKeyGiven = given("key") || given("keyFile");
  for (const option of command.options) {
    const attribute = option.attributeName();
    const isKey = attribute === "key" || attribute === "keyFile";
    if (given(attribute) || (isKey && isKeyGiven)) continue;
    const variable = `TUNNELMESH_${(option.long ?? "").slice(2).replaceAll("-", "_").toUpperCase()}`;
    const text = env[variable];
    if (text === undefined || text === "") continue;
    command.setOptionValueWithSource(attribute, environmentValue(option, variable, text), "env");
  }
  // Not as defaults, which the help would print.
  for (const option of command.options) {
    if (isSwitch(option) && command.getOptionValue(option.attributeName()) === undefined) {
      command.setOptionValue(option.attributeName(), false);
    }
  }
}

/** Takes no value. (`Option.isBoolean` leaves out `--no-...`.) */
const isSwitch = (option: Option): boolean => !option.required && !option.optional;

function environmentValue(option: Option, variable: string, text: string): unknown {
  try {
    // Of `--no-direct`, "1" means that `direct` is false.
    if (isSwitch(option)) return values.truth(text) !== option.negate;
    return option.parseArg === undefined ? text : option.parseArg(text, undefined);
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    throw new UserError(EXIT.usage, `${variable} has the value "${withoutKeys(text)}": ${asReason(error.message)}`);
  }
}

const asReason = (message: string): string => {
  const plain = message.replace(/\.$/, "");
  return `${plain.charAt(0).toLowerCase()}${plain.slice(1)}`;
};
