/** A data worker with a plane for tests: it echoes, reports, and keeps one timer, each as the first byte of a datagram or command says. */
import { runDataWorker } from "../../../../agent/driver/data_worker_loop.ts";
import type { Leg, PlaneCommand, PlaneIo } from "../../../../agent/data/plane.ts";
import { after, type Instant } from "../../../../shared/time.ts";
import { PlainPlane } from "./plain_plane.ts";

/** First bytes of datagrams. */
export const ECHO = 1;
export const COUNT = 2;
export const THROW = 3;
/** To be sent: what follows the next two bytes, as frames of the size that they say. */
export const BATCH = 4;
/** `remove_peer` with this slot ends the worker with an exception. */
export const TIMER_MS = 30;

class EchoPlane extends PlainPlane {
  readonly #io: PlaneIo;
  #counted = 0;
  #timerAt: Instant | undefined;

  constructor(io: PlaneIo) {
    super();
    this.#io = io;
  }

  handleCommand(command: PlaneCommand, now: Instant): void {
    if (command.type === "send_datagram") {
      const { leg, to } = command.path;
      const isBatch = command.bytes[0] === BATCH;
      const bytes = isBatch ? command.bytes.subarray(3) : command.bytes;
      const frameBytes = isBatch ? ((command.bytes[1] ?? 0) << 8) | (command.bytes[2] ?? 0) : bytes.length;
      const errno = this.#io.transmit(leg, to, bytes, frameBytes);
      if (errno !== 0) this.#io.report({ type: "send_failed", leg, to, errno, at: now });
    } else if (command.type === "read_counters") {
      this.#io.report({ type: "counters", peers: [], drops: { counted: this.#counted } });
    } else if (command.type === "select_path") {
      this.#timerAt = after(now, TIMER_MS);
    } else if (command.type === "receive_frames") {
      this.#io.report({ type: "relay_frames", leg: command.leg, to: command.from, frames: command.frames, lanes: [] });
    }
  }

  override handleDatagram(leg: Leg, from: Uint8Array, bytes: Uint8Array, now: Instant): void {
    if (bytes[0] === COUNT) {
      this.#counted++;
    } else if (bytes[0] === THROW) {
      throw new Error("thrown by the test plane");
    } else if (bytes[0] === ECHO) {
      const echo = bytes.slice();
      echo[0] = 0;
      this.#io.transmit(leg, from, echo, echo.length);
    } else {
      this.#io.report({ type: "datagram", leg, from, bytes, at: now });
    }
  }

  override handleTimeout(now: Instant): void {
    this.#timerAt = undefined;
    this.#io.report({ type: "wanted", peer: 0, at: now });
  }

  override deadline(): Instant | undefined {
    return this.#timerAt;
  }
}

await runDataWorker((io) => new EchoPlane(io));
