/** A simulated agent: the real node and the real data plane, on virtual sockets and a clock of its own. */
import { BatchWriter } from "../../shared/batch.ts";
import { packAddress, type TransportAddress, unpackAddress } from "../../shared/address.ts";
import { assertNever } from "../../shared/assert.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { type AgentMessage, PROTOCOL_VERSION, type CoordinatorMessage } from "../../shared/signal/messages.ts";
import { type Instant, instant } from "../../shared/time.ts";
import { DataPlane } from "../../agent/data/data_plane.ts";
import { framesOf } from "../../agent/data/send_batch.ts";
import type { Leg, PlaneReport } from "../../agent/data/plane.ts";
import type { NodeAction, NodeEvent, PeerView } from "../../agent/node/contract.ts";
import { DATA_LEG_IPV4, RELAY_LEGS } from "../../agent/node/legs.ts";
import { challengeTimes } from "../../agent/driver/challenge_times.ts";
import { Node } from "../../agent/node/node.ts";
import type { PunchLimits } from "../../agent/path/punch_plan.ts";
import type { VirtualClock } from "./clock.ts";
import { START_UNIX_MS } from "./coordinator.ts";
import type { AgentKeys } from "./keys.ts";
import type { Host, Network, Site } from "./network.ts";
import type { SeededRandom } from "./random.ts";
import { type RelayEndpoint, RelayLinks } from "./relay_link.ts";
import { type SignalEndpoint, SignalLink } from "./signal_link.ts";

/** Of the first process. Each further one gets another from its kernel, as without `--udp-port`. */
const FIRST_DATA_PORT = 41_641;
const FIRST_TEST_PORT = 50_000;
const LAST_TEST_PORT = 59_999;

export interface TimedEvent {
  readonly at: number;
  readonly event: NodeEvent;
}

/** What an agent needs of its world. */
export interface AgentWorld {
  readonly clock: VirtualClock;
  readonly network: Network;
  readonly random: SeededRandom;
  readonly endpoint: SignalEndpoint;
  readonly fingerprint: string;
  readonly joinKey: string;
  /** Undefined: a world without relays. */
  readonly relays: RelayEndpoint | undefined;
}

export class SimAgent {
  readonly name: string;
  readonly host: Host;
  readonly keys: AgentKeys;
  readonly id: PeerId;
  readonly events: TimedEvent[] = [];
  readonly received: Uint8Array[] = [];
  /** Sees what this agent says to the coordinator, before the channel to it is sealed, and stream frames that peers have sent. */
  onSignal: ((message: AgentMessage) => void) | undefined;
  onStreamFrames: ((batch: Uint8Array) => void) | undefined;
  readonly pinned = new Map<string, PeerId>();
  readonly blocked = new Set<string>();
  /** When this agent really began each round, in virtual time. */
  readonly firedAt: number[] = [];
  /** Mesh addresses, and when each `welcome` came. */
  meshIPv4 = "";
  /** As its operator wants them, from the next start on. */
  punchLimits: PunchLimits | undefined;
  joinedAt: number | undefined;
  node!: Node;
  plane!: DataPlane;
  readonly #world: AgentWorld;
  readonly #clock: VirtualClock;
  /** This agent's clock: another origin and another speed than everybody else's. */
  readonly #clockOffsetMs: number;
  readonly #clockRate: number;
  readonly #legs = new Map<Leg, number>();
  readonly #directTo = new Set<PeerId>();
  #link!: SignalLink;
  #relays: RelayLinks | undefined;
  #instance = 0;
  #testPort = FIRST_TEST_PORT;
  #reports: PlaneReport[] = [];
  #isBusy = false;
  /** Virtual time of the armed timer, and the deadline on our own clock that it stands for. */
  #armedFor: number | undefined;
  #latest = 0;
  #isRunning = false;
  #isAsleep = false;
  #timestamp = START_UNIX_MS;
  readonly #greatest = new Map<PeerId, number>();

  constructor(name: string, host: Host, keys: AgentKeys, world: AgentWorld) {
    this.name = name;
    this.host = host;
    this.keys = keys;
    this.id = keys.id;
    this.#world = world;
    this.#clock = world.clock;
    this.#clockOffsetMs = world.random.between(0, 1_000_000);
    // Crystals are good to about 50 parts in a million.
    this.#clockRate = 1 + world.random.between(-50, 50) / 1e6;
  }

  /** On this agent's own clock. It never goes back, although the two conversions round. */
  get now(): Instant {
    this.#latest = Math.max(this.#latest, this.#clockOffsetMs + this.#clock.now * this.#clockRate);
    return instant(this.#latest);
  }

  get isJoined(): boolean {
    return this.joinedAt !== undefined;
  }

  /** Starts the process. */
  start(): void {
    this.#instance++;
    this.#isRunning = true;
    this.#armedFor = undefined;
    this.#reports = [];
    this.joinedAt = undefined;
    this.plane = this.#newPlane();
    this.node = this.#newNode();
    this.#link = this.#newLink();
    this.#relays = this.#newRelays();
    const dataPort = FIRST_DATA_PORT + this.#instance - 1;
    this.#openLeg(DATA_LEG_IPV4, dataPort);
    const prefixLength = this.host.site === undefined || this.host.ip === this.host.publicIp ? 32 : 24;
    this.#run(() => {
      this.node.handleDataLegs(dataPort, undefined, this.now);
      this.node.handleInterfaces([{ ip: this.host.ip, prefixLength }], this.now);
    });
    this.#link.start();
  }

  /** Kills the process. Keys, pins and timestamps are on the disk. */
  stop(): void {
    this.#isRunning = false;
    this.host.sockets.clear();
    this.#legs.clear();
    this.#directTo.clear();
    this.#link.stop();
    this.#relays?.stop();
  }

  restart(): void {
    this.stop();
    this.start();
  }

  /** The way to the coordinator forgets all TCP connections. */
  loseSignalling(): void {
    this.#link.blackhole();
    this.#relays?.blackhole();
  }

  /** The connections to the coordinator may have died: as `#challenge` in mesh_agent.ts. */
  challenge(): void {
    const times = challengeTimes(this.host.delay.upMs + this.host.delay.downMs);
    this.#link.challenge(times);
    this.#relays?.challenge(times.timeoutMs);
  }

  /** Carried to a network where nobody else is: the old connections are dead, and the driver sees that their address is gone. */
  moveTo(site: Site): void {
    const ip = `${site.lanPrefix}10`;
    this.#world.network.readdress(this.host, () => {
      this.host.ip = ip;
      this.host.site = site;
    });
    this.loseSignalling();
    this.#link.reopen();
    this.#relays?.challenge(0);
    this.#run(() => this.node.handleInterfaces([{ ip, prefixLength: 24 }], this.now));
  }

  /** The lid closes: the clock goes on, timers do not fire. */
  sleep(): void {
    this.#isAsleep = true;
  }

  wake(): void {
    this.#isAsleep = false;
    this.#timeout();
  }

  do(action: (node: Node, now: Instant) => void): void {
    this.#run(() => action(this.node, this.now));
  }

  /** An IP packet from this machine's network stack. */
  sendPacket(packet: Uint8Array): void {
    this.#run(() => this.plane.handlePacket(packet, this.now));
  }

  /** A stream frame of a program of this machine. */
  sendStreamFrame(peer: PeerId, frame: Uint8Array): void {
    const slot = this.node.slotOf(peer);
    const batch = new BatchWriter(frame.length);
    batch.push(frame);
    if (slot !== undefined) {
      this.#run(() => this.plane.handleCommand({ type: "send_streams", peer: slot, batch: batch.take() }, this.now));
    }
  }

  isDirectTo(peer: PeerId): boolean {
    return this.#directTo.has(peer);
  }

  view(peer: PeerId): PeerView | undefined {
    return this.node.peers(this.now).find((view) => view.id === peer);
  }

  /** Sockets that paths may use: not those that tests of the NAT have open for a while. */
  get pathSockets(): number {
    return [...this.#legs.keys()].filter((leg) => leg <= DATA_LEG_IPV4).length;
  }

  /** Datagrams that this machine has sent to an ip. */
  sentTo(ip: string): number {
    return this.host.sentTo.get(ip) ?? 0;
  }

  #newPlane(): DataPlane {
    return new DataPlane({
      transmit: (leg, to, bytes, frameBytes) => {
        const port = this.#legs.get(leg);
        if (port === undefined) return 0;
        for (const frame of framesOf(bytes, frameBytes)) {
          this.#world.network.send(this.host, port, unpackAddress(to), frame.slice());
        }
        return 0;
      },
      deliver: (packet) => this.received.push(packet.slice()),
      report: (report) => this.#reports.push(report),
    });
  }

  #newRelays(): RelayLinks | undefined {
    const { clock, network, random, relays } = this.#world;
    if (relays === undefined) return undefined;
    const links: RelayLinks = new RelayLinks({
      clock,
      network,
      random,
      host: this.host,
      endpoint: relays,
      id: this.id,
      isSignalling: () => this.#link.isOpen,
      tellLost: (leg) => this.#link.send({ type: "leg_lost", leg }),
      isWanted: (kind) => this.node.wantsRelay(kind, this.now),
      onState: (kind, isUp) => {
        if (this.#relays === links && this.#isRunning)
          this.#later(() => this.node.handleRelayState(kind, isUp, this.now));
      },
      onFrame: (kind, peer, frame) => {
        const from = this.node.relaySource(peer);
        if (from === undefined || this.#relays !== links) return;
        this.#run(() =>
          this.plane.handleCommand({ type: "receive_frames", leg: RELAY_LEGS[kind], from, frames: [frame] }, this.now),
        );
      },
    });
    return links;
  }

  /** Not within another input. */
  #later(input: () => void): void {
    if (this.#isBusy) this.#clock.after(0, () => this.#isRunning && this.#run(input));
    else this.#run(input);
  }

  #newNode(): Node {
    const { random } = this.#world;
    return new Node({
      id: this.id,
      staticKey: this.keys.sessionKey,
      environment: {
        random: (bytes) => random.bytes(bytes),
        timestamp: () => ++this.#timestamp,
        greatestTimestamp: (id) => this.#greatest.get(id) ?? 0,
        rememberTimestamp: (id, timestamp) => this.#greatest.set(id, timestamp),
        wallClockUnixMs: () => START_UNIX_MS + this.#clock.now,
      },
      trust: {
        check: (name, id) => {
          if (this.blocked.has(name)) return "blocked";
          const pinned = this.pinned.get(name);
          return pinned === undefined ? "new" : pinned === id ? "pinned" : "changed";
        },
        pin: (name, id) => this.pinned.set(name, id),
      },
      useDirect: true,
      ...(this.punchLimits === undefined ? {} : { punchLimits: this.punchLimits }),
      allowLoopback: false,
      isMeshAddress: (ip) => ip.startsWith("100.96."),
    });
  }

  #newLink(): SignalLink {
    const { clock, network, random, endpoint, fingerprint, joinKey } = this.#world;
    const { sessionKey, identity, signature } = this.keys;
    const link: SignalLink = new SignalLink({
      clock,
      network,
      random,
      host: this.host,
      endpoint,
      sessionKey,
      fingerprint,
      hello: {
        version: PROTOCOL_VERSION,
        features: 0,
        identity: identity.publicKey,
        signature,
        name: this.name,
        nameIsExplicit: true,
        key: joinKey,
        software: "simulator",
        instance: this.#instance,
      },
      now: () => this.now,
      onMessage: (message) => this.#onSignal(message),
      areOthersSilent: () => this.#relays?.areSilent === true,
      onLost: () => {
        if (this.#link !== link || !this.#isRunning) return;
        this.#relays?.reopen();
        this.#later(() => this.node.handleSignalState(false, this.now));
      },
    });
    return link;
  }

  /** As mesh_agent.ts: the node hears of a connection with `welcome`. */
  #onSignal(message: CoordinatorMessage): void {
    this.#run(() => {
      if (message.type === "welcome") {
        this.joinedAt ??= this.#clock.now;
        this.meshIPv4 = message.meshIPv4;
        this.node.handleSignalState(true, this.now);
      }
      this.node.handleSignal(message, this.now);
    });
    if (message.type === "welcome") this.#relays?.connectAll();
  }

  /** As a kernel that hands out ephemeral ports. */
  #freePort(): number {
    do this.#testPort = this.#testPort === LAST_TEST_PORT ? FIRST_TEST_PORT : this.#testPort + 1;
    while (this.host.sockets.has(this.#testPort));
    return this.#testPort;
  }

  #openLeg(leg: Leg, port: number): void {
    this.#legs.set(leg, port);
    this.host.sockets.set(port, (bytes: Uint8Array, from: TransportAddress) => {
      this.#run(() => this.plane.handleDatagram(leg, packAddress(from), bytes, this.now));
    });
  }

  /** One input, then everything that follows from it, then one timer: the same discipline as the driver's. */
  #run(input: () => void): void {
    if (this.#isBusy) throw new Error("Two inputs without a drain between them");
    this.#isBusy = true;
    input();
    for (;;) {
      if (this.#reports.length > 0) {
        const reports = this.#reports;
        this.#reports = [];
        for (const report of reports) {
          if (report.type === "stream_frames") this.onStreamFrames?.(report.batch);
          this.node.handleReport(report, this.now);
        }
      }
      const action = this.node.poll();
      if (action !== undefined) this.#perform(action);
      else if (this.#reports.length === 0) break;
    }
    this.#isBusy = false;
    this.#arm();
  }

  #perform(action: NodeAction): void {
    switch (action.type) {
      case "signal":
        if (action.message.type === "punch_fired") this.firedAt.push(this.#clock.now);
        this.onSignal?.(action.message);
        this.#link.send(action.message);
        break;
      case "plane":
        this.plane.handleCommand(action.command, this.now);
        break;
      case "open_leg":
        this.#openLeg(action.leg, this.#freePort());
        break;
      case "close_leg":
        this.host.sockets.delete(this.#legs.get(action.leg) ?? 0);
        this.#legs.delete(action.leg);
        break;
      case "relay_open":
        this.#relays?.bind(action.kind, action.peer);
        break;
      case "relay_close":
        // As relays.ts: a WebSocket has no channels to close.
        if (action.kind === "ssh") this.#relays?.unbind(action.kind, action.peer);
        break;
      case "relay_send":
        this.#relays?.send(action.kind, action.peer, action.frames);
        break;
      case "event":
        this.events.push({ at: this.#clock.now, event: action.event });
        if (action.event.type === "path_suspect") this.challenge();
        if (action.event.type !== "path_changed") break;
        if (action.event.from === "direct" && action.event.to !== "direct") this.challenge();
        if (action.event.to !== "direct") this.#directTo.delete(action.event.id);
        else this.#directTo.add(action.event.id);
        break;
      default:
        assertNever(action);
    }
  }

  #arm(): void {
    const node = this.node.deadline();
    const plane = this.plane.deadline();
    const deadline = node === undefined ? plane : plane === undefined ? node : Math.min(node, plane);
    if (deadline === undefined) return;
    const at = Math.max(this.#clock.now, (deadline - this.#clockOffsetMs) / this.#clockRate);
    if (this.#armedFor !== undefined && this.#armedFor <= at) return;
    this.#armedFor = at;
    const armedNode = this.node;
    this.#clock.after(at - this.#clock.now, () => {
      if (!this.#isRunning || armedNode !== this.node || this.#armedFor !== at) return;
      this.#armedFor = undefined;
      // The way to virtual time and back rounds: without this the machine might be woken a hair too early, for ever.
      this.#latest = Math.max(this.#latest, Math.min(deadline, this.now + 1e-3));
      if (!this.#isAsleep) this.#timeout();
    });
  }

  #timeout(): void {
    this.#run(() => {
      this.plane.handleTimeout(this.now);
      this.node.handleTimeout(this.now);
    });
  }
}
