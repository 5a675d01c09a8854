/**
 * Opens WebSockets the way this network allows: plain, through an HTTP proxy by CONNECT, or through SOCKS5.
 *
 * Bun's own WebSocket takes headers, TLS options and an HTTP proxy, which the standard's constructor does not know, and always uses
 * CONNECT, for http URLs too. SOCKS5 it does not know: there `ws` with an agent does it.
 */
import { getProxyForUrl } from "proxy-from-env";
import { SocksProxyAgent } from "socks-proxy-agent";
import WsWebSocket from "ws";

export interface WebSocketOptions {
  readonly tls?: { readonly ca: string };
  readonly headers?: Readonly<Record<string, string>>;
  /** `http://`, `https://` or `socks5://` URL, credentials in it. */
  readonly proxy?: string;
}

type Construct = new (url: string, options: WebSocketOptions) => WebSocket;

export function openWebSocket(url: string, options: WebSocketOptions): WebSocket {
  const { proxy, headers, tls } = options;
  if (proxy === undefined || !proxy.startsWith("socks")) return new (WebSocket as unknown as Construct)(url, options);
  // socks5h: the proxy resolves the name, since there may be no DNS here.
  const agent = new SocksProxyAgent(proxy.replace(/^socks5?:/, "socks5h:"));
  const socket = new WsWebSocket(url, { agent, headers: { ...headers }, ...(tls === undefined ? {} : { ca: tls.ca }) });
  return socket as unknown as WebSocket;
}

/**
 * The proxy for a coordinator's URL: the one the user named, else what HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say, which
 * neither runtime reads for WebSockets by itself.
 */
export function proxyFor(url: string, named: string | undefined): string | undefined {
  const proxy = named ?? getProxyForUrl(url);
  return proxy === "" ? undefined : proxy;
}

/** A proxy's URL without user and password. */
export function nameOfProxy(proxy: string): string {
  const { protocol, host } = new URL(proxy);
  return `${protocol}//${host}`;
}

/** What went wrong on the way through a proxy, with the proxy's name and what would help. Never its password. */
export function proxyProblem(proxy: string, problem: string): string {
  const name = nameOfProxy(proxy);
  const { protocol, host } = new URL(proxy);
  if (/\b(401|407)\b/.test(problem)) {
    return `the proxy ${name} wants a user and password; give them as ${protocol}//USER:PASSWORD@${host}`;
  }
  if (/\b403\b/.test(problem)) {
    return `the proxy ${name} refuses this address or port; proxies often allow port 443 only, so let the coordinator listen there`;
  }
  return `${problem} (through the proxy ${name})`;
}

/** WebSocket's types want bytes that are not shared between threads. */
export const owned = (bytes: Uint8Array): Uint8Array<ArrayBuffer> => new Uint8Array(bytes);
