/** The data worker's entry point: the second one of the compiled executable (scripts/build.ts). */
import { randomInt } from "node:crypto";
import { DataPlane } from "../data/data_plane.ts";
import { runDataWorker } from "./data_worker_loop.ts";
import { chooseAead } from "./linux/libcrypto.ts";

const flowKey = randomInt(2 ** 32);
await runDataWorker(
  (io, offloads) => new DataPlane(io, { createAead: chooseAead(offloads.has("libcrypto")).create, flowKey }),
);
