/**
 * Reports on their way out of an engine: collected over one turn and handed on as one batch, because a message between threads costs
 * more than a packet.
 *
 * The bytes in a plane's report are borrowed (agent/data/plane.ts), so they are copied here. That also keeps a few bytes of a large
 * buffer from taking the whole buffer with them through structured cloning.
 */
import type { Report } from "../engine.ts";

export class ReportQueue {
  readonly #deliver: (reports: readonly Report[]) => void;
  #waiting: Report[] = [];

  constructor(deliver: (reports: readonly Report[]) => void) {
    this.#deliver = deliver;
  }

  get isEmpty(): boolean {
    return this.#waiting.length === 0;
  }

  push(report: Report): void {
    this.#waiting.push(owned(report));
  }

  flush(): void {
    if (this.#waiting.length === 0) return;
    const batch = this.#waiting;
    this.#waiting = [];
    this.#deliver(batch);
  }
}

function owned(report: Report): Report {
  switch (report.type) {
    case "datagram":
      return { ...report, from: report.from.slice(), bytes: report.bytes.slice() };
    case "control":
      return { ...report, from: report.from.slice(), body: report.body.slice() };
    case "activity":
      return { ...report, from: report.from.slice() };
    case "send_failed":
      return { ...report, to: report.to.slice() };
    case "relay_frames":
      return { ...report, to: report.to.slice(), frames: report.frames.map((frame) => frame.slice()) };
    default:
      return report;
  }
}
