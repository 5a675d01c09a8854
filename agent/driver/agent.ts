/** Runs the agent: the mesh engine behind `up`. */
import type { AgentConfig, NetcheckConfig } from "../cli/config.ts";
import type { Netcheck } from "../local/contract.ts";

export async function runAgent(_config: AgentConfig, _signal: AbortSignal): Promise<number> {
  throw new Error("The mesh engine is not part of this build");
}

export async function runNetcheck(_config: NetcheckConfig, _signal: AbortSignal): Promise<Netcheck> {
  throw new Error("The mesh engine is not part of this build");
}
