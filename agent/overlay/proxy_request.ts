/**
 * What a client of the SOCKS port asks for: SOCKS5 (RFC 1928, without authentication) or HTTP CONNECT (RFC 9110 §9.3.6), told apart by the
 * first byte. Bytes in, replies and one destination out; opens nothing.
 */
import { ipFromBytes } from "../../shared/address.ts";
import { concatBytes, utf8, utf8Text } from "../../shared/bytes.ts";
import { Reader } from "../../shared/wire/cursor.ts";

/** A client that sends more than this before its request is complete gets no further. */
const MAX_REQUEST_BYTES = 8192;
const SOCKS5 = 0x05;
const NO_AUTHENTICATION = 0x00;
const NO_ACCEPTABLE_METHOD = 0xff;
const CONNECT = 0x01;
const [IPV4, NAME, IPV6] = [0x01, 0x03, 0x04];
const COMMAND_NOT_SUPPORTED = 0x07;
const ADDRESS_TYPE_NOT_SUPPORTED = 0x08;

/** How a request may end; numbers are RFC 1928 §6 and RFC 9110 §15. */
export const PROXY_OUTCOMES = {
  connected: { socks: 0x00, http: "200 Connection established" },
  failed: { socks: 0x01, http: "502 Bad Gateway" },
  not_exposed: { socks: 0x02, http: "403 Forbidden" },
  no_such_peer: { socks: 0x04, http: "502 Bad Gateway" },
  unreachable: { socks: 0x04, http: "504 Gateway Timeout" },
  refused: { socks: 0x05, http: "502 Bad Gateway" },
} as const;
export type ProxyOutcome = keyof typeof PROXY_OUTCOMES;

export type ProxyStep =
  | { readonly type: "more" }
  | { readonly type: "reply"; readonly bytes: Uint8Array }
  /** `rest`: what the client has sent for the destination already. */
  | { readonly type: "connect"; readonly host: string; readonly port: number; readonly rest: Uint8Array }
  /** Send this, and close. */
  | { readonly type: "refuse"; readonly bytes: Uint8Array };

export class ProxyRequest {
  #bytes: Uint8Array = new Uint8Array(0);
  #state: "first" | "socks request" | "done" = "first";
  #isSocks = false;

  /** Call again with no bytes after a "reply", since more may be there already. */
  handle(bytes: Uint8Array): ProxyStep {
    this.#bytes = concatBytes(this.#bytes, bytes);
    if (this.#bytes.length === 0) return { type: "more" };
    if (this.#state === "socks request") return this.#socksRequest();
    if (this.#bytes[0] === SOCKS5) return this.#socksGreeting();
    return this.#httpRequest();
  }

  /** The answer to a "connect". @param words for people, where the protocol has room for them */
  answer(outcome: ProxyOutcome, words = ""): Uint8Array {
    if (this.#isSocks) return socksReply(PROXY_OUTCOMES[outcome].socks);
    return httpReply(PROXY_OUTCOMES[outcome].http, outcome === "connected" ? undefined : words);
  }

  #socksGreeting(): ProxyStep {
    const reader = new Reader(this.#bytes.subarray(1));
    const methods = reader.bytes(reader.u8());
    if (reader.failed) return { type: "more" };
    this.#isSocks = true;
    if (!methods.includes(NO_AUTHENTICATION))
      return { type: "refuse", bytes: Uint8Array.of(SOCKS5, NO_ACCEPTABLE_METHOD) };
    this.#state = "socks request";
    this.#bytes = this.#bytes.subarray(1 + reader.offset);
    return { type: "reply", bytes: Uint8Array.of(SOCKS5, NO_AUTHENTICATION) };
  }

  #socksRequest(): ProxyStep {
    const reader = new Reader(this.#bytes);
    const [version, command, , type] = [reader.u8(), reader.u8(), reader.u8(), reader.u8()];
    if (reader.failed) return { type: "more" };
    if (version !== SOCKS5 || command !== CONNECT) return { type: "refuse", bytes: socksReply(COMMAND_NOT_SUPPORTED) };
    const length = type === IPV4 ? 4 : type === IPV6 ? 16 : type === NAME ? reader.u8() : undefined;
    if (length === undefined) return { type: "refuse", bytes: socksReply(ADDRESS_TYPE_NOT_SUPPORTED) };
    const address = reader.bytes(length);
    const port = reader.u16();
    if (reader.failed) return { type: "more" };
    const host = type === NAME ? (utf8Text(address) ?? "") : ipFromBytes(address);
    this.#state = "done";
    return { type: "connect", host, port, rest: reader.rest() };
  }

  #httpRequest(): ProxyStep {
    const end = endOfHead(this.#bytes);
    if (end === undefined) {
      if (this.#bytes.length > MAX_REQUEST_BYTES)
        return refuseHttp("431 Request Header Fields Too Large", "The request is too large");
      return { type: "more" };
    }
    const line = (utf8Text(this.#bytes.subarray(0, end)) ?? "").split("\r\n")[0] ?? "";
    const [method, target = "", version = ""] = line.split(" ");
    if (!version.startsWith("HTTP/1."))
      return refuseHttp("400 Bad Request", "This port speaks SOCKS5 and HTTP CONNECT");
    if (method !== "CONNECT") {
      return refuseHttp(
        "405 Method Not Allowed",
        "This proxy takes CONNECT only; with curl, add --proxytunnel or use socks5h://",
      );
    }
    const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(target);
    const port = Number(match?.[3]);
    const host = match?.[1] ?? match?.[2];
    if (host === undefined || !(port <= 65_535)) return refuseHttp("400 Bad Request", "CONNECT wants HOST:PORT");
    this.#state = "done";
    return { type: "connect", host, port, rest: this.#bytes.subarray(end) };
  }
}

/** Where the blank line ends; undefined while it has not come. */
function endOfHead(bytes: Uint8Array): number | undefined {
  for (let i = 3; i < bytes.length; i++) {
    if (bytes[i] === 10 && bytes[i - 1] === 13 && bytes[i - 2] === 10 && bytes[i - 3] === 13) return i + 1;
  }
  return undefined;
}

const refuseHttp = (status: string, words: string): ProxyStep => ({ type: "refuse", bytes: httpReply(status, words) });

/** With an address of zeros, which RFC 1928 leaves to the server and no client looks at. */
const socksReply = (code: number): Uint8Array => Uint8Array.of(SOCKS5, code, 0, 1, 0, 0, 0, 0, 0, 0);

function httpReply(status: string, words: string | undefined): Uint8Array {
  if (words === undefined) return utf8(`HTTP/1.1 ${status}\r\n\r\n`);
  const body = `${words}\n`;
  return utf8(
    `HTTP/1.1 ${status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: ${utf8(body).length}\r\nconnection: close\r\n\r\n${body}`,
  );
}
