/** HTTP routes, apart from the WebSocket upgrade. Exported so that tests call `app.request()`. */
import { Hono } from "hono";
import { formatTransportAddress, type TransportAddress } from "../shared/address.ts";

export interface AppOptions {
  readonly isHealthy: () => boolean;
  /** What an agent asks before it has joined, given the Host header of its request: where STUN is. */
  readonly reachable: (hostHeader: string | undefined) => { readonly stun: readonly TransportAddress[] };
}

export function createApp(options: AppOptions): Hono {
  const app = new Hono();
  app.get("/v1/info", (context) => {
    const { stun } = options.reachable(context.req.header("host"));
    return context.json({ schema: 1, software: "TunnelMesh", stun: stun.map(formatTransportAddress) });
  });
  app.get("/", (context) => context.text("TunnelMesh coordinator\n"));
  app.get("/healthz", (context) =>
    options.isHealthy() ? context.text("ok\n") : context.text("starting or stopping\n", 503),
  );
  app.notFound((context) => context.text("Not found\n", 404));
  app.onError((_error, context) => context.text("Internal error\n", 500));
  return app;
}
