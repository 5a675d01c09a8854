/** Which addresses of a machine are told to peers, and in which order. */
import { expect, test } from "vitest";
import type { InterfaceAddress } from "../../../agent/driver/linux/interfaces.ts";
import { chooseAddresses } from "../../../agent/driver/usable_addresses.ts";

const RULES = { isMeshAddress: (ip: string) => ip === "100.96.0.9", withLoopback: false };

function address(name: string, ip: string, more: Partial<InterfaceAddress> = {}): InterfaceAddress {
  const plain = {
    isUp: true,
    isLoopback: false,
    isTun: false,
    isBridge: false,
    isTemporary: false,
    isDeprecated: false,
  };
  return { name, ip, prefix: 24, flags: 0, ...plain, ...more };
}

const chosen = (all: readonly InterfaceAddress[]): string[] => chooseAddresses(all, RULES).map(({ ip }) => ip);

test("bridges of containers come after real interfaces", () => {
  const all = [
    address("docker0", "172.17.0.1", { isBridge: true }),
    address("eth0", "2001:db8::7", { isTemporary: true }),
    address("eth0", "2001:db8::5"),
    address("wlan0", "192.168.1.5"),
  ];
  expect(chosen(all)).toEqual(["192.168.1.5", "2001:db8::5", "2001:db8::7", "172.17.0.1"]);
});

test("TUN devices are left out, ours and those of other overlays, and no address by its range", () => {
  const all = [
    address("tm0", "10.1.0.1", { isTun: true }),
    address("tun9", "192.168.7.2", { isTun: true }),
    address("eth0", "100.96.0.8"),
    address("eth1", "100.64.3.4"),
    address("eth2", "100.127.1.2"),
  ];
  expect(chosen(all)).toEqual(["100.96.0.8", "100.64.3.4", "100.127.1.2"]);
});

test("what leads nowhere is left out: loopback, an interface that is down, a deprecated address, a mesh address", () => {
  const all = [
    address("lo", "127.0.0.1", { isLoopback: true }),
    address("eth0", "10.0.0.1", { isUp: false }),
    address("eth1", "2001:db8::9", { isDeprecated: true }),
    address("eth3", "100.96.0.9"),
    address("eth2", "fe80::1"),
  ];
  expect(chosen(all)).toEqual([]);
});

test("a machine with hundreds of bridges tells a dozen addresses, its own first", () => {
  const bridges = Array.from({ length: 300 }, (_, i) =>
    address(`br-${i}`, `172.${16 + (i >> 8)}.${i & 255}.1`, { isBridge: true }),
  );
  const all = chosen([...bridges, address("eth0", "192.168.1.5")]);
  expect([all.length, all[0]]).toEqual([12, "192.168.1.5"]);
});
