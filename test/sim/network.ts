/**
 * A small internet: hosts with public addresses, and sites whose hosts share a LAN behind a NAT. UDP only; signalling has its own
 * streams (signal_link.ts).
 *
 * Each host has a one-way delay to and from the core, so two hosts are their sum apart. Loss and jitter are drawn from the seed.
 */
import type { TransportAddress } from "../../shared/address.ts";
import type { VirtualClock } from "./clock.ts";
import type { Nat } from "./nat.ts";
import type { SeededRandom } from "./random.ts";

export type Receive = (bytes: Uint8Array, from: TransportAddress) => void;

/** A NAT and the LAN behind it (the first three numbers of its addresses); a firewall's site has one host, with a public address. */
export interface Site {
  readonly nat: Nat;
  readonly lanPrefix: string;
  /** A second NAT between the first one and the core, perhaps for several sites. */
  readonly carrier?: Nat;
}

export interface Delay {
  readonly upMs: number;
  readonly downMs: number;
}

/** A datagram as the core of the network sees it. */
export interface Datagram {
  readonly from: TransportAddress;
  readonly to: TransportAddress;
  readonly bytes: Uint8Array;
}

const LAN_DELAY_MS = 0.3;
/** IPv4 and UDP. */
const HEADER_BYTES = 28;

export class Host {
  ip: string;
  site: Site | undefined;
  delay: Delay;
  readonly sockets = new Map<number, Receive>();
  /** Everything that this host may send or receive is lost: its site blocks UDP. */
  isUdpBlocked = false;
  /** TCP to port 2222 does not get out. */
  isSshBlocked = false;
  /** The largest IP packet on its access line. What is larger vanishes: routers that say so by ICMP are not simulated. */
  linkMtu = 1500;
  /** Nothing gets out: a captive portal. */
  isOffline = false;
  /** Datagrams sent, by destination ip: for the rules about what may be sent where. */
  readonly sentTo = new Map<string, number>();

  constructor(ip: string, site: Site | undefined, delay: Delay) {
    this.ip = ip;
    this.site = site;
    this.delay = delay;
  }

  get publicIp(): string {
    return this.nats.at(-1)?.externalIp ?? this.ip;
  }

  /** Between it and the core, the nearest first. */
  get nats(): readonly Nat[] {
    const { site } = this;
    if (site === undefined) return [];
    return site.carrier === undefined ? [site.nat] : [site.nat, site.carrier];
  }
}

export class Network {
  readonly #clock: VirtualClock;
  readonly #random: SeededRandom;
  /** Hosts by the address that the core knows them by. */
  readonly #byPublicIp = new Map<string, Host[]>();
  lossPercent = 0;
  jitterMs = 0;
  /** Sees every datagram that crosses the core. */
  tap: ((datagram: Datagram) => void) | undefined;
  /** What the core loses on purpose: a direction, a size. */
  swallows: ((datagram: Datagram) => boolean) | undefined;

  constructor(clock: VirtualClock, random: SeededRandom) {
    this.#clock = clock;
    this.#random = random;
  }

  addHost(ip: string, site: Site | undefined, delay: Delay): Host {
    const host = new Host(ip, site, delay);
    const neighbours = this.#byPublicIp.get(host.publicIp);
    if (neighbours === undefined) this.#byPublicIp.set(host.publicIp, [host]);
    else neighbours.push(host);
    return host;
  }

  /** A host moves, or the router in front of it gets another address: `change` does it. */
  readdress(host: Host, change: () => void): void {
    const before = this.#byPublicIp.get(host.publicIp) ?? [];
    this.#byPublicIp.set(
      host.publicIp,
      before.filter((other) => other !== host),
    );
    change();
    this.#byPublicIp.set(host.publicIp, [...(this.#byPublicIp.get(host.publicIp) ?? []), host]);
  }

  send(host: Host, sourcePort: number, to: TransportAddress, bytes: Uint8Array): void {
    host.sentTo.set(to.ip, (host.sentTo.get(to.ip) ?? 0) + 1);
    if (host.isUdpBlocked || host.isOffline || bytes.length + HEADER_BYTES > host.linkMtu) return;
    let from: TransportAddress = { ip: host.ip, port: sourcePort };
    const { site } = host;
    if (site !== undefined && to.ip.startsWith(site.lanPrefix)) {
      const neighbour = this.#byPublicIp.get(host.publicIp)?.find((other) => other.ip === to.ip);
      if (neighbour !== undefined) this.#clock.after(LAN_DELAY_MS, () => deliver(neighbour, to.port, from, bytes));
      return;
    }
    for (const nat of host.nats) {
      const seenFrom = nat.outbound(from, to, this.#clock.now);
      if (seenFrom === undefined) return;
      from = seenFrom;
      if (to.ip !== nat.externalIp) continue;
      // Back to the inside, if this NAT does that.
      if (nat.behavior.hairpin === true) this.#clock.after(LAN_DELAY_MS, () => this.#enter(nat, to, from, bytes));
      return;
    }
    if (this.#random.chance(this.lossPercent)) return;
    this.tap?.({ from, to, bytes });
    if (this.swallows?.({ from, to, bytes }) === true) return;
    this.inject({ from, to, bytes }, host.delay.upMs);
  }

  /** Puts a datagram into the core, from wherever it says it is: what an attacker does. */
  inject({ from, to, bytes }: Datagram, delayMs = 0): void {
    const target = this.#byPublicIp.get(to.ip)?.[0];
    if (target === undefined) return;
    const jitterMs = this.jitterMs === 0 ? 0 : this.#random.next() * this.jitterMs;
    this.#clock.after(delayMs + target.delay.downMs + jitterMs, () => this.#arrive(to, from, bytes));
  }

  #arrive(to: TransportAddress, from: TransportAddress, bytes: Uint8Array): void {
    const host = this.#byPublicIp.get(to.ip)?.[0];
    const nat = host?.nats.at(-1);
    if (nat !== undefined) this.#enter(nat, to, from, bytes);
    else if (host !== undefined) deliver(host, to.port, from, bytes);
  }

  /** From outside through this NAT, and through the one behind it if there is one. */
  #enter(nat: Nat, to: TransportAddress, from: TransportAddress, bytes: Uint8Array): void {
    const inside = nat.inbound(to.port, from, this.#clock.now);
    if (inside === undefined) return;
    const behind = [...this.#byPublicIp.values()].flat().filter((host) => host.nats.includes(nat));
    const next = behind
      .flatMap(({ site }) => site ?? [])
      .find((site) => site.nat !== nat && site.nat.externalIp === inside.ip);
    if (next !== undefined) {
      this.#enter(next.nat, inside, from, bytes);
      return;
    }
    const host = behind.find((other) => other.ip === inside.ip);
    if (host !== undefined) deliver(host, inside.port, from, bytes);
  }
}

function deliver(host: Host, port: number, from: TransportAddress, bytes: Uint8Array): void {
  if (bytes.length + HEADER_BYTES > host.linkMtu) return;
  if (!host.isUdpBlocked && !host.isOffline) host.sockets.get(port)?.(bytes, from);
}
