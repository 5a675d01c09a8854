/** `ping`: one line an answer, and the summary. */
import type { PathKind, PingEvent } from "../local/contract.ts";
import { printable } from "../log.ts";
import type { Paint } from "./host.ts";
import { milliseconds, pathStyle } from "./render.ts";

export function renderPing(peer: string, event: PingEvent, paint: Paint): string {
  if ("reason" in event) return moved(peer, event.from, event.to, event.reason, paint);
  const start = `${event.seq} ${printable(peer)}:`;
  if ("lost" in event) return `${start} ${paint("red", "no answer")}`;
  return `${start} ${milliseconds(event.rttMs)} ${paint(pathStyle(event.path), kindWords(event.path))}`;
}

/** "-> nas moves from relayed by ssh to direct: the first pair was proven". */
function moved(peer: string, from: PathKind | null, to: PathKind | null, reason: string, paint: Paint): string {
  const kind = (path: PathKind): string => paint(pathStyle(path), kindWords(path));
  const change =
    to === null
      ? "has lost its path"
      : from === null
        ? `is ${kind(to)}`
        : `moves from ${kindWords(from)} to ${kind(to)}`;
  return `-> ${printable(peer)} ${change}: ${printable(reason)}`;
}

const kindWords = (kind: PathKind): string => (kind === "direct" ? "direct" : `relayed by ${kind}`);

/** Counts what `ping` saw; decides nothing about exit codes. */
export class PingTally {
  sent = 0;
  direct = 0;
  readonly #rttsMs: number[] = [];

  add(event: PingEvent): void {
    if ("reason" in event) return;
    this.sent++;
    if ("lost" in event) return;
    this.#rttsMs.push(event.rttMs);
    if (event.path === "direct") this.direct++;
  }

  get answered(): number {
    return this.#rttsMs.length;
  }

  summary(): string {
    const lost = Math.round(((this.sent - this.answered) / Math.max(1, this.sent)) * 100);
    const start = `${this.sent} sent, ${this.answered} answered, ${lost} % lost`;
    const sorted = this.#rttsMs.toSorted((a, b) => a - b);
    const [best, median, worst] = [sorted[0], sorted[Math.floor(sorted.length / 2)], sorted.at(-1)];
    if (best === undefined || median === undefined || worst === undefined) return start;
    const times = `${milliseconds(best)} at best, ${milliseconds(median)} median, ${milliseconds(worst)} at worst`;
    return `${start}; round trip ${times}`;
  }
}
