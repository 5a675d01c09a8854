/** HTTP routes, apart from the WebSocket upgrade. Exported so that tests call `app.request()`. */
import { Hono } from "hono";

export function createApp(options: { readonly isHealthy: () => boolean }): Hono {
  const app = new Hono();
  app.get("/", (context) => context.text("TunnelMesh coordinator\n"));
  app.get("/healthz", (context) =>
    options.isHealthy() ? context.text("ok\n") : context.text("starting or stopping\n", 503),
  );
  app.notFound((context) => context.text("Not found\n", 404));
  app.onError((_error, context) => context.text("Internal error\n", 500));
  return app;
}
