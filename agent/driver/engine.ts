/**
 * The engine: what drives a `Plane` (agent/data/plane.ts) on real sockets, and the commands and reports that are its own.
 *
 * An engine owns the UDP legs and the TUN device. It decides nothing: it opens what it is told to, hands every datagram, IP packet,
 * command and timeout to the plane, and passes the plane's reports on in batches. There are two, behind one interface and one
 * conformance test: `linux`, a loop around ppoll(2) that holds its thread for good, and `portable`, on Bun's own sockets and event
 * loop, without a TUN device. TUNNELMESH_ENGINE=portable forces the second.
 */
import type { Leg, Plane, PlaneCommand, PlaneIo, PlaneReport } from "../data/plane.ts";
import type { Instant } from "../../shared/time.ts";
import { bootTime } from "./linux/clock.ts";
import { libcUnavailable } from "./linux/libc.ts";
import type { Offloads } from "./linux/offloads.ts";
import { PollEngine } from "./linux/poll_engine.ts";
import type { TunErrorCode } from "./linux/tun.ts";
import { portableTime } from "./portable/clock.ts";
import { PortableEngine } from "./portable/portable_engine.ts";

export type EngineKind = "linux" | "portable";

export type EngineCommand =
  /** Opens a UDP socket as this leg. Answered by `udp_opened` or `udp_failed`. `address`: default any. Port 0: any. */
  | {
      readonly type: "open_udp";
      readonly leg: Leg;
      readonly family: 4 | 6;
      readonly address?: string | undefined;
      readonly port: number;
    }
  | { readonly type: "close_udp"; readonly leg: Leg }
  /** Opens the TUN device, of this name or the first free `tmN`. Answered by `tun_opened` or `tun_failed`. */
  | { readonly type: "open_tun"; readonly name?: string | undefined }
  | { readonly type: "close_tun" }
  /** From here on, changes of links, addresses and routes of this machine are reported as `network_changed`. */
  | { readonly type: "watch_network" }
  /** Closes everything and ends the engine. Answered by `stopped`, the last report. */
  | { readonly type: "stop" };

export type EngineReport =
  | { readonly type: "udp_opened"; readonly leg: Leg; readonly localAddress: string; readonly localPort: number }
  /** The leg could not be opened, or ended by itself. */
  | { readonly type: "udp_failed"; readonly leg: Leg; readonly errno: number; readonly message: string }
  | { readonly type: "tun_opened"; readonly name: string }
  /** The device could not be opened, or was taken away: `code` "lost". */
  | {
      readonly type: "tun_failed";
      readonly code: TunErrorCode | "lost";
      readonly errno: number;
      readonly message: string;
    }
  /** Something about this machine's links, addresses or routes changed; what, the reader finds out (linux/interfaces.ts). */
  | { readonly type: "network_changed"; readonly at: Instant }
  /** The plane threw: a bug. The input is dropped, the engine goes on. At most one a second; `suppressed` counts the others. */
  | { readonly type: "plane_failed"; readonly message: string; readonly suppressed: number }
  /** The answer to `read_counters`, beside the plane's own: what the kernel refused and what control was too slow for. */
  | {
      readonly type: "engine_counters";
      readonly tunWriteErrors: number;
      readonly udpReceiveErrors: number;
      readonly droppedReports: number;
    }
  /** The engine ended and nothing more will come: what was wrong. */
  | { readonly type: "engine_failed"; readonly message: string }
  | { readonly type: "stopped" };

export type Command = PlaneCommand | EngineCommand;
export type Report = PlaneReport | EngineReport;

export interface EngineOptions {
  readonly createPlane: (io: PlaneIo) => Plane;
  /** Takes reports in batches and in order. Each owns its bytes. */
  readonly report: (reports: readonly Report[]) => void;
  /** How many of those batches the reader has handled, modulo 2^32: what it has not is bounded (portable/report_queue.ts). */
  readonly batchesRead: () => number;
  /** What the Linux engine may leave to the kernel. */
  readonly offloads: Offloads;
}

/** How an engine that blocks its thread learns that commands wait. */
export interface Mailbox {
  /** An eventfd that whoever sends commands adds to. */
  readonly wakeFd: number;
  /** The next batch of commands, undefined when none waits. */
  take(): readonly Command[] | undefined;
}

export interface Engine {
  handle(commands: readonly Command[]): void;
  /** Drives the plane until `stop`. The Linux engine keeps the thread until then. */
  run(): Promise<void>;
}

/** Which engine this machine gets. Decide it once per process and pass it on: a worker must use its parent's clock. */
export function chooseEngine(): EngineKind {
  if (process.env["TUNNELMESH_ENGINE"] === "portable") return "portable";
  return libcUnavailable() === undefined ? "linux" : "portable";
}

/** The clock that planes on this kind of engine live by; equal on all threads. */
export const engineClock = (kind: EngineKind): (() => Instant) => (kind === "linux" ? bootTime : portableTime);

export function createEngine(kind: EngineKind, options: EngineOptions, mailbox: Mailbox | undefined): Engine {
  if (kind === "portable") return new PortableEngine(options);
  if (mailbox === undefined) throw new Error("The Linux engine needs a mailbox");
  return new PollEngine(options, mailbox);
}
