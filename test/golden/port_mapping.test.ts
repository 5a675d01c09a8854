/**
 * What gateways say, exactly and damaged: the bytes of PCP (RFC 6887) and NAT-PMP (RFC 6886), and answers of Debian's miniupnpd 2.3.1 as
 * they were recorded. Any bytes give a value or nothing; nothing throws, loops, or names a machine other than the gateway.
 */
import { readFileSync } from "node:fs";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decodeResponse, type HttpResponse } from "../../agent/portmap/http.ts";
import { decodeNatPmpResponse, encodeNatPmpAddress, encodeNatPmpMap } from "../../agent/portmap/nat_pmp.ts";
import { decodePcpResponse, encodePcpAnnounce, encodePcpMap } from "../../agent/portmap/pcp.ts";
import { decodeAnswer, decodeDescription, encodeCall, ipField, portField } from "../../agent/portmap/soap.ts";
import { decodeSearchAnswer, encodeSearches, isNotification } from "../../agent/portmap/ssdp.ts";
import { parseXml } from "../../agent/portmap/xml.ts";
import { equalBytes, fromHex, toHex, utf8, utf8Text } from "../../shared/bytes.ts";

const GATEWAY = "10.1.0.1";
const LOCATION = { ip: GATEWAY, port: 40_761, path: "/rootDesc.xml" };
const NONCE = fromHex("0102030405060708090a0b0c");
const hex = (text: string): Uint8Array => fromHex(text.replaceAll(/\s+/g, ""));

const PCP_MAPPED = hex(`
  02 81 00 00  00001c20  0000012c  000000000000000000000000
  0102030405060708090a0b0c  11 000000  1388  a0b1  00000000000000000000ffffc633640a`);
const NAT_PMP_ADDRESS = hex("00 80 0000 0000012c c633640a");
const NAT_PMP_MAPPED = hex("00 81 0000 0000012c 1388 a0b1 00001c20");
const SSDP_ANSWER = utf8(
  "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nUSN: uuid:7a2ec0f0::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nEXT:\r\nSERVER: Debian UPnP/1.1 MiniUPnPd/2.3.1\r\nLOCATION: http://10.1.0.1:40761/rootDesc.xml\r\n\r\n",
);
const recorded = (name: string): Uint8Array =>
  new Uint8Array(readFileSync(new URL(`./miniupnpd/${name}.http`, import.meta.url)));

describe("PCP", () => {
  test("MAP and ANNOUNCE requests", () => {
    const external = { ip: "198.51.100.10", port: 0xa0_b1 };
    const map = encodePcpMap({ local: "10.1.0.10", nonce: NONCE, internalPort: 5000, external, lifetime: 7200 });
    expect(toHex(map)).toBe(
      `0201000000001c2000000000000000000000ffff0a01000a${toHex(NONCE)}110000001388a0b100000000000000000000ffffc633640a`,
    );
    expect(toHex(encodePcpAnnounce("10.1.0.10"))).toBe("020000000000000000000000000000000000ffff0a01000a");
  });

  test("a MAP response", () => {
    expect(decodePcpResponse(PCP_MAPPED)).toEqual({
      result: 0,
      lifetime: 7200,
      epoch: 300,
      map: { nonce: NONCE, internalPort: 5000, external: { ip: "198.51.100.10", port: 0xa0_b1 } },
    });
  });

  test.each([
    ["a request", "0201"],
    ["NAT-PMP", "0081"],
    ["version 1", "0181"],
    ["PEER", "0282"],
  ])("%s is no response to MAP", (_, start) => {
    expect(decodePcpResponse(Uint8Array.of(...fromHex(start), ...PCP_MAPPED.subarray(2)))).toBeUndefined();
  });

  test("a mapping of TCP is none of ours", () => {
    const bytes = PCP_MAPPED.slice();
    bytes[36] = 6;
    expect(decodePcpResponse(bytes)).toBeUndefined();
  });
});

describe("NAT-PMP", () => {
  test("requests", () => {
    expect(toHex(encodeNatPmpAddress())).toBe("0000");
    expect(toHex(encodeNatPmpMap(5000, 0xa0_b1, 7200))).toBe("000100001388a0b100001c20");
  });

  test("responses", () => {
    expect(decodeNatPmpResponse(NAT_PMP_ADDRESS)).toEqual({ type: "address", result: 0, epoch: 300, ip: "198.51.100.10" });
    expect(decodeNatPmpResponse(NAT_PMP_MAPPED)).toEqual({
      type: "map",
      result: 0,
      epoch: 300,
      internalPort: 5000,
      externalPort: 0xa0_b1,
      lifetime: 7200,
    });
    // Servers cut failures short.
    expect(decodeNatPmpResponse(hex("00 80 0001 00000001"))).toMatchObject({ type: "address", result: 1 });
    expect(decodeNatPmpResponse(hex("00 80 0000 00000001"))).toBeUndefined();
  });
});

describe("SSDP", () => {
  test("a search, to the group and to the gateway", () => {
    expect(utf8Text(encodeSearches("239.255.255.250")[0] ?? utf8(""))).toBe(
      'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n',
    );
    expect(encodeSearches(GATEWAY)).toHaveLength(2);
  });

  test("an answer", () => {
    expect(decodeSearchAnswer(SSDP_ANSWER, GATEWAY)).toEqual(LOCATION);
    expect(isNotification(utf8("NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n\r\n"))).toBe(true);
    expect(isNotification(SSDP_ANSWER)).toBe(false);
  });

  test.each([
    "http://10.1.0.2:80/",
    "https://10.1.0.1/",
    "http://10.1.0.1.evil.example/",
    "http://10.1.0.1@10.1.0.2/",
    "http://10.1.0.1:0/",
    "http://10.1.0.1:70000/",
    "http://10.1.0.1/a b",
    "http://10.1.0.1/a\tHost: x",
    "http://010.1.0.1/",
    "file:///etc/passwd",
    "",
  ])("a description at %j is not fetched", (location) => {
    const answer = utf8Text(SSDP_ANSWER)?.replace("http://10.1.0.1:40761/rootDesc.xml", location) ?? "";
    expect(decodeSearchAnswer(utf8(answer), GATEWAY)).toBeUndefined();
  });

  test("the answer of a television is not a gateway's", () => {
    const answer = utf8Text(SSDP_ANSWER)?.replaceAll("InternetGatewayDevice", "MediaRenderer") ?? "";
    expect(decodeSearchAnswer(utf8(answer), GATEWAY)).toBeUndefined();
  });
});

describe("UPnP", () => {
  const answerTo = (name: string, action: string) => decodeAnswer(responseOf(recorded(name)), action);

  test("a description: the service that maps ports, and where to call it", () => {
    expect(decodeDescription(responseOf(recorded("description")).body, LOCATION)).toEqual([
      {
        type: "urn:schemas-upnp-org:service:WANIPConnection:2",
        control: { ip: GATEWAY, port: 40_761, path: "/ctl/IPConn" },
        isVersion2: true,
      },
    ]);
  });

  test.each([
    ["/ctl", "/ctl"],
    ["ctl", "/up/ctl"],
    ["http://10.1.0.1:9/ctl", "/ctl"],
    ["http://10.1.0.2/ctl", undefined],
    ["//10.1.0.2/ctl", undefined],
    ["", undefined],
    ["ctl\r\nX: y", undefined],
  ])("a control URL of %j is called at %j", (url, path) => {
    const [service] = decodeDescription(descriptionOf(1, url), { ip: GATEWAY, port: 80, path: "/up/desc.xml" });
    expect(service?.control.path).toBe(path);
  });

  test("a base URL elsewhere is ignored", () => {
    const text = descriptionOf(1, "/ctl").replace("<root>", "<root><URLBase>http://10.1.0.2:1/</URLBase>");
    expect(decodeDescription(text, LOCATION)[0]?.control).toEqual({ ip: GATEWAY, port: 40_761, path: "/ctl" });
  });

  test("answers and refusals", () => {
    const address = answerTo("address", "GetExternalIPAddress");
    expect(address?.ok === true && ipField(address.field("NewExternalIPAddress"))).toBe("198.51.100.10");
    const mapped = answerTo("mapped", "AddAnyPortMapping");
    expect(mapped?.ok === true && portField(mapped.field("NewReservedPort"))).toBe(5000);
    expect(answerTo("refused", "AddPortMapping")).toEqual({ ok: false, fault: 718, text: "ConflictInMappingEntry" });
    // An answer to something else is none.
    expect(answerTo("address", "AddPortMapping")).toBeUndefined();
  });

  test("a call, with text that could break out of its element", () => {
    const service = { type: "urn:schemas-upnp-org:service:WANIPConnection:1", control: LOCATION, isVersion2: false };
    const text = utf8Text(encodeCall(service, "AddPortMapping", { NewPortMappingDescription: "</a>&" })) ?? "";
    expect(text).toContain('SOAPAction: "urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping"\r\n');
    expect(text).toContain("<NewPortMappingDescription>&lt;/a&gt;&amp;</NewPortMappingDescription>");
    const [head = "", body = ""] = text.split("\r\n\r\n");
    expect(head).toContain(`Content-Length: ${body.length}`);
  });
});

describe("XML", () => {
  test.each([
    ["a document type", '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>'],
    ["an entity of its own", "<a>&x;</a>"],
    ["an external entity", '<!DOCTYPE a SYSTEM "http://10.1.0.2/"><a/>'],
    ["character data sections", "<a><![CDATA[x]]></a>"],
    ["a missing end", "<a><b></b>"],
    ["ends that cross", "<a><b></a></b>"],
    ["two roots", "<a/><b/>"],
    ["text outside", "<a/>x"],
    ["elements without number", `<a>${"<b/>".repeat(2001)}</a>`],
    ["elements without bottom", "<a>".repeat(33) + "</a>".repeat(33)],
    ["more than it may be", `<a>${"x".repeat(65_536)}</a>`],
    ["a null character", "<a>&#0;</a>"],
  ])("%s is refused", (_, text) => {
    expect(parseXml(text)).toBeUndefined();
  });

  test("prefixes, attributes, comments and the five entities are read", () => {
    expect(parseXml(`<?xml version="1.0"?>\n<!-- c --><s:a x="1" y='<'></s:a>`)).toBeUndefined();
    expect(parseXml(`<?xml version="1.0"?>\n<!-- c --><s:a x="1" y='2'> 1 &lt; 2 &#65;<u:b/></s:a>\n`)).toEqual({
      name: "a",
      text: "1 < 2 A",
      children: [{ name: "b", text: "", children: [] }],
    });
  });

  test("takes time in proportion to the text, however it is built", () => {
    const startedAt = performance.now();
    for (const part of ["<a ", "<a b='", "<!--", "<?", "&", "<a b=c ", "</", "<a x='' ", " ", "<a\t"]) {
      parseXml(part.repeat(Math.floor(65_000 / part.length)));
      parseXml(`<a${" ".repeat(60_000)}`);
    }
    // Ten texts of 64 KiB: milliseconds, where a reader that goes back takes minutes.
    expect(performance.now() - startedAt).toBeLessThan(2000);
  });
});

describe("HTTP", () => {
  test("chunks are joined", () => {
    const text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
    expect(decodeResponse(utf8(text))).toEqual({ status: 200, body: "abcde" });
  });

  test.each([
    ["cut off", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"],
    ["a chunk cut off", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"],
    ["a length that is none", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc"],
    ["no head", "abc"],
    ["no HTTP", "ICY 200 OK\r\n\r\nabc"],
    ["a head without end", `HTTP/1.1 200 OK\r\n${"A: b\r\n".repeat(2000)}\r\nabc`],
  ])("%s is no response", (_, text) => {
    expect(decodeResponse(utf8(text))).toBeUndefined();
  });

  test("more than is ever read is no response", () => {
    expect(decodeResponse(utf8(`HTTP/1.1 200 OK\r\n\r\n${"x".repeat(65_536)}`))).toBeUndefined();
  });
});

const DECODERS: Readonly<Record<string, (bytes: Uint8Array) => unknown>> = {
  decodePcpResponse,
  decodeNatPmpResponse,
  isNotification,
  decodeSearchAnswer: (bytes) => {
    const url = decodeSearchAnswer(bytes, GATEWAY);
    expect(url?.ip ?? GATEWAY).toBe(GATEWAY);
  },
  decodeDescription: (bytes) => {
    const body = decodeResponse(bytes)?.body ?? utf8Text(bytes) ?? "";
    for (const { control } of decodeDescription(body, LOCATION)) {
      expect(control.ip).toBe(GATEWAY);
      expect(control.path).toMatch(/^\/[!-~]*$/);
    }
  },
  decodeAnswer: (bytes) => {
    const response = decodeResponse(bytes);
    const answer = response === undefined ? undefined : decodeAnswer(response, "AddAnyPortMapping");
    if (answer?.ok === true) expect(portField(answer.field("NewReservedPort")) ?? 1).toBeGreaterThan(0);
  },
};

const samples = [
  PCP_MAPPED,
  NAT_PMP_ADDRESS,
  NAT_PMP_MAPPED,
  SSDP_ANSWER,
  ...["description", "address", "mapped", "refused"].map(recorded),
];

/** Random bytes; a recording cut, with bytes changed, with a piece of another in it. */
const hostile: fc.Arbitrary<Uint8Array> = fc.oneof(
  fc.uint8Array({ maxLength: 200 }),
  fc.tuple(fc.constantFrom(...samples), fc.nat(4000)).map(([sample, length]) => sample.slice(0, length % (sample.length + 1))),
  fc
    .tuple(fc.constantFrom(...samples), fc.array(fc.tuple(fc.nat(4000), fc.nat(255)), { minLength: 1, maxLength: 5 }))
    .map(([sample, changes]) => {
      const bytes = sample.slice();
      for (const [at, value] of changes) bytes[at % bytes.length] = value;
      return bytes;
    }),
  fc
    .tuple(fc.constantFrom(...samples), fc.constantFrom(...samples), fc.nat(4000), fc.nat(4000), fc.nat(100))
    .map(([a, b, at, from, length]) =>
      Uint8Array.of(...a.subarray(0, at), ...b.subarray(from, from + length), ...a.subarray(at)),
    ),
);

test.each(Object.entries(DECODERS))("%s gives a value or nothing for any bytes", (_, decode) => {
  fc.assert(
    fc.property(hostile, (bytes) => {
      const before = bytes.slice();
      decode(bytes);
      expect(equalBytes(bytes, before)).toBe(true);
    }),
    { numRuns: 500 },
  );
});

function responseOf(bytes: Uint8Array): HttpResponse {
  const response = decodeResponse(bytes);
  if (response === undefined) throw new Error("A recorded response is one");
  return response;
}

const descriptionOf = (version: 1 | 2, controlUrl: string): string =>
  `<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:${version}</serviceType><controlURL>${controlUrl}</controlURL></service></serviceList></device></root>`;
