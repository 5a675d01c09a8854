/** The commands: names, arguments, options, help, examples. What `--help`, the manual page and the completion of shells are made of. */
import { Argument, Command, Option } from "commander";
import { RUNG_WISHES, type RungWish } from "../../shared/wire/control.ts";
import { LOG_FORMATS, LOG_LEVELS } from "../log.ts";
import { EXIT, type ExitCode, UserError } from "../state/user_error.ts";
import type { ListenSpec } from "../state/forward_spec.ts";
import { MAX_BENCH_SECONDS } from "../overlay/bench_message.ts";
import { MAX_PUNCH } from "../path/punch_plan.ts";
import { TUN_MODES } from "./config.ts";
import { type Shell, SHELLS } from "./completion_scripts.ts";
import type {
  AgentChoice,
  BenchCommandOptions,
  BugreportOptions,
  Invocation,
  NetcheckOptions,
  PeersOptions,
  PingCommandOptions,
  ServiceInstallOptions,
  ServiceUninstallOptions,
  StatusOptions,
  UpOptions,
  WaitOptions,
  WhyOptions,
} from "./invocation.ts";
import * as values from "./values.ts";

/** Also without a terminal, so that help reads the same in a file. */
export const HELP_WIDTH = 110;

/** Long enough for congestion control to find the path's limit. */
const DEFAULT_BENCH_SECONDS = 5;

/** Of the program as a whole: what to type, and what for. */
export const EXAMPLES: readonly (readonly [string, string])[] = [
  ["tunnelmesh-agent up http://coordinator.example:8080 --key tmk_...", "join and run in the foreground"],
  ["tunnelmesh-agent up", "run again, once joined"],
  ["tunnelmesh-agent status --watch", "who is reached over which path"],
  ["tunnelmesh-agent wait --for direct=nas --timeout 30", "in scripts"],
  ["tunnelmesh-agent why nas", "why a path is not direct"],
];

export const SETTINGS_WORDS =
  "Every option also reads an environment variable: --udp-port reads TUNNELMESH_UDP_PORT. Options of up can stand in a TOML file too: udp-port = 41641. A flag wins over the environment, and that over the file.";

export const EXIT_WORDS: Readonly<Record<ExitCode, string>> = {
  [EXIT.ok]: "ok",
  [EXIT.failed]: "failed",
  [EXIT.usage]: "usage",
  [EXIT.agentNotRunning]: "agent not running",
  [EXIT.keyRefused]: "key or fingerprint refused",
  [EXIT.peerUnavailable]: "peer unknown or offline",
  [EXIT.notDirect]: "reached but not direct",
  [EXIT.timedOut]: "timed out",
  [EXIT.badConfiguration]: "bad configuration",
};

function helpBelow(): string {
  const width = Math.max(...EXAMPLES.map(([command]) => command.length)) + 3;
  const examples = EXAMPLES.map(([command, meaning]) => `  ${command.padEnd(width)}${meaning}`);
  const codes = Object.entries(EXIT_WORDS).map(([code, words]) => `${code} ${words}`);
  const rest = [SETTINGS_WORDS, `Exit codes: ${codes.join(", ")}.`].map(wrapped);
  return ["", "Examples:", ...examples, "", ...rest].join("\n");
}

/** Lines of at most the width that the rest of the help has. */
const wrapped = (text: string): string =>
  text.replace(new RegExp(`(.{1,${HELP_WIDTH}})(?: |$)`, "g"), "$1\n").trimEnd();

/** What `help` shows below a command's options, for the manual page too. */
export const examplesOf = new WeakMap<Command, readonly string[]>();

/** @param run called for the command that was given, its flags and arguments parsed; `invoke` makes the invocation of them */
export function createProgram(run: (command: Command, invoke: () => Invocation) => void): Command {
  const program = new Command("tunnelmesh-agent")
    .description("Joins this machine to a mesh of direct, end-to-end encrypted paths")
    .enablePositionalOptions()
    .configureHelp({ sortSubcommands: false })
    .version("", "-V, --version", "print the version")
    .helpCommand("help [command]", "show what a command does")
    .addHelpText("after", helpBelow());

  const define = (
    usage: string,
    description: string,
    examples: readonly string[],
    build: (command: Command) => void,
    invoke: (options: never, first: never, second: never) => Invocation,
    parent = program,
  ): void => {
    const command = parent.command(usage).description(description);
    build(command);
    examplesOf.set(command, examples);
    if (examples.length > 0) command.addHelpText("after", `\nExamples:\n${examples.map((e) => `  ${e}`).join("\n")}`);
    command.action((...given: unknown[]) => {
      // Positional arguments come first, then the options and the command.
      run(command, () => invoke(command.opts<never>(), given[0] as never, given[1] as never));
    });
  };
  const agent = (command: Command): Command =>
    command
      .option("--config <file>", "TOML file with the options of up (default: agent.toml in the state directory)")
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
      "tunnelmesh-agent up --expose 22,80 --socks 1080 --forward 8080:nas:80",
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
        .option("--no-port-mapping", "never ask the router to forward a port (PCP, NAT-PMP, UPnP)")
        .option(
          "--punch-sockets <n>",
          `sockets that guessing a router's ports may take (default and most: ${MAX_PUNCH.sockets})`,
          values.punchSockets,
        )
        .option(
          "--punch-packets <n>",
          `packets that an attempt at it may send; 0: never guess (default and most: ${MAX_PUNCH.packets})`,
          values.punchPackets,
        )
        .option("--punch-rate <n>", `and packets a second (default and most: ${MAX_PUNCH.perSecond})`, values.punchRate)
        .option("--no-ssh", "never relay through the coordinator's SSH endpoint")
        .option("--no-websocket", "never relay through the coordinator's WebSocket")
        .option(
          "--proxy <url>",
          "http://, https:// or socks5:// proxy to the coordinator (default: HTTPS_PROXY, ALL_PROXY ...)",
          values.proxyUrl,
        )
        .addOption(
          new Option(
            "--forward <spec>",
            "[udp:][BIND:]PORT:PEER:PORT: a local port that leads to one of a peer; repeatable",
          )
            .argParser(values.forwards)
            .default([], "none"),
        )
        .addOption(
          new Option("--socks <spec>", "[BIND:]PORT: SOCKS5 and HTTP CONNECT to peers by name; repeatable")
            .argParser(values.listens)
            .default([], "none"),
        )
        .addOption(
          new Option(
            "--expose <ports>",
            "PORT[,PORT...] or all: local ports that peers may reach without a network device",
          )
            .argParser(values.exposedPorts)
            .default([], "none"),
        )
        .addOption(
          new Option("--allow-jump <ports>", "PORT[,PORT...]: local ports for plain OpenSSH through the coordinator")
            .argParser(values.ports)
            .default([], "none"),
        )
        .option("--ca-file <file>", "PEM file with certificates for https coordinators")
        .option("--timeout <seconds>", "give up when not joined by then (default: never)", values.seconds)
        .addOption(
          new Option("--log-level <level>", "least important lines to log").choices(LOG_LEVELS).default("info"),
        )
        .addOption(new Option("--log-format <format>", "of the log on stderr").choices(LOG_FORMATS).default("text")),
    (options: UpOptions, url: string | undefined) => upInvocation(options, url),
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
    "bench",
    "measure how much the path in use carries, as one stream",
    ["tunnelmesh-agent bench nas", "tunnelmesh-agent bench nas --reverse --seconds 5 --json"],
    (command) =>
      json(agent(command))
        .addArgument(peer("peer"))
        .option("--seconds <n>", `how long, up to ${MAX_BENCH_SECONDS}`, values.benchSeconds, DEFAULT_BENCH_SECONDS)
        .option("--reverse", "from the peer to here"),
    (options: BenchCommandOptions, peer: string) => ({ command: "bench", options: { ...options, peer } }),
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
  define(
    "forward",
    "a local port that leads to a port of a peer, until Ctrl-C; works without root",
    ["tunnelmesh-agent forward 8080 nas:80", "tunnelmesh-agent forward udp:127.0.0.1:5353 nas:53"],
    (command) =>
      agent(command)
        .addArgument(new Argument("<local>", "[udp:][BIND:]PORT; 127.0.0.1 unless BIND says otherwise"))
        .addArgument(new Argument("<remote>", "PEER:PORT")),
    (options: AgentChoice, local: string, remote: string) => ({
      command: "forward",
      options: { ...options, spec: values.forward(`${local}:${remote}`) },
    }),
  );
  define(
    "socks",
    "SOCKS5 and HTTP CONNECT on a local port, to peers by name, until Ctrl-C; works without root",
    ["tunnelmesh-agent socks 1080", "curl --proxy socks5h://127.0.0.1:1080 http://nas.mesh/"],
    (command) => agent(command).addArgument(new Argument("<local>", "[BIND:]PORT").argParser(values.listen)),
    (options: AgentChoice, spec: ListenSpec) => ({ command: "socks", options: { ...options, spec } }),
  );
  define(
    "nc",
    "standard input and output to a port of a peer; works without root",
    ["tunnelmesh-agent nc nas 22", 'ssh -o ProxyCommand="tunnelmesh-agent nc %h %p" nas'],
    (command) =>
      agent(command).addArgument(peer("peer")).addArgument(new Argument("<port>").argParser(values.peerPort)),
    (options: AgentChoice, peer: string, port: number) => ({ command: "nc", options: { ...options, peer, port } }),
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
  define(
    "bugreport",
    "what somebody else needs to find a fault: printed, with names and addresses replaced, and sent nowhere",
    ["tunnelmesh-agent bugreport > report.txt"],
    (command) => agent(command).option("--no-anonymize", "leave names and addresses as they are"),
    (options: BugreportOptions) => ({ command: "bugreport", options }),
  );
  defineJumpKey(program, agent, json, define);
  defineService(program, define);
  define(
    "completion",
    "print what makes a shell complete commands, options and peers",
    [
      "tunnelmesh-agent completion bash > /etc/bash_completion.d/tunnelmesh-agent",
      'tunnelmesh-agent completion zsh > "${fpath[1]}/_tunnelmesh-agent"',
      "tunnelmesh-agent completion fish > ~/.config/fish/completions/tunnelmesh-agent.fish",
    ],
    (command) => command.addArgument(new Argument("<shell>").choices(SHELLS)),
    (_options: object, shell: Shell) => ({ command: "completion", options: { shell } }),
  );
  define("version", "print the version", [], json, (options: { json: boolean }) => ({ command: "version", options }));
  agent(program.command("forget-names", { hidden: true })).action((options: AgentChoice, command: Command) =>
    run(command, () => ({ command: "forget-names", options })),
  );
  program
    .command("complete", { hidden: true })
    .argument("[words...]")
    .action((words: string[], _options: object, command: Command) =>
      run(command, () => ({ command: "complete", options: { words } })),
    );
  return program;
}

type Define = (
  usage: string,
  description: string,
  examples: readonly string[],
  build: (command: Command) => void,
  invoke: (options: never, first: never) => Invocation,
  parent: Command,
) => void;

type Extend = (command: Command) => Command;

function defineJumpKey(program: Command, agent: Extend, json: Extend, define: Define): void {
  const jumpKey = program
    .command("jump-key")
    .description("whose OpenSSH may jump to this machine: ssh -J NAME@... NAME");
  define(
    "add",
    "admit the keys of a public key file",
    ["tunnelmesh-agent jump-key add ~/.ssh/id_ed25519.pub"],
    (command) => agent(command).addArgument(new Argument("<file>", 'public key file, or "-" for standard input')),
    (options: AgentChoice, file: string) => ({
      command: "jump-key",
      options: { ...options, action: { action: "add", file }, json: false },
    }),
    jumpKey,
  );
  define(
    "list",
    "the keys that are admitted",
    [],
    (command) => json(agent(command)),
    (options: PeersOptions) => ({ command: "jump-key", options: { ...options, action: { action: "list" } } }),
    jumpKey,
  );
  define(
    "remove",
    "admit a key no longer",
    [],
    (command) => agent(command).addArgument(new Argument("<key>", "fingerprint or comment, as list shows it")),
    (options: AgentChoice, which: string) => ({
      command: "jump-key",
      options: { ...options, action: { action: "remove", which }, json: false },
    }),
    jumpKey,
  );
}

function defineService(program: Command, define: Define): void {
  const service = program.command("service").description("run the agent as a service of systemd");
  define(
    "install",
    "start it now and with the machine",
    ["sudo tunnelmesh-agent service install http://coordinator.example:8080 --key tmk_... --name nas"],
    (command) =>
      command
        .addArgument(new Argument("[url]", "of the coordinator, for a machine that has not joined yet"))
        .option("--key <key>", "join key")
        .option("--key-file <file>", "file that holds the join key")
        .option("--name <name>", "of this machine in the mesh (default: its host name)", values.machineName),
    (options: Omit<ServiceInstallOptions, "url">, url: string | undefined) => {
      if (options.key !== undefined && options.keyFile !== undefined) contradictKeys();
      if (options.key !== undefined) values.joinKey(options.key);
      const given = url === undefined ? options : { ...options, url: values.coordinatorUrl(url) };
      return { command: "service install", options: given };
    },
    service,
  );
  define(
    "uninstall",
    "stop it and remove it",
    [],
    (command) => command.option("--purge", "remove its configuration, keys and state too"),
    (options: ServiceUninstallOptions) => ({ command: "service uninstall", options }),
    service,
  );
  define(
    "status",
    "is it installed, enabled, active? Exit code 3 when it does not run",
    [],
    (command) => command.option("--json", "print JSON for programs"),
    (options: PeersOptions) => ({ command: "service status", options }),
    service,
  );
}

const contradict = (first: string, second: string, why: string): never => {
  throw new UserError(EXIT.badConfiguration, `${first} and ${second} contradict each other: ${why}`);
};
const contradictKeys = (): never => contradict("--key", "--key-file", "give the join key in one place");

function upInvocation(options: UpOptions, argument: string | undefined): Invocation {
  if (options.key !== undefined && options.keyFile !== undefined) contradictKeys();
  if (options.tun === "off" && options.tunName !== undefined) {
    contradict("--tun off", "--tun-name", "there is no network device to name");
  }
  const text = argument ?? options.url;
  const url = text === undefined ? {} : { url: values.coordinatorUrl(text) };
  if (options.key !== undefined) values.joinKey(options.key);
  return { command: "up", options: { ...options, ...url } };
}
