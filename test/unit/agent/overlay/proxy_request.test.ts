/** What clients of the SOCKS port say, whole, in pieces, and as nonsense. */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ProxyRequest, type ProxyStep } from "../../../../agent/overlay/proxy_request.ts";
import { concatBytes, utf8, utf8Text } from "../../../../shared/bytes.ts";

const GREETING = Uint8Array.of(5, 2, 2, 0);
const NAME = concatBytes(Uint8Array.of(5, 1, 0, 3, 8), utf8("nas.mesh"), Uint8Array.of(0, 80));
const IPV4 = Uint8Array.of(5, 1, 0, 1, 100, 96, 0, 2, 0x1f, 0x90);
const IPV6 = concatBytes(Uint8Array.of(5, 1, 0, 4, 0xfd), new Uint8Array(14), Uint8Array.of(2, 0, 22));
const CONNECT = utf8("CONNECT nas:443 HTTP/1.1\r\nHost: nas:443\r\nUser-Agent: curl\r\n\r\n");

describe("a request", () => {
  test.each([
    ["SOCKS5 by name", concatBytes(GREETING, NAME), { host: "nas.mesh", port: 80 }],
    ["SOCKS5 by IPv4", concatBytes(GREETING, IPV4), { host: "100.96.0.2", port: 8080 }],
    ["SOCKS5 by IPv6", concatBytes(GREETING, IPV6), { host: "fd00::2", port: 22 }],
    ["HTTP CONNECT", CONNECT, { host: "nas", port: 443 }],
    ["HTTP CONNECT to IPv6", utf8("CONNECT [fd00::2]:443 HTTP/1.0\r\n\r\n"), { host: "fd00::2", port: 443 }],
  ])("%s is understood in any pieces, with what follows it", (_, bytes, destination) => {
    const whole = concatBytes(bytes, utf8("hello"));
    for (const size of [1, 2, 7, 1000]) {
      const request = new ProxyRequest();
      const steps: ProxyStep[] = [];
      let used = 0;
      for (; used < whole.length && steps.at(-1)?.type !== "connect"; used += size) {
        steps.push(...stepsOf(request, whole.subarray(used, used + size)));
      }
      const last = steps.at(-1);
      expect(last).toMatchObject({ type: "connect", ...destination });
      const rest = last?.type === "connect" ? last.rest : new Uint8Array();
      expect(utf8Text(concatBytes(rest, whole.subarray(used)))).toBe("hello");
    }
  });

  test.each([
    ["a method with a password only", Uint8Array.of(5, 1, 2), [5, 0xff]],
    ["BIND", concatBytes(GREETING, Uint8Array.of(5, 2, 0, 1, 1, 2, 3, 4, 0, 1)), [5, 7]],
    ["an unknown address type", concatBytes(GREETING, Uint8Array.of(5, 1, 0, 9, 1)), [5, 8]],
  ])("SOCKS5 with %s is refused", (_, bytes, beginning) => {
    const last = stepsOf(new ProxyRequest(), bytes).at(-1);
    expect(last?.type === "refuse" ? [...last.bytes.subarray(0, 2)] : last).toEqual(beginning);
  });

  test.each([
    ["GET http://nas/ HTTP/1.1\r\n\r\n", "405"],
    ["CONNECT nas HTTP/1.1\r\n\r\n", "400"],
    ["CONNECT nas:99999 HTTP/1.1\r\n\r\n", "400"],
    ["SSH-2.0-OpenSSH\r\n\r\n", "400"],
    ["x".repeat(9000), "431"],
  ])("%j is refused with words", (text, status) => {
    const last = stepsOf(new ProxyRequest(), utf8(text)).at(-1);
    expect(last?.type === "refuse" ? utf8Text(last.bytes) : last).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
  });

  test("any bytes in any pieces end in a step, never in an exception", () => {
    const piece = fc.oneof(fc.uint8Array({ maxLength: 40 }), fc.constantFrom(GREETING, NAME, IPV4, IPV6, CONNECT));
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 6 }), (pieces) => {
        const request = new ProxyRequest();
        for (const bytes of pieces) {
          const last = stepsOf(request, bytes).at(-1);
          if (last?.type !== "more") return;
        }
      }),
      { numRuns: 500 },
    );
  });
});

test("answers are in the client's protocol", () => {
  const socks = new ProxyRequest();
  stepsOf(socks, concatBytes(GREETING, NAME));
  expect([...socks.answer("refused", "words")]).toEqual([5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
  const http = new ProxyRequest();
  stepsOf(http, CONNECT);
  expect(utf8Text(http.answer("connected"))).toBe("HTTP/1.1 200 Connection established\r\n\r\n");
  expect(utf8Text(http.answer("not_exposed", "Not offered"))).toMatch(/^HTTP\/1\.1 403 .*\r\n\r\nNot offered\n$/s);
});

/** One chunk in, every step out. */
function stepsOf(request: ProxyRequest, bytes: Uint8Array): ProxyStep[] {
  const steps = [request.handle(bytes)];
  while (steps.at(-1)?.type === "reply") steps.push(request.handle(new Uint8Array()));
  return steps;
}
