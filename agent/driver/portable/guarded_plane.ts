/**
 * A plane whose exceptions cost one input and not the engine.
 *
 * An exception from a plane is a bug of ours, but it may be one that a packet from the network can reach: it must not take down every
 * other peer's path. It is reported, at most once a second.
 */
import type { Leg, PacketOffload, Plane, PlaneCommand } from "../../data/plane.ts";
import { after, type Instant } from "../../../shared/time.ts";
import type { Report } from "../engine.ts";

const REPORT_INTERVAL_MS = 1000;
/** A timeout that throws leaves its deadline in the past; without a pause the engine would spin on it. */
const TIMEOUT_PAUSE_MS = 100;

export class GuardedPlane implements Plane {
  readonly #plane: Plane;
  readonly #report: (report: Report) => void;
  #quietUntil: Instant | undefined;
  #timeoutPausedUntil: Instant | undefined;
  #suppressed = 0;

  constructor(plane: Plane, report: (report: Report) => void) {
    this.#plane = plane;
    this.#report = report;
  }

  handleCommand(command: PlaneCommand, now: Instant): void {
    try {
      this.#plane.handleCommand(command, now);
    } catch (error) {
      this.#failed(error, now);
    }
  }

  handleDatagram(leg: Leg, from: Uint8Array, bytes: Uint8Array, now: Instant): void {
    try {
      this.#plane.handleDatagram(leg, from, bytes, now);
    } catch (error) {
      this.#failed(error, now);
    }
  }

  handleDatagrams(
    leg: Leg,
    from: Uint8Array,
    bytes: Uint8Array,
    length: number,
    frameBytes: number,
    now: Instant,
  ): void {
    try {
      this.#plane.handleDatagrams(leg, from, bytes, length, frameBytes, now);
    } catch (error) {
      this.#failed(error, now);
    }
  }

  handlePacket(packet: Uint8Array, now: Instant): void {
    try {
      this.#plane.handlePacket(packet, now);
    } catch (error) {
      this.#failed(error, now);
    }
  }

  handleOffloaded(bytes: Uint8Array, start: number, end: number, offload: PacketOffload, now: Instant): void {
    try {
      this.#plane.handleOffloaded(bytes, start, end, offload, now);
    } catch (error) {
      this.#failed(error, now);
    }
  }

  cork(): void {
    this.#plane.cork();
  }

  uncork(now: Instant): void {
    try {
      this.#plane.uncork(now);
    } catch (error) {
      this.#failed(error, now);
    }
  }

  handleTimeout(now: Instant): void {
    try {
      this.#plane.handleTimeout(now);
      this.#timeoutPausedUntil = undefined;
    } catch (error) {
      this.#timeoutPausedUntil = after(now, TIMEOUT_PAUSE_MS);
      this.#failed(error, now);
    }
  }

  deadline(): Instant | undefined {
    const deadline = this.#plane.deadline();
    const paused = this.#timeoutPausedUntil;
    return deadline !== undefined && paused !== undefined && paused > deadline ? paused : deadline;
  }

  #failed(error: unknown, now: Instant): void {
    if (this.#quietUntil !== undefined && now < this.#quietUntil) {
      this.#suppressed++;
      return;
    }
    this.#quietUntil = after(now, REPORT_INTERVAL_MS);
    const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.#report({ type: "plane_failed", message, suppressed: this.#suppressed });
    this.#suppressed = 0;
  }
}
