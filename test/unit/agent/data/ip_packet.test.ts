import * as fc from "fast-check";
import { expect, test } from "vitest";
import { addressKey, destinationKey, sourceKey } from "../../../../agent/data/ip_packet.ts";
import { ipBytes } from "../../../../shared/address.ts";
import { ipv4Packet, ipv6Packet } from "./planes.ts";

test("the keys of an IPv4 packet are those of its addresses", () => {
  const packet = ipv4Packet("100.96.0.1", "100.96.0.2", 60);
  expect(sourceKey(packet)).toBe(addressKey(ipBytes("100.96.0.1")));
  expect(destinationKey(packet)).toBe(addressKey(ipBytes("100.96.0.2")));
});

test("the keys of an IPv6 packet are those of its addresses", () => {
  const packet = ipv6Packet("fd00::1", "fd00::2", 60);
  expect(sourceKey(packet)).toBe(addressKey(ipBytes("fd00::1")));
  expect(destinationKey(packet)).toBe(addressKey(ipBytes("fd00::2")));
});

test("an IPv6 packet from a mapped IPv4 address does not pass for the IPv4 one", () => {
  const packet = ipv6Packet("fd00::1", "fd00::2", 60);
  packet.set(ipBytes("100.96.0.1"), 8);
  expect(sourceKey(packet)).not.toBe(addressKey(ipBytes("100.96.0.1")));
});

test("bytes that are no whole IP header have no keys", () => {
  for (const length of [0, 1, 19])
    expect(sourceKey(ipv4Packet("1.2.3.4", "1.2.3.5", 60).subarray(0, length))).toBeUndefined();
  expect(destinationKey(ipv6Packet("fd00::1", "fd00::2", 60).subarray(0, 39))).toBeUndefined();
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      const version = (bytes[0] ?? 0) >> 4;
      const isPacket = (version === 4 && bytes.length >= 20) || (version === 6 && bytes.length >= 40);
      expect(sourceKey(bytes) !== undefined).toBe(isPacket);
      expect(destinationKey(bytes) !== undefined).toBe(isPacket);
    }),
  );
});
