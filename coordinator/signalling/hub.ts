/**
 * The signalling hub: who is connected, who may be, what each is told about the others, and what one may send another.
 *
 * A machine (`handle`, `poll`, `deadline`): the driver in signalling_server.ts gives it WebSocket messages and the time, the
 * simulator does the same in virtual time. It decides by the rules of registry/ (who is let in), clock.ts and punches.ts
 * (when to fire), observations.ts (what is attested).
 *
 * Everything that a client can grow has a cap: connections before approval, bytes before authentication, messages a second after
 * it. Bodies between agents are sealed; the sender is the connection's identity, never a field of the message.
 */
import { assertNever } from "../../shared/assert.ts";
import { toBase32 } from "../../shared/bytes.ts";
import { type PeerId, verifyIdentityChain } from "../../shared/session/identity.ts";
import { X25519Key } from "../../shared/session/primitives.ts";
import { CoordinatorChannel } from "../../shared/signal/channel.ts";
import {
  type CoordinatorMessage,
  decodeAgentMessage,
  encodeMessage,
  MAX_UNAUTHENTICATED_BYTES,
  REFUSALS,
  type Refusal,
} from "../../shared/signal/messages.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import { TokenBucket } from "../limits.ts";
import type { LogEvent } from "../log.ts";
import { admit, type Applicant } from "../registry/admission.ts";
import type { PeerRecord } from "../store/store.ts";
import type { StunObservation } from "../stun/stun_server.ts";
import { advertised } from "./advertised.ts";
import type { ConnectionId, HubAction, HubInput, HubOptions } from "./hub_contract.ts";
import { OnlineAgent } from "./online_agent.ts";
import { PeerList } from "./peer_list.ts";
import { Punches } from "./punches.ts";
import { RelayTokens } from "./relay_tokens.ts";

/** PRODUCT.md, "Before authentication". */
const HANDSHAKE_TIMEOUT_MS = 5000;
const MAX_UNAPPROVED_PER_SOURCE = 16;
const MAX_UNAPPROVED = 256;

/** Two lost clock replies: nobody is there. */
const SILENCE_TIMEOUT_MS = 25_000;

/** Handshakes of all clients together: each costs three X25519 operations, about 0.2 ms. */
const HANDSHAKE_RATE = { perSecond: 200, burst: 400 };
/** Lines in the log that strangers can cause. */
const STRANGER_LOG_RATE = { perSecond: 2, burst: 20 };

const OBSERVED_DELAY_MS = 20;

const CLOSE_NORMAL = 1000;
const CLOSE_POLICY = 1008;
const CLOSE_INTERNAL = 1011;
const CLOSE_TRY_AGAIN = 1013;

type Stage =
  | { readonly name: "handshaking"; readonly deadline: Instant }
  /** Proven, and waiting for an operator. */
  | { readonly name: "pending"; readonly applicant: Applicant }
  | { readonly name: "joined"; readonly agent: OnlineAgent };

interface Connection {
  readonly id: ConnectionId;
  readonly source: string;
  readonly host: string | undefined;
  readonly channel: CoordinatorChannel;
  stage: Stage;
}

export class Hub {
  readonly #options: HubOptions;
  readonly #actions: HubAction[] = [];
  readonly #connections = new Map<ConnectionId, Connection>();
  readonly #online = new Map<PeerId, Connection>();
  readonly #tokens = new Map<string, PeerId>();
  readonly #punches: Punches;
  readonly #relayTokens: RelayTokens;
  readonly #peers: PeerList;
  #blocks: Map<PeerId, Set<PeerId>>;
  /** The earliest of all connections' deadlines, or earlier: a wake-up too many does no harm. */
  #wakeAt: Instant | undefined;
  #handshakes: TokenBucket | undefined;
  #strangerLog: TokenBucket | undefined;
  #dropped = 0;

  constructor(options: HubOptions) {
    this.#options = options;
    this.#peers = new PeerList(options.store.peers("approved"), (id) => this.#online.has(id));
    this.#blocks = options.store.blocks();
    this.#relayTokens = new RelayTokens(options.random);
    this.#punches = new Punches({
      sides: (a, b) => this.#sides(a, b),
      tell: (to, message) => {
        const connection = this.#online.get(to);
        if (connection !== undefined) this.#send(connection, message);
      },
    });
  }

  /** Asked before a WebSocket is accepted at all. */
  mayOpen(source: string): boolean {
    let all = 0;
    let ofSource = 0;
    for (const connection of this.#connections.values()) {
      if (connection.stage.name === "joined") continue;
      all++;
      if (connection.source === source) ofSource++;
    }
    return all < MAX_UNAPPROVED && ofSource < MAX_UNAPPROVED_PER_SOURCE;
  }

  get onlineCount(): number {
    return this.#online.size;
  }

  /** Messages of authenticated clients that were malformed, too many, or went to nobody. */
  get droppedMessages(): number {
    return this.#dropped;
  }

  isMember(id: PeerId): boolean {
    return this.#peers.has(id);
  }

  /** May anything be carried between these two? Both are members and neither refuses the other. */
  mayTalk(a: PeerId, b: PeerId): boolean {
    if (a === b || this.#blocks.get(a)?.has(b) === true || this.#blocks.get(b)?.has(a) === true) return false;
    return this.#peers.has(a) && this.#peers.has(b);
  }

  /** Whose relay connection this token opens; it does so once. */
  redeemRelayToken(token: string, now: Instant): PeerId | undefined {
    const peer = this.#relayTokens.redeem(token, now);
    return peer !== undefined && this.#peers.has(peer) ? peer : undefined;
  }

  handle(input: HubInput, now: Instant): void {
    switch (input.type) {
      case "opened":
        this.#open(input.connection, input.source, input.host, now);
        break;
      case "message": {
        const connection = this.#connections.get(input.connection);
        if (connection !== undefined) this.#receive(connection, input.bytes, now);
        break;
      }
      case "closed": {
        const connection = this.#connections.get(input.connection);
        if (connection !== undefined) this.#forget(connection, "connection lost", now);
        break;
      }
      case "observed":
        this.#observe(input.observation, now);
        break;
      case "store_changed":
        this.#reload(now);
        break;
      case "peer_leg": {
        const connection = this.#online.get(input.to);
        if (connection !== undefined) this.#send(connection, { type: "peer_leg", peer: input.peer, leg: input.leg });
        break;
      }
      case "timeout":
        break;
      default:
        assertNever(input);
    }
    this.#onTime(now);
  }

  poll(): HubAction | undefined {
    return this.#actions.shift();
  }

  deadline(): Instant | undefined {
    return earliest(this.#wakeAt, this.#peers.dueAt);
  }

  #open(id: ConnectionId, source: string, host: string | undefined, now: Instant): void {
    this.#handshakes ??= new TokenBucket(HANDSHAKE_RATE, now);
    if (!this.mayOpen(source) || !this.#handshakes.take(now)) {
      this.#actions.push({ type: "close", connection: id, code: CLOSE_TRY_AGAIN, reason: "too many connections" });
      return;
    }
    const deadline = after(now, HANDSHAKE_TIMEOUT_MS);
    const channel = new CoordinatorChannel({
      staticKey: this.#options.identity.staticKey,
      ephemeral: new X25519Key(this.#options.random(32)),
    });
    this.#connections.set(id, { id, source, host, channel, stage: { name: "handshaking", deadline } });
    this.#wake(deadline);
  }

  #receive(connection: Connection, bytes: Uint8Array, now: Instant): void {
    const { stage } = connection;
    if (stage.name === "handshaking" && bytes.length > MAX_UNAUTHENTICATED_BYTES)
      return this.#close(connection, CLOSE_POLICY, "message too large", now);
    const outcome = connection.channel.handle(bytes);
    switch (outcome.type) {
      case "reply":
        this.#actions.push({ type: "send", connection: connection.id, bytes: outcome.bytes });
        return;
      case "failed":
        // Only with a malformed hello is there a channel to say so in; most likely the agent is of another version.
        if (outcome.reason === "malformed hello")
          return this.#refuse(connection, "version", "update the older of the two", now);
        return this.#close(connection, CLOSE_POLICY, outcome.reason, now);
      case "hello": {
        const { hello, sessionKey } = outcome;
        const { identity, signature } = hello;
        const id = verifyIdentityChain({ identity, sessionKey, signature });
        if (id === undefined)
          return this.#refuse(connection, "identity_invalid", "check the agent's state directory", now);
        return this.#admit(connection, { id, sessionKey, hello }, now);
      }
      case "message":
        if (stage.name === "joined") return this.#receiveFrom(connection, stage.agent, outcome.plaintext, now);
        if (stage.name === "pending") {
          if (decodeAgentMessage(outcome.plaintext)?.type === "leave")
            this.#close(connection, CLOSE_NORMAL, "left", now);
        }
        return;
      default:
        assertNever(outcome);
    }
  }

  #admit(connection: Connection, applicant: Applicant, now: Instant): void {
    const { store, identity, unixMs } = this.#options;
    let admission: ReturnType<typeof admit>;
    try {
      admission = admit(store, identity, applicant, unixMs(now));
    } catch (error) {
      // A full disk, say. The agent tries again; nothing was promised to it.
      this.#fail(`Cannot let "${applicant.hello.name}" in`, error);
      return this.#close(connection, CLOSE_INTERNAL, "cannot write the database", now);
    }
    if (admission.type === "refused")
      return this.#refuse(connection, admission.reason, admission.message, now, applicant.hello.name);
    this.#actions.push({ type: "authenticated", connection: connection.id });
    if (admission.type === "pending") {
      connection.stage = { name: "pending", applicant };
      this.#send(connection, { type: "pending", code: admission.code });
      const { id, name } = admission.peer;
      this.#logStranger({ event: "agent_pending", id, name, code: admission.code }, now);
      return;
    }
    this.#join(connection, applicant, admission.peer, admission.isNew, now);
  }

  #join(connection: Connection, applicant: Applicant, peer: PeerRecord, isNew: boolean, now: Instant): void {
    const { instance } = applicant.hello;
    const before = this.#online.get(peer.id);
    const old = before?.stage.name === "joined" ? before.stage.agent : undefined;
    const isSameProcess = old?.instance === instance;
    const tokenId = toBase32(this.#options.random(10));
    const secret = this.#options.random(32);
    const agent = new OnlineAgent(peer.id, instance, tokenId, isSameProcess ? old : undefined, now);
    connection.stage = { name: "joined", agent };
    this.#online.set(peer.id, connection);
    if (before !== undefined) {
      // The same agent on a new connection has roamed; another one with a copy of its state must hear why it is thrown out.
      if (!isSameProcess) this.#send(before, refusal("replaced", "never run two agents on one copied state directory"));
      this.#close(before, isSameProcess ? CLOSE_NORMAL : CLOSE_POLICY, "replaced", now);
    }
    this.#tokens.set(tokenId, peer.id);
    this.#actions.push({ type: "add_token", id: tokenId, secret });

    const { listeners, stun, ssh } = advertised(this.#options.reachable, connection.host);
    this.#send(connection, {
      type: "welcome",
      id: peer.id,
      name: peer.name,
      meshIPv4: peer.meshIPv4,
      meshIPv6: peer.meshIPv6,
      stun,
      stunUsername: tokenId,
      stunSecret: secret,
      listeners,
      ...(ssh === undefined ? {} : { ssh }),
      relayToken: this.#relayTokens.issue(peer.id, now),
    });
    this.#requestClock(connection, agent, now);
    for (const message of this.#peers.messagesFor(peer.id)) this.#send(connection, message);
    this.#peers.put(peer, instance, now);
    if (isNew) this.#actions.push({ type: "rules_changed", peer: peer.id });
    this.#actions.push({ type: "joined", peer: peer.id });
    this.#actions.push({ type: "event", event: { event: "agent_joined", id: peer.id, name: peer.name, isNew } });
  }

  #receiveFrom(connection: Connection, agent: OnlineAgent, plaintext: Uint8Array, now: Instant): void {
    agent.heardAt = now;
    const message = agent.messages.take(now) ? decodeAgentMessage(plaintext) : undefined;
    if (message === undefined) {
      this.#dropped++;
      return;
    }
    switch (message.type) {
      case "clock_reply":
        if (agent.handleClockReply(message, now)) this.#punches.onClockSample(agent.id, now);
        return;
      case "to_peer": {
        const to = this.#reach(agent.id, message.to);
        if (to === undefined) {
          this.#dropped++;
          return;
        }
        // The news that this agent has come may still wait to be sent in one go with others: nobody can answer a stranger.
        const sender = this.#peers.untold(agent.id);
        if (sender !== undefined) this.#send(to, { type: "peers", reset: false, peers: [sender] });
        this.#send(to, {
          type: "from_peer",
          from: agent.id,
          body: message.body,
          attested: agent.observations.addresses(now),
        });
        return;
      }
      case "punch_request":
        if (!agent.punches.take(now) || this.#reach(agent.id, message.peer) === undefined) this.#dropped++;
        else this.#punches.request(agent.id, message.peer, message.round, now);
        return;
      case "punch_fired": {
        const skewMs = this.#punches.fired(agent, message.peer, message.round, message.firedAt);
        if (skewMs === undefined) return;
        const peers = [this.#nameOf(message.peer), this.#nameOf(agent.id)] as const;
        this.#actions.push({ type: "event", event: { event: "punch_signalled", peers, round: message.round, skewMs } });
        return;
      }
      case "block":
        if (agent.blockChanges.take(now)) this.#block(agent.id, message.peers);
        else this.#dropped++;
        return;
      case "ping":
        this.#send(connection, { type: "pong", id: message.id });
        return;
      case "relay_token_request":
        if (agent.relayTokens.take(now))
          this.#send(connection, { type: "relay_token", token: this.#relayTokens.issue(agent.id, now) });
        else this.#dropped++;
        return;
      case "leg_lost":
        this.#actions.push({ type: "leg_lost", peer: agent.id, leg: message.leg });
        return;
      case "leave":
        return this.#close(connection, CLOSE_NORMAL, "left", now);
      default:
        assertNever(message);
    }
  }

  /** The two agents of a punch, if each may reach the other. */
  #sides(a: PeerId, b: PeerId): readonly [OnlineAgent, OnlineAgent] | undefined {
    const one = this.#reach(b, a)?.stage;
    const other = this.#reach(a, b)?.stage;
    return one?.name === "joined" && other?.name === "joined" ? [one.agent, other.agent] : undefined;
  }

  #block(id: PeerId, peers: readonly PeerId[]): void {
    try {
      this.#options.store.transaction(() => this.#options.store.setBlocks(id, peers));
    } catch (error) {
      // It holds as long as we run; the agent sends its list again when it connects again.
      this.#fail(`Cannot keep the block list of "${this.#nameOf(id)}"`, error);
    }
    this.#blocks.set(id, new Set(peers));
    this.#actions.push({ type: "rules_changed", peer: id });
  }

  /** The connection of `to`, if both are members and neither refuses the other. */
  #reach(from: PeerId, to: PeerId): Connection | undefined {
    return this.mayTalk(from, to) ? this.#online.get(to) : undefined;
  }

  #observe(observation: StunObservation, now: Instant): void {
    const id = this.#tokens.get(observation.tokenId);
    const connection = id === undefined ? undefined : this.#online.get(id);
    if (connection?.stage.name !== "joined") return;
    const { agent } = connection.stage;
    if (!agent.observations.add(observation.from, now)) return;
    agent.observedDueAt ??= after(now, OBSERVED_DELAY_MS);
    this.#wake(agent.observedDueAt);
  }

  /** Another process has approved, removed or renamed somebody. */
  #reload(now: Instant): void {
    const { store } = this.#options;
    let approved: PeerRecord[];
    try {
      approved = store.peers("approved");
      this.#blocks = store.blocks();
    } catch (error) {
      return this.#fail("Cannot read the database again", error);
    }
    for (const { id, name } of this.#peers.replace(approved, now)) {
      const connection = this.#online.get(id);
      if (connection !== undefined) this.#refuse(connection, "removed", "Ask for a new key to join again", now, name);
      this.#sendToAll({ type: "peer_removed", id });
    }
    this.#actions.push({ type: "rules_changed" });
    for (const connection of this.#connections.values()) {
      if (connection.stage.name === "pending" && this.#peers.has(connection.stage.applicant.id))
        this.#admit(connection, connection.stage.applicant, now);
    }
  }

  #onTime(now: Instant): void {
    if (this.#peers.dueAt !== undefined && this.#peers.dueAt <= now) this.#sendChangedPeers(now);
    if (this.#wakeAt === undefined || this.#wakeAt > now) return;
    this.#wakeAt = undefined;
    this.#punches.onTime(now);
    for (const connection of this.#connections.values()) {
      const due = this.#onConnectionTime(connection, now);
      if (due !== undefined) this.#wake(due);
    }
  }

  #onConnectionTime(connection: Connection, now: Instant): Instant | undefined {
    const { stage } = connection;
    if (stage.name === "pending") return undefined;
    if (stage.name === "handshaking") {
      if (stage.deadline > now) return stage.deadline;
      this.#close(connection, CLOSE_POLICY, "took too long", now);
      return undefined;
    }
    const { agent } = stage;
    if (after(agent.heardAt, SILENCE_TIMEOUT_MS) <= now) {
      this.#close(connection, CLOSE_POLICY, "silent", now);
      return undefined;
    }
    if (agent.observedDueAt !== undefined && agent.observedDueAt <= now) {
      agent.observedDueAt = undefined;
      this.#send(connection, { type: "observed", addresses: agent.observations.addresses(now) });
    }
    if (agent.nextClockRequestAt <= now) this.#requestClock(connection, agent, now);
    return earliest(agent.nextClockRequestAt, agent.observedDueAt);
  }

  #requestClock(connection: Connection, agent: OnlineAgent, now: Instant): void {
    const id = agent.requestClock(now);
    this.#wake(agent.nextClockRequestAt);
    const { isKnown, rttMs } = agent.clock;
    this.#send(connection, { type: "clock_request", id, ...(isKnown ? { roundTripMs: rttMs } : {}) });
  }

  #sendChangedPeers(now: Instant): void {
    for (const part of this.#peers.takeChanged(now)) {
      const toAll = encodeMessage({ type: "peers", reset: false, peers: part });
      for (const [id, connection] of this.#online) {
        const others = part.filter((entry) => entry.id !== id);
        if (others.length === part.length) this.#sendEncoded(connection, toAll);
        else if (others.length > 0) this.#send(connection, { type: "peers", reset: false, peers: others });
      }
    }
  }

  #refuse(connection: Connection, reason: Refusal, advice: string, now: Instant, name = "an agent"): void {
    const message = refusal(reason, advice);
    this.#send(connection, message);
    this.#logStranger({ event: "agent_refused", name, reason: message.message }, now);
    this.#close(connection, CLOSE_POLICY, reason, now);
  }

  #logStranger(event: LogEvent, now: Instant): void {
    this.#strangerLog ??= new TokenBucket(STRANGER_LOG_RATE, now);
    if (this.#strangerLog.take(now)) this.#actions.push({ type: "event", event });
  }

  #close(connection: Connection, code: number, reason: string, now: Instant): void {
    this.#actions.push({ type: "close", connection: connection.id, code, reason });
    this.#forget(connection, reason, now);
  }

  #forget(connection: Connection, reason: string, now: Instant): void {
    this.#connections.delete(connection.id);
    if (connection.stage.name !== "joined") return;
    const { agent } = connection.stage;
    this.#tokens.delete(agent.tokenId);
    this.#actions.push({ type: "remove_token", id: agent.tokenId });
    if (this.#online.get(agent.id) !== connection) return;
    this.#online.delete(agent.id);
    this.#actions.push({
      type: "event",
      event: { event: "agent_left", id: agent.id, name: this.#nameOf(agent.id), reason },
    });
    const peer = this.#peers.get(agent.id);
    if (peer === undefined) return;
    this.#peers.change(agent.id, now);
    try {
      // From the store and not from memory: another process may have removed it a moment ago.
      const stored = this.#options.store.peer(agent.id);
      if (stored?.state === "approved")
        this.#options.store.putPeer({ ...stored, lastSeenUnixMs: this.#options.unixMs(now) });
    } catch (error) {
      this.#fail(`Cannot keep when "${peer.name}" was last seen`, error);
    }
  }

  #sendToAll(message: CoordinatorMessage): void {
    const bytes = encodeMessage(message);
    for (const connection of this.#online.values()) this.#sendEncoded(connection, bytes);
  }

  #send(connection: Connection, message: CoordinatorMessage): void {
    this.#sendEncoded(connection, encodeMessage(message));
  }

  #sendEncoded(connection: Connection, plaintext: Uint8Array): void {
    this.#actions.push({ type: "send", connection: connection.id, bytes: connection.channel.seal(plaintext) });
  }

  #fail(what: string, error: unknown): void {
    const why = error instanceof Error ? error.message : String(error);
    this.#actions.push({ type: "failed", message: `${what}: ${why}` });
  }

  #nameOf(id: PeerId): string {
    return this.#peers.get(id)?.name ?? id;
  }

  #wake(at: Instant): void {
    this.#wakeAt = earliest(this.#wakeAt, at);
  }
}

/** `advice` is a whole sentence already when it comes from registry/. */
function refusal(reason: Refusal, advice: string): Extract<CoordinatorMessage, { type: "refused" }> {
  const words = REFUSALS[reason];
  const sentence = `${words.charAt(0).toUpperCase()}${words.slice(1)}`;
  const message = advice.startsWith(sentence)
    ? advice
    : `${sentence}; ${advice.charAt(0).toLowerCase()}${advice.slice(1)}`;
  return { type: "refused", reason, message: message.slice(0, 300) };
}
