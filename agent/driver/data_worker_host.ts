/**
 * The main thread's side of the data path: starts the data worker, sends it commands, hands on its reports.
 *
 * Commands of one tick travel as one message, followed by one ring of the eventfd that wakes the worker out of ppoll(2). A round trip
 * takes some 35 us, so control never waits for the data path and the data path never waits for control.
 */
import { existsSync } from "node:fs";
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from "node:worker_threads";
import type { PlaneCommand } from "../data/plane.ts";
import { type DataWorkerData, READY } from "./data_worker_loop.ts";
import { chooseEngine, type Command, type EngineCommand, type EngineKind, type Report } from "./engine.ts";
import { EFD_CLOEXEC, EFD_NONBLOCK, libc } from "./linux/libc.ts";

/** How long a worker may take to come up, or to end when asked to. */
const START_TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 2000;

/**
 * Where the worker's code is: beside this file in a checkout; in a compiled executable, where this file is part of the program in the
 * root folder, at the place its entry point has relative to the folder that all entry points share.
 */
const WORKER_FILES = [
  "./data_worker.ts",
  "./driver/data_worker.js",
  "./data_worker.js",
  "./agent/driver/data_worker.js",
];

export interface DataWorkerOptions {
  /** Default: what this machine can do (chooseEngine). */
  readonly engine?: EngineKind | undefined;
  readonly onReport?: (report: Report) => void;
  /** Another worker entry point, for tests. */
  readonly workerUrl?: URL | undefined;
}

export class DataWorkerHost {
  /** Called for each report, in order. After `engine_failed` or `stopped` nothing more comes. */
  onReport: (report: Report) => void;
  readonly engine: EngineKind;
  readonly #worker: Worker;
  readonly #port: MessagePort;
  #wakeFd: number;
  readonly #batchesRead = new Int32Array(new SharedArrayBuffer(4));
  readonly #ring = BigUint64Array.of(1n);
  readonly #ringBytes = new Uint8Array(this.#ring.buffer);
  readonly #exited = Promise.withResolvers<void>();
  readonly #ready = Promise.withResolvers<void>();
  #waiting: Command[] = [];
  #state: "starting" | "running" | "ended" = "starting";

  private constructor(options: DataWorkerOptions, engine: EngineKind, workerUrl: URL) {
    this.engine = engine;
    this.onReport = options.onReport ?? (() => {});
    this.#wakeFd = engine === "linux" ? libc().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    port1.on("message", (message: WorkerMessage) => this.#onMessage(message));
    const workerData: DataWorkerData = { engine, port: port2, wakeFd: this.#wakeFd, batchesRead: this.#batchesRead };
    this.#worker = new Worker(workerUrl, { workerData, transferList: [port2] });
    this.#worker.on("error", (error: unknown) => {
      this.#fail(`The data worker crashed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    });
    this.#worker.on("exit", (code) => {
      // What the worker said last tells more than that it is gone, but may arrive after this event.
      for (let last = receiveMessageOnPort(port1); last !== undefined; last = receiveMessageOnPort(port1)) {
        this.#onMessage(last.message as WorkerMessage);
      }
      this.#fail(`The data worker ended by itself with exit code ${code}`);
      this.#exited.resolve();
    });
  }

  /** Rejects, with the worker's own error, when it does not come up. */
  static async start(options: DataWorkerOptions = {}): Promise<DataWorkerHost> {
    const engine = options.engine ?? chooseEngine();
    const host = new DataWorkerHost(options, engine, options.workerUrl ?? defaultWorkerUrl());
    const timer = setTimeout(() => host.#fail("The data worker did not start in time"), START_TIMEOUT_MS);
    try {
      await host.#ready.promise;
    } catch (error) {
      await host.stop();
      throw error;
    } finally {
      clearTimeout(timer);
    }
    return host;
  }

  /** Ignored once the engine has ended. The command and its bytes belong to the worker from here on: do not change them. */
  send(command: PlaneCommand | EngineCommand): void {
    if (this.#state === "ended") return;
    this.#waiting.push(compact(command));
    if (this.#waiting.length === 1) queueMicrotask(() => this.#flush());
  }

  /** Closes all sockets and the TUN device, and ends the worker. May be called in any state, more than once. */
  async stop(): Promise<void> {
    this.send({ type: "stop" });
    this.#flush();
    const timer = setTimeout(() => void this.#worker.terminate(), STOP_TIMEOUT_MS);
    await this.#exited.promise;
    clearTimeout(timer);
    this.#port.close();
    if (this.#wakeFd >= 0) libc().close(this.#wakeFd);
    this.#wakeFd = -1;
  }

  #flush(): void {
    if (this.#waiting.length === 0) return;
    const batch = this.#waiting;
    this.#waiting = [];
    this.#port.postMessage(batch, []);
    if (this.#wakeFd >= 0) libc().write(this.#wakeFd, this.#ringBytes, 8);
  }

  #onMessage(message: WorkerMessage): void {
    if (message === READY) {
      if (this.#state === "starting") this.#state = "running";
      this.#ready.resolve();
      return;
    }
    Atomics.add(this.#batchesRead, 0, 1);
    for (const report of message) {
      if (this.#state === "ended") return;
      if (report.type === "engine_failed") this.#fail(report.message);
      else {
        if (report.type === "stopped") this.#state = "ended";
        this.onReport(report);
      }
    }
  }

  #fail(message: string): void {
    if (this.#state === "ended") return;
    const wasStarting = this.#state === "starting";
    this.#state = "ended";
    if (wasStarting) this.#ready.reject(new Error(message));
    else this.onReport({ type: "engine_failed", message });
  }
}

type WorkerMessage = typeof READY | readonly Report[];

function defaultWorkerUrl(): URL {
  const urls = WORKER_FILES.map((file) => new URL(file, import.meta.url));
  const url = urls.find((candidate) => existsSync(candidate));
  if (url === undefined)
    throw new Error("This executable was built without the data worker (agent/driver/data_worker.ts)");
  return url;
}

/** Structured cloning takes the whole buffer behind a view along: cut the few bytes out of a large one. */
function compact(command: Command): Command {
  switch (command.type) {
    case "receive_frames":
      return { ...command, from: own(command.from), frames: command.frames.map(own) };
    case "send_datagram":
      return { ...command, path: { ...command.path, to: own(command.path.to) }, bytes: own(command.bytes) };
    case "send_streams":
      return { ...command, batch: own(command.batch) };
    case "send_control":
      return { ...command, path: { ...command.path, to: own(command.path.to) }, body: own(command.body) };
    default:
      return command;
  }
}

const own = (bytes: Uint8Array): Uint8Array =>
  bytes.byteLength === bytes.buffer.byteLength ? bytes : new Uint8Array(bytes);
