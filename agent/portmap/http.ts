/**
 * As much of HTTP/1.1 (RFC 9112) as talking to a router takes: one request, one response, connection closed.
 *
 * Our own, because a general client follows redirects and the proxy of the environment, and neither has any business here.
 */
import { concatBytes, utf8, utf8Text } from "../../shared/bytes.ts";

/** All that is read of a response. Descriptions of devices have 2 to 20 KiB. */
export const MAX_RESPONSE_BYTES = 64 * 1024;
const MAX_HEAD_BYTES = 8 * 1024;

export interface Url {
  readonly ip: string;
  readonly port: number;
  readonly path: string;
}

export interface HttpResponse {
  readonly status: number;
  readonly body: string;
}

export const isPort = (port: number): boolean => Number.isInteger(port) && port > 0 && port <= 65_535;

export function encodeRequest(
  method: "GET" | "POST",
  url: Url,
  headers: Readonly<Record<string, string>> = {},
  body = "",
): Uint8Array {
  const content = utf8(body);
  const lines = [
    `${method} ${url.path} HTTP/1.1`,
    `Host: ${url.ip}:${url.port}`,
    "Connection: close",
    ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
    ...(method === "POST" ? [`Content-Length: ${content.length}`] : []),
  ];
  return concatBytes(utf8(`${lines.join("\r\n")}\r\n\r\n`), content);
}

/** A whole response, as read until the other side closed. Undefined when it is none, or is cut off. */
export function decodeResponse(bytes: Uint8Array): HttpResponse | undefined {
  if (bytes.length > MAX_RESPONSE_BYTES) return undefined;
  const headEnd = findBlankLine(bytes);
  const head = headEnd === undefined ? undefined : utf8Text(bytes.subarray(0, headEnd));
  if (headEnd === undefined || head === undefined) return undefined;
  const [first = "", ...lines] = head.split("\r\n");
  const status = /^HTTP\/1\.[01] (\d{3})\b/.exec(first)?.[1];
  if (status === undefined) return undefined;
  const rest = bytes.subarray(headEnd + 4);
  const valueOf = (name: string): string | undefined => {
    const line = lines.find((candidate) => candidate.toLowerCase().startsWith(`${name}:`));
    return line?.slice(name.length + 1).trim();
  };
  const length = valueOf("content-length");
  let content: Uint8Array | undefined = rest;
  if (valueOf("transfer-encoding")?.toLowerCase() === "chunked") content = joinChunks(rest);
  else if (length !== undefined) {
    const size = /^\d{1,6}$/.test(length) ? Number(length) : Number.POSITIVE_INFINITY;
    content = size <= rest.length ? rest.subarray(0, size) : undefined;
  }
  const body = content === undefined ? undefined : utf8Text(content);
  return body === undefined ? undefined : { status: Number(status), body };
}

function findBlankLine(bytes: Uint8Array): number | undefined {
  for (let at = 0; at + 3 < Math.min(bytes.length, MAX_HEAD_BYTES); at++) {
    if (bytes[at] === 13 && bytes[at + 1] === 10 && bytes[at + 2] === 13 && bytes[at + 3] === 10) return at;
  }
  return undefined;
}

/** RFC 9112 §7.1; trailers are not read. Each turn of the loop moves on, or ends. */
function joinChunks(bytes: Uint8Array): Uint8Array | undefined {
  const parts: Uint8Array[] = [];
  let at = 0;
  for (;;) {
    const end = bytes.indexOf(10, at);
    if (end < 0 || end - at > 100) return undefined;
    const size = /^([0-9a-f]{1,5})\s*(?:;|$)/i.exec(utf8Text(bytes.subarray(at, end))?.trim() ?? "")?.[1];
    if (size === undefined) return undefined;
    const length = Number.parseInt(size, 16);
    if (length === 0) return concatBytes(...parts);
    if (end + 1 + length + 2 > bytes.length) return undefined;
    parts.push(bytes.subarray(end + 1, end + 1 + length));
    at = end + 1 + length + 2;
  }
}
