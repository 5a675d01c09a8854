import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  canonicalIp,
  cidrContains,
  formatTransportAddress,
  ipBytes,
  ipFromBytes,
  isPackedIPv4,
  isProbeable,
  packAddress,
  parseTransportAddress,
  sameTransportAddress,
  unpackAddress,
} from "../../../shared/address.ts";

describe("canonical text", () => {
  test.each([
    ["192.0.2.1", "192.0.2.1"],
    ["2001:DB8:0:0:0:0:0:1", "2001:db8::1"],
    ["::ffff:192.0.2.1", "192.0.2.1"],
    ["::ffff:c000:201", "192.0.2.1"],
    ["0:0:0:0:0:0:0:0", "::"],
    ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
  ])("of %s is %s", (text, expected) => expect(canonicalIp(text)).toBe(expected));

  test.each([
    "",
    "10.1",
    "0x7f.0.0.1",
    "010.0.0.1",
    "1.2.3",
    "1.2.3.256",
    "1.2.3.4.5",
    "fe80::1%eth0",
    ":::",
    "host",
    "1",
  ])("%j is no address", (text) => expect(canonicalIp(text)).toBeUndefined());

  test("equal addresses are equal strings, however they came in", () => {
    fc.assert(
      fc.property(fc.oneof(fc.ipV4(), fc.ipV6()), (text) => {
        const ip = canonicalIp(text);
        if (ip === undefined) return;
        expect(canonicalIp(ip)).toBe(ip);
        expect(ipFromBytes(ipBytes(ip))).toBe(ip);
        expect(canonicalIp(ip.toUpperCase())).toBe(ip);
      }),
    );
  });
});

describe("transport addresses", () => {
  test.each(["192.0.2.1:80", "[2001:db8::1]:65535", "0.0.0.0:0"])("%s reads and prints the same", (text) => {
    const address = parseTransportAddress(text);
    expect(address === undefined ? undefined : formatTransportAddress(address)).toBe(text);
  });

  test.each([
    "",
    "1.2.3.4",
    "1.2.3.4:",
    "1.2.3.4:65536",
    "2001:db8::1:80",
    "[::1]",
    "host:1",
    "1.2.3.4:-1",
    "1.2.3.4:1x",
  ])("%j is none", (text) => expect(parseTransportAddress(text)).toBeUndefined());

  test("text of any kind reads as an address or as none, and never throws", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.webAuthority()), (text) => {
        const address = parseTransportAddress(text);
        if (address !== undefined) expect(parseTransportAddress(formatTransportAddress(address))).toEqual(address);
      }),
    );
  });

  test("packing keeps any address and port", () => {
    const anyBytes = fc.uint8Array({ minLength: 18, maxLength: 18 });
    fc.assert(
      fc.property(anyBytes, (packed) => {
        const address = unpackAddress(packed);
        expect(packAddress(address)).toEqual(packed);
        expect(isPackedIPv4(packed)).toBe(!address.ip.includes(":"));
        expect(sameTransportAddress(address, unpackAddress(packAddress(address)))).toBe(true);
      }),
    );
    fc.assert(
      fc.property(fc.ipV4(), fc.integer({ min: 0, max: 65_535 }), (ip, port) => {
        const packed = packAddress({ ip, port });
        expect(isPackedIPv4(packed)).toBe(true);
        expect(unpackAddress(packed)).toEqual({ ip, port });
      }),
    );
  });
});

describe("nobody can be aimed: these are never probed", () => {
  test.each([
    ["multicast", "224.0.0.251"],
    ["multicast", "ff02::fb"],
    ["broadcast", "255.255.255.255"],
    ["unspecified", "0.0.0.0"],
    ["this network", "0.1.2.3"],
    ["unspecified", "::"],
    ["loopback", "127.0.0.53"],
    ["loopback", "::1"],
    ["loopback in another form", "::ffff:127.0.0.1"],
    ["link-local", "169.254.169.254"],
    ["link-local in another form", "::ffff:169.254.169.254"],
    ["link-local", "fe80::1"],
    ["no address", "localhost"],
  ])("%s %s", (_, ip) => expect(isProbeable(ip)).toBe(false));

  test.each(["192.168.1.2", "10.0.0.1", "100.64.0.1", "203.0.113.1", "2001:db8::1", "fd00::1"])("%s may be", (ip) =>
    expect(isProbeable(ip)).toBe(true),
  );

  test("loopback may be where the whole mesh is one machine, and nothing else with it", () => {
    expect(isProbeable("127.0.0.1", true)).toBe(true);
    expect(isProbeable("224.0.0.1", true)).toBe(false);
  });
});

test("a range contains the addresses of its own family only", () => {
  expect(cidrContains("100.96.0.0/12", "100.111.255.255")).toBe(true);
  expect(cidrContains("100.96.0.0/12", "100.112.0.0")).toBe(false);
  expect(cidrContains("fd00::/48", "fd00::1")).toBe(true);
  expect(cidrContains("::/0", "1.2.3.4")).toBe(false);
  expect(cidrContains("0.0.0.0/0", "::1")).toBe(false);
  for (const bad of ["", "10.0.0.0", "10.0.0.0/33", "x/8"]) expect(cidrContains(bad, "10.0.0.1")).toBe(false);
});
