/**
 * Moves datagrams over loopback between two Linux engines and prints, as one line of JSON, how fast and how many objects that took.
 *
 *   throughput_scenario.ts alone|runs [OFFLOADS]   each sent by itself; or in runs of alternating sizes, of one datagram each
 *
 * The sender's plane sends a window of datagrams and goes on when the echo of the last one is back, so that nothing is lost to a full
 * buffer and every datagram is counted.
 */
import { heapStats } from "bun:jsc";
import type { Leg, PlaneCommand, PlaneIo, SealedRun } from "../../../../agent/data/plane.ts";
import { type Command, createEngine, type Report } from "../../../../agent/driver/engine.ts";
import { EFD_CLOEXEC, EFD_NONBLOCK, libc } from "../../../../agent/driver/linux/libc.ts";
import { chooseOffloads } from "../../../../agent/driver/linux/offloads.ts";
import { packAddress } from "../../../../shared/address.ts";
import { PlainPlane } from "./plain_plane.ts";

const DATAGRAMS = 200_000;
const WINDOW = 64;
const [mode, offloads] = process.argv.slice(2);
const SIZES = mode === "runs" ? [100, 200] : [1300];
const sizeOf = (number: number): number => SIZES[number % SIZES.length] ?? 0;

/** Sends from leg 1 to leg 2 of the same engine and counts what comes in. */
class WindowPlane extends PlainPlane {
  received = 0;
  readonly #io: PlaneIo;
  readonly #onDone: () => void;
  readonly #payload = new Uint8Array(WINDOW * sizeOf(0));
  readonly #datagram = this.#payload.subarray(0, sizeOf(0));
  readonly #runs: SealedRun[] = [];
  #to = new Uint8Array(18);

  constructor(io: PlaneIo, onDone: () => void) {
    super();
    this.#io = io;
    this.#onDone = onDone;
  }

  handleCommand(command: PlaneCommand): void {
    if (command.type !== "send_datagram") return;
    this.#to = command.path.to.slice();
    const path = { leg: 1, to: this.#to };
    for (let i = 0; i < WINDOW; i++) {
      this.#runs.push({ path, start: 10 * i, length: sizeOf(i), frameBytes: sizeOf(i), errno: 0 });
    }
    this.#sendWindow();
  }

  override handleDatagrams(_leg: Leg, _from: Uint8Array, _bytes: Uint8Array, length: number, frameBytes: number): void {
    if (frameBytes !== sizeOf(this.received)) throw new Error(`A datagram of ${frameBytes} bytes`);
    for (let at = 0; at < length; at += frameBytes) {
      this.received++;
      if (this.received === DATAGRAMS) this.#onDone();
      else if (this.received % WINDOW === 0) this.#sendWindow();
    }
  }

  #sendWindow(): void {
    const count = Math.min(WINDOW, DATAGRAMS - this.received);
    if (mode === "runs") this.#io.transmitRuns?.(1, this.#payload, this.#runs, count);
    else for (let i = 0; i < count; i++) this.#io.transmit(1, this.#to, this.#datagram, sizeOf(i));
  }
}

/** Objects on the heap, dead ones included: the collector is switched off from outside (throughput.test.ts). */
const objects = (): number => Object.values(heapStats().objectTypeCounts).reduce((sum, count) => sum + count, 0);

const commands: Command[][] = [
  [
    { type: "open_udp", leg: 1, family: 4, address: "127.0.0.1", port: 0 },
    { type: "open_udp", leg: 2, family: 4, address: "127.0.0.1", port: 0 },
  ],
];
const wakeFd = libc().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
const ring = new Uint8Array(BigUint64Array.of(1n).buffer);
const order = (batch: Command[]): void => {
  commands.push(batch);
  libc().write(wakeFd, ring, 8);
};
let startedAt = 0;
let finishedAt = 0;
let heapAtStart = 0;
function report(reports: readonly Report[]): void {
  for (const item of reports) {
    if (item.type === "plane_failed" || item.type === "udp_failed") throw new Error(item.message);
    if (item.type !== "udp_opened" || item.leg !== 2) continue;
    heapAtStart = objects();
    startedAt = performance.now();
    const to = packAddress({ ip: item.localAddress, port: item.localPort });
    order([{ type: "send_datagram", path: { leg: 1, to }, bytes: new Uint8Array(0) }]);
  }
}
const engine = createEngine(
  "linux",
  {
    createPlane: (io) =>
      new WindowPlane(io, () => {
        finishedAt = performance.now();
        order([{ type: "stop" }]);
      }),
    report,
    batchesRead: () => 0,
    offloads: chooseOffloads(offloads),
  },
  { wakeFd, take: () => commands.shift() },
);
await engine.run();
const newObjects = objects() - heapAtStart;
console.log(
  JSON.stringify({
    perSecond: Math.round(DATAGRAMS / ((finishedAt - startedAt) / 1000)),
    newObjects,
    received: DATAGRAMS,
  }),
);
