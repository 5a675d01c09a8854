/** Tells what happens in the node in the words and stable events of the log (agent/log.ts). */
import { assertNever } from "../../shared/assert.ts";
import { formatTransportAddress } from "../../shared/address.ts";
import type { Log } from "../log.ts";
import type { Leg } from "../data/plane.ts";
import type { NodeEvent } from "../node/contract.ts";

/** @param localAddressTo our end of a direct path to this ip on this leg, as `ip:port` */
export function logNodeEvent(
  log: Log,
  event: NodeEvent,
  localAddressTo: (remoteIp: string, leg: Leg) => string | undefined,
): void {
  switch (event.type) {
    case "peer_online":
      log.event({ event: "peer_online", peer: event.name, id: event.id });
      break;
    case "peer_offline":
      log.info(`${event.name} is offline`, { peer: event.name });
      break;
    case "key_changed":
      log.warn(
        `The key of ${event.name} has changed, so it is refused; if that is right, run "tunnelmesh-agent trust ${event.name}"`,
      );
      break;
    case "nat_detected":
      log.event({
        event: "nat_detected",
        family: 4,
        label: event.label,
        certain: event.nat.certain,
        mapping: event.nat.mapping ?? null,
        filtering: event.nat.filtering ?? null,
        allocation: event.nat.allocation ?? null,
        publicAddress: event.publicAddress === undefined ? null : formatTransportAddress(event.publicAddress),
      });
      break;
    case "path_changed":
      log.event({
        event: "path_changed",
        peer: event.name,
        from: event.from ?? "none",
        to: event.to ?? "none",
        reason: event.reason,
        localAddress:
          event.remote === undefined || event.leg === undefined
            ? null
            : (localAddressTo(event.remote.ip, event.leg) ?? null),
        remoteAddress: event.remote === undefined ? null : formatTransportAddress(event.remote),
        rttMs: event.rttMs ?? null,
      });
      break;
    case "punched":
      log.event({
        event: "punched",
        peer: event.name,
        role: event.role,
        outcome: event.outcome,
        sockets: event.sockets,
        packets: event.packets,
        milliseconds: event.milliseconds,
      });
      break;
    case "mtu_changed":
      if (event.isSettled) log.debug(`Packets of ${event.packetBytes} bytes go to ${event.name} in one frame`);
      break;
    // Nothing that the log tells: for the driver.
    case "path_suspect":
    case "route_added":
    case "route_removed":
    case "echo_answer":
      break;
    default:
      assertNever(event);
  }
}
