/** A data worker that comes up and then dies of an exception outside the engine's care. */
import { workerData } from "node:worker_threads";
import { type DataWorkerData, READY } from "../../../../agent/driver/data_worker_loop.ts";

const { port } = workerData as DataWorkerData;
port.on("message", () => {
  throw new Error("crashed by the test");
});
port.postMessage(READY);
