/** Runs the agent: the mesh engine behind `up`. */
import type { AgentConfig } from "../cli/config.ts";
import { serveLocalApi } from "../local/server.ts";
import { EXIT, UserError } from "../state/user_error.ts";
import { Control } from "./control.ts";
import { MeshAgent } from "./mesh_agent.ts";
import { Streams } from "./streams/streams.ts";
import { MeshNames, type NamesSource } from "./names/mesh_names.ts";

/** Runs until told to stop, by signal or by `down`, or until the coordinator refuses this machine. Returns the exit code. */
export async function runAgent(config: AgentConfig, signal: AbortSignal): Promise<number> {
  const { state, log } = config;
  const agent = await MeshAgent.start(config);
  const streams = await startStreams(agent);
  const stopped = Promise.withResolvers<string>();
  const names = MeshNames.start(namesSource(agent), log, config.dns, state.dir);
  const control = new Control(
    agent,
    streams,
    () => names.status,
    () => stopped.resolve("down"),
  );
  let reason = "failed";
  try {
    await using server = await closing(
      serveLocalApi(control, {
        socketPath: config.socketPath,
        stateDir: state.dir,
        onBug: (error) => log.error(`Bug in the local API: ${String(error)}`),
      }),
    );
    log.event({
      event: "started",
      version: config.version,
      pid: process.pid,
      id: state.identity.id,
      fingerprint: state.identity.fingerprint,
      stateDir: state.dir,
      socket: config.socketPath,
    });
    const onAbort = (): void => stopped.resolve("signal");
    if (signal.aborted) onAbort();
    else signal.addEventListener("abort", onAbort, { once: true });
    const timer =
      config.timeoutMs === undefined
        ? undefined
        : setTimeout(() => {
            if (!agent.isReady) stopped.resolve("timeout");
          }, config.timeoutMs);
    const refused = agent.ended.then((error): string => {
      if (error !== undefined) throw error;
      return "ended";
    });
    reason = await Promise.race([stopped.promise, refused]);
    clearTimeout(timer);
    if (reason === "timeout") {
      throw new UserError(
        EXIT.timedOut,
        `Not joined within ${(config.timeoutMs ?? 0) / 1000} seconds: ${agent.self.message ?? "no answer"}`,
      );
    }
    void server;
    return EXIT.ok;
  } finally {
    streams.stop();
    await names.stop();
    await agent.stop();
    log.event({ event: "stopped", reason });
  }
}

/** A port that is taken ends the agent before it has done anything. */
async function startStreams(agent: MeshAgent): Promise<Streams> {
  try {
    return await Streams.start(agent);
  } catch (error) {
    await agent.stop();
    throw error;
  }
}

/** Those whose key is the one that we know: nobody else gets a name here. */
const namesSource = (agent: MeshAgent): NamesSource => ({
  device: () => agent.self.tun,
  self: () => (agent.self.name === undefined ? undefined : { ...agent.self, name: agent.self.name }),
  peers: () => agent.node.members(),
  listen: (listener) => {
    let seen = "";
    return agent.listen(() => {
      const { name, tun } = agent.self;
      const state = `${agent.node.membersRevision} ${name} ${tun}`;
      if (state === seen) return;
      seen = state;
      listener();
    });
  },
});

async function closing(server: Promise<{ stop: () => unknown }>): Promise<AsyncDisposable> {
  const { stop } = await server;
  return {
    [Symbol.asyncDispose]: async () => {
      await stop();
    },
  };
}
