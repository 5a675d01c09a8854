/** What was refused, counted by reason. */
export class DropCounts {
  readonly #counts: Record<string, number> = {};

  add(reason: string, count = 1): void {
    this.#counts[reason] = (this.#counts[reason] ?? 0) + count;
  }

  get counts(): Readonly<Record<string, number>> {
    return { ...this.#counts };
  }
}
