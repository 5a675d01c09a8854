/** Virtual time: events in order of their instant, then of their making. Nothing waits. */
import { type Instant, instant } from "../../shared/time.ts";

interface Event {
  readonly at: number;
  readonly order: number;
  readonly run: () => void;
}

export class VirtualClock {
  readonly #heap: Event[] = [];
  #order = 0;
  #now = 0;

  get now(): Instant {
    return instant(this.#now);
  }

  /** Runs `run` after `delayMs` of virtual time. */
  after(delayMs: number, run: () => void): void {
    this.#push({ at: this.#now + Math.max(0, delayMs), order: this.#order++, run });
  }

  /** Runs events until `untilMs`, or until `done` says so. */
  runUntil(untilMs: number, done: () => boolean = () => false): void {
    while (!done()) {
      const next = this.#heap[0];
      if (next === undefined || next.at > untilMs) break;
      this.#pop();
      this.#now = next.at;
      next.run();
    }
    if (!done()) this.#now = Math.max(this.#now, untilMs);
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, heap[parent])) break;
      heap[at] = heap[parent] as Event;
      at = parent;
    }
    heap[at] = event;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1], heap[child])) child++;
      if (!isBefore(heap[child], last)) break;
      heap[at] = heap[child] as Event;
      at = child;
    }
    heap[at] = last;
  }
}

const isBefore = (a: Event | undefined, b: Event | undefined): boolean =>
  a !== undefined && b !== undefined && (a.at < b.at || (a.at === b.at && a.order < b.order));
