/**
 * The agent's side of the local API: Hono on a unix socket that only its owner may open.
 *
 * Decides nothing about the mesh; it checks requests and passes them to an `AgentControl`.
 */
import { chmodSync, lstatSync, unlinkSync } from "node:fs";
import { connect } from "node:net";
import { type Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import * as v from "valibot";
import { assertNever } from "../../shared/assert.ts";
import { EXIT, type ExitCode, systemCode, systemReason, UserError, withoutKeys } from "../state/user_error.ts";
import {
  type AgentControl,
  BenchRequest,
  type ErrorAnswer,
  ForwardRequest,
  NameRequest,
  PathRequest,
  type PingOptions,
  PingRequest,
  SocksRequest,
  type WaitCondition,
  WaitRequest,
} from "./contract.ts";

/** Requests are a name and a few numbers. */
const MAX_REQUEST_BYTES = 4096;
/** Time for the answer to `stop` to leave; a client that misses it copes. */
const STOP_DELAY_MS = 20;
/** A ping every millisecond to a terminal that does not read: beyond this many lines the newest are dropped. */
const MAX_QUEUED_LINES = 1000;

export interface LocalServer {
  /** Ends every request and removes the socket. */
  stop(): Promise<void>;
}

/** Makes the routes; exported so that tests call `app.request()`. */
export function createLocalApp(control: AgentControl, stateDir: string, onBug: (error: unknown) => void): Hono {
  const app = new Hono();
  app.use(bodyLimit({ maxSize: MAX_REQUEST_BYTES, onError: (c) => refuse(c, EXIT.usage, "The request is too large") }));

  app.get("/v1/status", async (c) => c.json(await control.status()));
  app.post("/v1/why", async (c) => {
    const { name } = await read(c, NameRequest);
    return c.json(control.why(name) ?? unknownPeer(name));
  });
  app.post("/v1/wait", async (c) => {
    const { condition, timeoutMs } = await read(c, WaitRequest);
    return c.json({ reached: await control.wait(waitCondition(condition), timeoutMs, c.req.raw.signal) });
  });
  app.post("/v1/ping", async (c) => {
    const { peer, count, intervalMs, untilDirect, timeoutMs } = await read(c, PingRequest);
    const options: PingOptions = { count, intervalMs, untilDirect, timeoutMs };
    return streamLines(onBug, (send, signal) => control.ping(peer, options, send, signal));
  });
  app.post("/v1/bench", async (c) => {
    const { peer, ...options } = await read(c, BenchRequest);
    return streamLines(onBug, (send, signal) => control.bench(peer, options, send, signal));
  });
  app.post("/v1/forward", async (c) => {
    const spec = await read(c, ForwardRequest);
    return streamLines(onBug, (send, signal) => control.forward(spec, (listening) => send({ listening }), signal));
  });
  app.post("/v1/socks", async (c) => {
    const spec = await read(c, SocksRequest);
    return streamLines(onBug, (send, signal) => control.socks(spec, (listening) => send({ listening }), signal));
  });
  app.post("/v1/netcheck", async (c) => c.json(await control.netcheck(c.req.raw.signal)));
  app.post("/v1/path", async (c) => {
    const { peer, rung } = await read(c, PathRequest);
    return c.json(await control.choosePath(peer, rung, c.req.raw.signal));
  });
  app.post("/v1/trust", async (c) => {
    const { name } = await read(c, NameRequest);
    return c.json({ fingerprint: control.trust(name) ?? unknownPeer(name) });
  });
  app.post("/v1/block", async (c) => {
    const { name } = await read(c, NameRequest);
    return c.json(control.block(name) ? {} : unknownPeer(name));
  });
  app.post("/v1/stop", (c) => {
    // The answer leaves first: a stop ends every connection, this one too.
    setTimeout(() => control.stop(), STOP_DELAY_MS);
    return c.json({ stateDir });
  });

  app.notFound((c) =>
    refuse(
      c,
      EXIT.failed,
      "The running agent does not know this command: it is older than the command line; restart it",
    ),
  );
  app.onError((error, c) => {
    if (error instanceof UserError) return refuse(c, error.exitCode, error.message);
    onBug(error);
    return refuse(c, EXIT.failed, BUG_MESSAGE);
  });
  return app;
}

/** Binds the socket. Throws UserError 1 when it is in use or cannot be made. */
export async function serveLocalApi(
  control: AgentControl,
  options: {
    readonly socketPath: string;
    readonly stateDir: string;
    /** Told of exceptions that are nobody's input: for the log. */
    readonly onBug: (error: unknown) => void;
  },
): Promise<LocalServer> {
  const { socketPath } = options;
  await removeStaleSocket(socketPath);
  const app = createLocalApp(control, options.stateDir, options.onBug);
  // Bound under this mask, so that there is no instant in which others may connect.
  const mask = process.umask(0o177);
  try {
    const server = Bun.serve(withoutIdleTimeout({ unix: socketPath, fetch: (request) => app.fetch(request) }));
    chmodSync(socketPath, 0o600);
    return { stop: () => server.stop(true) };
  } catch (error) {
    throw new UserError(
      EXIT.failed,
      `Cannot make the socket ${socketPath}: ${systemReason(error)}; choose another with --socket`,
      { cause: error },
    );
  } finally {
    process.umask(mask);
  }
}

interface UnixOptions {
  readonly unix: string;
  readonly fetch: (request: Request) => Response | Promise<Response>;
}

/**
 * Bun ends a request after ten quiet seconds otherwise, and `wait` may take hours. It heeds the option on unix sockets too, although
 * its types have it for TCP only; `server.timeout(request, 0)` does not hold for streams.
 */
const withoutIdleTimeout = (options: UnixOptions): UnixOptions => Object.assign(options, { idleTimeout: 0 });

/** A killed agent leaves its socket behind: it may go if nobody answers on it. */
export async function removeStaleSocket(path: string): Promise<void> {
  try {
    if (!lstatSync(path).isSocket()) {
      throw new UserError(EXIT.badConfiguration, `${path} exists and is not a socket; choose another with --socket`);
    }
  } catch (error) {
    if (systemCode(error) === "ENOENT") return;
    if (error instanceof UserError) throw error;
    throw new UserError(EXIT.failed, `Cannot use the socket ${path}: ${systemReason(error)}`, { cause: error });
  }
  if (await isAnswering(path)) {
    throw new UserError(EXIT.failed, `Another agent answers on ${path}; choose another socket with --socket`);
  }
  unlinkSync(path);
}

const isAnswering = (path: string): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });

/** Lines of JSON for as long as `run` takes; a line for how it ended is the last. */
function streamLines(
  onBug: (error: unknown) => void,
  run: (send: (line: object) => void, signal: AbortSignal) => Promise<void>,
): Response {
  const ended = new AbortController();
  const stream = new ReadableStream<string>(
    {
      async start(controller) {
        const send = (line: object): void => {
          if (!ended.signal.aborted) controller.enqueue(`${JSON.stringify(line)}\n`);
        };
        // Not awaited: until `start` returns, the stream would not know that its reader has gone.
        void (async () => {
          try {
            await run((line) => {
              if ((controller.desiredSize ?? 0) > 0) send(line);
            }, ended.signal);
            send({ end: true });
          } catch (error) {
            if (!(error instanceof UserError)) onBug(error);
            send(errorAnswer(error));
          }
          if (!ended.signal.aborted) controller.close();
        })();
      },
      cancel() {
        ended.abort();
      },
    },
    { highWaterMark: MAX_QUEUED_LINES },
  );
  return new Response(stream.pipeThrough(new TextEncoderStream()), {
    headers: { "content-type": "application/x-ndjson" },
  });
}

function waitCondition(condition: v.InferOutput<typeof WaitRequest>["condition"]): WaitCondition {
  switch (condition.for) {
    case "joined":
      return { for: "joined" };
    case "peer":
    case "direct":
      return { for: condition.for, peer: condition.peer };
    default:
      return assertNever(condition);
  }
}

async function read<Schema extends v.GenericSchema>(c: Context, schema: Schema): Promise<v.InferOutput<Schema>> {
  const body: unknown = await c.req.json().catch(() => undefined);
  const result = v.safeParse(schema, body);
  if (result.success) return result.output;
  throw new UserError(
    EXIT.failed,
    "The running agent does not understand this request: it and the command line are of different versions; restart it",
  );
}

const BUG_MESSAGE = "The agent failed to answer because of a fault of its own; its log has the details";

const unknownPeer = (name: string): never => {
  throw new UserError(EXIT.peerUnavailable, `No peer is called "${name}"; "tunnelmesh-agent peers" lists all`);
};

const errorAnswer = (error: unknown): ErrorAnswer =>
  error instanceof UserError
    ? { error: { exitCode: error.exitCode, message: withoutKeys(error.message) } }
    : { error: { exitCode: EXIT.failed, message: BUG_MESSAGE } };

const refuse = (c: Context, exitCode: ExitCode, message: string): Response =>
  c.json({ error: { exitCode, message: withoutKeys(message) } } satisfies ErrorAnswer, 400);
