/**
 * UDP sockets inside a lab's namespaces, driven from the test process: what a NAT does, seen from both sides of it.
 *
 * One program per namespace holds the sockets (udp_agent.ts); commands to it are handled in order.
 */
import { fileURLToPath } from "node:url";
import type { TransportAddress } from "../../shared/address.ts";
import type { LabProcess } from "./process.ts";
import type { Machine } from "./topology.ts";

const AGENT = fileURLToPath(new URL("udp_agent.ts", import.meta.url));
const START_MS = 5_000;
/** Longer than any answer in a lab without delay takes, short enough to wait for nothing many times. */
const ANSWER_MS = 1_000;

export interface Datagram {
  readonly from: TransportAddress;
  readonly bytes: Uint8Array;
}

export class UdpProber {
  readonly #machine: Machine;
  readonly #process: LabProcess;
  #opened = 0;

  constructor(machine: Machine) {
    this.#machine = machine;
    this.#process = machine.spawn([process.execPath, AGENT]);
  }

  /** Binds a socket, by default to the machine's first address and a port that the system chooses. */
  async bind(port = 0, address: string = this.#machine.address): Promise<ProbeSocket> {
    const id = this.#opened++;
    this.#command({ op: "bind", socket: id, address, port });
    const bound = await this.#process.waitFor(
      `socket on ${address} port ${port}`,
      (line) => {
        const event = parseEvent(line.text, id);
        if (event?.event === "error") throw new Error(`Cannot bind ${address} port ${port}: ${event.message}`);
        return event?.event === "bound" ? event.port : undefined;
      },
      START_MS,
    );
    return new ProbeSocket(this.#process, id, { ip: address, port: bound }, (command) => this.#command(command));
  }

  #command(command: object): void {
    this.#process.write(`${JSON.stringify(command)}\n`);
  }
}

export class ProbeSocket {
  readonly local: TransportAddress;
  readonly #process: LabProcess;
  readonly #id: number;
  readonly #command: (command: object) => void;

  constructor(process: LabProcess, id: number, local: TransportAddress, command: (command: object) => void) {
    this.#process = process;
    this.#id = id;
    this.local = local;
    this.#command = command;
  }

  send(to: TransportAddress, payload: string | Uint8Array): void {
    this.#command({
      op: "send",
      socket: this.#id,
      address: to.ip,
      port: to.port,
      hex: Buffer.from(payload).toString("hex"),
    });
  }

  /** The first datagram, those already here included, that passes `accept`; undefined when none comes in time. */
  async receive(accept: (datagram: Datagram) => boolean, timeoutMs: number = ANSWER_MS): Promise<Datagram | undefined> {
    try {
      return await this.#process.waitFor(
        "datagram",
        (line) => {
          const datagram = asDatagram(parseEvent(line.text, this.#id));
          return datagram !== undefined && accept(datagram) ? datagram : undefined;
        },
        timeoutMs,
      );
    } catch (error) {
      if (this.#process.running) return undefined;
      throw error;
    }
  }

  /** Who sent `text` here; undefined when it does not arrive. */
  async senderOf(text: string, timeoutMs: number = ANSWER_MS): Promise<TransportAddress | undefined> {
    const datagram = await this.receive(({ bytes }) => Buffer.from(bytes).toString() === text, timeoutMs);
    return datagram?.from;
  }

  close(): void {
    this.#command({ op: "close", socket: this.#id });
  }
}

type AgentEvent =
  | { event: "bound"; socket: number; port: number }
  | { event: "error"; socket: number; message: string }
  | { event: "datagram"; socket: number; address: string; port: number; hex: string };

function parseEvent(text: string, socket: number): AgentEvent | undefined {
  if (!text.startsWith("{")) return undefined;
  const event = JSON.parse(text) as AgentEvent;
  return event.socket === socket ? event : undefined;
}

const asDatagram = (event: AgentEvent | undefined): Datagram | undefined =>
  event?.event === "datagram"
    ? { from: { ip: event.address, port: event.port }, bytes: new Uint8Array(Buffer.from(event.hex, "hex")) }
    : undefined;
