import { expect, test } from "vitest";
import type { NetworkSnapshot } from "../../../../agent/driver/linux/netlink.ts";
import { coverageOf, defaultRoute } from "../../../../agent/driver/linux/routing.ts";
import type { Route } from "../../../../agent/driver/linux/rtnetlink.ts";

const TUN = 9;

test("a mesh address that only the default route covers is free", () => {
  const machine = snapshot({ routes: [route("0.0.0.0", 0, 2), route("192.168.1.0", 24, 2)] });
  expect(coverageOf(machine, "100.96.0.7", TUN)).toBeUndefined();
});

test("a carrier's network inside 100.64.0.0/10 covers only what is in it", () => {
  const machine = snapshot({
    addresses: [{ index: 2, ip: "100.96.3.4", prefix: 24, flags: 0 }],
    routes: [route("0.0.0.0", 0, 2), route("100.96.3.0", 24, 2)],
  });
  expect(coverageOf(machine, "100.96.0.7", TUN)).toBeUndefined();
  expect(coverageOf(machine, "100.96.3.7", TUN)).toEqual({ kind: "route", cidr: "100.96.3.0/24", interface: "eth0" });
  expect(coverageOf(machine, "100.96.3.4", TUN)).toEqual({ kind: "address", cidr: "100.96.3.4/24", interface: "eth0" });
});

test("the most specific route is named, whatever table it is in", () => {
  const machine = snapshot({
    routes: [route("100.64.0.0", 10, 2), { ...route("100.96.0.7", 32, 3), table: 52 }, route("100.96.0.0", 16, 2)],
  });
  expect(coverageOf(machine, "100.96.0.7", TUN)).toEqual({ kind: "route", cidr: "100.96.0.7/32", interface: "wg0" });
});

test("our own device's addresses and routes do not count", () => {
  const machine = snapshot({
    addresses: [{ index: TUN, ip: "100.96.0.7", prefix: 32, flags: 0 }],
    routes: [route("100.96.0.7", 32, TUN), { ...route("100.96.0.7", 32, TUN), type: 2, table: 255 }],
  });
  expect(coverageOf(machine, "100.96.0.7", TUN)).toBeUndefined();
  expect(coverageOf(machine, "100.96.0.7", undefined)).toMatchObject({ kind: "address", interface: "tm0" });
});

test("a route that refuses covers too", () => {
  const blackhole: Route = { ...route("fd00::", 8, 0), index: undefined, type: 6 };
  expect(coverageOf(snapshot({ routes: [blackhole] }), "fd12::1", TUN)).toEqual({
    kind: "route",
    cidr: "fd00::/8",
    interface: undefined,
  });
});

test("of several default routes the one with the least metric of the main table is in use", () => {
  const routes = [
    { ...route("0.0.0.0", 0, 3), metric: 600 },
    { ...route("0.0.0.0", 0, 2), metric: 100 },
    { ...route("0.0.0.0", 0, 9), metric: 0, table: 52 },
    { ...route("::", 0, 4), metric: 1 },
  ];
  expect(defaultRoute({ routes }, 4)?.index).toBe(2);
  expect(defaultRoute({ routes }, 6)?.index).toBe(4);
  expect(defaultRoute({ routes: [] }, 4)).toBeUndefined();
});

function snapshot(parts: Partial<NetworkSnapshot>): NetworkSnapshot {
  const link = (index: number, name: string) => ({
    index,
    name,
    flags: 1,
    mtu: 1500,
    kind: undefined,
    isEthernet: true,
  });
  return { links: [link(2, "eth0"), link(3, "wg0"), link(TUN, "tm0")], addresses: [], routes: [], ...parts };
}

function route(destination: string, prefix: number, index: number): Route {
  return {
    destination,
    prefix,
    gateway: undefined,
    index,
    metric: 0,
    table: 254,
    type: 1,
    preferredSource: undefined,
  };
}
