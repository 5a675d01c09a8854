/** Which rungs would be better than the one in use, and what stands against each, in words for people. */
import { whyNotSsh } from "./explain_no_ssh.ts";
import type { PathKind } from "./ladder.ts";
import { whoseOperator, type Peer, whyNotDirect, type WhyContext, wishOf } from "./peer.ts";

export interface BetterRung {
  readonly kind: PathKind;
  readonly reason: string;
}

export function betterRungs(peer: Peer, context: WhyContext): readonly BetterRung[] {
  const { route } = peer;
  if (route === undefined || route.kind === "direct") return [];
  const wish = wishOf(peer);
  if (wish === route.kind || (wish !== "auto" && peer.paths.selected !== undefined)) {
    const reason = `The operator ${whoseOperator(peer)}chose ${wish} with "path"`;
    const kinds: readonly PathKind[] = route.kind === "ssh" ? ["direct"] : ["direct", "ssh"];
    return kinds.map((kind) => ({ kind, reason }));
  }
  const direct: BetterRung = { kind: "direct", reason: whyNotDirect(peer, context) };
  const noSsh = whyNotSsh(route.legs, peer.entry.name, context.whyNoSsh);
  return noSsh === undefined ? [direct] : [direct, { kind: "ssh", reason: noSsh }];
}
