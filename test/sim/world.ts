/** Builds a world from a seed: a coordinator, and agents behind NATs. */
import type { Instant } from "../../shared/time.ts";
import { SimAgent } from "./agent.ts";
import { VirtualClock } from "./clock.ts";
import { SimCoordinator } from "./coordinator.ts";
import { HostileCoordinator } from "./hostile_coordinator.ts";
import { KEY_POOL_SIZE, pooledKeys } from "./keys.ts";
import { Nat, type NatBehavior } from "./nat.ts";
import { type Delay, Network, type Site } from "./network.ts";
import { SeededRandom } from "./random.ts";

export interface WorldOptions {
  readonly seed: number;
  /** Round trip of every agent to the coordinator. */
  readonly roundTripMs?: number;
  readonly lossPercent?: number;
  readonly jitterMs?: number;
  readonly coordinatorAddresses?: 1 | 2;
  /** An actor stands before the hub that may change what it says. */
  readonly isHostile?: boolean;
  readonly hasRelays?: boolean;
}

export class World {
  readonly clock = new VirtualClock();
  readonly random: SeededRandom;
  readonly network: Network;
  readonly coordinator: SimCoordinator;
  readonly hostile: HostileCoordinator;
  readonly agents: SimAgent[] = [];
  readonly #options: WorldOptions;
  readonly #firstKey: number;
  #sites = 0;

  constructor(options: WorldOptions) {
    this.#options = options;
    this.random = new SeededRandom(options.seed);
    this.#firstKey = this.random.between(0, KEY_POOL_SIZE - 1);
    this.network = new Network(this.clock, this.random);
    this.network.lossPercent = options.lossPercent ?? 0;
    this.network.jitterMs = options.jitterMs ?? 0;
    const addresses = ["203.0.113.10", "203.0.113.11"].slice(0, options.coordinatorAddresses ?? 2);
    this.coordinator = new SimCoordinator(this.clock, this.network, this.random, addresses);
    this.hostile = new HostileCoordinator(this.coordinator, this.random);
  }

  /** @param carrier the NAT between this one and the core: then its own external address is one of the carrier's network */
  addSite(nat: NatBehavior, carrier?: Nat): Site {
    const index = ++this.#sites;
    const externalIp = carrier === undefined ? publicIpOf(index) : `100.127.${index >> 8}.${index & 255}`;
    const lanPrefix = nat.mapping === "none" ? externalIp : `10.${index >> 8}.${index & 255}.`;
    const site = { nat: new Nat(externalIp, nat, this.random), lanPrefix };
    return carrier === undefined ? site : { ...site, carrier };
  }

  addCarrier(nat: NatBehavior): Nat {
    return new Nat(publicIpOf(++this.#sites), nat, this.random);
  }

  /** An agent in a site of its own, in a given one, or with a public address. It does not run yet. */
  addAgent(name: string, where: NatBehavior | Site | "public", delay?: Delay): SimAgent {
    const site = where === "public" ? undefined : "lanPrefix" in where ? where : this.addSite(where);
    const neighbours = this.agents.filter((agent) => site !== undefined && agent.host.site === site).length;
    const ip =
      site === undefined
        ? `192.0.2.${++this.#sites}`
        : site.nat.behavior.mapping === "none"
          ? site.nat.externalIp
          : `${site.lanPrefix}${10 + neighbours}`;
    const oneWayMs = (this.#options.roundTripMs ?? 0) / 2;
    const host = this.network.addHost(ip, site, delay ?? { upMs: oneWayMs, downMs: oneWayMs });
    const keys = pooledKeys(this.#firstKey + this.agents.length);
    const agent = new SimAgent(name, host, keys, {
      clock: this.clock,
      network: this.network,
      random: this.random,
      endpoint: this.#options.isHostile === true ? this.hostile : this.coordinator,
      fingerprint: this.coordinator.identity.fingerprint,
      joinKey: this.coordinator.joinKey,
      relays: this.#options.hasRelays === true ? this.coordinator : undefined,
    });
    this.hostile.know(agent.keys);
    this.agents.push(agent);
    return agent;
  }

  /** All agents start, a moment apart, as machines do, and join. */
  joinAll(gapMs = 50): void {
    for (const agent of this.agents) {
      agent.start();
      this.run(gapMs);
    }
    this.run(20_000, () => this.agents.every((agent) => agent.isJoined));
  }

  /** The router forgets all its mappings, those of TCP connections too. */
  rebootNat(site: Site): void {
    site.nat.reboot();
    for (const agent of this.agents) if (agent.host.site === site) agent.loseSignalling();
  }

  /** The provider gives the router of an only host another address: mappings and TCP connections are gone. */
  changePublicAddress(agent: SimAgent): string {
    const { host } = agent;
    const { site } = host;
    if (site === undefined) throw new Error(`${agent.name} has no router`);
    const ip = `198.51.${200 + (++this.#sites >> 8)}.${this.#sites & 255}`;
    this.network.readdress(host, () => {
      site.nat.externalIp = ip;
    });
    site.nat.reboot();
    agent.loseSignalling();
    return ip;
  }

  run(milliseconds: number, done?: () => boolean): void {
    this.clock.runUntil(this.clock.now + milliseconds, done);
  }

  get now(): Instant {
    return this.clock.now;
  }
}

const publicIpOf = (index: number): string => `198.51.${100 + (index >> 8)}.${index & 255}`;

/** Do both have a direct path to the other? */
export const areDirect = (a: SimAgent, b: SimAgent): boolean => a.isDirectTo(b.id) && b.isDirectTo(a.id);

/** A minimal IPv4 packet between two mesh addresses, with a body that says which one it is. */
export function meshPacket(from: string, to: string, body: Uint8Array): Uint8Array {
  const packet = new Uint8Array(20 + body.length);
  packet[0] = 0x45;
  packet.set(from.split(".").map(Number), 12);
  packet.set(to.split(".").map(Number), 16);
  packet.set(body, 20);
  return packet;
}
