/**
 * A small internet: hosts with public addresses, and sites whose hosts share a LAN behind a NAT. UDP only; signalling is a delay.
 *
 * Each host has a one-way delay to the core, so two hosts are their sum apart. Loss and jitter are drawn from the seed.
 */
import { cidrContains, type TransportAddress } from "../../shared/address.ts";
import type { VirtualClock } from "./clock.ts";
import type { Nat } from "./nat.ts";
import type { SeededRandom } from "./random.ts";

export type Receive = (bytes: Uint8Array, from: TransportAddress) => void;

/** A NAT and the LAN behind it; without a NAT the hosts of a site have public addresses. */
export interface Site {
  readonly nat: Nat | undefined;
  readonly lan: string;
}

const LAN_DELAY_MS = 0.3;

export class Host {
  readonly ip: string;
  readonly site: Site | undefined;
  readonly delayMs: number;
  readonly sockets = new Map<number, Receive>();
  /** Everything that this host may send or receive is lost: its site blocks UDP. */
  isUdpBlocked = false;
  /** Datagrams sent, by destination ip: for the rules about what may be sent where. */
  readonly sentTo = new Map<string, number>();

  constructor(ip: string, site: Site | undefined, delayMs: number) {
    this.ip = ip;
    this.site = site;
    this.delayMs = delayMs;
  }
}

export class Network {
  readonly #clock: VirtualClock;
  readonly #random: SeededRandom;
  readonly #hosts: Host[] = [];
  lossPercent = 0;
  jitterMs = 0;
  delivered = 0;

  constructor(clock: VirtualClock, random: SeededRandom) {
    this.#clock = clock;
    this.#random = random;
  }

  addHost(ip: string, site: Site | undefined, delayMs: number): Host {
    const host = new Host(ip, site, delayMs);
    this.#hosts.push(host);
    return host;
  }

  send(host: Host, sourcePort: number, to: TransportAddress, bytes: Uint8Array): void {
    host.sentTo.set(to.ip, (host.sentTo.get(to.ip) ?? 0) + 1);
    if (host.isUdpBlocked) return;
    const from = { ip: host.ip, port: sourcePort };
    if (host.site !== undefined && cidrContains(host.site.lan, to.ip)) {
      const neighbour = this.#hosts.find((other) => other.site === host.site && other.ip === to.ip);
      if (neighbour !== undefined) this.#deliver(neighbour, to.port, from, bytes, LAN_DELAY_MS);
      return;
    }
    const nat = host.site?.nat;
    const seenFrom = nat === undefined ? from : nat.outbound(from, to, this.#clock.now);
    // A NAT does not turn packets back to its own inside: hairpinning is off.
    if (nat !== undefined && to.ip === nat.externalIp) return;
    if (this.#random.next() * 100 < this.lossPercent) return;
    const target = this.#hosts.find((other) => publicIp(other) === to.ip);
    if (target === undefined) return;
    const delay = host.delayMs + target.delayMs + this.#random.next() * this.jitterMs;
    this.#clock.after(delay, () => this.#arrive(to, seenFrom, bytes));
  }

  #arrive(to: TransportAddress, from: TransportAddress, bytes: Uint8Array): void {
    const hosts = this.#hosts.filter((other) => publicIp(other) === to.ip);
    const nat = hosts[0]?.site?.nat;
    if (nat === undefined) {
      if (hosts[0] !== undefined) this.#deliver(hosts[0], to.port, from, bytes, 0);
      return;
    }
    const inside = nat.inbound(to.port, from, this.#clock.now);
    const host = inside === undefined ? undefined : hosts.find((other) => other.ip === inside.ip);
    if (host !== undefined && inside !== undefined) this.#deliver(host, inside.port, from, bytes, 0);
  }

  #deliver(host: Host, port: number, from: TransportAddress, bytes: Uint8Array, delayMs: number): void {
    this.#clock.after(delayMs, () => {
      if (host.isUdpBlocked) return;
      this.delivered++;
      host.sockets.get(port)?.(bytes, from);
    });
  }
}

const publicIp = (host: Host): string => host.site?.nat?.externalIp ?? host.ip;
