/**
 * Drives the port mapping machine (agent/portmap): a UDP socket to ask the gateway from, two that hear what it announces, one TCP
 * connection at a time for UPnP, and one timer.
 *
 * Nothing here is needed for anything else: every failure means no port mapping, and is logged at debug.
 */
import { randomBytes } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { connect, type Socket as TcpSocket } from "node:net";
import { canonicalIp, formatTransportAddress, isPrivate, type TransportAddress } from "../../shared/address.ts";
import type { Instant } from "../../shared/time.ts";
import type { Log } from "../log.ts";
import { PROTOCOL_NAME } from "../portmap/client.ts";
import { MAX_RESPONSE_BYTES } from "../portmap/http.ts";
import { ANNOUNCEMENT_PORT } from "../portmap/pcp.ts";
import { type Mapping, PortMapping, type PortMappingAction, type PortMappingReport } from "../portmap/port_mapping.ts";
import { SSDP_GROUP, SSDP_PORT } from "../portmap/ssdp.ts";
import { systemReason } from "../state/user_error.ts";
import { sourceAddressFor } from "./linux/interfaces.ts";
import { ipv4Gateway } from "./linux/gateway.ts";

/** A router that takes longer than this for a page of XML will not do it in twice the time. */
const HTTP_TIMEOUT_MS = 3000;
/** Removing the mapping may keep the agent from ending for so long. */
const RELEASE_MS = 300;
/** A datagram leaves within this time. */
const FLUSH_MS = 20;
/** All hosts: NAT-PMP and PCP servers announce themselves there (RFC 6886 §3.2.1, RFC 6887 §14.1.3). */
const ALL_HOSTS = "224.0.0.1";
/** The router is one hop away, and nobody else is meant. */
const MULTICAST_TTL = 1;

export interface PortMapperOptions {
  readonly now: () => Instant;
  readonly log?: Pick<Log, "debug">;
  readonly onChange?: (mapping: Mapping | undefined) => void;
  /** Called whenever something may have become known. */
  readonly onProgress: () => void;
}

export class PortMapper {
  readonly #options: PortMapperOptions;
  readonly #machine = new PortMapping((bytes) => new Uint8Array(randomBytes(bytes)));
  readonly #exchanges = new Set<TcpSocket>();
  #local: string | undefined;
  #sockets: Socket[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #isStopped = false;

  constructor(options: PortMapperOptions) {
    this.#options = options;
  }

  /** Begins, or looks again because the network has changed. @param port undefined only finds out what the gateway speaks */
  async refresh(port: number | undefined): Promise<void> {
    if (this.#isStopped) return;
    const gateway = ipv4Gateway();
    const local = gateway === undefined ? undefined : sourceAddressFor(gateway);
    if (gateway === undefined || local === undefined || local === gateway) {
      this.#step((now) => this.#machine.setTarget(undefined, false, now));
      return;
    }
    if (local !== this.#local) {
      this.#closeSockets();
      this.#local = local;
      await this.#openSockets(local);
      if (this.#isStopped || this.#local !== local) return;
    }
    this.#step((now) => this.#machine.setTarget({ gateway, local, port }, isPrivate(local), now));
  }

  /** A path has died: perhaps the gateway has restarted. */
  doubt(): void {
    this.#step((now) => this.#machine.handleDoubt(now));
  }

  get report(): PortMappingReport {
    return this.#machine.report();
  }

  /** Is it known what the gateway speaks? */
  get isComplete(): boolean {
    return this.#machine.isComplete;
  }

  /** Removes the mapping. */
  async stop(): Promise<void> {
    if (this.#isStopped) return;
    this.#step((now) => this.#machine.close(now));
    this.#isStopped = true;
    clearTimeout(this.#timer);
    // The router's answer does not matter, but a socket closed at once takes the request with it.
    const endsAt = performance.now() + RELEASE_MS;
    if (this.#sockets.length > 0) await sleep(FLUSH_MS);
    while (this.#exchanges.size > 0 && performance.now() < endsAt) await sleep(10);
    for (const exchange of this.#exchanges) exchange.destroy();
    this.#closeSockets();
  }

  #step(input: (now: Instant) => void): void {
    if (this.#isStopped) return;
    input(this.#options.now());
    for (let action = this.#machine.poll(); action !== undefined; action = this.#machine.poll()) this.#perform(action);
    clearTimeout(this.#timer);
    const deadline = this.#machine.deadline();
    if (deadline !== undefined) {
      const wait = Math.max(0, deadline - this.#options.now());
      this.#timer = setTimeout(() => this.#step((now) => this.#machine.handleTimeout(now)), wait);
      this.#timer.unref();
    }
    this.#options.onProgress();
  }

  #perform(action: PortMappingAction): void {
    switch (action.type) {
      case "send":
        // No route, or a socket that is just being opened: the request is repeated.
        this.#sockets[0]?.send(action.bytes, action.to.port, action.to.ip, () => undefined);
        break;
      case "http":
        this.#exchange(action.id, action.to, action.bytes);
        break;
      case "changed":
        this.#tell(action.mapping);
        break;
      default:
        action satisfies never;
    }
  }

  #tell(mapping: Mapping | undefined): void {
    const { log, onChange } = this.#options;
    if (mapping === undefined) log?.debug("The router no longer maps a port to this machine");
    else {
      const name = PROTOCOL_NAME[mapping.protocol];
      log?.debug(`The router maps ${formatTransportAddress(mapping.external)} to this machine, by ${name}`);
    }
    onChange?.(mapping);
  }

  /** The first socket asks; the others only listen, and may be missing where another program has the port for itself. */
  async #openSockets(local: string): Promise<void> {
    const ask = await this.#open({ address: local, port: 0 }, (socket) => {
      socket.setMulticastInterface(local);
      socket.setMulticastTTL(MULTICAST_TTL);
    });
    if (ask === undefined) return;
    this.#sockets = [ask];
    for (const [port, group] of [
      [ANNOUNCEMENT_PORT, ALL_HOSTS],
      [SSDP_PORT, SSDP_GROUP],
    ] as const) {
      const listener = await this.#open({ address: "0.0.0.0", port }, (socket) => socket.addMembership(group, local));
      if (listener === undefined) continue;
      if (this.#isStopped || this.#local !== local) listener.close();
      else this.#sockets.push(listener);
    }
  }

  async #open(
    bind: { readonly address: string; readonly port: number },
    prepare: (socket: Socket) => void,
  ): Promise<Socket | undefined> {
    const socket = createSocket({ type: "udp4", reuseAddr: bind.port !== 0 });
    const { promise, resolve } = Promise.withResolvers<Socket | undefined>();
    socket.on("message", (bytes, { address, port }) => {
      const ip = canonicalIp(address);
      if (ip !== undefined) this.#step((now) => this.#machine.handleDatagram({ ip, port }, new Uint8Array(bytes), now));
    });
    socket.on("error", (error) => {
      this.#options.log?.debug(`Cannot use UDP port ${bind.port} for port mapping: ${systemReason(error)}`);
      resolve(undefined);
    });
    socket.bind({ ...bind, exclusive: false }, () => {
      try {
        prepare(socket);
      } catch (error) {
        this.#options.log?.debug(`No multicast for port mapping: ${systemReason(error)}`);
      }
      resolve(socket);
    });
    return promise;
  }

  #closeSockets(): void {
    for (const socket of this.#sockets) socket.close();
    this.#sockets = [];
    this.#local = undefined;
  }

  /** One request, and all of the response until the router closes. Straight to it: no proxy, no redirects. */
  #exchange(id: number, to: TransportAddress, bytes: Uint8Array): void {
    const socket = connect({
      host: to.ip,
      port: to.port,
      ...(this.#local === undefined ? {} : { localAddress: this.#local }),
    });
    this.#exchanges.add(socket);
    const chunks: Uint8Array[] = [];
    let length = 0;
    let isOver = false;
    const end = (isWhole: boolean): void => {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      this.#exchanges.delete(socket);
      socket.destroy();
      this.#step((now) => this.#machine.handleHttp(id, isWhole ? Buffer.concat(chunks) : undefined, now));
    };
    const timer = setTimeout(() => end(false), HTTP_TIMEOUT_MS);
    socket.on("connect", () => void socket.write(bytes));
    socket.on("data", (chunk: Uint8Array) => {
      length += chunk.length;
      if (length > MAX_RESPONSE_BYTES) end(false);
      else chunks.push(chunk);
    });
    socket.on("error", () => end(false));
    socket.on("end", () => end(true));
    socket.on("close", () => end(length > 0));
  }
}

const sleep = async (milliseconds: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, milliseconds);
  });
