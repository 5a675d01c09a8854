/** One run of two agents that nobody has seen before, from their start to their end: the path they get, when, and for how many packets. */
import { type MeshAgent, type PathKind, startAgent } from "./mesh.ts";
import type { Lab } from "./topology.ts";

export interface PairRun {
  /** Until the later one has a direct path; null: none in time. */
  readonly ms: number | null;
  /** What carries traffic at the end, at the first agent. */
  readonly rung: PathKind | "none";
  /** Of each side, in all its attempts with many packets. */
  readonly packets: readonly number[];
}

export interface PairRunOptions {
  /** Makes the names of the agents new ones. */
  readonly sample: string;
  readonly url: string;
  readonly key: string;
  /** A run without a direct path by then is over. */
  readonly giveUpMs: number;
  /** Time counts from the moment when both know of each other, or when both have measured their own NATs as well. */
  readonly since: "online" | "nats known";
}

export async function runPair(lab: Lab, { sample, url, key, giveUpMs, since }: PairRunOptions): Promise<PairRun> {
  const [one, two] = await Promise.all(
    lab.hosts.map(async (host) => startAgent(lab, host, { name: `${host.role}-${sample}`, url, key })),
  );
  if (one === undefined || two === undefined) throw new Error("Two agents expected");
  const readyAt = async (agent: MeshAgent, peer: MeshAgent): Promise<number> => {
    const nat = since === "nats known" ? await agent.events.next("nat_detected") : undefined;
    const online = await agent.events.next("peer_online", { accept: (fields) => fields["peer"] === peer.name });
    return Math.max(nat?.at ?? 0, online.at);
  };
  const startedAt = Math.max(...(await Promise.all([readyAt(one, two), readyAt(two, one)])));
  const timeoutMs = giveUpMs;
  const direct = await Promise.all([
    one.directEvent(two.name, { timeoutMs }).catch(() => undefined),
    two.directEvent(one.name, { timeoutMs }).catch(() => undefined),
  ]);
  const [first, second] = direct;
  const isDirect = first !== undefined && second !== undefined;
  const rung = isDirect ? "direct" : ((await one.peer(two.name)).path?.kind ?? "none");
  // What the later side has to say about its attempt comes with the path.
  await Promise.all([one.stop(), two.stop()]);
  const packets = [one, two].map((agent) =>
    agent.events.all("punched").reduce((sum, { fields }) => sum + Number(fields["packets"]), 0),
  );
  return { ms: isDirect ? Math.max(first.at, second.at) - startedAt : null, rung, packets };
}
