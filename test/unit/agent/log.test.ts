import { describe, expect, test } from "vitest";
import { createLog, type Log, type LogFormat, type LogLevel, printable } from "../../../agent/log.ts";

const KEY = "tmk_abc_secretsecret_abcdefghijklmnopqrstuvwxyz";

describe("JSON", () => {
  test("one object a line, with time, level and event", () => {
    const { log, lines } = record("info", "json");
    log.event({ event: "peer_online", peer: "nas\nx", id: "i" });
    log.warn("Something", { attempts: 2 });
    expect(lines.map((line) => JSON.parse(line) as unknown)).toEqual([
      { time: "2026-06-01T12:00:00.000Z", level: "info", event: "peer_online", peer: "nas\nx", id: "i" },
      { time: "2026-06-01T12:00:00.000Z", level: "warn", message: "Something", attempts: 2 },
    ]);
    expect(lines.join("")).not.toContain("\n");
  });

  test("stable events are written at every level, other lines by theirs", () => {
    const { log, lines } = record("error", "json");
    log.info("no");
    log.warn("no");
    log.error("yes");
    log.event({ event: "stopped", reason: "asked to" });
    expect(lines).toHaveLength(2);
  });
});

describe("text", () => {
  test("events are sentences", () => {
    const { log, lines } = record("info", "text");
    const addresses = { localAddress: "192.168.1.5:1", remoteAddress: "203.0.113.9:2" };
    log.event({
      event: "path_changed",
      peer: "nas",
      from: "ssh",
      to: "direct",
      reason: "proven",
      rttMs: 12.34,
      ...addresses,
    });
    log.debug("hidden");
    expect(lines.map((line) => line.slice(9))).toEqual([
      'Path to "nas" is direct via 203.0.113.9:2, 12.3 ms (was ssh): proven',
    ]);
  });

  test("a name cannot move the cursor, forge a line or turn it round", () => {
    const { log, lines } = record("info", "text");
    log.event({ event: "peer_online", peer: "a\u001b[2J\r\nforged\u009b1m\u202egnp", id: "i" });
    expect(lines[0]?.slice(9)).toBe('"a?[2J??forged?1m?gnp" is online');
    expect(printable("żółw-1")).toBe("żółw-1");
  });
});

test.each(["text", "json"] as const)("%s: keys and bytes never appear, wherever they are passed", (format) => {
  const { log, lines } = record("debug", format);
  const bytes = new Uint8Array([11, 22, 33]);
  log.info(`up --key ${KEY}`, { key: KEY, bytes, buffer: Buffer.from(bytes), deep: { list: [bytes, KEY] } });
  log.event({ event: "stopped", reason: KEY });
  expect(lines).toHaveLength(2);
  expect(lines.join("")).not.toMatch(/secret|11|"data"/);
});

function record(level: LogLevel, format: LogFormat): { log: Log; lines: string[] } {
  const lines: string[] = [];
  const unixMs = (): number => Date.parse("2026-06-01T12:00:00Z");
  return { log: createLog({ level, format, write: (line) => lines.push(line), unixMs }), lines };
}
