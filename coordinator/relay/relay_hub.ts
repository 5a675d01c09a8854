/**
 * The relay: which agent has which legs, what is carried between whom, and what each agent is told about its peers' legs.
 *
 * A machine (`handle`, `poll`), told the time; it has no deadlines of its own. The shells in this folder and in ssh/ give it frames and
 * ask with `take` for what they may write, so that whatever waits, waits here, where the oldest is dropped first and every source has
 * its share. Frames are opaque. The sender is the leg's agent, which the connection has proven, and never a field of a frame.
 *
 * Frames for an agent go to its SSH leg if that has a channel for the sender, else to its WebSocket leg, else they wait for the channel.
 */
import { assertNever } from "../../shared/assert.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import type { RelayLeg } from "../../shared/signal/messages.ts";
import { after, type Instant } from "../../shared/time.ts";
import { type Rate, TokenBucket } from "../limits.ts";
import {
  FairQueue,
  type FairQueueLimits,
  FRAME_OVERHEAD_BYTES,
  type TakenFrame,
} from "../../shared/relay/fair_queue.ts";

/** Chosen by the driver, never used again. */
export type LegId = number;

/**
 * What one agent may send through the relay, in bytes with FRAME_OVERHEAD_BYTES for each frame: 1 Gbit/s, about what one core forwards
 * in all. The burst is what such a line delivers in 100 ms.
 */
export const DEFAULT_AGENT_RATE: Rate = { perSecond: 125_000_000, burst: 12_500_000 };
/** Binding costs a notice to both sides. A thousand peers at once are an agent that has just come back. */
const BIND_RATE: Rate = { perSecond: 100, burst: 2000 };
/** Peers that one leg may be bound to. */
export const MAX_BOUND_PEERS = 4096;

/** For each source 20 ms at 100 Mbit/s, and for all of one leg. */
const QUEUE_LIMITS: FairQueueLimits = { maxSourceBytes: 256 * 1024, maxBytes: 2 * 1024 * 1024 };
/** A frame that has waited for longer is dropped: whoever waits for it has asked again by then. */
const MAX_WAIT_MS = 1000;
/** What waited for a leg when it was lost is passed on only if it is younger: older frames would come after newer ones. */
const MAX_INHERITED_AGE_MS = 100;

export interface Addressed {
  readonly to: PeerId;
  readonly frame: Uint8Array;
}

export type RelayInput =
  /** An agent that has proven its identity. A leg of the same kind that it had is replaced. */
  | { readonly type: "leg_opened"; readonly leg: LegId; readonly peer: PeerId; readonly kind: RelayLeg }
  | { readonly type: "leg_closed"; readonly leg: LegId }
  /** The agent says that it has no leg of this kind: ours is a connection that has died without a word. */
  | { readonly type: "leg_lost"; readonly peer: PeerId; readonly kind: RelayLeg }
  /** The agent wants to talk to `peer` on this leg: it has bound an index, or opened a channel. */
  | { readonly type: "bind"; readonly leg: LegId; readonly peer: PeerId }
  /** Its channel has closed. */
  | { readonly type: "release"; readonly leg: LegId; readonly peer: PeerId }
  | { readonly type: "frames"; readonly leg: LegId; readonly frames: readonly Addressed[] }
  /** Approved, removed, blocked or unblocked: `peer`, or anybody. */
  | { readonly type: "rules_changed"; readonly peer?: PeerId | undefined }
  /** The agent's signalling is there, perhaps again: what it was told before may be lost. */
  | { readonly type: "agent_joined"; readonly peer: PeerId };

export type RelayAction =
  /** There may be something to take for this leg. */
  | { readonly type: "ready"; readonly leg: LegId }
  /** Nobody is there for this peer: `refused` ends the binding, `no_leg` may pass. */
  | { readonly type: "unbound"; readonly leg: LegId; readonly peer: PeerId; readonly reason: "no_leg" | "refused" }
  | { readonly type: "close"; readonly leg: LegId; readonly reason: "replaced" | "removed" }
  /** For `to`: the best leg that `peer` has at this moment for frames from it. */
  | { readonly type: "peer_leg"; readonly to: PeerId; readonly peer: PeerId; readonly leg: RelayLeg | null };

export interface RelayCounters {
  forwardedFrames: number;
  forwardedBytes: number;
  /** Queue full: the oldest went. */
  droppedOverflow: number;
  /** Waited too long. */
  droppedLate: number;
  droppedNoLeg: number;
  droppedRefused: number;
  droppedRate: number;
  /** Malformed messages, and frames for an index that nobody has bound. */
  droppedMalformed: number;
}

export interface RelayHubOptions {
  readonly isMember: (peer: PeerId) => boolean;
  /** Both are members and neither refuses the other. */
  readonly mayTalk: (a: PeerId, b: PeerId) => boolean;
  readonly agentRate?: Rate;
}

interface Leg {
  readonly id: LegId;
  readonly kind: RelayLeg;
  readonly agent: Agent;
  /** Peers that the agent has bound on this leg. */
  readonly bound: Set<PeerId>;
  readonly queue: FairQueue;
}

/** How one agent's frames reach another. Kept until rules or legs change, since it is looked up for every frame. */
type Route = Leg | "no_leg" | "refused";

interface Interest {
  /** Bindings of either side on either leg. */
  count: number;
  /** The last notice; undefined before the first. */
  told: RelayLeg | null | undefined;
}

interface Agent {
  readonly id: PeerId;
  readonly legs: Map<RelayLeg, Leg>;
  readonly interests: Map<PeerId, Interest>;
  /** To each peer that this agent sends to. */
  readonly routes: Map<PeerId, Route>;
  readonly rate: TokenBucket;
  readonly binds: TokenBucket;
}

export class RelayHub {
  readonly counters: RelayCounters = {
    forwardedFrames: 0,
    forwardedBytes: 0,
    droppedOverflow: 0,
    droppedLate: 0,
    droppedNoLeg: 0,
    droppedRefused: 0,
    droppedRate: 0,
    droppedMalformed: 0,
  };
  readonly #options: RelayHubOptions;
  readonly #actions: RelayAction[] = [];
  readonly #legs = new Map<LegId, Leg>();
  readonly #agents = new Map<PeerId, Agent>();

  constructor(options: RelayHubOptions) {
    this.#options = options;
  }

  get legCount(): number {
    return this.#legs.size;
  }

  handle(input: RelayInput, now: Instant): void {
    switch (input.type) {
      case "leg_opened":
        return this.#open(input.leg, input.peer, input.kind, now);
      case "leg_closed":
        return this.#withLeg(input.leg, (leg) => this.#close(leg, now));
      case "leg_lost": {
        const leg = this.#agents.get(input.peer)?.legs.get(input.kind);
        if (leg === undefined) return;
        this.#actions.push({ type: "close", leg: leg.id, reason: "replaced" });
        this.#close(leg, now);
        return;
      }
      case "bind":
        return this.#withLeg(input.leg, (leg) => this.#bind(leg, input.peer, now));
      case "release":
        return this.#withLeg(input.leg, (leg) => this.#release(leg, input.peer));
      case "frames":
        return this.#withLeg(input.leg, (leg) => this.#forward(leg, input.frames, now));
      case "rules_changed":
        return this.#applyRules(input.peer, now);
      case "agent_joined": {
        const agent = this.#agents.get(input.peer);
        for (const [peer, interest] of agent?.interests ?? []) {
          interest.told = undefined;
          this.#tell(input.peer, peer);
        }
        return;
      }
      default:
        assertNever(input);
    }
  }

  poll(): RelayAction | undefined {
    return this.#actions.shift();
  }

  /** What the leg should write next; see FairQueue. */
  take(
    leg: LegId,
    now: Instant,
    maximumBytes: number,
    perFrame: number,
    isReady?: (source: PeerId) => boolean,
  ): TakenFrame[] {
    const queue = this.#legs.get(leg)?.queue;
    if (queue === undefined) return [];
    this.counters.droppedLate += queue.dropBefore(after(now, -MAX_WAIT_MS));
    const taken = queue.take(maximumBytes, perFrame, isReady);
    this.counters.forwardedFrames += taken.length;
    for (const { frame } of taken) this.counters.forwardedBytes += frame.length;
    return taken;
  }

  queuedBytes(leg: LegId): number {
    return this.#legs.get(leg)?.queue.bytes ?? 0;
  }

  /** May this agent have a binding for that peer at all? Asked by shells that must answer at once. */
  mayBind(leg: LegId, peer: PeerId): boolean {
    const agent = this.#legs.get(leg)?.agent;
    return agent !== undefined && this.#options.mayTalk(agent.id, peer);
  }

  #withLeg(id: LegId, work: (leg: Leg) => void): void {
    const leg = this.#legs.get(id);
    if (leg !== undefined) work(leg);
  }

  #open(id: LegId, peer: PeerId, kind: RelayLeg, now: Instant): void {
    if (!this.#options.isMember(peer)) {
      this.#actions.push({ type: "close", leg: id, reason: "removed" });
      return;
    }
    const agent = this.#agentOf(peer, now);
    const before = agent.legs.get(kind);
    const leg: Leg = { id, kind, agent, bound: new Set(), queue: new FairQueue(QUEUE_LIMITS) };
    this.#legs.set(id, leg);
    agent.legs.set(kind, leg);
    if (before !== undefined) {
      this.#actions.push({ type: "close", leg: before.id, reason: "replaced" });
      this.counters.droppedLate += before.queue.dropBefore(after(now, -MAX_INHERITED_AGE_MS));
      // What waits for an SSH leg needs a channel of its own there, which #reroute sees to.
      for (const source of before.queue.sources())
        this.counters.droppedOverflow += before.queue.moveTo(leg.queue, source);
      this.#close(before, now);
    }
    this.#reroute(agent);
  }

  #close(leg: Leg, now: Instant): void {
    const { agent } = leg;
    this.counters.droppedLate += leg.queue.dropBefore(after(now, -MAX_INHERITED_AGE_MS));
    this.#legs.delete(leg.id);
    if (agent.legs.get(leg.kind) === leg) agent.legs.delete(leg.kind);
    const [other] = agent.legs.values();
    for (const source of leg.queue.sources()) {
      if (other === undefined) this.counters.droppedNoLeg += leg.queue.clear(source);
      else this.counters.droppedOverflow += leg.queue.moveTo(other.queue, source);
    }
    this.#reroute(agent);
    for (const peer of leg.bound) this.#forgetInterest(agent, peer);
    if (agent.legs.size === 0) agent.routes.clear();
    this.#forgetIdle(agent);
  }

  #bind(leg: Leg, peer: PeerId, now: Instant): void {
    const { agent } = leg;
    const isNew = !leg.bound.has(peer);
    if (
      !this.#options.mayTalk(agent.id, peer) ||
      !agent.binds.take(now) ||
      (isNew && leg.bound.size >= MAX_BOUND_PEERS)
    ) {
      this.#actions.push({ type: "unbound", leg: leg.id, peer, reason: "refused" });
      return;
    }
    const other = this.#agentOf(peer, now);
    if (isNew) {
      leg.bound.add(peer);
      for (const [a, b] of [
        [agent, other],
        [other, agent],
      ] as const) {
        const interest = a.interests.get(b.id);
        if (interest === undefined) a.interests.set(b.id, { count: 1, told: undefined });
        else interest.count++;
      }
    }
    const interest = agent.interests.get(peer);
    if (interest !== undefined) interest.told = undefined;
    // A channel for this peer changes where its frames go.
    this.#reroute(agent, peer);
    this.#tell(agent.id, peer);
    if (other.legs.size === 0) this.#actions.push({ type: "unbound", leg: leg.id, peer, reason: "no_leg" });
  }

  #release(leg: Leg, peer: PeerId): void {
    if (!leg.bound.delete(peer)) return;
    this.#reroute(leg.agent, peer);
    this.#forgetInterest(leg.agent, peer);
  }

  #forward(leg: Leg, frames: readonly Addressed[], now: Instant): void {
    const { agent } = leg;
    const touched = new Set<Leg>();
    for (let at = 0; at < frames.length; ) {
      const first = frames[at];
      if (first === undefined) break;
      let end = at + 1;
      while (end < frames.length && frames[end]?.to === first.to) end++;
      const run = frames.slice(at, end);
      at = end;
      const route = this.#route(agent, first.to);
      if (route === "no_leg") this.counters.droppedNoLeg += run.length;
      else if (route === "refused") this.counters.droppedRefused += run.length;
      else {
        for (const frame of this.#admit(agent, run, now)) {
          this.counters.droppedOverflow += route.queue.push(agent.id, frame, now);
        }
        touched.add(route);
      }
    }
    for (const { id } of touched) this.#actions.push({ type: "ready", leg: id });
  }

  /**
   * Copies of what the agent may send: they are views into a larger buffer, which must not stay for their sake. One copy for a run to one
   * peer, since an allocation for each frame costs more than its bytes; what the last frame of a run keeps is bounded by the run.
   */
  #admit(agent: Agent, run: readonly Addressed[], now: Instant): Uint8Array[] {
    const admitted = run.filter(({ frame }) => agent.rate.take(now, frame.length + FRAME_OVERHEAD_BYTES));
    this.counters.droppedRate += run.length - admitted.length;
    const bytes = new Uint8Array(admitted.reduce((sum, { frame }) => sum + frame.length, 0));
    let at = 0;
    return admitted.map(({ frame }) => {
      bytes.set(frame, at);
      at += frame.length;
      return bytes.subarray(at - frame.length, at);
    });
  }

  #route(agent: Agent, to: PeerId): Route {
    let route = agent.routes.get(to);
    if (route !== undefined) return route;
    if (!this.#options.mayTalk(agent.id, to)) route = "refused";
    else route = this.#legFor(this.#agents.get(to), agent.id) ?? "no_leg";
    // Bounded by the number of members.
    if (this.#options.isMember(to)) agent.routes.set(to, route);
    return route;
  }

  /** Where frames from `source` to this agent go. */
  #legFor(agent: Agent | undefined, source: PeerId): Leg | undefined {
    const ssh = agent?.legs.get("ssh");
    if (ssh?.bound.has(source) === true) return ssh;
    return agent?.legs.get("websocket") ?? ssh;
  }

  /** The legs of `agent` have changed, or its channel for `only` has: frames to it find their way anew. */
  #reroute(agent: Agent, only?: PeerId): void {
    for (const leg of agent.legs.values()) {
      for (const source of only === undefined ? leg.queue.sources() : [only]) {
        const better = this.#legFor(agent, source);
        if (better === undefined || better === leg) continue;
        this.counters.droppedOverflow += leg.queue.moveTo(better.queue, source);
      }
    }
    for (const leg of agent.legs.values()) if (leg.queue.bytes > 0) this.#actions.push({ type: "ready", leg: leg.id });
    const peers = only === undefined ? this.#agents.keys() : [only];
    for (const peer of peers) this.#agents.get(peer)?.routes.delete(agent.id);
    for (const peer of only === undefined ? [...agent.interests.keys()] : [only]) this.#tell(peer, agent.id);
  }

  /** Tells `to` what leg `peer` has, unless it knows. */
  #tell(to: PeerId, peer: PeerId): void {
    const agent = this.#agents.get(to);
    const interest = agent?.interests.get(peer);
    if (agent === undefined || interest === undefined) return;
    const leg = this.#legFor(this.#agents.get(peer), to)?.kind ?? null;
    if (interest.told === leg) return;
    if (leg === null && typeof interest.told === "string") {
      for (const own of agent.legs.values())
        this.#actions.push({ type: "unbound", leg: own.id, peer, reason: "no_leg" });
    }
    interest.told = leg;
    this.#actions.push({ type: "peer_leg", to, peer, leg });
  }

  #applyRules(changed: PeerId | undefined, now: Instant): void {
    for (const agent of this.#agents.values()) {
      if (this.#options.isMember(agent.id)) continue;
      for (const leg of agent.legs.values()) {
        this.#actions.push({ type: "close", leg: leg.id, reason: "removed" });
        this.#close(leg, now);
      }
    }
    const agents = changed === undefined ? [...this.#agents.values()] : [this.#agents.get(changed)];
    for (const agent of agents) {
      if (agent === undefined) continue;
      agent.routes.clear();
      for (const peer of agent.interests.keys()) {
        if (!this.#options.mayTalk(agent.id, peer)) this.#part(agent, this.#agents.get(peer));
      }
    }
    if (changed !== undefined) for (const agent of this.#agents.values()) agent.routes.delete(changed);
    for (const agent of this.#agents.values()) this.#forgetIdle(agent);
  }

  /** These two may not talk: nothing of what waits between them is delivered. */
  #part(agent: Agent, other: Agent | undefined): void {
    if (other === undefined) return;
    for (const [a, b] of [
      [agent, other],
      [other, agent],
    ] as const) {
      for (const leg of a.legs.values()) {
        leg.bound.delete(b.id);
        this.counters.droppedRefused += leg.queue.clear(b.id);
        this.#actions.push({ type: "unbound", leg: leg.id, peer: b.id, reason: "refused" });
      }
      if (a.interests.delete(b.id)) this.#actions.push({ type: "peer_leg", to: a.id, peer: b.id, leg: null });
    }
  }

  /** One binding less between these two. */
  #forgetInterest(agent: Agent, peer: PeerId): void {
    const other = this.#agents.get(peer);
    for (const [a, b] of [
      [agent, peer],
      [other, agent.id],
    ] as const) {
      const interest = a?.interests.get(b);
      if (interest !== undefined && --interest.count <= 0) a?.interests.delete(b);
    }
    if (other !== undefined) this.#forgetIdle(other);
  }

  #forgetIdle(agent: Agent): void {
    if (agent.legs.size === 0 && agent.interests.size === 0) this.#agents.delete(agent.id);
  }

  #agentOf(id: PeerId, now: Instant): Agent {
    let agent = this.#agents.get(id);
    if (agent === undefined) {
      agent = {
        id,
        legs: new Map(),
        interests: new Map(),
        routes: new Map(),
        rate: new TokenBucket(this.#options.agentRate ?? DEFAULT_AGENT_RATE, now),
        binds: new TokenBucket(BIND_RATE, now),
      };
      this.#agents.set(id, agent);
    }
    return agent;
  }
}
