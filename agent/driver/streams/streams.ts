/**
 * Everything about streams in a running agent: the driver, what is open to peers, the forwards and proxy ports that the user asked for, and
 * the door for `nc`.
 */
import { randomInt } from "node:crypto";
import { type BenchOptions, streamSocketPath } from "../../local/contract.ts";
import type { PeerId } from "../../../shared/session/identity.ts";
import type { PlaneReport } from "../../data/plane.ts";
import type { NodeEvent } from "../../node/contract.ts";
import type { MeshAgent } from "../mesh_agent.ts";
import type { ForwardSpec, ListenSpec } from "../../state/forward_spec.ts";
import type { BenchTotal } from "../../overlay/bench_message.ts";
import { runBench, serveBench } from "./bench.ts";
import { DatagramFlows } from "./datagram_flows.ts";
import { exposedAddress, serveExposedPorts } from "./exposed_ports.ts";
import type { PeerStreams } from "./peer_streams.ts";
import { startForward } from "./port_forward.ts";
import { startProxy } from "./proxy_port.ts";
import { openStreamDoor, type StreamDoor } from "./stream_door.ts";
import { StreamDriver } from "./stream_driver.ts";
import type { Listening } from "./tcp_listener.ts";
import { TurnedConnections } from "./turned_connections.ts";
import { startUdpForward } from "./udp_forward.ts";

export class Streams {
  readonly #agent: MeshAgent;
  readonly #peers: PeerStreams;
  readonly #flows: DatagramFlows;
  readonly #turned: TurnedConnections;
  readonly #listening = new Set<Listening>();
  #door: StreamDoor | undefined;

  private constructor(agent: MeshAgent) {
    const { config } = agent;
    const driver = new StreamDriver({
      now: () => agent.now(),
      newInstance: () => randomInt(1, 2 ** 32),
      send: (peer, batch) => {
        const slot = agent.node.slotOf(peer);
        if (slot !== undefined) agent.sendPlane({ type: "send_streams", peer: slot, batch });
      },
      use: (peer) => agent.use(peer),
    });
    this.#agent = agent;
    this.#peers = { driver, peers: () => agent.peers() };
    const policy = {
      exposed: config.expose,
      meshAddress: () => (agent.self.tun === undefined ? undefined : agent.self.meshIPv4),
    };
    serveExposedPorts({ driver, ...policy, log: config.log });
    serveBench(driver);
    this.#flows = new DatagramFlows(driver, (port) => exposedAddress(policy, port));
    agent.streams = this;
    this.#turned = new TurnedConnections(agent, driver);
  }

  /** Listens on everything that the command line asked for. Throws UserError 1 when something cannot be had. */
  static async start(agent: MeshAgent): Promise<Streams> {
    const streams = new Streams(agent);
    try {
      for (const spec of agent.config.forwards) {
        const { address } = await streams.forward(spec);
        agent.config.log.info(`Forwarding ${spec.protocol} ${address} to port ${spec.peerPort} of "${spec.peer}"`);
      }
      for (const spec of agent.config.socks) {
        agent.config.log.info(`SOCKS5 and HTTP CONNECT on ${streams.proxy(spec).address}`);
      }
      streams.#door = await openStreamDoor(streams.#peers, streamSocketPath(agent.config.socketPath));
    } catch (error) {
      streams.stop();
      throw error;
    }
    return streams;
  }

  handleReport(peer: PeerId, report: Extract<PlaneReport, { type: "stream_frames" | "turned" }>): void {
    if (report.type === "turned") this.#turned.handleTurned(peer, report);
    else this.#peers.driver.handleFrames(peer, report.batch);
  }

  handleNodeEvent(event: NodeEvent): void {
    this.#peers.driver.handleNodeEvent(event);
  }

  async forward(spec: ForwardSpec): Promise<Listening> {
    const { log } = this.#agent.config;
    return this.#keep(
      spec.protocol === "udp"
        ? await startUdpForward(this.#peers, this.#flows, spec)
        : startForward(this.#peers, spec, log),
    );
  }

  bench(
    peer: string,
    options: BenchOptions,
    onProgress: (total: BenchTotal) => void,
    signal: AbortSignal,
  ): Promise<BenchTotal> {
    return runBench(this.#peers, peer, options, onProgress, signal);
  }

  proxy(spec: ListenSpec): Listening {
    return this.#keep(startProxy(this.#peers, spec, this.#agent.config.log));
  }

  stop(): void {
    this.#door?.stop();
    for (const listening of this.#listening) listening.stop(false);
    this.#peers.driver.stop();
    for (const listening of this.#listening) listening.stop(true);
    this.#flows.stop();
    this.#turned.stop();
  }

  #keep(listening: Listening): Listening {
    this.#listening.add(listening);
    return {
      address: listening.address,
      stop: (withConnections) => {
        this.#listening.delete(listening);
        listening.stop(withConnections);
      },
    };
  }
}
