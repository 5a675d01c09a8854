/**
 * Connections of programs on a machine with a network device to peers without one. The data path turns their packets round to a listener here
 * (agent/data/turnaround.ts); this file opens a stream for each, and lets the connection through once the peer has taken it.
 *
 * The listener is on our own mesh addresses. Other machines could reach it, so it takes only connections that were announced.
 */
import type { PeerId } from "../../../shared/session/identity.ts";
import { canonicalIp } from "../../../shared/address.ts";
import type { PlaneReport } from "../../data/plane.ts";
import type { MeshAgent } from "../mesh_agent.ts";
import { SOCKET_STREAM_HANDLERS, SocketStream } from "./socket_stream.ts";
import type { StreamDriver } from "./stream_driver.ts";
import { type Listening, listenTcp } from "./tcp_listener.ts";

type Turned = Extract<PlaneReport, { type: "turned" }>;

/** A program that has given up meanwhile does not answer: then nobody connects. */
const CONNECT_TIMEOUT_MS = 10_000;
/** Ports stay known while the kernel may repeat the end of a connection (its TIME_WAIT is 60 s). */
const FORGET_MS = 60_000;

export class TurnedConnections {
  readonly #agent: MeshAgent;
  readonly #driver: StreamDriver;
  /** Admitted and not yet connected, by the address and port that the listener will see. */
  readonly #expected = new Map<string, SocketStream>();
  readonly #timers = new Set<ReturnType<typeof setTimeout>>();
  #listening: readonly Listening[] = [];
  #tun: string | undefined;
  readonly #stopListening: () => void;

  constructor(agent: MeshAgent, driver: StreamDriver) {
    this.#agent = agent;
    this.#driver = driver;
    this.#stopListening = agent.listen(() => this.#onStep());
  }

  stop(): void {
    this.#stopListening();
    for (const timer of this.#timers) clearTimeout(timer);
    for (const listening of this.#listening) listening.stop(true);
    this.#listening = [];
  }

  /** Listens as long as there is a network device. */
  #onStep(): void {
    const { tun, meshIPv4, meshIPv6 } = this.#agent.self;
    if (tun === this.#tun) return;
    this.#tun = tun;
    for (const listening of this.#listening) listening.stop(true);
    const ports = [meshIPv4, meshIPv6].map((address) => (tun === undefined ? undefined : this.#listen(address)));
    this.#agent.sendPlane({ type: "turn_listeners", ipv4: ports[0], ipv6: ports[1] });
  }

  #listen(address: string | undefined): number | undefined {
    if (address === undefined) return undefined;
    try {
      const listening = listenTcp<SocketStream>(address, 0, "connections to rootless peers", {
        ...SOCKET_STREAM_HANDLERS,
        opened: (socket) => {
          const key = keyOf(socket.remoteAddress, socket.remotePort);
          const pump = this.#expected.get(key);
          this.#expected.delete(key);
          if (pump === undefined) {
            socket.terminate();
            return;
          }
          socket.data = pump;
          pump.setSocket(socket);
        },
      });
      this.#listening = [...this.#listening, listening];
      return Number(listening.address.slice(listening.address.lastIndexOf(":") + 1));
    } catch (error) {
      this.#agent.config.log.warn(error instanceof Error ? error.message : String(error));
      return undefined;
    }
  }

  /** A program here connects to a rootless peer. */
  handleTurned(peer: PeerId, { flow, port, alias, family }: Turned): void {
    const entry = this.#agent.peer(peer)?.entry;
    const key = keyOf(family === 4 ? entry?.meshIPv4 : entry?.meshIPv6, alias);
    let isAdmitted = false;
    const pump = new SocketStream({
      accepted: () => {
        isAdmitted = true;
        this.#expected.set(key, pump);
        this.#agent.sendPlane({ type: "turn", flow, verdict: "admit" });
        this.#later(CONNECT_TIMEOUT_MS, () => {
          if (this.#expected.get(key) !== pump) return;
          this.#expected.delete(key);
          pump.handleSocketClose(new Error("nobody connected"));
        });
      },
      over: () => {
        if (!isAdmitted) this.#agent.sendPlane({ type: "turn", flow, verdict: "refuse" });
        else this.#later(FORGET_MS, () => this.#agent.sendPlane({ type: "turn", flow, verdict: "drop" }));
      },
    });
    const stream = this.#driver.open(peer, port, (handle) => {
      pump.setStream(handle);
      return pump;
    });
    if (stream === undefined) pump.giveUp();
  }

  #later(milliseconds: number, action: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      action();
    }, milliseconds);
    this.#timers.add(timer);
  }
}

const keyOf = (address: string | undefined, port: number): string => `${canonicalIp(address ?? "") ?? ""} ${port}`;
