import * as fc from "fast-check";
import { expect, test } from "vitest";
import { AddressTable } from "../../../../agent/data/ip_packet.ts";
import { ipBytes } from "../../../../shared/address.ts";
import { ipv4Packet, ipv6Packet } from "./planes.ts";

const table = new AddressTable<string>();
for (const address of ["100.96.0.1", "100.96.0.2", "fd00::1", "fd00::2"]) table.set(ipBytes(address), address);
const sourceOf = (packet: Uint8Array): string | undefined => table.findSource(packet, 0, packet.length);
const destinationOf = (packet: Uint8Array): string | undefined => table.findDestination(packet, 0, packet.length);

test("a packet is found by its addresses, IPv4 and IPv6, wherever it lies in a buffer", () => {
  for (const packet of [ipv4Packet("100.96.0.1", "100.96.0.2", 60), ipv6Packet("fd00::1", "fd00::2", 60)]) {
    const suffix = packet[0] === 0x45 ? "100.96.0." : "fd00::";
    for (const at of [0, 1, 17]) {
      const buffer = new Uint8Array(100);
      buffer.set(packet, at);
      expect(table.findSource(buffer, at, at + 60)).toBe(`${suffix}1`);
      expect(table.findDestination(buffer, at, at + 60)).toBe(`${suffix}2`);
    }
  }
});

test("other addresses are not found, and neither are those that were taken out", () => {
  expect(sourceOf(ipv4Packet("100.96.0.3", "100.96.0.2", 60))).toBeUndefined();
  expect(sourceOf(ipv6Packet("fd00::3", "fd00::2", 60))).toBeUndefined();
  const own = new AddressTable<string>();
  const [four, six] = [ipBytes("100.96.0.1"), ipBytes("fd00::1")];
  own.set(four, "a");
  own.set(six, "a");
  expect(own.findSource(ipv6Packet("fd00::1", "fd00::2", 60), 0, 60)).toBe("a");
  for (const address of [four, six]) own.delete(address, "another");
  expect(own.findSource(ipv4Packet("100.96.0.1", "100.96.0.2", 60), 0, 60)).toBe("a");
  for (const address of [four, six]) own.delete(address, "a");
  expect(own.findSource(ipv4Packet("100.96.0.1", "100.96.0.2", 60), 0, 60)).toBeUndefined();
  expect(own.findSource(ipv6Packet("fd00::1", "fd00::2", 60), 0, 60)).toBeUndefined();
});

test("an IPv6 packet from a mapped IPv4 address does not pass for the IPv4 one", () => {
  const packet = ipv6Packet("fd00::1", "fd00::2", 60);
  packet.set(ipBytes("100.96.0.1"), 8);
  expect(sourceOf(packet)).toBeUndefined();
});

test("bytes that are no whole IP header have no addresses", () => {
  for (const length of [0, 1, 19])
    expect(sourceOf(ipv4Packet("100.96.0.1", "100.96.0.2", 60).subarray(0, length))).toBeUndefined();
  expect(destinationOf(ipv6Packet("fd00::1", "fd00::2", 60).subarray(0, 39))).toBeUndefined();
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      expect(sourceOf(bytes)).toBeUndefined();
      expect(destinationOf(bytes)).toBeUndefined();
    }),
  );
});
