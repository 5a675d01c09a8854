/** The coordinator in virtual time: the real hub, store and STUN rules, on simulated streams and sockets. */
import { assertNever } from "../../shared/assert.ts";
import { hmacSha256 } from "../../shared/session/primitives.ts";
import type { LogEvent } from "../../coordinator/log.ts";
import { type CoordinatorIdentity, loadIdentity } from "../../coordinator/registry/coordinator_identity.ts";
import { JOIN_KEY_RANDOM_BYTES, newJoinKey } from "../../coordinator/registry/join_key.ts";
import { type RelayAction, RelayHub, type RelayInput } from "../../coordinator/relay/relay_hub.ts";
import { Hub } from "../../coordinator/signalling/hub.ts";
import type { ConnectionId, HubAction, HubInput } from "../../coordinator/signalling/hub_contract.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import type { RelayLeg } from "../../shared/signal/messages.ts";
import { MemoryStore } from "../../coordinator/store/memory_store.ts";
import { StunServer } from "../../coordinator/stun/stun_server.ts";
import type { VirtualClock } from "./clock.ts";
import type { Host, Network } from "./network.ts";
import { SeededRandom } from "./random.ts";
import type { RelayClient, RelayEndpoint } from "./relay_link.ts";
import type { SignalClient, SignalEndpoint } from "./signal_link.ts";

/** More than ever waits: a simulated connection takes everything at once. */
const MAX_TAKEN_BYTES = 10_000_000;
const STUN_PORTS: readonly [number, number] = [3478, 3479];
export const START_UNIX_MS = 1_790_000_000_000;

export class SimCoordinator implements SignalEndpoint, RelayEndpoint {
  readonly store = new MemoryStore();
  readonly identity: CoordinatorIdentity;
  /** A reusable join key. */
  readonly joinKey: string;
  /** Sees every byte that reaches this machine: datagrams, what signalling brings, relayed frames. */
  onReceived: ((bytes: Uint8Array) => void) | undefined;
  readonly events: { readonly at: number; readonly event: LogEvent }[] = [];
  readonly #clock: VirtualClock;
  readonly #random: SeededRandom;
  readonly #hosts: readonly Host[];
  readonly #clients = new Map<ConnectionId, SignalClient>();
  #hub: Hub | undefined;
  #relay: RelayHub | undefined;
  readonly #relayClients = new Map<number, RelayClient>();
  readonly #legOwners = new Map<number, PeerId>();
  /** Sees every frame that comes in by a relay. */
  tap: ((from: PeerId, frame: Uint8Array) => void) | undefined;
  #nextLeg = 1;
  #isRelaying = false;
  #stun: StunServer | undefined;
  #nextConnection: ConnectionId = 1;
  #armedFor: number | undefined;

  constructor(clock: VirtualClock, network: Network, random: SeededRandom, addresses: readonly string[]) {
    this.#clock = clock;
    this.#random = random;
    this.identity = coordinatorIdentity(this.store);
    const key = newJoinKey({
      random: random.bytes(JOIN_KEY_RANDOM_BYTES),
      fingerprint: this.identity.fingerprint,
      nowUnixMs: START_UNIX_MS,
      lifetimeMs: 86_400_000,
      reusable: true,
    });
    this.store.putKey(key.record);
    this.joinKey = key.text;
    this.#hosts = addresses.map((ip) => network.addHost(ip, undefined, { upMs: 0, downMs: 0 }));
    this.#hosts.forEach((host, address) => this.#listen(network, host, address));
    this.start();
  }

  get isUp(): boolean {
    return this.#hub !== undefined;
  }

  /** The process starts: what is in the store is all that it knows. */
  start(): void {
    const addresses = this.#hosts.map(({ ip }) => ({ ip, publicIp: ip }));
    this.#stun = new StunServer({ addresses, ports: STUN_PORTS, hmacSha256, echoKey: this.#random.bytes(32) });
    this.#hub = new Hub({
      identity: this.identity,
      store: this.store,
      reachable: {
        listeners: [],
        stun: addresses.flatMap(({ ip }) => STUN_PORTS.map((port) => ({ ip, port }))),
        publicHost: undefined,
      },
      random: (length) => this.#random.bytes(length),
      unixMs: (now) => START_UNIX_MS + now,
    });
    const hub = this.#hub;
    this.#relay = new RelayHub({ isMember: (id) => hub.isMember(id), mayTalk: (a, b) => hub.mayTalk(a, b) });
  }

  openRelay(peer: PeerId, kind: RelayLeg, client: RelayClient): number {
    const leg = this.#nextLeg++;
    this.#relayClients.set(leg, client);
    this.#legOwners.set(leg, peer);
    this.#relayStep({ type: "leg_opened", leg, peer, kind });
    return leg;
  }

  bindRelay(leg: number, peer: PeerId): void {
    this.#relayStep({ type: "bind", leg, peer });
  }

  releaseRelay(leg: number, peer: PeerId): void {
    this.#relayStep({ type: "release", leg, peer });
  }

  sendRelay(leg: number, frames: readonly { readonly to: PeerId; readonly frame: Uint8Array }[]): void {
    const from = this.#legOwners.get(leg);
    if (from !== undefined) for (const { frame } of frames) this.tap?.(from, frame);
    for (const { frame } of frames) this.onReceived?.(frame);
    this.#relayStep({ type: "frames", leg, frames });
  }

  closeRelay(leg: number): void {
    if (this.#relayClients.delete(leg)) this.#relayStep({ type: "leg_closed", leg });
  }

  /** As relay_service.ts. */
  #relayStep(input: RelayInput): void {
    const relay = this.#relay;
    if (relay === undefined) return;
    relay.handle(input, this.#clock.now);
    if (this.#isRelaying) return;
    this.#isRelaying = true;
    for (let action = relay.poll(); action !== undefined; action = relay.poll()) this.#relayPerform(relay, action);
    this.#isRelaying = false;
  }

  #relayPerform(relay: RelayHub, action: RelayAction): void {
    switch (action.type) {
      case "ready": {
        const client = this.#relayClients.get(action.leg);
        const taken = relay.take(action.leg, this.#clock.now, MAX_TAKEN_BYTES, 0);
        for (const { from, frame } of taken) client?.receive(from, frame);
        break;
      }
      case "close":
        this.#relayClients.get(action.leg)?.closed();
        this.#relayClients.delete(action.leg);
        break;
      case "peer_leg":
        this.#step({ type: "peer_leg", to: action.to, peer: action.peer, leg: action.leg });
        break;
      case "unbound":
        break;
      default:
        assertNever(action);
    }
  }

  /** The process is killed: its kernel closes the connections, STUN falls silent. */
  stop(): void {
    const clients = [...this.#clients.values()];
    this.#clients.clear();
    const relayClients = [...this.#relayClients.values()];
    this.#relayClients.clear();
    this.#hub = undefined;
    this.#stun = undefined;
    this.#relay = undefined;
    for (const client of relayClients) client.closed();
    for (const client of clients) client.closed("coordinator stopped");
  }

  open(client: SignalClient): ConnectionId {
    const connection = this.#nextConnection++;
    this.#clients.set(connection, client);
    this.#step({ type: "opened", connection, source: client.source });
    return connection;
  }

  receive(connection: ConnectionId, bytes: Uint8Array): void {
    this.onReceived?.(bytes);
    if (this.#clients.has(connection)) this.#step({ type: "message", connection, bytes });
  }

  closed(connection: ConnectionId): void {
    if (this.#clients.delete(connection)) this.#step({ type: "closed", connection });
  }

  /** How far apart the two sides of each punch fired, as the coordinator worked it out from their reports. */
  get reportedSkewsMs(): number[] {
    return this.events.flatMap(({ event }) => (event.event === "punch_signalled" ? [event.skewMs] : []));
  }

  /** One input in, every action out, one timer armed. */
  #step(input: HubInput): void {
    const hub = this.#hub;
    if (hub === undefined) return;
    hub.handle(input, this.#clock.now);
    for (let action = hub.poll(); action !== undefined; action = hub.poll()) this.#perform(action);
    this.#arm(hub);
  }

  #perform(action: HubAction): void {
    switch (action.type) {
      case "send":
        this.#clients.get(action.connection)?.receive(action.bytes);
        break;
      case "close": {
        const client = this.#clients.get(action.connection);
        this.#clients.delete(action.connection);
        client?.closed(action.reason);
        break;
      }
      case "authenticated":
        break;
      case "joined":
        this.#relayStep({ type: "agent_joined", peer: action.peer });
        break;
      case "leg_lost":
        this.#relayStep({ type: "leg_lost", peer: action.peer, kind: action.leg });
        break;
      case "rules_changed":
        this.#relayStep({ type: "rules_changed", peer: action.peer });
        break;
      case "add_token":
        this.#stun?.addToken(action.id, action.secret, this.#clock.now);
        break;
      case "remove_token":
        this.#stun?.removeToken(action.id);
        break;
      case "event":
        this.events.push({ at: this.#clock.now, event: action.event });
        break;
      case "failed":
        throw new Error(action.message);
      default:
        assertNever(action);
    }
  }

  #arm(hub: Hub): void {
    const at = hub.deadline();
    if (at === undefined || (this.#armedFor !== undefined && this.#armedFor <= at)) return;
    this.#armedFor = at;
    this.#clock.after(at - this.#clock.now, () => {
      if (this.#armedFor !== at) return;
      this.#armedFor = undefined;
      if (this.#hub === hub) this.#step({ type: "timeout" });
      else if (this.#hub !== undefined) this.#arm(this.#hub);
    });
  }

  #listen(network: Network, host: Host, address: number): void {
    STUN_PORTS.forEach((port, portIndex) => {
      host.sockets.set(port, (bytes, from) => {
        this.onReceived?.(bytes);
        const socket = { address, port: portIndex === 0 ? 0 : 1 } as const;
        const result = this.#stun?.handle(bytes, from, socket, this.#clock.now);
        if (result?.observed !== undefined) this.#step({ type: "observed", observation: result.observed });
        const { reply } = result ?? {};
        const source = reply === undefined ? undefined : this.#hosts[reply.socket.address];
        if (reply !== undefined && source !== undefined) {
          network.send(source, STUN_PORTS[reply.socket.port], reply.to, reply.bytes);
        }
      });
    });
  }
}

let identity: CoordinatorIdentity | undefined;

/** The same coordinator in every world. */
function coordinatorIdentity(store: MemoryStore): CoordinatorIdentity {
  const random = new SeededRandom(77);
  identity ??= loadIdentity(store, { meshIPv4: undefined, meshIPv6: undefined }, (length) => random.bytes(length));
  return identity;
}
