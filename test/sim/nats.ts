/** NATs by the names that users know. */
import type { NatBehavior } from "./nat.ts";

export const FULL_CONE: NatBehavior = { mapping: "endpoint-independent", filtering: "endpoint-independent" };
export const RESTRICTED_CONE: NatBehavior = { mapping: "endpoint-independent", filtering: "address-dependent" };
export const PORT_RESTRICTED_CONE: NatBehavior = {
  mapping: "endpoint-independent",
  filtering: "address-and-port-dependent",
};
export const SYMMETRIC: NatBehavior = {
  mapping: "address-and-port-dependent",
  filtering: "address-and-port-dependent",
};
/** A public address behind a stateful firewall. */
export const FIREWALL: NatBehavior = { mapping: "none", filtering: "address-and-port-dependent" };
