/** A simulated agent: the real node and the real data plane, on virtual sockets and a clock of its own. */
import { packAddress, unpackAddress } from "../../shared/address.ts";
import { type PeerId, peerIdOf, signSessionKey } from "../../shared/session/identity.ts";
import { Ed25519Key, X25519Key } from "../../shared/session/primitives.ts";
import type { AgentMessage, CoordinatorMessage } from "../../shared/signal/messages.ts";
import { type Instant, instant } from "../../shared/time.ts";
import { DataPlane } from "../../agent/data/data_plane.ts";
import type { Leg, PlaneReport } from "../../agent/data/plane.ts";
import type { NodeEvent } from "../../agent/node/contract.ts";
import { DATA_LEG_IPV4, Node } from "../../agent/node/node.ts";
import type { VirtualClock } from "./clock.ts";
import type { Host, Network } from "./network.ts";
import type { SeededRandom } from "./random.ts";

const DATA_PORT = 41_641;

export interface TimedEvent {
  readonly at: number;
  readonly event: NodeEvent;
}

export class SimAgent {
  readonly name: string;
  readonly host: Host;
  readonly identity: Ed25519Key;
  readonly sessionKey: X25519Key;
  readonly id: PeerId;
  readonly events: TimedEvent[] = [];
  readonly received: Uint8Array[] = [];
  readonly pinned = new Map<string, PeerId>();
  /** Where this agent's signalling goes; set by the coordinator. */
  sendSignal: (message: AgentMessage) => void = () => {};
  instance = 1;
  node!: Node;
  plane!: DataPlane;
  readonly #clock: VirtualClock;
  readonly #network: Network;
  readonly #random: SeededRandom;
  /** This agent's clock minus the virtual one: nobody shares a monotonic origin. */
  readonly clockOffsetMs: number;
  readonly #legs = new Map<Leg, number>();
  #reports: PlaneReport[] = [];
  #isBusy = false;
  #armedFor: number | undefined;
  #generation = 0;
  #timestamp = 1_700_000_000_000;
  readonly #greatest = new Map<PeerId, number>();

  constructor(name: string, host: Host, clock: VirtualClock, network: Network, random: SeededRandom) {
    this.name = name;
    this.host = host;
    this.#clock = clock;
    this.#network = network;
    this.#random = random;
    this.clockOffsetMs = random.between(0, 1_000_000);
    this.identity = new Ed25519Key(random.bytes(32));
    this.sessionKey = new X25519Key(random.bytes(32));
    this.id = peerIdOf(this.identity.publicKey);
    this.#boot();
  }

  get now(): Instant {
    return instant(this.#clock.now + this.clockOffsetMs);
  }

  get signature(): Uint8Array {
    return signSessionKey(this.identity, this.sessionKey.publicKey);
  }

  /** Loses everything but keys, pins and timestamps, as a process that is started again. */
  restart(): void {
    this.instance++;
    this.host.sockets.clear();
    this.#legs.clear();
    this.#boot();
  }

  handleSignal(message: CoordinatorMessage): void {
    this.#run(() => this.node.handleSignal(message, this.now));
  }

  handleSignalState(connected: boolean): void {
    this.#run(() => this.node.handleSignalState(connected, this.now));
  }

  do(action: (node: Node, now: Instant) => void): void {
    this.#run(() => action(this.node, this.now));
  }

  /** An IP packet from this machine's network stack. */
  sendPacket(packet: Uint8Array): void {
    this.#run(() => this.plane.handlePacket(packet, this.now));
  }

  /** Virtual time of the first event that fits. */
  when(fits: (event: NodeEvent) => boolean): number | undefined {
    return this.events.find(({ event }) => fits(event))?.at;
  }

  isDirectTo(peer: PeerId): boolean {
    return this.node.peers(this.now).some((view) => view.id === peer && view.pair !== undefined);
  }

  #boot(): void {
    this.#generation++;
    this.#armedFor = undefined;
    this.plane = new DataPlane({
      transmit: (leg, to, bytes) => {
        const port = this.#legs.get(leg);
        if (port !== undefined) this.#network.send(this.host, port, unpackAddress(to), bytes.slice());
        return 0;
      },
      deliver: (packet) => this.received.push(packet.slice()),
      report: (report) => this.#reports.push(report),
    });
    this.node = new Node({
      id: this.id,
      staticKey: this.sessionKey,
      environment: {
        random: (bytes) => this.#random.bytes(bytes),
        timestamp: () => ++this.#timestamp,
        greatestTimestamp: (id) => this.#greatest.get(id) ?? 0,
        rememberTimestamp: (id, timestamp) => this.#greatest.set(id, timestamp),
        wallClockUnixMs: () => 1_700_000_000_000 + this.#clock.now,
      },
      trust: {
        check: (name, id) => {
          const pinned = this.pinned.get(name);
          return pinned === undefined ? "new" : pinned === id ? "pinned" : "changed";
        },
        pin: (name, id) => this.pinned.set(name, id),
      },
      useDirect: true,
      allowLoopback: false,
      isMeshAddress: (ip) => ip.startsWith("100.96."),
    });
    this.#openLeg(DATA_LEG_IPV4, DATA_PORT);
    this.#run(() => {
      this.node.handleDataLegs(DATA_PORT, undefined, this.now);
      this.node.handleInterfaces(
        [{ ip: this.host.ip, prefixLength: this.host.site?.nat === undefined ? 32 : 24 }],
        this.now,
      );
    });
  }

  #openLeg(leg: Leg, port: number): void {
    this.#legs.set(leg, port);
    this.host.sockets.set(port, (bytes, from) => {
      this.#run(() => this.plane.handleDatagram(leg, packAddress(from), bytes, this.now));
    });
  }

  /** One input, then everything that follows from it, then one timer: the same discipline as the driver's. */
  #run(input: () => void): void {
    if (this.#isBusy) throw new Error("Two inputs without a drain between them");
    this.#isBusy = true;
    input();
    for (;;) {
      const reports = this.#reports;
      this.#reports = [];
      for (const report of reports) this.node.handleReport(report, this.now);
      const action = this.node.poll();
      if (action === undefined) {
        if (this.#reports.length > 0) continue;
        break;
      }
      switch (action.type) {
        case "signal":
          this.sendSignal(action.message);
          break;
        case "plane":
          this.plane.handleCommand(action.command, this.now);
          break;
        case "open_leg":
          this.#openLeg(action.leg, 50_000 + (action.leg % 10_000));
          break;
        case "close_leg":
          this.host.sockets.delete(this.#legs.get(action.leg) ?? 0);
          this.#legs.delete(action.leg);
          break;
        case "event":
          this.events.push({ at: this.#clock.now, event: action.event });
          break;
      }
    }
    this.#isBusy = false;
    this.#arm();
  }

  #arm(): void {
    const deadlines = [this.node.deadline(), this.plane.deadline()].filter((at) => at !== undefined);
    if (deadlines.length === 0) return;
    const at = Math.min(...deadlines) - this.clockOffsetMs;
    if (this.#armedFor !== undefined && this.#armedFor <= at) return;
    this.#armedFor = at;
    const generation = this.#generation;
    this.#clock.after(at - this.#clock.now, () => {
      if (generation !== this.#generation || this.#armedFor !== at) return;
      this.#armedFor = undefined;
      this.#run(() => {
        this.plane.handleTimeout(this.now);
        this.node.handleTimeout(this.now);
      });
    });
  }
}
