/**
 * The agent's log on stderr: text for people, or one JSON object a line for programs.
 *
 * The events listed in `AgentEvent` are stable: other programs wait for them, so they are written at every level. Nothing here is
 * written per packet. Join keys are cut out of every line and byte arrays are never printed, whatever a caller passes.
 */
import { assertNever } from "../shared/assert.ts";
import type { NatLabel } from "./path/nat_behavior.ts";
import { withoutKeys } from "./state/user_error.ts";

export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
export const LOG_FORMATS = ["text", "json"] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

export type AgentEvent =
  /** The local API answers from here on. */
  | {
      readonly event: "started";
      readonly version: string;
      readonly pid: number;
      readonly id: string;
      readonly fingerprint: string;
      readonly stateDir: string;
      readonly socket: string;
    }
  | {
      readonly event: "joined";
      readonly name: string;
      readonly id: string;
      readonly meshIPv4: string;
      readonly meshIPv6: string;
      /** TUN device, or null in rootless mode. */
      readonly tun: string | null;
      readonly coordinator: string;
    }
  | { readonly event: "peer_online"; readonly peer: string; readonly id: string }
  | {
      readonly event: "nat_detected";
      readonly family: 4 | 6;
      readonly label: NatLabel;
      readonly certain: boolean;
      readonly mapping: string | null;
      readonly filtering: string | null;
      readonly allocation: string | null;
      readonly publicAddress: string | null;
    }
  | {
      readonly event: "path_changed";
      readonly peer: string;
      /** `none`: no path. */
      readonly from: PathKindOrNone;
      readonly to: PathKindOrNone;
      readonly reason: string;
      readonly localAddress: string | null;
      readonly remoteAddress: string | null;
      readonly rttMs: number | null;
    }
  /** An attempt at a direct path with many packets has ended: what this side did and sent. */
  | {
      readonly event: "punched";
      readonly peer: string;
      readonly role: "spread" | "guess" | "meet";
      readonly outcome: "direct" | "failed" | "refused" | "stopped";
      readonly sockets: number;
      readonly packets: number;
      readonly milliseconds: number;
    }
  | { readonly event: "stopped"; readonly reason: string };
export type PathKindOrNone = "none" | "direct" | "ssh" | "websocket";

export type LogFields = Readonly<Record<string, unknown>>;

export interface Log {
  event(event: AgentEvent): void;
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
}

export interface LogOptions {
  readonly level: LogLevel;
  readonly format: LogFormat;
  /** Takes one whole line without its end. */
  readonly write: (line: string) => void;
  readonly unixMs: () => number;
}

export function createLog(options: LogOptions): Log {
  const lowest = LOG_LEVELS.indexOf(options.level);
  const now = (): Date => new Date(options.unixMs());
  const writeJson = (level: LogLevel, fields: LogFields): void =>
    options.write(withoutKeys(JSON.stringify({ time: now().toISOString(), level, ...fields }, withoutBytes)));
  const writeText = (level: LogLevel, text: string): void =>
    options.write(`${clockTime(now())} ${level === "info" ? "" : `${level}: `}${printable(withoutKeys(text))}`);
  const writer =
    (level: LogLevel) =>
    (message: string, fields: LogFields = {}): void => {
      if (LOG_LEVELS.indexOf(level) < lowest) return;
      if (options.format === "json") writeJson(level, { message, ...fields });
      else writeText(level, message + inBrackets(fields));
    };
  return {
    event(event) {
      if (options.format === "json") writeJson("info", { ...event });
      else if (lowest <= LOG_LEVELS.indexOf("info")) writeText("info", inWords(event));
    },
    debug: writer("debug"),
    info: writer("info"),
    warn: writer("warn"),
    error: writer("error"),
  };
}

/**
 * Text that came over a network, made safe for a terminal: control characters (C0, DEL, C1) and the marks that reorder a line
 * could otherwise move the cursor or forge a line.
 */
export const printable = (text: string): string => text.replace(/[\p{Cc}\p{Bidi_Control}\p{Zl}\p{Zp}]/gu, "?");

function inWords(event: AgentEvent): string {
  switch (event.event) {
    case "started":
      return `Agent ${event.version} started in ${event.stateDir}, fingerprint ${event.fingerprint}`;
    case "joined": {
      const device = event.tun === null ? "without a TUN device" : `on ${event.tun}`;
      return `Joined as "${event.name}" with ${event.meshIPv4} and ${event.meshIPv6} ${device}`;
    }
    case "peer_online":
      return `"${event.peer}" is online`;
    case "nat_detected": {
      const family = `IPv${event.family}`;
      if (event.label === "unknown") return `${family}: the router's behaviour is not known yet`;
      if (event.label === "udp blocked") return `${family}: this network blocks UDP`;
      const certainty = event.certain ? "" : " (or a more permissive kind)";
      const address = event.publicAddress === null ? "" : `, seen from outside as ${event.publicAddress}`;
      return event.label === "open"
        ? `${family}: open, no router in the way${address}`
        : `${family}: behind a ${event.label} NAT or firewall${certainty}${address}`;
    }
    case "path_changed": {
      const time = event.rttMs === null ? "" : `, ${event.rttMs.toFixed(1)} ms`;
      const via = event.remoteAddress === null ? "" : ` via ${event.remoteAddress}`;
      if (event.to === "none") return `Path to "${event.peer}" is gone (was ${event.from}): ${event.reason}`;
      return `Path to "${event.peer}" is ${event.to}${via}${time} (was ${event.from}): ${event.reason}`;
    }
    case "punched": {
      const sent = `${event.packets} packets from ${Math.max(1, event.sockets)} port(s) in ${event.milliseconds.toFixed(0)} ms`;
      const how = { direct: "found a path", failed: "found nothing", refused: "was refused", stopped: "was stopped" };
      return `Looking for ports of "${event.peer}" ${how[event.outcome]}: ${sent}`;
    }
    case "stopped":
      return `Stopped: ${event.reason}`;
    default:
      return assertNever(event);
  }
}

const inBrackets = (fields: LogFields): string => {
  const parts = Object.entries(fields).map(([name, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value, withoutBytes);
    return `${name} ${text}`;
  });
  return parts.length === 0 ? "" : ` (${parts.join(", ")})`;
};

/** A byte array in a log is a key or a packet, and neither belongs there. */
const withoutBytes = (_name: string, value: unknown): unknown =>
  ArrayBuffer.isView(value) || isSerialisedBuffer(value) ? "(bytes)" : value;

/** `Buffer` has turned itself into this by the time a replacer sees it. */
const isSerialisedBuffer = (value: unknown): boolean =>
  typeof value === "object" && value !== null && "type" in value && value.type === "Buffer" && "data" in value;

const clockTime = (date: Date): string =>
  [date.getHours(), date.getMinutes(), date.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
