/**
 * `--watch`: the same picture again and again, drawn over the last one, so that a terminal neither flickers nor scrolls.
 *
 * Without a terminal each picture simply follows the other.
 */
import { EXIT } from "../state/user_error.ts";
import type { Host } from "./host.ts";

const INTERVAL_MS = 1000;

/** ECMA-48 and, for what begins with `?`, DEC private modes, which every terminal of today knows. */
const CLEAR_SCREEN = "\u001b[2J";
const HOME = "\u001b[H";
const CLEAR_TO_LINE_END = "\u001b[K";
const CLEAR_BELOW = "\u001b[J";
const HIDE_CURSOR = "\u001b[?25l";
const SHOW_CURSOR = "\u001b[?25h";
/** A line that is too long is cut by the terminal: wrapped, it would push the others off the screen. */
const NO_WRAP = "\u001b[?7l";
const WRAP = "\u001b[?7h";

/** Until `signal` aborts. What `picture` throws ends it, with the terminal as it was. */
export async function watch(picture: () => Promise<string>, host: Host, signal: AbortSignal): Promise<number> {
  const isTerminal = host.columns() !== undefined;
  if (isTerminal) host.out(HIDE_CURSOR + NO_WRAP + CLEAR_SCREEN);
  try {
    while (!signal.aborted) {
      const text = await picture();
      host.out(isTerminal ? drawn(text, host.rows()) : text);
      await host.sleep(INTERVAL_MS, signal);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  } finally {
    if (isTerminal) host.out(WRAP + SHOW_CURSOR);
  }
  return EXIT.ok;
}

function drawn(text: string, rows: number | undefined): string {
  const lines = text.trimEnd().split("\n");
  // The last row stays free for the cursor.
  const room = Math.max(1, (rows ?? Infinity) - 1);
  const hidden = lines.length - room + 1;
  const shown = hidden <= 1 ? lines : [...lines.slice(0, room - 1), `... and ${hidden} more lines`];
  return `${HOME}${shown.map((line) => `${line}${CLEAR_TO_LINE_END}\n`).join("")}${CLEAR_BELOW}`;
}
