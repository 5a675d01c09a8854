/** A plane for tests that looks at one datagram and one finished packet at a time. */
import type { Leg, PacketOffload, Plane, PlaneCommand } from "../../../../agent/data/plane.ts";
import type { Instant } from "../../../../shared/time.ts";

export abstract class PlainPlane implements Plane {
  abstract handleCommand(command: PlaneCommand, now: Instant): void;

  handleDatagram(_leg: Leg, _from: Uint8Array, _bytes: Uint8Array, _now: Instant): void {}

  handleDatagrams(
    leg: Leg,
    from: Uint8Array,
    bytes: Uint8Array,
    length: number,
    frameBytes: number,
    now: Instant,
  ): void {
    for (let at = 0; at < length; at += frameBytes) {
      this.handleDatagram(leg, from, bytes.subarray(at, Math.min(at + frameBytes, length)), now);
    }
  }

  handlePacket(_packet: Uint8Array, _now: Instant): void {}

  handleOffloaded(bytes: Uint8Array, start: number, end: number, offload: PacketOffload, now: Instant): void {
    if (!offload.isUnfinished && offload.segmentBytes === 0) this.handlePacket(bytes.subarray(start, end), now);
  }

  handleTimeout(_now: Instant): void {}

  deadline(): Instant | undefined {
    return undefined;
  }

  cork(): void {}
  uncork(_now: Instant): void {}
}
