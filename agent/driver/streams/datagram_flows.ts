/**
 * Datagrams between peers and this machine: flows that programs here began, and flows of peers to ports that are open to them, each with a
 * socket of its own, so that the answers find their way back.
 */
import type { PeerId } from "../../../shared/session/identity.ts";
import type { StreamId } from "../../overlay/contract.ts";
import type { StreamDriver } from "./stream_driver.ts";

/** Flows of one peer to ports of this machine, and how long a quiet one lives. */
const MAX_FLOWS_PER_PEER = 256;
const FLOW_IDLE_MS = 120_000;
/** The first datagrams of a flow wait until its socket is there: a question to a DNS server is one datagram. */
const MAX_WAITING = 16;

interface PeerFlow {
  socket: Bun.udp.ConnectedSocket<"uint8array"> | undefined;
  waiting: Uint8Array[];
  usedAt: number;
  isClosed: boolean;
}

export class DatagramFlows {
  readonly #driver: StreamDriver;
  readonly #addressOf: (port: number) => string | undefined;
  readonly #own = new Map<PeerId, Map<StreamId, (bytes: Uint8Array) => void>>();
  readonly #peers = new Map<PeerId, Map<string, PeerFlow>>();
  #nextFlow = 0;

  /** @param addressOf where on this machine a port leads; undefined: it is not open */
  constructor(driver: StreamDriver, addressOf: (port: number) => string | undefined) {
    this.#driver = driver;
    this.#addressOf = addressOf;
    driver.onDatagram = (peer, flow, port, bytes) => this.#receive(peer, flow, port, bytes);
  }

  /** A flow of a program here; `answered` gets what comes back. */
  open(peer: PeerId, answered: (bytes: Uint8Array) => void): StreamId {
    const flow = (this.#nextFlow++ % 2 ** 31) * 2 + 1;
    let flows = this.#own.get(peer);
    if (flows === undefined) {
      flows = new Map();
      this.#own.set(peer, flows);
    }
    flows.set(flow, answered);
    return flow;
  }

  close(peer: PeerId, flow: StreamId): void {
    this.#own.get(peer)?.delete(flow);
  }

  stop(): void {
    for (const flows of this.#peers.values()) for (const flow of flows.values()) closeFlow(flow);
    this.#peers.clear();
    this.#own.clear();
  }

  #receive(peer: PeerId, flow: StreamId, port: number, bytes: Uint8Array): void {
    if ((flow & 1) === 1) {
      this.#own.get(peer)?.get(flow)?.(bytes);
      return;
    }
    const address = this.#addressOf(port);
    if (address === undefined) return;
    const found = this.#flowOf(peer, flow, port, address);
    found.usedAt = this.#driver.now();
    if (found.socket !== undefined) found.socket.send(bytes);
    else if (!found.isClosed && found.waiting.length < MAX_WAITING) found.waiting.push(bytes.slice());
  }

  #flowOf(peer: PeerId, flow: StreamId, port: number, address: string): PeerFlow {
    let flows = this.#peers.get(peer);
    if (flows === undefined) {
      flows = new Map();
      this.#peers.set(peer, flows);
    }
    const key = `${flow} ${port}`;
    const known = flows.get(key);
    flows.delete(key);
    const now = this.#driver.now();
    for (const [other, { usedAt }] of flows) {
      if (flows.size < MAX_FLOWS_PER_PEER && now - usedAt < FLOW_IDLE_MS) break;
      const oldest = flows.get(other);
      flows.delete(other);
      if (oldest !== undefined) closeFlow(oldest);
    }
    const found = known ?? { socket: undefined, waiting: [], usedAt: now, isClosed: false };
    // The oldest come first in the map.
    flows.set(key, found);
    if (known === undefined) void this.#connect(found, peer, flow, port, address);
    return found;
  }

  /** Never rejects: without a socket the flow carries nothing. */
  async #connect(found: PeerFlow, peer: PeerId, flow: StreamId, port: number, address: string): Promise<void> {
    try {
      const socket = await Bun.udpSocket({
        connect: { hostname: address, port },
        binaryType: "uint8array",
        socket: {
          data: (_socket, bytes) => {
            found.usedAt = this.#driver.now();
            this.#driver.sendDatagram(peer, flow, port, bytes);
          },
          error: () => {},
        },
      });
      if (found.isClosed) socket.close();
      else {
        found.socket = socket;
        for (const bytes of found.waiting) socket.send(bytes);
      }
    } catch {
      found.isClosed = true;
    }
    found.waiting = [];
  }
}

function closeFlow(flow: PeerFlow): void {
  flow.isClosed = true;
  flow.socket?.close();
}
