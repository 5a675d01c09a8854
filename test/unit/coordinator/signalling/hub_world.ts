/** Runs the hub and agents in virtual time: every message takes its link's delay, agents have clocks of their own. */
import type { LogEvent } from "../../../../coordinator/log.ts";
import { loadIdentity } from "../../../../coordinator/registry/coordinator_identity.ts";
import { JOIN_KEY_RANDOM_BYTES, newJoinKey } from "../../../../coordinator/registry/join_key.ts";
import { Hub } from "../../../../coordinator/signalling/hub.ts";
import type { ConnectionId, HubAction, HubInput } from "../../../../coordinator/signalling/hub_contract.ts";
import { MemoryStore } from "../../../../coordinator/store/memory_store.ts";
import { peerIdOf, signSessionKey } from "../../../../shared/session/identity.ts";
import { Ed25519Key, X25519Key } from "../../../../shared/session/primitives.ts";
import { AgentChannel } from "../../../../shared/signal/channel.ts";
import {
  type AgentMessage,
  type CoordinatorMessage,
  decodeCoordinatorMessage,
  encodeMessage,
  type Hello,
} from "../../../../shared/signal/messages.ts";
import { type Instant, instant } from "../../../../shared/time.ts";

export const START_UNIX_MS = 1_790_000_000_000;

export class World {
  // First, since the next fields draw from it.
  #random = 1;
  readonly store = new MemoryStore();
  readonly identity = loadIdentity(this.store, { meshIPv4: undefined, meshIPv6: undefined }, (n) => this.random(n));
  readonly events: LogEvent[] = [];
  readonly actions: HubAction[] = [];
  readonly key: string;
  hub: Hub;
  now = 0;
  #connections = 0;
  #agents = new Map<ConnectionId, TestAgent>();
  #queue: { at: number; run: () => void }[] = [];

  constructor() {
    const key = newJoinKey({
      random: this.random(JOIN_KEY_RANDOM_BYTES),
      fingerprint: this.identity.fingerprint,
      nowUnixMs: START_UNIX_MS,
      lifetimeMs: 3_600_000,
      reusable: true,
    });
    this.store.putKey(key.record);
    this.key = key.text;
    this.hub = this.newHub();
  }

  newHub(): Hub {
    return new Hub({
      identity: this.identity,
      store: this.store,
      reachable: {
        listeners: [{ scheme: "http", host: "0.0.0.0", port: 8080 }],
        stun: [{ ip: "203.0.113.1", port: 3478 }],
        publicHost: undefined,
      },
      random: (n) => this.random(n),
      unixMs: (now) => START_UNIX_MS + now,
    });
  }

  /** Different bytes each time, the same in every run. */
  random(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => (this.#random = (this.#random * 48_271) % 2_147_483_647) & 0xff);
  }

  input(input: HubInput): void {
    this.hub.handle(input, instant(this.now));
    for (let action = this.hub.poll(); action !== undefined; action = this.hub.poll()) {
      this.actions.push(action);
      if (action.type === "event") this.events.push(action.event);
      if (action.type !== "send" && action.type !== "close") continue;
      const agent = this.#agents.get(action.connection);
      if (agent === undefined) continue;
      if (action.type === "send") this.later(agent.delayMs, () => agent.receive(action.bytes));
      else agent.closedWith = action.reason;
    }
  }

  later(delayMs: number, run: () => void): void {
    this.#queue.push({ at: this.now + delayMs, run });
  }

  /** Lets time pass, event by event. */
  run(milliseconds: number): void {
    const end = this.now + milliseconds;
    for (;;) {
      const wake = this.hub.deadline() ?? Infinity;
      const next = this.#queue.reduce((first, { at }) => Math.min(first, at), Infinity);
      const at = Math.min(wake, next);
      if (at > end) break;
      this.now = Math.max(this.now, at);
      const index = this.#queue.findIndex((item) => item.at === at);
      if (next <= wake && index >= 0) this.#queue.splice(index, 1)[0]?.run();
      else this.input({ type: "timeout" });
    }
    this.now = end;
  }

  connect(agent: TestAgent, source = "source", hello: Partial<Hello> = {}): void {
    agent.connection = ++this.#connections;
    this.#agents.set(agent.connection, agent);
    this.input({ type: "opened", connection: agent.connection, source, host: "coordinator.example:8080" });
    if (agent.closedWith === undefined) agent.begin(hello);
  }

  /** A machine that has joined and knows about everybody. */
  join(name: string, options: Partial<TestAgentOptions> = {}): TestAgent {
    const agent = new TestAgent(this, { name, key: this.key, ...options });
    this.connect(agent);
    this.run(1000);
    return agent;
  }

  agent(name: string, options: Partial<TestAgentOptions> = {}): TestAgent {
    return new TestAgent(this, { name, ...options });
  }
}

export interface TestAgentOptions {
  readonly name: string;
  readonly key?: string;
  readonly nameIsExplicit?: boolean;
  readonly delayMs?: number;
  /** Agent clock minus coordinator clock. */
  readonly clockOffsetMs?: number;
  readonly instance?: number;
  /** Takes identity and session key from this agent. */
  readonly sameAs?: TestAgent;
  /** Fires this much later than told. */
  readonly fireLateMs?: number;
}

export class TestAgent {
  readonly received: CoordinatorMessage[] = [];
  readonly options: TestAgentOptions;
  readonly ed25519: Ed25519Key;
  readonly x25519: X25519Key;
  readonly delayMs: number;
  connection: ConnectionId = 0;
  closedWith: string | undefined;
  answersClock = true;
  readonly #world: World;
  #channel: AgentChannel | undefined;

  constructor(world: World, options: TestAgentOptions) {
    this.#world = world;
    this.options = options;
    this.delayMs = options.delayMs ?? 10;
    this.ed25519 = options.sameAs?.ed25519 ?? new Ed25519Key(world.random(32));
    this.x25519 = options.sameAs?.x25519 ?? new X25519Key(world.random(32));
  }

  get id() {
    return peerIdOf(this.ed25519.publicKey);
  }

  get clock(): number {
    return this.#world.now + (this.options.clockOffsetMs ?? 0);
  }

  begin(hello: Partial<Hello> = {}): void {
    this.#channel = new AgentChannel({
      staticKey: this.x25519,
      ephemeral: new X25519Key(this.#world.random(32)),
      hello: {
        version: 1,
        features: 0,
        identity: this.ed25519.publicKey,
        signature: signSessionKey(this.ed25519, this.x25519.publicKey),
        name: this.options.name,
        nameIsExplicit: this.options.nameIsExplicit ?? false,
        key: this.options.key,
        software: "test",
        instance: this.options.instance ?? 1,
        ...hello,
      },
      accept: (fingerprint) => fingerprint === this.#world.identity.fingerprint,
    });
    this.sendBytes(this.#channel.start());
  }

  receive(bytes: Uint8Array): void {
    const outcome = this.#channel?.handle(bytes);
    if (outcome?.type === "reply") this.sendBytes(outcome.bytes);
    if (outcome?.type !== "message") return;
    const message = decodeCoordinatorMessage(outcome.plaintext);
    if (message === undefined) throw new Error("The coordinator sent what it may not send");
    this.received.push(message);
    if (message.type === "clock_request" && this.answersClock)
      this.send({ type: "clock_reply", id: message.id, receivedAt: this.clock, sentAt: this.clock });
    if (message.type === "punch") {
      const { peer, round, fireAt } = message;
      this.#world.later(Math.max(0, fireAt - this.clock) + (this.options.fireLateMs ?? 0), () =>
        this.send({ type: "punch_fired", peer, round, firedAt: this.clock }),
      );
    }
  }

  send(message: AgentMessage): void {
    if (this.#channel !== undefined) this.sendBytes(this.#channel.seal(encodeMessage(message)));
  }

  sendRaw(plaintext: Uint8Array): void {
    if (this.#channel !== undefined) this.sendBytes(this.#channel.seal(plaintext));
  }

  sendBytes(bytes: Uint8Array): void {
    const { connection } = this;
    this.#world.later(this.delayMs, () => this.#world.input({ type: "message", connection, bytes }));
  }

  all<T extends CoordinatorMessage["type"]>(type: T): Extract<CoordinatorMessage, { type: T }>[] {
    return this.received.filter((message) => message.type === type) as Extract<CoordinatorMessage, { type: T }>[];
  }

  last<T extends CoordinatorMessage["type"]>(type: T): Extract<CoordinatorMessage, { type: T }> | undefined {
    return this.all(type).at(-1);
  }

  /** What this agent believes about the others, by name, from all lists it was sent. */
  view(): Record<string, { online: boolean; instance: number }> {
    const peers = new Map<string, { name: string; online: boolean; instance: number }>();
    for (const message of this.received) {
      if (message.type === "peers") {
        if (message.reset) peers.clear();
        for (const { id, name, online, instance } of message.peers) peers.set(id, { name, online, instance });
      }
      if (message.type === "peer_removed") peers.delete(message.id);
    }
    return Object.fromEntries([...peers.values()].map(({ name, online, instance }) => [name, { online, instance }]));
  }
}

export const at = (milliseconds: number): Instant => instant(milliseconds);
