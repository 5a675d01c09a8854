/**
 * Logs on stderr, as text for people or as one JSON object a line. The events that other programs rely on are listed in `LogEvent`;
 * their names and fields are stable.
 */
import { formatTransportAddress } from "../shared/address.ts";
import { assertNever } from "../shared/assert.ts";
import type { LogFormat, LogLevel } from "./config.ts";

export type LogEvent =
  /** One for each socket, with the real port where 0 was asked for. */
  | {
      readonly event: "listening";
      readonly kind: "http" | "https" | "stun" | "ssh";
      readonly address: string;
      readonly port: number;
    }
  | { readonly event: "ready"; readonly fingerprint: string }
  /** The exact command that joins a machine. */
  | { readonly event: "join_line"; readonly command: string }
  | { readonly event: "agent_joined"; readonly id: string; readonly name: string; readonly isNew: boolean }
  | { readonly event: "agent_left"; readonly id: string; readonly name: string; readonly reason: string }
  | { readonly event: "agent_pending"; readonly id: string; readonly name: string; readonly code: string }
  | { readonly event: "agent_refused"; readonly name: string; readonly reason: string }
  /** Both agents have fired: how far apart, in milliseconds, as far as clocks can be told. */
  | {
      readonly event: "punch_signalled";
      readonly peers: readonly [string, string];
      readonly round: number;
      readonly skewMs: number;
    }
  | { readonly event: "stopped"; readonly reason: string };

export interface Log {
  event(event: LogEvent): void;
  debug(message: string): void;
  info(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}

const LEVELS: readonly LogLevel[] = ["debug", "info", "warn", "error"];

/** @param write takes one whole line without its end */
export function createLog(level: LogLevel, format: LogFormat, write: (line: string) => void): Log {
  const lowest = LEVELS.indexOf(level);
  const message =
    (of: LogLevel) =>
    (text: string): void => {
      if (LEVELS.indexOf(of) < lowest) return;
      if (format === "json") write(JSON.stringify({ time: new Date().toISOString(), level: of, message: text }));
      else write(of === "info" ? text : `${of}: ${text}`);
    };
  return {
    // Stable events are written whatever the level: programs wait for them.
    event(event) {
      if (format === "json") write(JSON.stringify({ time: new Date().toISOString(), level: "info", ...event }));
      else if (lowest <= LEVELS.indexOf("info") || event.event === "join_line") write(inWords(event));
    },
    debug: message("debug"),
    info: message("info"),
    warn: message("warn"),
    error: message("error"),
  };
}

function inWords(event: LogEvent): string {
  switch (event.event) {
    case "listening": {
      const address = formatTransportAddress({ ip: event.address, port: event.port });
      if (event.kind === "stun" || event.kind === "ssh")
        return `Listening for ${event.kind.toUpperCase()} on ${address}`;
      return `Listening on ${event.kind}://${address}`;
    }
    case "ready":
      return `Ready; fingerprint ${event.fingerprint.replace(/(.{4})(?=.)/g, "$1-")}`;
    case "join_line":
      return `Join a machine to the mesh with\n\n  ${event.command}\n`;
    case "agent_joined":
      return event.isNew ? `"${event.name}" has joined the mesh` : `"${event.name}" is online`;
    case "agent_left":
      return `"${event.name}" is offline: ${event.reason}`;
    case "agent_pending":
      return `"${event.name}" asks to join; approve it with "peer approve ${event.code}"`;
    case "agent_refused":
      return `Refused "${event.name}": ${event.reason}`;
    case "punch_signalled":
      return `"${event.peers[0]}" and "${event.peers[1]}" fired ${event.skewMs.toFixed(1)} ms apart (round ${event.round})`;
    case "stopped":
      return `Stopped: ${event.reason}`;
    default:
      return assertNever(event);
  }
}
