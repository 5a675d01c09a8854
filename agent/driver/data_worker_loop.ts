/**
 * The worker's side of the data path: builds the engine and its plane, and joins them to the message port of `DataWorkerHost`.
 *
 * On Linux the engine keeps the thread for good, so commands are fetched from the port synchronously when the eventfd rings; the
 * portable engine gets them as events. Whatever ends the engine other than `stop` is reported before the thread goes.
 */
import { type MessagePort, receiveMessageOnPort, workerData } from "node:worker_threads";
import type { Plane, PlaneIo } from "../data/plane.ts";
import { type Command, createEngine, type EngineKind, type Report } from "./engine.ts";
import { chooseOffloads, type Offloads } from "./linux/offloads.ts";

/** What `DataWorkerHost` hands to its worker. */
export interface DataWorkerData {
  readonly engine: EngineKind;
  readonly port: MessagePort;
  /** The eventfd that says commands wait; -1 for the portable engine. */
  readonly wakeFd: number;
  /** One number, shared: how many batches of reports the host has handled. */
  readonly batchesRead: Int32Array;
}

/** Batches of reports travel as arrays; this says that the worker is up. */
export const READY = "ready";

export async function runDataWorker(createPlane: (io: PlaneIo, offloads: Offloads) => Plane): Promise<void> {
  const { engine: kind, port, wakeFd, batchesRead } = workerData as DataWorkerData;
  const report = (reports: readonly Report[]): void => port.postMessage(reports);
  try {
    const mailbox = {
      wakeFd,
      take: () => receiveMessageOnPort(port)?.message as readonly Command[] | undefined,
    };
    const offloads = chooseOffloads(process.env["TUNNELMESH_OFFLOADS"]);
    const engine = createEngine(
      kind,
      {
        createPlane: (io) => createPlane(io, offloads),
        report,
        batchesRead: () => Atomics.load(batchesRead, 0),
        offloads,
      },
      kind === "linux" ? mailbox : undefined,
    );
    if (kind === "portable") port.on("message", (commands: readonly Command[]) => engine.handle(commands));
    port.postMessage(READY);
    await engine.run();
  } catch (error) {
    report([
      { type: "engine_failed", message: error instanceof Error ? (error.stack ?? error.message) : String(error) },
    ]);
  }
  port.close();
}
