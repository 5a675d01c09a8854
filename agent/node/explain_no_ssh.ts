/** Why a relayed path is not SSH all the way: on which side, with what would help. */
import type { RelayLeg } from "../../shared/signal/messages.ts";

/** Undefined: both legs are SSH. @param local what this machine knows of its own SSH connection */
export function whyNotSsh(
  legs: { readonly local: RelayLeg; readonly remote: RelayLeg },
  remoteName: string,
  local: () => string,
): string | undefined {
  const there = `"${remoteName}" has no SSH connection to the coordinator; allowing TCP to its SSH port there would bring SSH`;
  if (legs.local === "ssh") return legs.remote === "ssh" ? undefined : `No SSH: ${there}`;
  return legs.remote === "ssh" ? `No SSH: ${local()}` : `No SSH: ${local()}, and ${there}`;
}
