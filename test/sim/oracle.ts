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

/** A sender whose port changes per destination cannot pass a filter that wants the exact port. */
const defeats = (sender: NatBehavior, receiver: NatBehavior): boolean =>
  sender.mapping !== "endpoint-independent" &&
  sender.mapping !== "none" &&
  receiver.filtering === "address-and-port-dependent";

export const directPathExpected = (a: NatBehavior, b: NatBehavior): boolean => !defeats(a, b) && !defeats(b, a);
