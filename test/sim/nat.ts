/**
 * A NAT in the terms of RFC 4787: mapping (§4.1) and filtering (§5), each in its three kinds, port allocation and expiry.
 *
 * Filters are kept per internal address, as §5 words it; `filterPerMapping` keeps them per mapping instead, as connection-tracking
 * NATs with dependent mapping do. Mapping `none` is a firewall in front of a public address.
 */
import { assertNever } from "../../shared/assert.ts";
import type { TransportAddress } from "../../shared/address.ts";
import type { Filtering, Mapping } from "../../shared/wire/candidates.ts";
import type { SeededRandom } from "./random.ts";

export interface NatBehavior {
  readonly mapping: Mapping;
  readonly filtering: Filtering;
  readonly filterPerMapping?: boolean;
  /** Idle time after which a mapping and its filter entries go. */
  readonly lifetimeMs?: number;
  /** Port of a new mapping. Default: the internal port where the mapping is endpoint-independent, else a random one. */
  readonly allocation?: PortAllocation;
  /**
   * One external port serves mappings towards different destinations, as on Linux. Only where mapping and filtering are address- and
   * port-dependent.
   */
  readonly overloads?: boolean;
  /** Packets from inside to its own external address turn round. */
  readonly hairpin?: boolean;
  /** Towards addresses that begin so the mapping is endpoint-independent, whatever it is for others: what STUN sees is not what peers get. */
  readonly showsOnePortTo?: string;
}

export type PortAllocation =
  | "preserving"
  | "random"
  /** The next port each time; `traffic` of others, in percent, takes ports in between. */
  | { readonly kind: "sequential"; readonly first: number; readonly stride: number; readonly traffic: number }
  | { readonly kind: "block"; readonly first: number; readonly size: number };

interface Entry {
  readonly key: string;
  readonly internal: TransportAddress;
  readonly externalPort: number;
  readonly portKey: string;
  usedAt: number;
}

/** RFC 4787 REQ-5. */
const DEFAULT_LIFETIME_MS = 120_000;
const FIRST_PORT = 1024;
const LAST_PORT = 65_535;
/** Ports that are tried for one mapping. */
const MAX_TRIES = 300;

export class Nat {
  externalIp: string;
  readonly behavior: NatBehavior;
  readonly #random: SeededRandom;
  readonly #byKey = new Map<string, Entry>();
  /** By external port, or where ports are overloaded by port and remote address. */
  readonly #byPort = new Map<string, Entry>();
  #nextPort: number | undefined;
  /** Mappings at this moment at most, since it was made. */
  peakMappings = 0;
  /** Of a block, and without those that have expired. */
  peakPortsTaken = 0;
  /** When each filter was last opened: owner, then remote. */
  readonly #openedAt = new Map<string, number>();

  constructor(externalIp: string, behavior: NatBehavior, random: SeededRandom) {
    this.externalIp = externalIp;
    this.behavior = behavior;
    this.#random = random;
  }

  get #lifetimeMs(): number {
    return this.behavior.lifetimeMs ?? DEFAULT_LIFETIME_MS;
  }

  /** The external address that a packet from inside gets. */
  outbound(from: TransportAddress, to: TransportAddress, now: number): TransportAddress | undefined {
    const key = this.#mappingKey(from, to);
    let entry = this.#byKey.get(key);
    if (entry !== undefined && now - entry.usedAt > this.#lifetimeMs) {
      this.#forget(entry);
      entry = undefined;
    }
    entry ??= this.#allocate(key, from, to, now);
    // Every port is taken: a full NAT lets nothing more out.
    if (entry === undefined) return undefined;
    entry.usedAt = now;
    if (this.behavior.filtering !== "endpoint-independent") this.#openedAt.set(this.#filterKey(entry, to), now);
    return { ip: this.externalIp, port: entry.externalPort };
  }

  /** The inside address that a packet from outside reaches, or undefined when it is dropped. */
  inbound(toPort: number, from: TransportAddress, now: number): TransportAddress | undefined {
    const entry = this.#byPort.get(this.#portKey(toPort, from));
    if (entry === undefined || now - entry.usedAt > this.#lifetimeMs) return undefined;
    if (this.behavior.filtering === "endpoint-independent") return entry.internal;
    const openedAt = this.#openedAt.get(this.#filterKey(entry, from));
    return openedAt !== undefined && now - openedAt <= this.#lifetimeMs ? entry.internal : undefined;
  }

  /** Loses all state, as a reboot does. */
  reboot(): void {
    this.#byKey.clear();
    this.#byPort.clear();
    this.#openedAt.clear();
  }

  #mappingKey(from: TransportAddress, to: TransportAddress): string {
    const inside = `${from.ip}:${from.port}`;
    const { showsOnePortTo } = this.behavior;
    if (showsOnePortTo !== undefined && to.ip.startsWith(showsOnePortTo)) return inside;
    switch (this.behavior.mapping) {
      case "none":
      case "endpoint-independent":
        return inside;
      case "address-dependent":
        return `${inside}>${to.ip}`;
      case "address-and-port-dependent":
        return `${inside}>${to.ip}:${to.port}`;
      default:
        return assertNever(this.behavior.mapping);
    }
  }

  #filterKey(entry: Entry, remote: TransportAddress): string {
    const owner = this.behavior.filterPerMapping === true ? entry.key : `${entry.internal.ip}:${entry.internal.port}`;
    return this.behavior.filtering === "address-dependent"
      ? `${owner}<${remote.ip}`
      : `${owner}<${remote.ip}:${remote.port}`;
  }

  #allocate(key: string, internal: TransportAddress, to: TransportAddress, now: number): Entry | undefined {
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const externalPort = this.#pickPort(internal.port, tries);
      const portKey = this.#portKey(externalPort, to);
      const holder = this.#byPort.get(portKey);
      // A port that another mapping holds is free again once that mapping has expired.
      if (holder !== undefined && now - holder.usedAt <= this.#lifetimeMs) continue;
      if (holder !== undefined) this.#forget(holder);
      const entry = { key, internal, externalPort, portKey, usedAt: now };
      this.#byKey.set(key, entry);
      this.#byPort.set(portKey, entry);
      this.peakMappings = Math.max(this.peakMappings, this.#byKey.size);
      this.#countPorts(now);
      return entry;
    }
    return undefined;
  }

  #countPorts(now: number): void {
    if (typeof this.behavior.allocation !== "object" || this.behavior.allocation.kind !== "block") return;
    const isAlive = ({ usedAt }: Entry): boolean => now - usedAt <= this.#lifetimeMs;
    const taken = new Set([...this.#byPort.values()].filter(isAlive).map(({ externalPort }) => externalPort));
    this.peakPortsTaken = Math.max(this.peakPortsTaken, taken.size);
  }

  #pickPort(internalPort: number, tries: number): number {
    const { mapping, allocation } = this.behavior;
    const isDependent = mapping === "address-dependent" || mapping === "address-and-port-dependent";
    const how = mapping === "none" ? "preserving" : (allocation ?? (isDependent ? "random" : "preserving"));
    if (how === "preserving") return tries === 0 ? internalPort : this.#randomPort();
    if (how === "random") return this.#randomPort();
    if (how.kind === "block") return this.#random.between(how.first, how.first + how.size - 1);
    const steps = this.#random.chance(how.traffic) ? this.#random.between(2, 3) : 1;
    const next = (this.#nextPort ?? how.first) + how.stride * steps;
    this.#nextPort = next > LAST_PORT || next < FIRST_PORT ? how.first : next;
    return this.#nextPort;
  }

  #portKey(port: number, remote: TransportAddress): string {
    return this.behavior.overloads === true ? `${port}<${remote.ip}:${remote.port}` : `${port}`;
  }

  #randomPort(): number {
    return this.#random.between(FIRST_PORT, LAST_PORT);
  }

  #forget(entry: Entry): void {
    this.#byKey.delete(entry.key);
    this.#byPort.delete(entry.portKey);
  }
}
