/** `--forward`: connections to a local port become streams to a port of a peer. */
import type { Log } from "../../log.ts";
import type { ForwardSpec } from "../../state/forward_spec.ts";
import { closeWords } from "./close_words.ts";
import { openStream, type PeerStreams } from "./peer_streams.ts";
import { SOCKET_STREAM_HANDLERS, SocketStream } from "./socket_stream.ts";
import { type Listening, listenTcp } from "./tcp_listener.ts";

/** Throws UserError 1 when the port cannot be had. A peer that is away is no error: each connection tries anew. */
export function startForward(streams: PeerStreams, spec: ForwardSpec, log: Log): Listening {
  const { peer, peerPort } = spec;
  return listenTcp<SocketStream>(spec.bind, spec.port, "--forward", {
    ...SOCKET_STREAM_HANDLERS,
    opened(socket) {
      const pump = new SocketStream({
        closed: (code) => {
          if (code !== "cancelled") log.debug(closeWords(code, peer, peerPort));
          return false;
        },
      });
      socket.data = pump;
      pump.setSocket(socket);
      try {
        openStream(streams, peer, peerPort, pump);
      } catch (error) {
        log.debug(error instanceof Error ? error.message : String(error));
        // There is no better word for it on a connection that the kernel has accepted already.
        pump.closed("unreachable");
      }
    },
  });
}
