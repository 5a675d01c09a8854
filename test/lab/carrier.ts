/**
 * A carrier's NAT: on the internet segment, with the routers of one or more sites as its inside hosts, in a network of 100.64.0.0/10.
 *
 * Its subscribers do not reach each other but through it, as carriers have it. Strict towards its inside unless told otherwise.
 */
import { type NatKind, natRuleset } from "./nat_rules.ts";
import type { Lan, Machine } from "./site.ts";

export interface CarrierOptions {
  /** Two subscribers may reach each other through the carrier's public address. Only with endpoint-independent mapping. */
  readonly hairpin?: boolean;
  /** What it does with unexpected packets for itself; default drop. */
  readonly input?: "drop" | "open";
}

/** The carrier itself has the first address. */
const FIRST_SUBSCRIBER = 2;

export class Carrier {
  readonly machine: Machine;
  readonly lan: Lan;
  readonly #subscribers: string[] = [];
  #nat: NatKind;
  #options: CarrierOptions;

  constructor(machine: Machine, lan: Lan, nat: NatKind, options: CarrierOptions) {
    this.machine = machine;
    this.lan = lan;
    this.#nat = nat;
    this.#options = options;
  }

  /** The addresses of the routers behind it, in the order in which they were admitted. */
  get subscribers(): readonly string[] {
    return this.#subscribers;
  }

  /** The address of one more router. */
  admit(): string {
    const address = `${this.lan.base}.${FIRST_SUBSCRIBER + this.#subscribers.length}`;
    this.#subscribers.push(address);
    return address;
  }

  /** The rules for the current kind, as text for `nft -f`. */
  ruleset(): string {
    return natRuleset({
      kind: this.#nat,
      external: this.machine.address,
      lan: this.lan.cidr,
      hosts: this.#subscribers,
      ...this.#options,
    });
  }

  /** Replaces the rules in one step; what conntrack knows stays. */
  async setNat(kind: NatKind, options: CarrierOptions = this.#options): Promise<void> {
    this.#nat = kind;
    this.#options = options;
    await this.machine.execChecked(["nft", "-f", "-"], { input: this.ruleset() });
  }

  /** Loses every mapping and every flow. */
  async flushConntrack(): Promise<void> {
    await this.setNat(this.#nat);
    await this.machine.execChecked(["conntrack", "-F"]);
  }
}
