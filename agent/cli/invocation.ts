/** What one command line asks for, complete and typed: the result of parsing (program.ts), carried out by execute.ts. */
import type { RungWish } from "../../shared/wire/control.ts";
import type { WaitCondition } from "../local/contract.ts";
import type { LogFormat, LogLevel } from "../log.ts";
import type { Shell } from "./completion_scripts.ts";
import type { ForwardSpec, ListenSpec } from "../state/forward_spec.ts";
import type { TunMode } from "./config.ts";

/** Which agent is meant. Undefined: the defaults of the account. */
export interface AgentChoice {
  readonly config?: string;
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
  readonly allowJump: readonly number[];
  readonly udpPort?: number;
  readonly direct: boolean;
  readonly portMapping: boolean;
  /** Each at most as much as is built in. */
  readonly punchSockets?: number;
  readonly punchPackets?: number;
  readonly punchRate?: number;
  readonly ssh: boolean;
  readonly websocket: boolean;
  readonly proxy?: string;
  readonly caFile?: string;
  readonly forward: readonly ForwardSpec[];
  readonly socks: readonly ListenSpec[];
  readonly expose: readonly (number | "all")[];
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

export interface BenchCommandOptions extends AgentChoice {
  readonly peer: string;
  readonly seconds: number;
  readonly reverse: boolean;
  readonly json: boolean;
}
export interface BugreportOptions extends AgentChoice {
  readonly anonymize: boolean;
}
export interface JumpKeyOptions extends AgentChoice {
  readonly action:
    | { readonly action: "add"; readonly file: string }
    | { readonly action: "remove"; readonly which: string }
    | { readonly action: "list" };
  readonly json: boolean;
}
export interface ServiceInstallOptions {
  readonly url?: string;
  readonly key?: string;
  readonly keyFile?: string;
  readonly name?: string;
}
export interface ServiceUninstallOptions {
  readonly purge: boolean;
}
export interface ForwardOptions extends AgentChoice {
  readonly spec: ForwardSpec;
}
export interface SocksOptions extends AgentChoice {
  readonly spec: ListenSpec;
}
export interface NcOptions extends AgentChoice {
  readonly peer: string;
  readonly port: number;
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
  | { readonly command: "bench"; readonly options: BenchCommandOptions }
  | { readonly command: "forward"; readonly options: ForwardOptions }
  | { readonly command: "socks"; readonly options: SocksOptions }
  | { readonly command: "nc"; readonly options: NcOptions }
  | { readonly command: "trust" | "block"; readonly options: NameOptions }
  | { readonly command: "bugreport"; readonly options: BugreportOptions }
  | { readonly command: "service install"; readonly options: ServiceInstallOptions }
  | { readonly command: "service uninstall"; readonly options: ServiceUninstallOptions }
  | { readonly command: "service status"; readonly options: { readonly json: boolean } }
  | { readonly command: "jump-key"; readonly options: JumpKeyOptions }
  | { readonly command: "completion"; readonly options: { readonly shell: Shell } }
  /** For what is left behind by an agent that was killed: takes its names out of /etc/hosts, unless another runs by now. */
  | { readonly command: "forget-names"; readonly options: AgentChoice }
  /** For the scripts of `completion`: the words before the cursor, the last of which is being typed. */
  | { readonly command: "complete"; readonly options: { readonly words: readonly string[] } }
  | { readonly command: "version"; readonly options: { readonly json: boolean } }
  | { readonly command: "help"; readonly options: { readonly text: string } };
