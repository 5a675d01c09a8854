/**
 * What leaves the node: one queue of actions, the ways to put something into it, and which connections there are to send it by.
 *
 * Handshakes and control frames go along the selected path when there is one, else through signalling.
 */
import type { RelayLeg } from "../../shared/signal/messages.ts";
import { type ControlMessage, encodeControl } from "../../shared/wire/control.ts";
import { FRAME_OVERHEAD_BYTES } from "../../shared/wire/frame.ts";
import type { PathRef, PlaneCommand } from "../data/plane.ts";
import type { NodeAction, NodeEvent } from "./contract.ts";
import { packedSlot, RELAY_LEGS, SIGNAL_LEG } from "./legs.ts";
import type { Peer } from "./peer.ts";

export class Outbox {
  /** Is signalling open? */
  connected = false;
  /** Our own relay connections. */
  readonly relays: Record<RelayLeg, boolean> = { ssh: false, websocket: false };
  readonly #actions: NodeAction[] = [];

  push(action: NodeAction): void {
    this.#actions.push(action);
  }

  poll(): NodeAction | undefined {
    return this.#actions.shift();
  }

  plane(command: PlaneCommand): void {
    this.push({ type: "plane", command });
  }

  /** @param frameBytes the sealed frame is padded to this size; trailing bytes are ignored */
  sendControl(peer: Peer, path: PathRef, message: ControlMessage, frameBytes = 0): void {
    const encoded = encodeControl(message);
    const isPadded = frameBytes - FRAME_OVERHEAD_BYTES > encoded.length;
    const body = isPadded ? new Uint8Array(frameBytes - FRAME_OVERHEAD_BYTES) : encoded;
    if (isPadded) body.set(encoded);
    this.plane({ type: "send_control", peer: peer.slot, path, body });
  }

  sendDatagram(path: PathRef, bytes: Uint8Array): void {
    this.plane({ type: "send_datagram", path, bytes });
  }

  signalTo(peer: Peer, body: Uint8Array): void {
    if (this.connected && peer.entry.online) this.signal({ type: "to_peer", to: peer.id, body });
  }

  signal(message: Extract<NodeAction, { type: "signal" }>["message"]): void {
    this.push({ type: "signal", message });
  }

  requestPunch(peer: Peer): void {
    if (!this.connected || !peer.entry.online) return;
    this.signal({ type: "punch_request", peer: peer.id, round: peer.paths.round + 1 });
  }

  event(event: NodeEvent): void {
    this.push({ type: "event", event });
  }

  routeRef(peer: Peer): PathRef | undefined {
    const { route } = peer;
    if (route === undefined) return undefined;
    if (route.kind === "direct") return { leg: route.pair.leg, to: route.pair.packedRemote };
    return { leg: RELAY_LEGS[route.legs.local], to: packedSlot(peer.slot) };
  }

  signalRef(peer: Peer): PathRef {
    return { leg: SIGNAL_LEG, to: packedSlot(peer.slot) };
  }
}
