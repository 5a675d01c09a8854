import { expect, test } from "vitest";
import {
  decodeSockaddr,
  encodeSockaddr,
  SOCKADDR_BYTES,
  SOCKADDR_IN6_BYTES,
  SOCKADDR_IN_BYTES,
} from "../../../../agent/driver/linux/sockaddr.ts";
import { packAddress, unpackAddress } from "../../../../shared/address.ts";

const bytesOf = (hex: string) => new Uint8Array(Buffer.from(hex.replaceAll(" ", ""), "hex"));

test("an IPv4 address becomes a sockaddr_in", () => {
  const sockaddr = new Uint8Array(SOCKADDR_BYTES).fill(0xee);

  const length = encodeSockaddr(packAddress({ ip: "198.51.100.7", port: 0x1234 }), 4, sockaddr);

  expect(length).toBe(SOCKADDR_IN_BYTES);
  // family, port, address, zero
  expect(sockaddr.subarray(0, length)).toEqual(bytesOf("0200 1234 c6336407 0000000000000000"));
});

test("an IPv6 address becomes a sockaddr_in6 without flow and scope", () => {
  const sockaddr = new Uint8Array(SOCKADDR_BYTES).fill(0xee);

  const length = encodeSockaddr(packAddress({ ip: "2001:db8::5", port: 0xfffe }), 6, sockaddr);

  expect(length).toBe(SOCKADDR_IN6_BYTES);
  // family, port, flow info, address, scope
  expect(sockaddr).toEqual(bytesOf("0a00 fffe 00000000 20010db8000000000000000000000005 00000000"));
});

test("an address of the other family is refused", () => {
  const sockaddr = new Uint8Array(SOCKADDR_BYTES);
  expect(encodeSockaddr(packAddress({ ip: "198.51.100.7", port: 1 }), 6, sockaddr)).toBe(0);
  expect(encodeSockaddr(packAddress({ ip: "2001:db8::5", port: 1 }), 4, sockaddr)).toBe(0);
});

test.each([
  { ip: "0.0.0.0", port: 0 },
  { ip: "203.0.113.255", port: 65_535 },
  { ip: "::1", port: 3478 },
  { ip: "fd00::ffff:1:2", port: 41_641 },
])("$ip port $port comes back as it went in, over whatever was in the buffers", (address) => {
  const sockaddr = new Uint8Array(SOCKADDR_BYTES).fill(0xaa);
  const packed = new Uint8Array(18).fill(0x55);

  encodeSockaddr(packAddress(address), address.ip.includes(":") ? 6 : 4, sockaddr);

  expect(decodeSockaddr(sockaddr, packed)).toBe(true);
  expect(unpackAddress(packed)).toEqual(address);
});

test("a sockaddr of another family is refused and changes nothing", () => {
  const packed = new Uint8Array(18).fill(7);
  expect(decodeSockaddr(Uint8Array.of(1, 0, 0, 0), packed)).toBe(false);
  expect(decodeSockaddr(new Uint8Array(0), packed)).toBe(false);
  expect(packed).toEqual(new Uint8Array(18).fill(7));
});
