/** The stable events of a program started with `--log-format json`: one object a line on standard error, with our time of arrival. */
import type { LabProcess, Line } from "./process.ts";

export interface LoggedEvent {
  /** `performance.now()` of the test process when the line arrived. */
  readonly at: number;
  readonly name: string;
  readonly fields: Readonly<Record<string, unknown>>;
}

export class EventLog {
  readonly #process: LabProcess;

  constructor(process: LabProcess) {
    this.#process = process;
  }

  /** Every event so far, or those of one name. */
  all(name?: string): LoggedEvent[] {
    return this.#process.lines.flatMap((line) => {
      const event = parseEvent(line);
      return event !== undefined && (name === undefined || event.name === name) ? [event] : [];
    });
  }

  /** The first event of that name, those already here included, that `accept` takes and that came after `since`. */
  async next(
    name: string,
    options: {
      readonly accept?: (fields: Readonly<Record<string, unknown>>) => boolean;
      readonly since?: number;
      readonly timeoutMs?: number;
    } = {},
  ): Promise<LoggedEvent> {
    return this.#process.waitFor(
      `event "${name}"`,
      (line) => {
        if (line.at < (options.since ?? 0)) return undefined;
        const event = parseEvent(line);
        return event?.name === name && (options.accept?.(event.fields) ?? true) ? event : undefined;
      },
      options.timeoutMs ?? EVENT_TIMEOUT_MS,
    );
  }
}

const EVENT_TIMEOUT_MS = 10_000;

function parseEvent(line: Line): LoggedEvent | undefined {
  if (line.source !== "stderr" || !line.text.startsWith("{")) return undefined;
  let fields: unknown;
  try {
    fields = JSON.parse(line.text);
  } catch {
    return undefined; // A line of another program, or one cut off by a kill.
  }
  if (typeof fields !== "object" || fields === null || !("event" in fields)) return undefined;
  return typeof fields.event === "string" ? { at: line.at, name: fields.event, fields: { ...fields } } : undefined;
}
