/** Opening streams on behalf of programs here, to a peer by what they call it. */
import type { PeerView } from "../../node/contract.ts";
import { reachablePeer } from "../find_peer.ts";
import { closeError } from "./close_words.ts";
import type { SocketStream } from "./socket_stream.ts";
import type { StreamDriver } from "./stream_driver.ts";

export interface PeerStreams {
  readonly driver: StreamDriver;
  readonly peers: () => readonly PeerView[];
}

/** Opens a stream and makes `owner` its owner. Throws UserError. */
export function openStream(streams: PeerStreams, reference: string, port: number, owner: SocketStream): PeerView {
  const peer = reachablePeer(streams.peers(), reference.toLowerCase());
  const stream = streams.driver.open(peer.id, port, (handle) => {
    owner.setStream(handle);
    return owner;
  });
  if (stream === undefined) throw closeError("overloaded", peer.entry.name, port);
  return peer;
}
