/**
 * `up`: checks everything that can be checked before anything starts, opens the state directory, and hands over to the agent.
 */
import { createLog, type Log, printable } from "../log.ts";
import { MAX_PUNCH } from "../path/punch_plan.ts";
import { openAgentState, type AgentState } from "../state/agent_state.ts";
import { readIfPresent } from "../state/atomic_file.ts";
import { socketPathOf, stateDirOf } from "../state/state_dir.ts";
import { EXIT, systemReason, UserError } from "../state/user_error.ts";
import { groupFingerprint } from "../../shared/session/identity.ts";
import type { AgentConfig, JoinKey } from "./config.ts";
import type { Host } from "./host.ts";
import type { UpOptions } from "./invocation.ts";
import { storyLog } from "./story.ts";
import { joinKey } from "./values.ts";
import { VERSION } from "./version.ts";

/** Runs until it has ended by itself or `signal` has aborted; the result is the exit code. */
export type RunAgent = (config: AgentConfig, signal: AbortSignal) => Promise<number>;

/** Loaded when needed, so that the other commands start without the whole agent. */
const runRealAgent: RunAgent = async (config, signal) => {
  const { runAgent } = await import("../driver/agent.ts");
  return runAgent(config, signal);
};

export async function up(
  options: UpOptions,
  host: Host,
  signal: AbortSignal,
  runAgent: RunAgent = runRealAgent,
): Promise<number> {
  const key = readKey(options);
  const caCertificates = readCertificates(options.caFile);
  const stateDir = stateDirOf(options.stateDir, host.account);
  const socketPath = socketPathOf(options.socket, stateDir);
  const write = (line: string): void => host.err(`${line}\n`);
  const unixMs = (): number => host.unixMs();
  const wholeLog = createLog({ level: options.logLevel, format: options.logFormat, write, unixMs });
  const isForPeople = options.logFormat === "text" && options.logLevel === "info";
  const log = isForPeople ? storyLog(wholeLog, (line) => write(printable(line)), unixMs) : wholeLog;
  // Whatever the agent makes, also beside the state directory, is for its owner only.
  process.umask(0o077);
  const state = openAgentState(
    stateDir,
    () => host.unixMs(),
    (error) => log.warn(`Cannot save handshake timestamps: ${systemReason(error)}`),
  );
  try {
    const config = makeConfig(options, { key, caCertificates, socketPath, state, log, hostName: host.hostName });
    return await runAgent(config, signal);
  } finally {
    state.close();
  }
}

function makeConfig(
  options: UpOptions,
  parts: {
    readonly key: JoinKey | undefined;
    readonly caCertificates: string | undefined;
    readonly socketPath: string;
    readonly state: AgentState;
    readonly log: Log;
    readonly hostName: string;
  },
): AgentConfig {
  const { key, state } = parts;
  const saved = state.file.value;
  const coordinatorUrl = options.url ?? saved.coordinator?.url;
  if (coordinatorUrl === undefined) {
    throw new UserError(
      EXIT.usage,
      `The coordinator's URL is missing, and ${state.dir} has joined none yet; run "tunnelmesh-agent up URL --key KEY"`,
    );
  }
  return {
    version: VERSION,
    coordinatorUrl,
    coordinatorFingerprint: expectedFingerprint(key, saved.coordinator?.fingerprint ?? undefined, state.dir),
    joinKey: key,
    name:
      options.name === undefined
        ? { text: saved.name ?? defaultName(parts.hostName), explicit: false }
        : { text: options.name, explicit: true },
    tun: options.tun,
    tunName: options.tunName,
    dns: options.dns,
    allowJump: options.allowJump,
    udpPort: options.udpPort,
    direct: options.direct,
    portMapping: options.portMapping,
    punchLimits: {
      sockets: options.punchSockets ?? MAX_PUNCH.sockets,
      packets: options.punchPackets ?? MAX_PUNCH.packets,
      perSecond: options.punchRate ?? MAX_PUNCH.perSecond,
    },
    ssh: options.ssh,
    webSocket: options.websocket,
    proxy: options.proxy,
    caCertificates: parts.caCertificates,
    timeoutMs: options.timeout === undefined ? undefined : options.timeout * 1000,
    forwards: options.forward,
    socks: options.socks,
    expose: options.expose.includes("all") ? "all" : options.expose.filter((port) => port !== "all"),
    socketPath: parts.socketPath,
    state,
    log: parts.log,
  };
}

function expectedFingerprint(
  key: JoinKey | undefined,
  pinned: string | undefined,
  stateDir: string,
): string | undefined {
  if (key === undefined || pinned === undefined || key.fingerprint === pinned) return pinned ?? key?.fingerprint;
  throw new UserError(
    EXIT.keyRefused,
    `The join key is of another coordinator: its fingerprint is ${groupFingerprint(key.fingerprint)}, but ${stateDir} has joined ${groupFingerprint(pinned)}; use a key of that one, or another --state-dir to join a second mesh`,
  );
}

function readKey({ key, keyFile }: UpOptions): JoinKey | undefined {
  if (key !== undefined) return joinKey(key.trim());
  return keyFile === undefined ? undefined : joinKey(readGivenFile("--key-file", keyFile).trim());
}

function readCertificates(path: string | undefined): string | undefined {
  if (path === undefined) return undefined;
  const text = readGivenFile("--ca-file", path);
  if (text.includes("-----BEGIN CERTIFICATE-----")) return text;
  throw new UserError(
    EXIT.badConfiguration,
    `The file ${path} of --ca-file holds no certificate; it must be PEM, with "-----BEGIN CERTIFICATE-----"`,
  );
}

function readGivenFile(option: string, path: string): string {
  const text = readIfPresent(path);
  if (text !== undefined) return text;
  throw new UserError(EXIT.badConfiguration, `The file ${path} of ${option} does not exist`);
}

/** A host name as a mesh name: its first label, with other characters replaced. */
export function defaultName(host: string): string {
  const label = (host.split(".")[0] ?? "")
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .slice(0, 63)
    .replace(/^-+|-+$/g, "");
  return label === "" ? "machine" : label;
}
