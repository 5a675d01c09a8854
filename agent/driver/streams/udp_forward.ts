/** `--forward udp:...`: datagrams to a local port go to a port of a peer, and the answers back to whoever asked. Nothing is repeated. */
import { formatTransportAddress } from "../../../shared/address.ts";
import type { PeerId } from "../../../shared/session/identity.ts";
import type { ForwardSpec } from "../../state/forward_spec.ts";
import { EXIT, systemReason, UserError } from "../../state/user_error.ts";
import { findPeer } from "../find_peer.ts";
import type { DatagramFlows } from "./datagram_flows.ts";
import type { PeerStreams } from "./peer_streams.ts";
import type { Listening } from "./tcp_listener.ts";

/** Local senders that are told apart at one time, and how long a quiet one is remembered. */
const MAX_SENDERS = 1024;
const SENDER_IDLE_MS = 120_000;

interface Sender {
  readonly peer: PeerId;
  readonly flow: number;
  usedAt: number;
}

/** Throws UserError 1 when the port cannot be had. */
export async function startUdpForward(
  streams: PeerStreams,
  flows: DatagramFlows,
  spec: ForwardSpec,
): Promise<Listening> {
  const senders = new Map<string, Sender>();
  const forget = (key: string, sender: Sender): void => {
    senders.delete(key);
    flows.close(sender.peer, sender.flow);
  };
  const senderOf = (ip: string, port: number): Sender | undefined => {
    const key = `${ip} ${port}`;
    const now = streams.driver.now();
    for (const [other, sender] of senders) {
      if (senders.size < MAX_SENDERS && now - sender.usedAt < SENDER_IDLE_MS) break;
      forget(other, sender);
    }
    const peer = findPeer(streams.peers(), spec.peer);
    const known = senders.get(key);
    if (peer === undefined) return undefined;
    // The oldest come first in the map.
    senders.delete(key);
    const sender = known?.peer === peer.id ? known : { peer: peer.id, flow: open(peer.id, ip, port), usedAt: now };
    sender.usedAt = now;
    senders.set(key, sender);
    return sender;
  };
  const open = (peer: PeerId, ip: string, port: number): number =>
    flows.open(peer, (bytes) => void socket.send(bytes, port, ip));
  const address = formatTransportAddress({ ip: spec.bind, port: spec.port });
  let socket: Bun.udp.Socket<"uint8array">;
  try {
    socket = await Bun.udpSocket({
      hostname: spec.bind,
      port: spec.port,
      binaryType: "uint8array",
      socket: {
        data(_socket, bytes, port, ip) {
          const sender = senderOf(ip, port);
          if (sender !== undefined) streams.driver.sendDatagram(sender.peer, sender.flow, spec.peerPort, bytes);
        },
        error: () => {},
      },
    });
  } catch (error) {
    throw new UserError(
      EXIT.failed,
      `Cannot listen on ${address} for --forward: ${systemReason(error)}; choose another port`,
      {
        cause: error,
      },
    );
  }
  return {
    address: formatTransportAddress({ ip: spec.bind, port: socket.port }),
    stop() {
      for (const [key, sender] of senders) forget(key, sender);
      socket.close();
    },
  };
}
