import { describe, expect, test } from "vitest";
import {
  defaultStunAddresses,
  type LocalNetwork,
  parseDefaultRoutesIPv4,
  parseDefaultRoutesIPv6,
  parseTransientIPv6,
  readLocalNetwork,
} from "../../../../coordinator/stun/stun_addresses.ts";

describe("the default STUN addresses", () => {
  test("are those on interfaces with a default route", () => {
    const machine = network(["192.0.2.2 eth0", "192.0.2.3 eth0", "10.9.0.1 docker0", "127.0.0.1 lo"], ["eth0"]);
    expect(defaultStunAddresses(machine, ["0.0.0.0"])).toEqual(["192.0.2.2", "192.0.2.3"]);
  });

  test("are all but loopback and link-local ones where there is no default route", () => {
    const machine = network(
      ["192.0.2.2 eth0", "10.9.0.1 eth1", "fe80::1 eth0", "169.254.1.1 eth1", "127.0.0.1 lo"],
      [],
    );
    expect(defaultStunAddresses(machine, [])).toEqual(["192.0.2.2", "10.9.0.1"]);
  });

  test("are 127.0.0.1 on a machine that has nothing else", () => {
    expect(defaultStunAddresses(network(["127.0.0.1 lo", "::1 lo"], []), [])).toEqual(["127.0.0.1"]);
  });

  test("include a loopback address that --listen names", () => {
    const machine = network(["192.0.2.2 eth0", "127.0.0.1 lo"], ["eth0"]);
    expect(defaultStunAddresses(machine, ["127.0.0.1"])).toEqual(["127.0.0.1", "192.0.2.2"]);
  });

  test("leave out IPv6 addresses that will go away, and stop at four of a family", () => {
    const machine: LocalNetwork = {
      ...network(
        ["2001:db8::1 eth0", "2001:db8::2 eth0", ...[1, 2, 3, 4, 5].map((n) => `192.0.2.${n} eth0`)],
        ["eth0"],
      ),
      transientIPv6: new Set(["2001:db8::2"]),
    };
    const chosen = defaultStunAddresses(machine, []);
    expect(chosen).toEqual(["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]);
  });
});

test("the kernel's tables are read as they are printed", () => {
  const route = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	0	00000000	0	0	0
eth1	000200C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
`;
  expect([...parseDefaultRoutesIPv4(route)]).toEqual(["eth0"]);
  const zeros = "00000000000000000000000000000000";
  const ipv6 = `${zeros} 00 ${zeros} 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003     eth0
${zeros} 00 ${zeros} 00 ${zeros} ffffffff 00000001 00000000 00200200       lo
`;
  expect([...parseDefaultRoutesIPv6(ipv6)]).toEqual(["eth0"]);
  const addresses = `20010db8000000000000000000000001 02 40 00 80     eth0
20010db8000000000000000000000002 02 40 00 01     eth0
`;
  expect([...parseTransientIPv6(addresses)]).toEqual(["2001:db8::2"]);
});

test("this machine has at least one address to answer on", () => {
  expect(defaultStunAddresses(readLocalNetwork(), []).length).toBeGreaterThan(0);
});

const network = (addresses: string[], routed: string[]): LocalNetwork => ({
  addresses: addresses.map((line) => {
    const [ip = "", name = ""] = line.split(" ");
    return { ip, interface: name };
  }),
  defaultRoutes: { ipv4: new Set(routed), ipv6: new Set(routed) },
  transientIPv6: new Set(),
  isSettling: false,
});
