/**
 * What both ends of a measurement say to each other on their stream (PROTOCOL.md, "Measuring"). The opener begins with a request:
 *
 *   0      1           2
 *   | mode | seconds   | ...filler, if mode is "send"
 *
 * Whoever receives filler in mode "send" answers with running totals, the last one after the end of the stream:
 *
 *   0           8              12
 *   | bytes 8   | ms 4         |
 */
import { Reader, Writer } from "../../shared/wire/cursor.ts";

/** A stream to this port, which no program can have, is a measurement. */
export const BENCH_PORT = 0;
export const BENCH_REQUEST_BYTES = 2;
export const BENCH_TOTAL_BYTES = 12;
export const MAX_BENCH_SECONDS = 60;

export interface BenchRequest {
  /** Who sends the filler: the opener, or the other one. */
  readonly sender: "opener" | "peer";
  readonly seconds: number;
}

export interface BenchTotal {
  readonly bytes: number;
  /** From the first byte on. */
  readonly ms: number;
}

export const encodeBenchRequest = ({ sender, seconds }: BenchRequest): Uint8Array =>
  new Writer(BENCH_REQUEST_BYTES)
    .u8(sender === "opener" ? 1 : 2)
    .u8(seconds)
    .finish();

/** Undefined for a mode or a time that nobody may ask for. */
export function decodeBenchRequest(bytes: Uint8Array): BenchRequest | undefined {
  const reader = new Reader(bytes);
  const mode = reader.u8();
  const seconds = reader.u8();
  if (reader.failed || (mode !== 1 && mode !== 2) || seconds < 1 || seconds > MAX_BENCH_SECONDS) return undefined;
  return { sender: mode === 1 ? "opener" : "peer", seconds };
}

export const encodeBenchTotal = ({ bytes, ms }: BenchTotal): Uint8Array =>
  new Writer(BENCH_TOTAL_BYTES).u64(bytes).u32(ms).finish();

export function decodeBenchTotal(bytes: Uint8Array): BenchTotal | undefined {
  const reader = new Reader(bytes);
  const total = { bytes: reader.u64(), ms: reader.u32() };
  return reader.failed ? undefined : total;
}
