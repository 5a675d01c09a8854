import * as fc from "fast-check";
import { expect, test } from "vitest";
import {
  decodeNetlink,
  encodeAddAddress,
  encodeDump,
  encodeHostRoute,
  encodeLinkUp,
  encodeNoLinkLocal,
} from "../../../../agent/driver/linux/rtnetlink.ts";

const bytesOf = (...hex: string[]) => new Uint8Array(Buffer.from(hex.join("").replaceAll(" ", ""), "hex"));

test("bringing a link up sets the MTU", () => {
  expect(encodeLinkUp(7, 1280, 5)).toEqual(
    bytesOf(
      "28000000 1000 0500 05000000 00000000", // 40 bytes, RTM_NEWLINK, REQUEST | ACK, sequence 5
      "00 00 0000 07000000 01000000 01000000", // any family, interface 7, up, only that flag
      "0800 0400 00050000", // IFLA_MTU 1280
    ),
  );
});

test("link-local addresses are switched off in a nested attribute", () => {
  expect(encodeNoLinkLocal(7, 6)).toEqual(
    bytesOf(
      "30000000 1000 0500 06000000 00000000",
      "00 00 0000 07000000 00000000 00000000",
      "1000 1a80", // IFLA_AF_SPEC, nested
      "0c00 0a80", // AF_INET6, nested
      "0500 0800 01 000000", // IFLA_INET6_ADDR_GEN_MODE none, padded
    ),
  );
});

test("an IPv4 address has no prefix route", () => {
  expect(encodeAddAddress(7, "100.96.0.1", 32, 1)).toEqual(
    bytesOf(
      "30000000 1400 0505 01000000 00000000", // RTM_NEWADDR, REQUEST | ACK | REPLACE | CREATE
      "02 20 00 00 07000000", // AF_INET, /32, universe
      "0800 0200 64600001", // IFA_LOCAL
      "0800 0100 64600001", // IFA_ADDRESS
      "0800 0800 00020000", // IFA_FLAGS: NOPREFIXROUTE
    ),
  );
});

test("an IPv6 address is not tested for duplicates", () => {
  expect(encodeAddAddress(7, "fd00::1", 128, 1)).toEqual(
    bytesOf(
      "48000000 1400 0505 01000000 00000000",
      "0a 80 00 00 07000000",
      "1400 0200 fd000000000000000000000000000001",
      "1400 0100 fd000000000000000000000000000001",
      "0800 0800 02020000", // NOPREFIXROUTE | NODAD
    ),
  );
});

test("a host route goes through the interface and replaces nobody's", () => {
  expect(encodeHostRoute("add", 7, "100.96.0.2", 3)).toEqual(
    bytesOf(
      "2c000000 1800 0506 03000000 00000000", // RTM_NEWROUTE, REQUEST | ACK | EXCL | CREATE
      "02 20 00 00 fe 04 fd 01 00000000", // AF_INET, /32, main table, static, link scope, unicast
      "0800 0100 64600002", // RTA_DST
      "0800 0400 07000000", // RTA_OIF
    ),
  );
  expect(encodeHostRoute("delete", 7, "fd00::2", 4)).toEqual(
    bytesOf(
      "38000000 1900 0500 04000000 00000000", // RTM_DELROUTE, REQUEST | ACK
      "0a 80 00 00 fe 04 00 01 00000000",
      "1400 0100 fd000000000000000000000000000002",
      "0800 0400 07000000",
    ),
  );
});

test("a dump asks for all families", () => {
  expect(encodeDump("route", 9)).toEqual(bytesOf("1c000000 1a00 0103 09000000 00000000", "00".repeat(12)));
});

test("an answer of several messages is taken apart", () => {
  const answer = bytesOf(
    // A link: name, MTU, kind.
    "44000000 1000 0200 01000000 00000000",
    "00 00 feff 02000000 91100100 00000000",
    "0800 0300 746d3000", // IFLA_IFNAME "tm0"
    "0800 0400 00050000", // IFLA_MTU
    "1400 1280 0800 0100 74756e00 0800 0200 00000000", // IFLA_LINKINFO: kind "tun", data
    // An address whose other end is another one.
    "30000000 1400 0200 01000000 00000000",
    "02 20 80 00 02000000",
    "0800 0100 0a000002",
    "0800 0200 0a000001",
    "0800 0800 80020000",
    // A default route with two hops.
    "4c000000 1800 0200 01000000 00000000",
    "02 00 00 00 fe 10 00 01 00000000",
    "0800 0600 64000000", // RTA_PRIORITY 100
    "2400 0900 1000 00 00 03000000 0800 0500 c0a80001 1000 00 00 04000000 0800 0500 c0a80101", // RTA_MULTIPATH
    "0400 0000", // an attribute without a value
    // The end.
    "14000000 0300 0200 01000000 00000000 00000000",
  );

  expect(decodeNetlink(answer)).toEqual([
    {
      type: "link",
      sequence: 1,
      removed: false,
      link: { index: 2, name: "tm0", flags: 0x11091, mtu: 1280, kind: "tun", isEthernet: false },
    },
    { type: "address", sequence: 1, removed: false, address: { index: 2, ip: "10.0.0.1", prefix: 32, flags: 0x280 } },
    {
      type: "route",
      sequence: 1,
      removed: false,
      route: {
        destination: "0.0.0.0",
        prefix: 0,
        gateway: "192.168.0.1",
        index: 3,
        metric: 100,
        table: 254,
        type: 1,
        preferredSource: undefined,
      },
    },
    { type: "done", sequence: 1, errno: 0 },
  ]);
});

test("a refusal carries the error number and the kernel's words", () => {
  const refusal = bytesOf(
    "34000000 0200 0003 05000000 00000000", // NLMSG_ERROR, CAPPED | ACK_TLVS
    "edffffff", // -ENODEV
    "28000000 1400 0505 05000000 00000000", // the request's header
    "0d00 0100 6e6f7420686572650000 0000", // NLMSGERR_ATTR_MSG "not here"
  );
  expect(decodeNetlink(refusal)).toEqual([{ type: "result", sequence: 5, errno: 19, text: "not here" }]);
});

test("a torn dump says so", () => {
  const torn = bytesOf("14000000 0300 1200 01000000 00000000 00000000");
  expect(decodeNetlink(torn)).toEqual([
    { type: "done", sequence: 1, errno: 0 },
    { type: "interrupted", sequence: 1 },
  ]);
});

test("any bytes decode to something, never to an exception", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.integer({ min: 0, max: 40 }), (bytes, type) => {
      decodeNetlink(bytes);
      // The same as the body of one whole message, so that the bodies are reached.
      const message = new Uint8Array(16 + bytes.length);
      new DataView(message.buffer).setUint32(0, message.length, true);
      message[4] = type;
      message[7] = 0x02;
      message.set(bytes, 16);
      decodeNetlink(message);
    }),
    { numRuns: 2000 },
  );
});
