/** Opening streams on behalf of programs here: finds the peer by what they call it, and says in words why it cannot be reached. */
import type { PeerView } from "../../node/contract.ts";
import { EXIT, UserError } from "../../state/user_error.ts";
import { closeError } from "./close_words.ts";
import type { SocketStream } from "./socket_stream.ts";
import type { StreamDriver } from "./stream_driver.ts";

export interface PeerStreams {
  readonly driver: StreamDriver;
  /** The peer by name, `name.mesh`, id or mesh address. */
  readonly find: (reference: string) => PeerView | undefined;
}

/** The peer, if streams to it make sense at all. Throws UserError 5. */
export function reachablePeer({ find }: PeerStreams, reference: string): PeerView {
  const peer = find(reference);
  if (peer === undefined) {
    throw new UserError(EXIT.peerUnavailable, `There is no peer "${reference}"; "tunnelmesh-agent peers" lists them`);
  }
  if (peer.trust !== "pinned" || (!peer.entry.online && peer.route === undefined)) {
    throw new UserError(EXIT.peerUnavailable, peer.why);
  }
  return peer;
}

/** Opens a stream and makes `owner` its owner. Throws UserError. */
export function openStream(streams: PeerStreams, reference: string, port: number, owner: SocketStream): PeerView {
  const peer = reachablePeer(streams, reference);
  const stream = streams.driver.open(peer.id, port, (handle) => {
    owner.setStream(handle);
    return owner;
  });
  if (stream === undefined) throw closeError("overloaded", peer.entry.name, port);
  return peer;
}
