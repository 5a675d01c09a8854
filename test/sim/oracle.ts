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

export const directPathExpected = (a: NatBehavior, b: NatBehavior): boolean =>
  !defeats(a, b) && !defeats(b, a) && !(isUnreachable(a) && isUnreachable(b));
