/** Pieces of the human output that several commands share. Text from the network passes `printable` before it is shown. */
import type { NatStatus, PathChange, PathKind, PathStatus } from "../local/contract.ts";
import { printable } from "../log.ts";
import type { Paint, Style } from "./host.ts";

/** What a rendering needs to know of its surroundings. */
export interface View {
  readonly nowUnixMs: number;
  readonly paint: Paint;
  /** Undefined: as wide as it needs. */
  readonly columns: number | undefined;
}

export interface Cell {
  readonly text: string;
  readonly style?: Style | undefined;
}

const GAP = "  ";
const INDENT = "    ";
/** A reason cut to fewer characters than this says little: on so narrow a terminal it gets a line of its own. */
const MIN_LAST_COLUMN = 40;

/** Columns as wide as their longest cell; only the last one is cut to fit the terminal, or goes below the others. */
export function table(head: readonly string[], rows: readonly (readonly Cell[])[], view: View): string {
  const clean = rows.map((row) => row.map((cell) => ({ ...cell, text: printable(cell.text) })));
  const widths = head.map((title, column) =>
    Math.max(title.length, ...clean.map((row) => row[column]?.text.length ?? 0)),
  );
  const last = head.length - 1;
  const before = widths.slice(0, last).reduce((sum, width) => sum + width + GAP.length, 0);
  const room = view.columns === undefined ? Infinity : view.columns - before;
  const painted = ({ style }: Cell, text: string): string => (style === undefined ? text : view.paint(style, text));
  const isNarrow = room < Math.min(MIN_LAST_COLUMN, widths[last] ?? 0);
  const line = (cells: readonly Cell[]): string => {
    const columns = cells.map((cell, column) => {
      const { text } = cell;
      if (column !== last) return painted(cell, text.padEnd(widths[column] ?? 0));
      return painted(cell, isNarrow ? cut(text, (view.columns ?? Infinity) - INDENT.length) : cut(text, room));
    });
    if (!isNarrow) return columns.join(GAP).trimEnd();
    const above = columns.slice(0, last).join(GAP).trimEnd();
    return cells[last]?.text === "" ? above : `${above}\n${INDENT}${columns[last] ?? ""}`;
  };
  const titles = head.map((text, column) => ({ text: isNarrow && column === last ? "" : text, style: "dim" as const }));
  return [line(titles), ...clean.map(line)].join("\n");
}

const cut = (text: string, length: number): string =>
  text.length <= length ? text : `${text.slice(0, Math.max(0, length - 3))}...`;

/** 0.42 ms, 7.3 ms, 128 ms. */
export const milliseconds = (value: number): string =>
  `${value < 1 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0)} ms`;

/** The two words that matter: "40 s", "12 min", "3 h", "9 days". */
export function duration(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} days`;
}

/** How long ago an ISO 8601 moment was. */
export function ago(moment: string, view: View): string {
  const at = Date.parse(moment);
  return Number.isNaN(at) ? "unknown" : duration(view.nowUnixMs - at);
}

export function pathWords(path: PathStatus): string {
  if (path.kind === "direct") return "direct";
  const { legs } = path;
  if (legs === null || legs.local === legs.remote) return `relayed by ${path.kind}`;
  return `relayed by ${legs.local} here, ${legs.remote} there`;
}

export const pathStyle = (kind: PathKind): Style => (kind === "direct" ? "green" : "yellow");

export function natWords(nat: NatStatus): string {
  const seen = nat.publicAddress === null ? "" : `, seen from outside as ${nat.publicAddress}`;
  if (nat.label === "unknown") return `not known yet${seen}`;
  if (nat.label === "udp blocked") return "blocks UDP";
  const doubt = nat.certain ? "" : ", or a more permissive kind";
  const ports = nat.allocation === null || nat.label === "open" ? "" : ` with ${portWords(nat)}`;
  return `${nat.label}${ports}${doubt}${seen}`;
}

function portWords({ allocation, ports }: NatStatus): string {
  if (allocation === "preserving") return "preserved ports";
  if (allocation === "block" && ports !== undefined && ports !== null)
    return `a block of about ${ports.last - ports.first + 1} ports`;
  return `${allocation} ports`;
}

/** The last changes of a path, newest first. */
export function historyLines(history: readonly PathChange[], view: View, count: number): string[] {
  return history
    .toSorted((a, b) => Date.parse(b.at) - Date.parse(a.at))
    .slice(0, count)
    .map(
      ({ at, from, to, reason }) =>
        `  ${ago(at, view)} ago: ${from ?? "none"} to ${to ?? "none"}, ${printable(reason)}`,
    );
}

export const bytes = (count: number): string => {
  if (count < 1000) return `${count} B`;
  const units = ["kB", "MB", "GB", "TB", "PB"];
  let value = count / 1000;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ${units[unit] ?? ""}`;
};
