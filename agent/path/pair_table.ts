/** The pairs of one peer, found by leg and remote address, with the caps on how many there may be. */
import { packAddress, type TransportAddress } from "../../shared/address.ts";
import type { Instant } from "../../shared/time.ts";
import type { Leg } from "../data/plane.ts";
import { Pair, type PairOrigin } from "./pair.ts";
import { score } from "./pair_choice.ts";
import type { UntrustedProbes } from "./untrusted_probes.ts";

/** A pair that works but is not selected is not kept open: this long it counts as proven. Linux forgets a flow after 30 s. */
const STANDBY_MS = 30_000;
/** Pairs remembered per peer; peer-reflexive ones come and go with a symmetric NAT's ports. */
const MAX_PAIRS = 64;
const MAX_PEER_REFLEXIVE = 16;

export class PairTable {
  readonly #untrustedProbes: UntrustedProbes;
  readonly #pairs = new Map<string, Pair>();

  constructor(untrustedProbes: UntrustedProbes) {
    this.#untrustedProbes = untrustedProbes;
  }

  values(): readonly Pair[] {
    return [...this.#pairs.values()];
  }

  get(leg: Leg, remote: TransportAddress): Pair | undefined {
    return this.#pairs.get(keyOf(leg, remote));
  }

  /** Undefined when there are too many. */
  add(options: {
    readonly leg: Leg;
    readonly remote: TransportAddress;
    readonly origin: PairOrigin;
    readonly isTrusted: boolean;
    readonly isLocal: boolean;
  }): Pair | undefined {
    const { leg, remote } = options;
    if (this.#pairs.size >= MAX_PAIRS) return undefined;
    const probesSent = this.#untrustedProbes.of(remote);
    const pair = new Pair({ ...options, packedRemote: packAddress(remote), probesSent });
    this.#pairs.set(keyOf(leg, remote), pair);
    return pair;
  }

  /** Makes room for another peer-reflexive pair: the one proven longest ago goes, or one that never was. False when none can. */
  makeRoom(selected: Pair | undefined): boolean {
    const reflexive = this.values().filter((pair) => pair.origin === "peer-reflexive");
    if (reflexive.length < MAX_PEER_REFLEXIVE) return true;
    const [oldest] = reflexive
      .filter((pair) => pair !== selected)
      .toSorted((a, b) => (a.answeredAt ?? -Infinity) - (b.answeredAt ?? -Infinity));
    if (oldest === undefined) return false;
    return this.#pairs.delete(keyOf(oldest.leg, oldest.remote));
  }

  keep(isKept: (pair: Pair) => boolean): void {
    for (const [key, pair] of this.#pairs) if (!isKept(pair)) this.#pairs.delete(key);
  }

  clear(): void {
    this.#pairs.clear();
  }

  /** What nobody has kept open for so long is proven no more. */
  expire(selected: Pair | undefined, now: Instant): void {
    for (const pair of this.#pairs.values()) {
      const { answeredAt } = pair;
      if (pair !== selected && answeredAt !== undefined && now - answeredAt > STANDBY_MS) pair.invalidate();
    }
  }

  /** The best one that works, of those that are fit. */
  best(isFit: (pair: Pair) => boolean = () => true): Pair | undefined {
    return this.values()
      .filter((pair) => pair.isValid && isFit(pair))
      .toSorted((a, b) => score(a) - score(b))[0];
  }
}

const keyOf = (leg: Leg, remote: TransportAddress): string => `${leg}|${remote.ip}|${remote.port}`;
