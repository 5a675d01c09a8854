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
  readonly allocation?: "preserving" | "random";
}

interface Entry {
  readonly key: string;
  readonly internal: TransportAddress;
  readonly externalPort: number;
  usedAt: number;
}

/** RFC 4787 REQ-5. */
const DEFAULT_LIFETIME_MS = 120_000;

export class Nat {
  readonly externalIp: string;
  readonly behavior: NatBehavior;
  readonly #random: SeededRandom;
  readonly #byKey = new Map<string, Entry>();
  readonly #byPort = new Map<number, Entry>();
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
  outbound(from: TransportAddress, to: TransportAddress, now: number): TransportAddress {
    const key = this.#mappingKey(from, to);
    let entry = this.#byKey.get(key);
    if (entry !== undefined && now - entry.usedAt > this.#lifetimeMs) {
      this.#forget(entry);
      entry = undefined;
    }
    entry ??= this.#allocate(key, from, now);
    entry.usedAt = now;
    if (this.behavior.filtering !== "endpoint-independent") this.#openedAt.set(this.#filterKey(entry, to), now);
    return { ip: this.externalIp, port: entry.externalPort };
  }

  /** The inside address that a packet from outside reaches, or undefined when it is dropped. */
  inbound(toPort: number, from: TransportAddress, now: number): TransportAddress | undefined {
    const entry = this.#byPort.get(toPort);
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

  #allocate(key: string, internal: TransportAddress, now: number): Entry {
    const { mapping, allocation } = this.behavior;
    const isDependent = mapping === "address-dependent" || mapping === "address-and-port-dependent";
    const preserves = mapping === "none" || (allocation ?? (isDependent ? "random" : "preserving")) === "preserving";
    let externalPort = preserves ? internal.port : this.#randomPort();
    // A port that another mapping holds is free again once that mapping has expired.
    for (let holder = this.#byPort.get(externalPort); holder !== undefined; holder = this.#byPort.get(externalPort)) {
      if (now - holder.usedAt > this.#lifetimeMs) this.#forget(holder);
      else externalPort = this.#randomPort();
    }
    const entry = { key, internal, externalPort, usedAt: now };
    this.#byKey.set(key, entry);
    this.#byPort.set(externalPort, entry);
    return entry;
  }

  #randomPort(): number {
    return this.#random.between(1024, 65_535);
  }

  #forget(entry: Entry): void {
    this.#byKey.delete(entry.key);
    this.#byPort.delete(entry.externalPort);
  }
}
