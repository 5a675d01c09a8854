/** A peer as `status` and `why` show it. */
import type { PeerView } from "./contract.ts";
import { isInUse, type Peer, type WhyContext, whySentence } from "./peer.ts";
import { betterRungs } from "./why_not_better.ts";

export const viewOf = (peer: Peer, context: WhyContext): PeerView => ({
  id: peer.id,
  entry: peer.entry,
  trust: peer.trust,
  route: peer.route,
  rttMs: peer.route?.kind === "direct" ? peer.route.pair.rttMs : peer.relayRttMs,
  selectedAtUnixMs: peer.selectedAtUnixMs,
  nat: peer.nat,
  inUse: isInUse(peer, context.now),
  why: whySentence(peer, context),
  better: betterRungs(peer, context),
  rxBytes: peer.rxBytes,
  txBytes: peer.txBytes,
  history: peer.history,
});
