/** A set of whole numbers kept as sorted ranges that do not touch: bytes of a stream, or numbers of frames. Ends are exclusive. */
export class RangeSet {
  /** start, end, start, end ... */
  readonly #edges: number[] = [];

  get isEmpty(): boolean {
    return this.#edges.length === 0;
  }

  /** Number of ranges. */
  get count(): number {
    return this.#edges.length / 2;
  }

  /** The beginning of the first range; undefined when empty. */
  get first(): number | undefined {
    return this.#edges[0];
  }

  /** Exclusive end of the last range, 0 when empty. */
  get end(): number {
    return this.#edges.at(-1) ?? 0;
  }

  /** Exclusive end of the first range, 0 when empty. */
  get firstEnd(): number {
    return this.#edges[1] ?? 0;
  }

  rangeAt(index: number): { readonly start: number; readonly end: number } | undefined {
    const start = this.#edges[index * 2];
    const end = this.#edges[index * 2 + 1];
    return start === undefined || end === undefined ? undefined : { start, end };
  }

  has(value: number): boolean {
    return this.#edgesUpTo(value) % 2 === 1;
  }

  add(start: number, end: number): void {
    if (end <= start) return;
    const edges = this.#edges;
    // In order at the end is how nearly everything comes.
    if (edges.length > 0 && edges.at(-1) === start) {
      edges[edges.length - 1] = end;
      return;
    }
    let from = this.#edgesUpTo(start);
    const to = this.#edgesUpTo(end);
    const added: number[] = [];
    if (from % 2 === 0) {
      // A range that ends right here is extended.
      if (from > 0 && edges[from - 1] === start) from--;
      else added.push(start);
    }
    if (to % 2 === 0) added.push(end);
    edges.splice(from, Math.max(0, to - from), ...added);
  }

  remove(start: number, end: number): void {
    if (end <= start || this.#edges.length === 0) return;
    const from = this.#edgesUpTo(start - 1);
    const to = this.#edgesUpTo(end);
    const added: number[] = [];
    if (from % 2 === 1) added.push(start);
    if (to % 2 === 1) added.push(end);
    this.#edges.splice(from, to - from, ...added);
  }

  /** Takes the first range, at most `length` of it. */
  takeFirst(length: number): { readonly start: number; readonly end: number } | undefined {
    const start = this.#edges[0];
    const last = this.#edges[1];
    if (start === undefined || last === undefined) return undefined;
    const end = Math.min(last, start + length);
    if (end === last) this.#edges.splice(0, 2);
    else this.#edges[0] = end;
    return { start, end };
  }

  removeFirstRange(): void {
    this.#edges.splice(0, 2);
  }

  /** How many edges are at or below `value`: odd inside a range. */
  #edgesUpTo(value: number): number {
    const edges = this.#edges;
    let low = 0;
    let high = edges.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((edges[middle] ?? 0) <= value) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
