/** The agent's own relay connections (agent/driver) to a real coordinator's relay, by a line that may be slow or fall silent. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { RelaySocket } from "../../../../agent/driver/relay_socket.ts";
import { RelaySsh } from "../../../../agent/driver/relay_ssh.ts";
import { noUplinkCounters, type UplinkCounters } from "../../../../agent/driver/relay_uplink.ts";
import type { PeerId } from "../../../../shared/session/identity.ts";
import type { RelayLeg } from "../../../../shared/signal/messages.ts";
import type { RelayWorld, TestIdentity } from "../../coordinator/relay/relay_world.ts";
import { scratchDir } from "../state/scratch.ts";
import { Line } from "./line.ts";

export interface AgentLeg {
  readonly relay: RelaySocket | RelaySsh;
  readonly line: Line;
  readonly counters: UplinkCounters;
  /** Each change, and when. */
  readonly states: { readonly isUp: boolean; readonly at: number }[];
  readonly received: { readonly peer: PeerId; readonly frame: Uint8Array }[];
  readonly problems: string[];
  readonly close: () => void;
}

export interface AgentLegOptions {
  readonly bytesPerSecond?: number;
  /** As signalling would have told it; undefined: the real one. */
  readonly hostKey?: Uint8Array;
  /** Between keepalives, or challenges. */
  readonly keepaliveMs?: number;
  /** False: it may never come up. */
  readonly waitsForIt?: boolean;
}

export async function agentLeg(
  world: RelayWorld,
  kind: RelayLeg,
  identity: TestIdentity,
  options: AgentLegOptions = {},
): Promise<AgentLeg> {
  const counters = noUplinkCounters();
  const { keepaliveMs } = options;
  const [states, received, problems]: [AgentLeg["states"], AgentLeg["received"], string[]] = [[], [], []];
  const port = kind === "ssh" ? world.ssh.bound.port : Number(new URL(world.url).port);
  const line = await Line.to(port, options.bytesPerSecond);
  const events = {
    onState: (isUp: boolean) => {
      states.push({ isUp, at: performance.now() });
      world.changed();
    },
    onFrames: (peer: PeerId, frames: readonly Uint8Array[]) => {
      received.push(...frames.map((frame) => ({ peer, frame: frame.slice() })));
      world.changed();
    },
  };
  const relay = kind === "ssh" ? ssh() : webSocket();
  const leg = { relay, line, counters, states, received, problems, close: () => [relay, line].map((it) => it.close()) };
  if (options.waitsForIt !== false) await world.until(`the ${kind} leg`, () => states[0]?.isUp === true);
  return leg;

  function ssh(): RelaySsh {
    const stateDir = scratchDir();
    writeFileSync(join(stateDir, "identity"), identity.privateKey, { mode: 0o600 });
    return new RelaySsh(
      {
        endpoint: { host: "127.0.0.1", port: line.port, hostKey: options.hostKey ?? world.hostKey.publicBlob },
        account: { id: identity.id, stateDir },
        counters,
        jumpDoor: undefined,
        onProblem: (problem) => void problems.push(problem),
        ...(keepaliveMs === undefined ? {} : { keepaliveMs }),
      },
      events,
    );
  }

  function webSocket(): RelaySocket {
    const token = identity.id.slice(0, 26).padEnd(26, "a");
    world.tokens.set(token, identity.id);
    return new RelaySocket(
      `http://127.0.0.1:${line.port}`,
      { token, webSocket: {}, counters, ...(keepaliveMs === undefined ? {} : { challengeIntervalMs: keepaliveMs }) },
      events,
    );
  }
}
