/**
 * Many runs of one thing: kept one by one in a file, so that a series that was interrupted goes on where it stopped, and summed up.
 *
 * Only the full run of the lab (LAB_FULL=1) reads and writes the file; delete it to begin anew.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const DIRECTORY = fileURLToPath(new URL("../../.lab-results", import.meta.url));
/** Two-sided 95 % of the normal distribution. */
const Z = 1.96;

export const IS_FULL = process.env["LAB_FULL"] === "1";

export class Series<Run> {
  readonly #file: string;
  readonly #runs: Record<string, Run[]>;

  /** @param name of the file, without its ending */
  constructor(name: string) {
    this.#file = `${DIRECTORY}/${name}.json`;
    const isKept = IS_FULL && existsSync(this.#file);
    this.#runs = isKept
      ? (JSON.parse(readFileSync(this.#file, "utf8")) as { readonly series: Record<string, Run[]> }).series
      : {};
  }

  of(key: string): readonly Run[] {
    return this.#runs[key] ?? [];
  }

  keep(key: string, run: Run): void {
    this.#runs[key] = [...this.of(key), run];
    if (!IS_FULL) return;
    mkdirSync(DIRECTORY, { recursive: true });
    const content = { schema: 1, at: new Date().toISOString(), series: this.#runs };
    writeFileSync(this.#file, `${JSON.stringify(content, undefined, 1)}\n`);
  }
}

/** Of sorted numbers: the one below which this share of them lies. */
export const quantile = (sorted: readonly number[], share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;

/** Wilson's interval for a share, 95 %. */
export function wilson(successes: number, runs: number): readonly [number, number] {
  const share = successes / runs;
  const centre = (share + Z ** 2 / (2 * runs)) / (1 + Z ** 2 / runs);
  const half = (Z / (1 + Z ** 2 / runs)) * Math.sqrt((share * (1 - share)) / runs + Z ** 2 / (4 * runs ** 2));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}

/** `95.1-99.8 %`. */
export function interval(successes: number, runs: number): string {
  const [low, high] = wilson(successes, runs);
  return `${(100 * low).toFixed(1)}-${(100 * high).toFixed(1)} %`;
}
