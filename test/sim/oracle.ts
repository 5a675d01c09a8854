/** What must happen, told independently of the code under test: derived from RFC 4787's words, not from agent/path. */
import type { Filtering, Mapping } from "../../shared/wire/candidates.ts";
import type { NatBehavior } from "./nat.ts";

export const MAPPINGS: readonly Mapping[] = ["endpoint-independent", "address-dependent", "address-and-port-dependent"];
export const FILTERINGS: readonly Filtering[] = [
  "endpoint-independent",
  "address-dependent",
  "address-and-port-dependent",
];

export const ALL_NATS: readonly NatBehavior[] = MAPPINGS.flatMap((mapping) =>
  FILTERINGS.map((filtering) => ({ mapping, filtering })),
);

export const ALL_PAIRINGS: readonly { readonly a: NatBehavior; readonly b: NatBehavior }[] = ALL_NATS.flatMap((a) =>
  ALL_NATS.map((b) => ({ a, b })),
);

const isDependent = ({ mapping }: NatBehavior): boolean => mapping !== "endpoint-independent" && mapping !== "none";

/** A sender whose port changes per destination cannot pass a filter that wants the exact port. */
const defeats = (sender: NatBehavior, receiver: NatBehavior): boolean =>
  isDependent(sender) && receiver.filtering === "address-and-port-dependent";

/**
 * Filters kept per mapping: the peer's packet must come in on the very mapping that was opened towards it. With dependent mapping
 * that is one whose port nobody has told the peer; it learns it from a packet that gets through, which takes one side that lets
 * a packet in on the mapping the peer does know.
 */
const isUnreachable = (nat: NatBehavior): boolean =>
  nat.filterPerMapping === true && isDependent(nat) && nat.filtering !== "endpoint-independent";

/**
 * What must come of two NATs: a path by plain simultaneous opening, one by an attempt with many packets, none, or one that is a matter of
 * luck.
 */
export type Expectation = "plain" | "attempt" | "luck" | "none";

/** Blocks that 4000 packets from each side are enough for, with more than 99.9 %. */
const SURE_BLOCK = 1024;
/** The same opposite a counter, where only one of the two ports is a matter of chance. */
const SURE_BLOCK_OPPOSITE_COUNTER = 512;

export function expectationOf(a: NatBehavior, b: NatBehavior): Expectation {
  if (directPathExpected(a, b)) return "plain";
  // Filters kept per mapping cannot be seen from inside: nobody knows that plain opening will not do.
  if (!defeats(a, b) && !defeats(b, a)) return "none";
  if (isDependent(a) !== isDependent(b)) return "attempt";
  const [portsOfA, portsOfB] = [sureOf(a), sureOf(b)];
  if (portsOfA === "any" && portsOfB === "any") return "none";
  // Other mappings and filters than the strictest make hits likelier, some of them in one direction only.
  if (!isStrict(a) || !isStrict(b)) return "luck";
  if (typeof portsOfA !== "object" || typeof portsOfB !== "object") return "luck";
  const limit = portsOfA.size === 1 || portsOfB.size === 1 ? SURE_BLOCK_OPPOSITE_COUNTER : SURE_BLOCK;
  return Math.max(portsOfA.size, portsOfB.size) <= limit ? "attempt" : "luck";
}

const isStrict = ({ mapping, filtering }: NatBehavior): boolean =>
  mapping === "address-and-port-dependent" && filtering === "address-and-port-dependent";

/** How many ports there are to guess among; a counter has one. Luck: full when each of its ports serves one destination. */
function sureOf({ allocation, overloads }: NatBehavior): { readonly size: number } | "luck" | "any" {
  if (typeof allocation !== "object") return allocation === "preserving" ? "luck" : "any";
  if (allocation.kind === "sequential") return { size: 1 };
  return overloads === true ? { size: allocation.size } : "luck";
}

const stricter = <T>(order: readonly T[], a: T, b: T): T => (order.indexOf(a) < order.indexOf(b) ? b : a);

/**
 * A home's NAT, which has endpoint-independent mapping, behind a carrier's: as one NAT that maps as the carrier's does, and lets in what both
 * let in.
 */
export function behindCarrier(home: NatBehavior, carrier: NatBehavior): NatBehavior {
  return {
    ...carrier,
    filtering: stricter(FILTERINGS, home.filtering, carrier.filtering),
    ...(carrier.filtering === "endpoint-independent" ? { filterPerMapping: false } : {}),
  };
}

export const directPathExpected = (a: NatBehavior, b: NatBehavior): boolean =>
  !defeats(a, b) && !defeats(b, a) && !(isUnreachable(a) && isUnreachable(b));
