/**
 * What the command line hands to the rest of the agent: complete and checked, so that nobody reads argv, the environment or a key
 * file again.
 */
import type { Log } from "../log.ts";
import type { PunchLimits } from "../path/punch_plan.ts";
import type { AgentState } from "../state/agent_state.ts";
import type { ExposedPorts, ForwardSpec, ListenSpec } from "../state/forward_spec.ts";

export const TUN_MODES = ["auto", "on", "off"] as const;
export type TunMode = (typeof TUN_MODES)[number];

export interface JoinKey {
  readonly id: string;
  /** As it is sent to the coordinator. Never logged. */
  readonly text: string;
  /** Of the coordinator that made it. */
  readonly fingerprint: string;
}

export interface AgentConfig {
  readonly version: string;
  /** http or https, without credentials, query, fragment and final slash. */
  readonly coordinatorUrl: string;
  /**
   * The fingerprint that the coordinator must prove: of the join key, or as pinned at an earlier start. Undefined at the first
   * contact without a key: it is then shown to the user and pinned.
   */
  readonly coordinatorFingerprint: string | undefined;
  readonly joinKey: JoinKey | undefined;
  /** `explicit`: the user chose it, so it is refused when taken instead of getting a number. */
  readonly name: { readonly text: string; readonly explicit: boolean };
  readonly tun: TunMode;
  readonly tunName: string | undefined;
  /** False with `--no-dns`: names of the mesh then resolve in this program only. */
  readonly dns: boolean;
  /** Ports that people may reach by plain OpenSSH through the coordinator, if their key is known (state/jump_keys.ts). */
  readonly allowJump: readonly number[];
  /** Undefined: the agent's choice. 0: any free one. */
  readonly udpPort: number | undefined;
  /** False with `--no-direct`. */
  readonly direct: boolean;
  /** False with `--no-port-mapping`: the router is not asked to forward a port. */
  readonly portMapping: boolean;
  /** What guessing a router's ports may take: the built-in caps, or what the operator has lowered them to. */
  readonly punchLimits: PunchLimits;
  /** False with `--no-ssh`, and with `--no-websocket`: these relays are then not used. Signalling is a WebSocket all the same. */
  readonly ssh: boolean;
  readonly webSocket: boolean;
  /** The proxy that the user named; the environment may name another (agent/driver/bun_websocket.ts). */
  readonly proxy: string | undefined;
  /** PEM text of certificates that https coordinators may use besides the system's. */
  readonly caCertificates: string | undefined;
  /** Give up with exit code 7 when not joined by then. Undefined: try for ever. */
  readonly timeoutMs: number | undefined;
  /** Local ports that lead to peers, proxy ports, and ports of this machine that are open to the mesh. */
  readonly forwards: readonly ForwardSpec[];
  readonly socks: readonly ListenSpec[];
  readonly expose: ExposedPorts;
  readonly socketPath: string;
  /** Open and locked; `up` closes it after the agent has ended. */
  readonly state: AgentState;
  readonly log: Log;
}

/** For `netcheck` without a running agent. */
export interface NetcheckConfig {
  readonly coordinatorUrl: string;
  readonly caCertificates: string | undefined;
}
