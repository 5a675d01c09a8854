/** Finding a peer by what people call it. */
import type { PeerView } from "../node/contract.ts";
import { EXIT, UserError } from "../state/user_error.ts";

/** By name, `name.mesh`, id or mesh address; lower case. */
export function findPeer(peers: readonly PeerView[], reference: string): PeerView | undefined {
  const bare = reference.replace(/\.mesh\.?$/, "");
  return (
    peers.find(({ entry }) => entry.name === bare) ??
    peers.find(({ id, entry }) => [id, entry.meshIPv4, entry.meshIPv6].includes(reference))
  );
}

/** The same for one that packets may reach. Throws UserError 5. */
export function reachablePeer(peers: readonly PeerView[], reference: string): PeerView {
  const peer = findPeer(peers, reference);
  if (peer === undefined) {
    throw new UserError(EXIT.peerUnavailable, `There is no peer "${reference}"; "tunnelmesh-agent peers" lists them`);
  }
  if (peer.trust !== "pinned" || (!peer.entry.online && peer.route === undefined)) {
    throw new UserError(EXIT.peerUnavailable, peer.why);
  }
  return peer;
}
