/** Builds a world from a seed: a coordinator with two addresses, and agents behind NATs. */
import type { Instant } from "../../shared/time.ts";
import { SimAgent } from "./agent.ts";
import { VirtualClock } from "./clock.ts";
import { SimCoordinator } from "./coordinator.ts";
import { Nat, type NatBehavior } from "./nat.ts";
import { Network, type Site } from "./network.ts";
import { SeededRandom } from "./random.ts";

export interface WorldOptions {
  readonly seed: number;
  /** Round trip of every agent to the coordinator. */
  readonly roundTripMs?: number;
  readonly lossPercent?: number;
  readonly jitterMs?: number;
  readonly coordinatorAddresses?: 1 | 2;
}

export class World {
  readonly clock = new VirtualClock();
  readonly random: SeededRandom;
  readonly network: Network;
  readonly coordinator: SimCoordinator;
  readonly agents: SimAgent[] = [];
  readonly #delayMs: number;
  #sites = 0;

  constructor(options: WorldOptions) {
    this.random = new SeededRandom(options.seed);
    this.network = new Network(this.clock, this.random);
    this.network.lossPercent = options.lossPercent ?? 0;
    this.network.jitterMs = options.jitterMs ?? 0;
    this.#delayMs = (options.roundTripMs ?? 0) / 2;
    const addresses = ["203.0.113.10", "203.0.113.11"].slice(0, options.coordinatorAddresses ?? 2);
    this.coordinator = new SimCoordinator(this.clock, this.network, this.random, addresses);
  }

  addSite(nat: NatBehavior): Site {
    const index = ++this.#sites;
    return {
      nat: new Nat(`198.51.100.${index}`, nat, this.random),
      lan: `10.${index}.0.0/24`,
    };
  }

  /** An agent in a site of its own, or in a given one. */
  addAgent(name: string, where: NatBehavior | Site | "public"): SimAgent {
    const site = where === "public" ? undefined : "lan" in where ? where : this.addSite(where);
    const neighbours = this.agents.filter((agent) => agent.host.site === site).length;
    const ip = site === undefined ? `192.0.2.${++this.#sites}` : site.lan.replace("0/24", String(10 + neighbours));
    const host = this.network.addHost(ip, site, this.#delayMs);
    const agent = new SimAgent(name, host, this.clock, this.network, this.random);
    this.agents.push(agent);
    return agent;
  }

  /** All agents join, a moment apart, as machines do. */
  joinAll(): void {
    for (const agent of this.agents) {
      this.coordinator.join(agent);
      this.run(50);
    }
  }

  run(milliseconds: number, done?: () => boolean): void {
    this.clock.runUntil(this.clock.now + milliseconds, done);
  }

  get now(): Instant {
    return this.clock.now;
  }
}

/** A minimal IPv4 packet between two mesh addresses, with a body that says which one it is. */
export function meshPacket(from: string, to: string, body: Uint8Array): Uint8Array {
  const packet = new Uint8Array(20 + body.length);
  packet[0] = 0x45;
  packet.set(from.split(".").map(Number), 12);
  packet.set(to.split(".").map(Number), 16);
  packet.set(body, 20);
  return packet;
}
