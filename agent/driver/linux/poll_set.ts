/**
 * The descriptors that ppoll(2) waits for, and what stands behind each.
 *
 * `struct pollfd` is { int fd; short events; short revents }: two 32-bit words here, the second with revents in its upper half
 * (little-endian). ppoll rather than poll because its timeout is finer than a millisecond.
 */
import { type Libc, libc, POLLIN } from "./libc.ts";

const INITIAL_CAPACITY = 16;

export class PollSet<Source> {
  /** In the order of the descriptors. Replaced, never changed in place, so that a loop over it survives `add` and `remove`. */
  sources: readonly Source[];
  readonly #libc: Libc = libc();
  readonly #timespec = new Uint32Array(4);
  /** What `wait` last saw; `add` and `remove` take effect at the next one. */
  #pollfds = new Int32Array(2 * INITIAL_CAPACITY);
  #fds: number[];
  #next: Source[];
  #changed = true;

  constructor(fd: number, source: Source) {
    this.#fds = [fd];
    this.#next = [source];
    this.sources = this.#next;
  }

  add(fd: number, source: Source): void {
    this.#fds.push(fd);
    this.#next.push(source);
    this.#changed = true;
  }

  remove(fd: number): void {
    const at = this.#fds.indexOf(fd);
    if (at < 0) return;
    this.#fds.splice(at, 1);
    this.#next.splice(at, 1);
    this.#changed = true;
  }

  /** Waits at most so many milliseconds (undefined: for ever). Returns how many descriptors are ready; none after a signal. */
  wait(timeoutMs: number | undefined): number {
    if (this.#changed) this.#rebuild();
    const timespec = this.#timespec;
    if (timeoutMs !== undefined) {
      timespec[0] = Math.floor(timeoutMs / 1000);
      timespec[2] = (timeoutMs % 1000) * 1e6;
    }
    return this.#libc.ppoll(this.#pollfds, this.sources.length, timeoutMs === undefined ? null : timespec, null);
  }

  /** What happened to the descriptor at this place of `sources`. */
  revents(index: number): number {
    return (this.#pollfds[2 * index + 1] ?? 0) >>> 16;
  }

  #rebuild(): void {
    const count = this.#fds.length;
    if (2 * count > this.#pollfds.length) this.#pollfds = new Int32Array(4 * count);
    for (let i = 0; i < count; i++) {
      this.#pollfds[2 * i] = this.#fds[i] ?? -1;
      this.#pollfds[2 * i + 1] = POLLIN;
    }
    this.sources = [...this.#next];
    this.#changed = false;
  }
}
