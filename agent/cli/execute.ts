/**
 * Carries out one invocation: asks the running agent over its socket, prints, and returns the exit code. Only `up` runs an agent itself.
 */
import { existsSync } from "node:fs";
import { assertNever } from "../../shared/assert.ts";
import { HostsFile, isHostsFileOurs } from "../driver/names/hosts_file.ts";
import { LocalClient } from "../local/client.ts";
import { streamSocketPath } from "../local/contract.ts";
import type { Netcheck, WaitCondition } from "../local/contract.ts";
import { createLog } from "../log.ts";
import { isStateDirInUse, ROOT_STATE_DIR, socketPathOf, stateDirOf } from "../state/state_dir.ts";
import { readState } from "../state/state_file.ts";
import { readIfPresent } from "../state/atomic_file.ts";
import { EXIT, UserError, withoutKeys } from "../state/user_error.ts";
import { bench } from "./bench.ts";
import { bugreport } from "./bugreport.ts";
import { createProgram } from "./commands.ts";
import { runJumpKey } from "./jump_key.ts";
import { ASK_FOR_FILES, placeOf, suggestionLine, suggestionsAt } from "./complete.ts";
import { COMPLETION_SCRIPT } from "./completion_scripts.ts";
import type { NetcheckConfig } from "./config.ts";
import { findConfigFile } from "./config_file.ts";
import type { Host } from "./host.ts";
import type {
  AgentChoice,
  BugreportOptions,
  Invocation,
  NetcheckOptions,
  PingCommandOptions,
  StatusOptions,
  WaitOptions,
} from "./invocation.ts";
import { parseArguments } from "./program.ts";
import type { View } from "./render.ts";
import type { Environment } from "./settings.ts";
import { renderNetcheck } from "./render_netcheck.ts";
import { PingTally, renderPing } from "./render_ping.ts";
import { renderPeers, renderStatus } from "./render_status.ts";
import { renderWhy } from "./render_why.ts";
import { runService } from "./service/run_service.ts";
import { netcat } from "./nc.ts";
import { type RunAgent, up } from "./up.ts";
import { VERSION } from "./version.ts";
import { watch } from "./watch.ts";

/** `up &` and `wait` in a script race: this long `wait` looks for an agent that is about to start. */
const START_GRACE_MS = 2000;
const POLL_MS = 50;
/** A person waits for what a shell completes. */
const COMPLETE_TIMEOUT_MS = 500;
/** The agent says good-bye to peers and coordinator and takes its device down: far less than this. */
const STOP_TIMEOUT_MS = 15_000;

/** What starts real work; tests put their own here. */
export interface Runners {
  readonly runAgent?: RunAgent;
  readonly runNetcheck?: (config: NetcheckConfig, signal: AbortSignal) => Promise<Netcheck>;
}

/** The whole command line: every error has been printed when it returns. */
export async function runCommandLine(
  argv: readonly string[],
  host: Host,
  signal: AbortSignal,
  runners: Runners = {},
): Promise<number> {
  const parsed = parseArguments(argv, host.env, (choice) => findConfigFile(choice, host.account));
  if ("error" in parsed) {
    return fail(new UserError(parsed.exitCode, parsed.error), host, argv[0] === "up" && asksForJsonLog(argv, host.env));
  }
  try {
    return await execute(parsed, host, signal, runners);
  } catch (error) {
    return fail(error, host, parsed.command === "up" && parsed.options.logFormat === "json");
  }
}

export async function execute(
  invocation: Invocation,
  host: Host,
  signal: AbortSignal,
  runners: Runners = {},
): Promise<number> {
  const print = (text: string): number => {
    host.out(text);
    return EXIT.ok;
  };
  switch (invocation.command) {
    case "up":
      return up(invocation.options, host, signal, runners.runAgent);
    case "help":
      return print(invocation.options.text);
    case "version":
      return print(
        invocation.options.json ? jsonLine({ schema: 1, version: VERSION }) : `tunnelmesh-agent ${VERSION}\n`,
      );
    case "down":
      return down(invocation.options, host, signal);
    case "status":
      return showStatus(invocation.options, host, signal);
    case "peers": {
      const { peers } = await clientOf(invocation.options, host).status(signal);
      return print(invocation.options.json ? jsonText({ schema: 1, peers }) : renderPeers(peers, viewOf(host)));
    }
    case "why": {
      const answer = await clientOf(invocation.options, host).why(invocation.options.peer, signal);
      return print(invocation.options.json ? jsonText(answer) : renderWhy(answer, viewOf(host)));
    }
    case "wait":
      return waitFor(invocation.options, host, signal);
    case "ping":
      return ping(invocation.options, host, signal);
    case "netcheck": {
      const result = await netcheck(invocation.options, host, signal, runners);
      return print(invocation.options.json ? jsonText(result) : renderNetcheck(result, viewOf(host)));
    }
    case "path": {
      const { peer, rung } = invocation.options;
      const path = await clientOf(invocation.options, host).choosePath(peer, rung, signal);
      return print(`${peer}: ${path.kind}\n`);
    }
    case "bench":
      return bench(clientOf(invocation.options, host), invocation.options, host, signal);
    case "forward": {
      const { spec } = invocation.options;
      const to = `port ${spec.peerPort} of "${spec.peer}"`;
      await clientOf(invocation.options, host).listen(
        { forward: spec },
        (address) => host.out(`Forwarding ${spec.protocol} ${address} to ${to}; Ctrl-C ends it\n`),
        signal,
      );
      return EXIT.ok;
    }
    case "socks": {
      const told = (address: string): void => host.out(`SOCKS5 and HTTP CONNECT on ${address}; Ctrl-C ends it\n`);
      await clientOf(invocation.options, host).listen({ socks: invocation.options.spec }, told, signal);
      return EXIT.ok;
    }
    case "nc": {
      const { peer, port } = invocation.options;
      const { socketPath, notRunning } = agentOf(invocation.options, host);
      await netcat(streamSocketPath(socketPath), { peer, port }, host.pipes(), notRunning);
      return EXIT.ok;
    }
    case "trust": {
      const { name } = invocation.options;
      const fingerprint = await clientOf(invocation.options, host).trust(name, signal);
      return print(`"${name}" is trusted with the fingerprint ${fingerprint}\n`);
    }
    case "block": {
      const { name } = invocation.options;
      await clientOf(invocation.options, host).block(name, signal);
      return print(`"${name}" is blocked; "tunnelmesh-agent trust ${name}" lifts it\n`);
    }
    case "bugreport":
      return print(await makeBugreport(invocation.options, host, signal));
    case "jump-key":
      return runJumpKey(invocation.options, host);
    case "completion":
      return print(COMPLETION_SCRIPT[invocation.options.shell]);
    case "complete":
      return print(await complete(invocation.options.words, host));
    case "forget-names":
      if (isHostsFileOurs() && !isStateDirInUse(stateDirOf(invocation.options.stateDir, host.account))) {
        new HostsFile().clear();
      }
      return EXIT.ok;
    case "service install":
    case "service uninstall":
    case "service status":
      return runService(invocation, host);
    default:
      return assertNever(invocation);
  }
}

/** What the agent cannot tell is in the report too: it may be the very fault. */
async function makeBugreport(options: BugreportOptions, host: Host, signal: AbortSignal): Promise<string> {
  const client = clientOf(options, host);
  const orReason = <T>(answer: Promise<T>): Promise<T | string> =>
    answer.catch((error: unknown) => (error instanceof Error ? error.message : String(error)));
  const [status, netcheck] = await Promise.all([orReason(client.status(signal)), orReason(client.netcheck(signal))]);
  const { hostName, account } = host;
  const parts = { hostName, isRootUser: account.uid === 0, nowUnixMs: host.unixMs(), status, netcheck };
  return bugreport(parts, options.anonymize);
}

/** A shell asks this at each press of a key: quick, and silent where there is nothing to say. */
async function complete(words: readonly string[], host: Host): Promise<string> {
  const place = placeOf(
    createProgram(() => {}),
    words,
  );
  const text = (option: string): string | undefined => place.given.get(option);
  const stateDir = text("--state-dir") ?? host.env["TUNNELMESH_STATE_DIR"];
  const socket = text("--socket") ?? host.env["TUNNELMESH_SOCKET"];
  const choice = { ...(stateDir === undefined ? {} : { stateDir }), ...(socket === undefined ? {} : { socket }) };
  const peers = await (async () => clientOf(choice, host).status(AbortSignal.timeout(COMPLETE_TIMEOUT_MS)))()
    .then((status) => status.peers)
    .catch(() => []);
  const suggestions = suggestionsAt(place, peers);
  const lines = suggestions === undefined ? [ASK_FOR_FILES] : suggestions.map(suggestionLine);
  return lines.map((line) => `${line}\n`).join("");
}

async function showStatus(options: StatusOptions, host: Host, signal: AbortSignal): Promise<number> {
  const client = clientOf(options, host);
  const picture = async (): Promise<string> => {
    const status = await client.status(signal);
    if (!options.json) return renderStatus(status, viewOf(host));
    return options.watch ? jsonLine(status) : jsonText(status);
  };
  if (options.watch) return watch(picture, host, signal);
  host.out(await picture());
  return EXIT.ok;
}

async function down(choice: AgentChoice, host: Host, signal: AbortSignal): Promise<number> {
  const stateDir = (await clientOf(choice, host).stop(signal)) ?? stateDirOf(choice.stateDir, host.account);
  const giveUpAt = host.unixMs() + STOP_TIMEOUT_MS;
  // The lock is the last thing that an agent gives back, so a new `up` may follow at once.
  while (isStateDirInUse(stateDir)) {
    if (host.unixMs() > giveUpAt || signal.aborted) {
      throw new UserError(EXIT.timedOut, `The agent in ${stateDir} has not stopped within ${STOP_TIMEOUT_MS / 1000} s`);
    }
    await host.sleep(POLL_MS, signal);
  }
  return EXIT.ok;
}

async function waitFor(options: WaitOptions, host: Host, signal: AbortSignal): Promise<number> {
  const client = clientOf(options, host);
  const startedAt = host.unixMs();
  const elapsed = (): number => host.unixMs() - startedAt;
  const timeoutMs = options.timeout === undefined ? undefined : options.timeout * 1000;
  for (;;) {
    try {
      const left = timeoutMs === undefined ? undefined : Math.max(0, timeoutMs - elapsed());
      if (await client.wait(options.for, left, signal)) return EXIT.ok;
      throw new UserError(EXIT.timedOut, `Timed out after ${options.timeout ?? 0} s: ${unmet(options.for)}`);
    } catch (error) {
      const isNotRunning = error instanceof UserError && error.exitCode === EXIT.agentNotRunning;
      if (!isNotRunning || signal.aborted || elapsed() > Math.min(START_GRACE_MS, timeoutMs ?? Infinity)) throw error;
    }
    await host.sleep(POLL_MS, signal);
  }
}

function unmet(condition: WaitCondition): string {
  switch (condition.for) {
    case "joined":
      return 'this machine has not joined; "tunnelmesh-agent status" says why';
    case "peer":
      return `"${condition.peer}" has not been reached; "tunnelmesh-agent why ${condition.peer}" says why`;
    case "direct":
      return `there is no direct path to "${condition.peer}"; "tunnelmesh-agent why ${condition.peer}" says why`;
    default:
      return assertNever(condition);
  }
}

async function ping(options: PingCommandOptions, host: Host, signal: AbortSignal): Promise<number> {
  const { peer } = options;
  const tally = new PingTally();
  await clientOf(options, host).ping(
    peer,
    {
      count: options.count,
      intervalMs: options.interval * 1000,
      untilDirect: options.untilDirect,
      timeoutMs: options.timeout === undefined ? undefined : options.timeout * 1000,
    },
    (event) => {
      tally.add(event);
      if (!options.json) host.out(`${renderPing(peer, event, host.paint)}\n`);
      else if ("seq" in event) host.out(jsonLine(event));
    },
    signal,
  );
  if (!options.json) host.out(`${tally.summary()}\n`);
  if (tally.answered === 0) {
    throw new UserError(EXIT.timedOut, `No answer from "${peer}"; "tunnelmesh-agent why ${peer}" says more`);
  }
  if (options.untilDirect && tally.direct === 0) {
    throw new UserError(
      EXIT.notDirect,
      `"${peer}" answers, but not on a direct path; "tunnelmesh-agent why ${peer}" says why`,
    );
  }
  return EXIT.ok;
}

/** Asks the running agent, unless there is none or another coordinator is meant. */
async function netcheck(
  options: NetcheckOptions,
  host: Host,
  signal: AbortSignal,
  runners: Runners,
): Promise<Netcheck> {
  const client = clientOf(options, host);
  try {
    const isSame =
      options.coordinator === undefined ||
      (await client.status(signal)).self.coordinator.url.replace(/\/+$/, "") === options.coordinator;
    if (isSame) return await client.netcheck(signal);
  } catch (error) {
    if (!(error instanceof UserError) || error.exitCode !== EXIT.agentNotRunning) throw error;
    const known = options.coordinator ?? readState(stateDirOf(options.stateDir, host.account)).coordinator?.url;
    if (known === undefined) {
      throw new UserError(
        EXIT.agentNotRunning,
        'No agent is running and no coordinator is known to test against; run "tunnelmesh-agent netcheck --coordinator URL"',
        { cause: error },
      );
    }
    return runNetcheckAlone(known, options, signal, runners);
  }
  return runNetcheckAlone(options.coordinator ?? "", options, signal, runners);
}

async function runNetcheckAlone(
  coordinatorUrl: string,
  options: NetcheckOptions,
  signal: AbortSignal,
  runners: Runners,
): Promise<Netcheck> {
  const caCertificates = options.caFile === undefined ? undefined : readIfPresent(options.caFile);
  if (options.caFile !== undefined && caCertificates === undefined) {
    throw new UserError(EXIT.badConfiguration, `The file ${options.caFile} of --ca-file does not exist`);
  }
  const run = runners.runNetcheck ?? (await import("../driver/netcheck.ts")).runNetcheck;
  return run({ coordinatorUrl, caCertificates }, signal);
}

function clientOf(choice: AgentChoice, host: Host): LocalClient {
  const { socketPath, notRunning } = agentOf(choice, host);
  return new LocalClient(socketPath, notRunning);
}

/** Where the agent listens, and what to say when it does not. */
function agentOf(choice: AgentChoice, host: Host): { readonly socketPath: string; readonly notRunning: string } {
  const stateDir = stateDirOf(choice.stateDir, host.account);
  const socketPath = socketPathOf(choice.socket, stateDir);
  const where = choice.socket === undefined ? `in ${stateDir}` : `on ${socketPath}`;
  // People start the agent with sudo and forget it with the next command.
  const isRootLikely = choice.stateDir === undefined && host.account.uid !== 0 && existsSync(ROOT_STATE_DIR);
  const cure = isRootLikely
    ? `one of root may run in ${ROOT_STATE_DIR}: try again with sudo`
    : 'start one with "tunnelmesh-agent up"';
  return { socketPath, notRunning: `No agent is running ${where}; ${cure}` };
}

const viewOf = (host: Host): View => ({ nowUnixMs: host.unixMs(), paint: host.paint, columns: host.columns() });
const jsonText = (value: object): string => `${JSON.stringify(value, null, 2)}\n`;
const jsonLine = (value: object): string => `${JSON.stringify(value)}\n`;

/** Before the options are known: did the user want JSON on stderr? */
const asksForJsonLog = (argv: readonly string[], env: Environment): boolean =>
  argv.includes("--log-format=json") ||
  argv[argv.indexOf("--log-format") + 1] === "json" ||
  env["TUNNELMESH_LOG_FORMAT"] === "json";

/** One line for people, without a stack: what is not a `UserError` is a fault of ours and says so. */
function fail(error: unknown, host: Host, inJson: boolean): number {
  const isExpected = error instanceof UserError;
  const text = error instanceof Error ? error.message : String(error);
  const message = isExpected ? text : `tunnelmesh-agent failed because of a fault of its own: ${text}`;
  const exitCode = isExpected ? error.exitCode : EXIT.failed;
  if (inJson) {
    const write = (line: string): void => host.err(`${line}\n`);
    createLog({ level: "error", format: "json", write, unixMs: () => host.unixMs() }).error(message, { exitCode });
  } else host.err(`${withoutKeys(message)}\n`);
  if (!isExpected && host.env["TUNNELMESH_LOG_LEVEL"] === "debug" && error instanceof Error) {
    host.err(`${withoutKeys(error.stack ?? "")}\n`);
  }
  return exitCode;
}
