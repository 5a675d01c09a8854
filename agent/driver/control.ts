/** What the local API asks of a running agent: status, why, ping, wait, trust, block, netcheck, stop (agent/local/contract.ts). */
import { formatTransportAddress } from "../../shared/address.ts";
import { groupFingerprint } from "../../shared/session/identity.ts";
import type { RungWish } from "../../shared/wire/control.ts";
import { FRAME_OVERHEAD_BYTES } from "../../shared/wire/frame.ts";
import type {
  AgentControl,
  BenchEvent,
  BenchOptions,
  NamesStatus,
  Netcheck,
  PathKind,
  PathStatus,
  PeerStatus,
  PingEvent,
  PingOptions,
  Status,
  WaitCondition,
  WhyAnswer,
} from "../local/contract.ts";
import type { PeerView } from "../node/contract.ts";
import type { BenchTotal } from "../overlay/bench_message.ts";
import { natLabel } from "../path/nat_behavior.ts";
import { MAX_BLOCKS } from "../state/trust_store.ts";
import type { ForwardSpec, ListenSpec } from "../state/forward_spec.ts";
import { EXIT, UserError } from "../state/user_error.ts";
import { findPeer, reachablePeer } from "./find_peer.ts";
import type { MeshAgent } from "./mesh_agent.ts";
import type { Streams } from "./streams/streams.ts";
import type { Listening } from "./streams/tcp_listener.ts";
import { natStatusOf, netcheckOf } from "./netcheck.ts";
import { portMappingStatus } from "./port_mapping_words.ts";

/** A ping without an answer by then is lost. */
const PING_TIMEOUT_MS = 2000;
/** A switch takes a round trip or two; a rung that is down may take a moment to come. */
const PATH_TIMEOUT_MS = 10_000;
const NETCHECK_TIMEOUT_MS = 5000;
/** Moves that `bench` tells; a path that moves more often says so in `why`. */
const MAX_BENCH_PATHS = 16;

export class Control implements AgentControl {
  readonly #agent: MeshAgent;
  readonly #streams: Streams;
  readonly #names: () => NamesStatus;
  readonly #onStop: () => void;

  constructor(agent: MeshAgent, streams: Streams, names: () => NamesStatus, onStop: () => void) {
    this.#agent = agent;
    this.#streams = streams;
    this.#names = names;
    this.#onStop = onStop;
  }

  async status(): Promise<Status> {
    await this.#agent.refreshCounters();
    const { config, self } = this.#agent;
    return {
      schema: 1,
      self: {
        name: self.name ?? null,
        id: config.state.identity.id,
        meshIPv4: self.meshIPv4 ?? null,
        meshIPv6: self.meshIPv6 ?? null,
        tun: self.tun ?? null,
        nat: natStatusOf(this.#agent.node.gathering),
        names: this.#names(),
        portMapping: portMappingStatus(this.#agent.portMapper?.report, this.#agent.node.gathering),
        relays: this.#agent.relayStatus(),
        coordinator: {
          url: config.coordinatorUrl,
          connected: self.connected,
          rttMs: self.rttMs === undefined ? null : round(self.rttMs),
          message: self.message ?? null,
        },
      },
      peers: this.#agent.peers().map((peer) => this.#peerStatus(peer)),
    };
  }

  why(name: string): WhyAnswer | undefined {
    const peer = this.#find(name);
    if (peer === undefined) return undefined;
    const local = natLabel(this.#agent.node.gathering.natReport());
    const remote = peer.nat === undefined ? null : natLabel(peer.nat);
    const path = this.#path(peer);
    const { note } = portMappingStatus(this.#agent.portMapper?.report, this.#agent.node.gathering);
    return {
      schema: 1,
      name: peer.entry.name,
      online: peer.entry.online,
      path,
      why: peer.why,
      better: peer.better.map((rung) => ({ ...rung })),
      // The sentences say it already, but for what is wrong with the router's port mapping.
      help: note === null || path?.kind === "direct" ? [] : [note],
      nat: { local, remote },
      history: this.#history(peer),
    };
  }

  async ping(
    name: string,
    options: PingOptions,
    onEvent: (event: PingEvent) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const peer = this.#reachable(name);
    const startedAt = this.#agent.now();
    const left = (): number => (options.timeoutMs ?? Number.POSITIVE_INFINITY) - (this.#agent.now() - startedAt);
    const stopListening = this.#onPathChange(peer, ({ from, to, reason }) => onEvent({ from, to, reason }));
    try {
      await this.#pingUntilDone(peer, options, left, onEvent, signal);
    } finally {
      stopListening();
    }
  }

  /** Tells of each move of this peer's traffic from here on, until the returned function is called. */
  #onPathChange(peer: PeerView, tell: (change: PeerView["history"][number]) => void): () => void {
    let last = peer.history.at(-1);
    return this.#agent.listen(() => {
      const history = this.#agent.peer(peer.id)?.history ?? [];
      const newest = history.at(-1);
      if (newest === last) return;
      const news = history.slice(last === undefined ? 0 : history.indexOf(last) + 1);
      last = newest;
      for (const change of news) tell(change);
    });
  }

  async #pingUntilDone(
    peer: PeerView,
    options: PingOptions,
    left: () => number,
    onEvent: (event: PingEvent) => void,
    signal: AbortSignal,
  ): Promise<void> {
    for (let seq = 1; options.count === undefined || seq <= options.count; seq++) {
      if (signal.aborted || left() <= 0) return;
      const sentAt = this.#agent.now();
      const result = await this.#agent.echo(peer.id, Math.min(PING_TIMEOUT_MS, left()), signal);
      // Interrupted while it was under way, it is neither answered nor lost.
      if (result === undefined && signal.aborted) return;
      if (result === undefined) onEvent({ seq, lost: true });
      else onEvent({ seq, rttMs: round(result.roundTripMs), path: result.path });
      if (options.untilDirect && result?.path === "direct") return;
      const rest = options.intervalMs - (this.#agent.now() - sentAt);
      const isLast = options.count !== undefined && seq >= options.count;
      if (rest > 0 && !isLast) await sleep(Math.min(rest, Math.max(0, left())), signal);
    }
  }

  async wait(condition: WaitCondition, timeoutMs: number | undefined, signal: AbortSignal): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const check = (): void => {
      if (this.#holds(condition)) resolve(true);
    };
    const stopListening = this.#agent.listen(check);
    const timer = timeoutMs === undefined ? undefined : setTimeout(() => resolve(false), timeoutMs);
    const onAbort = (): void => resolve(false);
    signal.addEventListener("abort", onAbort, { once: true });
    const ended = this.#agent.ended.then((error): boolean => {
      if (error !== undefined) throw error;
      return false;
    });
    this.#useIfKnown(condition);
    check();
    try {
      return await Promise.race([promise, ended]);
    } finally {
      stopListening();
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    }
  }

  async netcheck(signal: AbortSignal): Promise<Netcheck> {
    const { gathering } = this.#agent.node;
    const { portMapper } = this.#agent;
    const isKnown = (): boolean => gathering.isComplete && portMapper?.isComplete !== false && !this.#agent.isTryingSsh;
    await this.#until(isKnown, NETCHECK_TIMEOUT_MS, signal);
    return netcheckOf(gathering, this.#agent.ways, portMapper?.report);
  }

  trust(name: string): string | undefined {
    const peer = this.#find(name);
    const { trust } = this.#agent.config.state;
    return this.#applied(() => {
      const id = trust.trust(peer?.entry.name ?? name, peer?.id);
      return id === undefined ? undefined : groupFingerprint(id);
    });
  }

  block(name: string): boolean {
    const peer = this.#find(name);
    const { trust } = this.#agent.config.state;
    // A mistyped name must not look blocked. One that has left the mesh may be, by its pin.
    if (peer === undefined && trust.pinnedId(name) === undefined) return false;
    const isBlocked = this.#applied(() => trust.block(peer?.entry.name ?? name, peer?.id));
    if (!isBlocked) throw new UserError(EXIT.failed, `Cannot block "${name}": ${MAX_BLOCKS} peers are blocked already`);
    return true;
  }

  /** What the operator decided holds at once, also where it could not be saved: they are told that, and a restart forgets it. */
  #applied<T>(change: () => T): T {
    try {
      return change();
    } finally {
      this.#agent.onTrustChange();
    }
  }

  stop(): void {
    this.#onStop();
  }

  async bench(
    name: string,
    options: BenchOptions,
    onEvent: (event: BenchEvent) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const peer = this.#reachable(name);
    const paths: PathKind[] = peer.route === undefined ? [] : [peer.route.kind];
    const stopListening = this.#onPathChange(peer, ({ to }) => {
      if (to !== null && to !== paths.at(-1) && paths.length < MAX_BENCH_PATHS) paths.push(to);
    });
    const tell = (total: BenchTotal, isFinal: boolean): void => onEvent({ ...total, paths: [...paths], isFinal });
    try {
      tell(await this.#streams.bench(name, options, (total) => tell(total, false), signal), true);
    } finally {
      stopListening();
    }
  }

  async forward(spec: ForwardSpec, onListening: (address: string) => void, signal: AbortSignal): Promise<void> {
    await listenWhile(await this.#streams.forward(spec), onListening, signal);
  }

  async socks(spec: ListenSpec, onListening: (address: string) => void, signal: AbortSignal): Promise<void> {
    await listenWhile(this.#streams.proxy(spec), onListening, signal);
  }

  async choosePath(name: string, rung: RungWish, signal: AbortSignal): Promise<PathStatus> {
    const { id } = this.#reachable(name);
    this.#agent.choosePath(id, rung);
    const current = (): PathStatus | null => {
      const peer = this.#agent.peer(id);
      return peer === undefined ? null : this.#path(peer);
    };
    const isDone = (): boolean => {
      const path = current();
      return path !== null && (rung === "auto" || path.kind === rung);
    };
    await this.#until(isDone, PATH_TIMEOUT_MS, signal);
    const path = current();
    if (path !== null && isDone()) return path;
    const why = this.#find(name)?.why ?? "the peer is gone";
    throw new UserError(
      EXIT.timedOut,
      `No ${rung} path to "${name}" for now; it will be taken when there is one. ${why}`,
    );
  }

  /** Resolves when the condition holds, checked after each step of the agent, or when the time is up. */
  async #until(condition: () => boolean, timeoutMs: number, signal: AbortSignal): Promise<void> {
    if (condition()) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const stopListening = this.#agent.listen(() => {
      if (condition()) resolve();
    });
    const timer = setTimeout(resolve, timeoutMs);
    const onAbort = (): void => resolve();
    signal.addEventListener("abort", onAbort, { once: true });
    await promise;
    stopListening();
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }

  #holds(condition: WaitCondition): boolean {
    if (!this.#agent.isReady) return false;
    if (condition.for === "joined") return true;
    const peer = this.#find(condition.peer);
    if (peer === undefined) return false;
    return condition.for === "direct" ? peer.route?.kind === "direct" : peer.route !== undefined;
  }

  /** Waiting for a path is a use of the peer: otherwise an idle one would be waited for in vain. */
  #useIfKnown(condition: WaitCondition): void {
    if (condition.for === "joined") return;
    const peer = this.#find(condition.peer);
    if (peer !== undefined) this.#agent.use(peer.id);
  }

  #reachable(name: string): PeerView {
    return reachablePeer(this.#agent.peers(), name);
  }

  #find(name: string): PeerView | undefined {
    return findPeer(this.#agent.peers(), name);
  }

  #peerStatus(peer: PeerView): PeerStatus {
    return {
      name: peer.entry.name,
      id: peer.id,
      fingerprint: groupFingerprint(peer.id),
      meshIPv4: peer.entry.meshIPv4,
      meshIPv6: peer.entry.meshIPv6,
      online: peer.entry.online,
      path: this.#path(peer),
      why: peer.why,
      rxBytes: peer.rxBytes,
      txBytes: peer.txBytes,
      history: this.#history(peer),
      nat: peer.nat === undefined ? null : natLabel(peer.nat),
      trust: peer.trust,
    };
  }

  #path(peer: PeerView): PathStatus | null {
    const { route } = peer;
    if (route === undefined) return null;
    const since = new Date(peer.selectedAtUnixMs ?? 0).toISOString();
    const rttMs = peer.rttMs === undefined ? null : round(peer.rttMs);
    if (route.kind !== "direct") {
      return { kind: route.kind, legs: route.legs, localAddress: null, remoteAddress: null, rttMs, mtu: null, since };
    }
    const { pair } = route;
    return {
      kind: "direct",
      legs: null,
      localAddress: this.#agent.localAddressTo(pair.remote.ip, pair.leg) ?? null,
      remoteAddress: formatTransportAddress(pair.remote),
      rttMs,
      mtu: pair.mtu.size - FRAME_OVERHEAD_BYTES,
      since,
    };
  }

  #history(peer: PeerView): PeerStatus["history"] {
    return peer.history.map(({ atUnixMs, from, to, reason }) => ({
      at: new Date(atUnixMs).toISOString(),
      from,
      to,
      reason,
    }));
  }
}

/** Until the command that asked for it ends, and its connections with it. */
async function listenWhile(
  listening: Listening,
  onListening: (address: string) => void,
  signal: AbortSignal,
): Promise<void> {
  onListening(listening.address);
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  listening.stop(true);
}

const round = (milliseconds: number): number => Math.round(milliseconds * 1000) / 1000;

async function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds);
  const onAbort = (): void => resolve();
  signal.addEventListener("abort", onAbort, { once: true });
  await promise;
  clearTimeout(timer);
  signal.removeEventListener("abort", onAbort);
}
