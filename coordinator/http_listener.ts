/**
 * The HTTP and HTTPS listeners: Hono's routes on node:http, and WebSockets by `ws`, because it enforces a largest message before
 * it has been received (Deno's own upgrade does not).
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createSecureServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { Hono } from "hono";
import { formatTransportAddress } from "../shared/address.ts";
import { type Instant, instant } from "../shared/time.ts";
import type { Listener } from "./config.ts";
import type { ClientKey, ConnectionGuard } from "./connection_guard.ts";
import { formatUrl } from "./signalling/advertised.ts";

/** How often connections are looked at whose time may be over. Deno's node:http knows no header timeout of its own. */
const GUARD_INTERVAL_MS = 500;

export interface HttpListener {
  /** With the real port where 0 was asked for. */
  readonly bound: Listener;
  close(): void;
}

export interface HttpListenerOptions {
  readonly listener: Listener;
  readonly tls: { readonly cert: string; readonly key: string } | undefined;
  readonly app: Hono;
  /** One for all listeners. */
  readonly guard: ConnectionGuard;
  readonly onUpgrade: (request: IncomingMessage, socket: Duplex, head: Buffer) => void;
}

/** Listens, or throws an error that says where and why not. */
export async function openHttpListener(options: HttpListenerOptions): Promise<HttpListener> {
  const { listener, app } = options;
  const onRequest = (request: IncomingMessage, response: ServerResponse): void => {
    void respond(app, listener, request, response);
  };
  const server: Server =
    listener.scheme === "https" && options.tls !== undefined
      ? createSecureServer(options.tls, onRequest)
      : createServer(onRequest);
  const stopGuard = guardConnections(server, options.guard);
  server.on("upgrade", (request, socket, head) => {
    options.guard.release(clientOf(request.socket));
    options.onUpgrade(request, socket, head);
  });
  server.on("clientError", (_error, socket) => socket.destroy());
  await listen(server, listener);
  const address = server.address() as AddressInfo;
  return {
    bound: { ...listener, port: address.port },
    close() {
      stopGuard();
      server.close();
      server.closeAllConnections();
    },
  };
}

/** Closes connections that are too many or too slow. Returns how to stop watching. */
function guardConnections(server: Server, guard: ConnectionGuard): () => void {
  const sockets = new Map<ClientKey, Socket>();
  server.on("connection", (socket: Socket) => {
    socket.on("error", () => socket.destroy());
    const client = clientOf(socket);
    if (!guard.accept(client, socket.remoteAddress ?? "", now())) {
      socket.destroy();
      return;
    }
    sockets.set(client, socket);
    socket.on("close", () => {
      sockets.delete(client);
      guard.release(client);
    });
  });
  const timer = setInterval(() => {
    for (const client of guard.overdue(now())) sockets.get(client)?.destroy();
  }, GUARD_INTERVAL_MS);
  return () => clearInterval(timer);
}

const now = (): Instant => instant(performance.now());

/** The same for a TCP socket and for the TLS socket on top of it. */
const clientOf = (socket: Socket): ClientKey =>
  formatTransportAddress({ ip: socket.remoteAddress ?? "", port: socket.remotePort ?? 0 });

/** Our routes take no bodies, so none is read. */
async function respond(
  app: Hono,
  listener: Listener,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const path = request.url?.startsWith("/") === true ? request.url : "/";
  let answer: Response;
  try {
    answer = await app.request(`${formatUrl({ ...listener, host: "coordinator" })}${path}`, {
      method: request.method ?? "GET",
    });
  } catch {
    answer = new Response("Bad request\n", { status: 400 });
  }
  const body = Buffer.from(await answer.arrayBuffer());
  // One request for each connection: whoever wants more asks again, and nobody holds a place.
  response.writeHead(answer.status, {
    connection: "close",
    ...Object.fromEntries(answer.headers),
    "content-length": String(body.length),
  });
  response.end(request.method === "HEAD" ? undefined : body);
}

function listen(server: Server, listener: Listener): Promise<void> {
  return new Promise((resolve, reject) => {
    const onError = (error: NodeJS.ErrnoException): void => {
      const why =
        error.code === "EADDRINUSE"
          ? "the port is in use; stop the other program or choose another with --listen"
          : error.code === "EADDRNOTAVAIL"
            ? "this machine has no such address; correct --listen"
            : error.code === "EACCES"
              ? "ports below 1024 are for root; choose another with --listen"
              : error.message;
      reject(new Error(`Cannot listen on ${formatUrl(listener)}: ${why}`, { cause: error }));
    };
    server.once("error", onError);
    server.listen({ host: listener.host, port: listener.port, exclusive: true }, () => {
      server.removeListener("error", onError);
      resolve();
    });
  });
}
