/**
 * Thousands of connections of programs at once through one forward, all open together, every byte checked. The agents start with few descriptors
 * allowed, as a shell or a service gives them.
 */
import { connect, createServer, type Socket } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Agent, type Coordinator, residentBytes, Stage } from "./programs.ts";

const CONNECTIONS = 2000;
/** A tenth of what is needed; the hard limit, to which a program may raise it, stays as it is. */
const SOFT_LIMIT = 200;

const stage = new Stage();
let coordinator: Coordinator;
let nas: Agent;
let laptop: Agent;
let echo: ReturnType<typeof createServer>;
let served = 0;

beforeAll(async () => {
  echo = createServer({ allowHalfOpen: true }, (socket) => {
    served += 1;
    socket.pipe(socket).on("error", () => {});
    socket.on("close", () => {
      served -= 1;
    });
  });
  await new Promise<void>((resolve) => echo.listen(0, "127.0.0.1", 1024, resolve));
  coordinator = await stage.coordinator();
  const options = { softDescriptors: SOFT_LIMIT };
  const port = portOf(echo);
  const key = ["--key", coordinator.joinKey];
  nas = stage.agent([coordinator.url, "--name", "nas", ...key, "--expose", `${port}`], options);
  await nas.joined();
  laptop = stage.agent([coordinator.url, "--name", "laptop", ...key, "--forward", `0:nas:${port}`], options);
  await laptop.joined();
  expect((await laptop.command("wait", "--for", "direct=nas", "--timeout", "10")).code).toBe(0);
});
afterAll(async () => {
  await stage.end();
  echo.close();
});

test(`${CONNECTIONS} connections are open at once, each with its own bytes, and leave nothing behind`, async () => {
  const forward = await laptop.process.waitFor(
    "forward",
    ({ text }) => /Forwarding tcp 127\.0\.0\.1:(\d+)/.exec(text)?.[1],
    5000,
  );
  const before = [nas, laptop].map((agent) => residentBytes(agent.process) ?? 0);
  const startedAt = performance.now();
  const connections = await Promise.all(
    Array.from({ length: CONNECTIONS }, async (_, i) => {
      const connection = new EchoClient(Number(forward), i);
      await connection.exchange();
      return connection;
    }),
  );
  const seconds = (performance.now() - startedAt) / 1000;
  expect(served).toBe(CONNECTIONS);
  const growth = [nas, laptop].map((agent, i) => (residentBytes(agent.process) ?? 0) - (before[i] ?? 0));
  const perConnection = growth.map((bytes) => `${(bytes / CONNECTIONS / 1024).toFixed(1)} KiB`);
  console.log(
    `${CONNECTIONS} connections in ${seconds.toFixed(1)} s; the agents grew by ${perConnection.join(" and ")} each`,
  );
  // Once more on all of them, now that all are open; then each ends its direction and gets the other's end.
  await Promise.all(connections.map((connection) => connection.exchange()));
  await Promise.all(connections.map((connection) => connection.end()));
  await expect.poll(() => served, { timeout: 5000 }).toBe(0);
});

/** Sends bytes like nobody else's and reads them back. */
class EchoClient {
  readonly #socket: Socket;
  readonly #number: number;
  #wanted: Buffer = Buffer.alloc(0);
  #got: Buffer[] = [];
  #done: (() => void) | undefined;
  #failed: ((error: Error) => void) | undefined;
  #exchanges = 0;

  constructor(port: number, number: number) {
    this.#number = number;
    this.#socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    this.#socket.on("data", (bytes) => {
      this.#got.push(bytes);
      const got = Buffer.concat(this.#got);
      if (got.length < this.#wanted.length) return;
      if (got.equals(this.#wanted)) this.#done?.();
      else this.#failed?.(new Error(`Connection ${number} got other bytes than it had sent`));
    });
    this.#socket.on("error", (error) => this.#failed?.(error));
    this.#socket.on("close", () => this.#failed?.(new Error(`Connection ${number} is closed`)));
  }

  async exchange(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#wanted = Buffer.from(`${this.#number}, exchange ${this.#exchanges++}. `.repeat(50));
    this.#got = [];
    this.#done = resolve;
    this.#failed = reject;
    this.#socket.write(this.#wanted);
    await promise;
  }

  async end(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#failed = reject;
    this.#socket.on("end", resolve);
    this.#socket.end();
    await promise;
  }
}

function portOf(server: ReturnType<typeof createServer>): number {
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : 0;
}
