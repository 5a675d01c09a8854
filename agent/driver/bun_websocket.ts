/** Bun's WebSocket takes headers, TLS options and a proxy, which the standard's constructor does not know. */

export interface WebSocketOptions {
  readonly tls?: { readonly ca: string };
  readonly headers?: Readonly<Record<string, string>>;
}

export const BunWebSocket = WebSocket as unknown as new (url: string, options: WebSocketOptions) => WebSocket;

/** WebSocket's types want bytes that are not shared between threads. */
export const owned = (bytes: Uint8Array): Uint8Array<ArrayBuffer> => new Uint8Array(bytes);
