import { describe, expect, test } from "vitest";
import { DATA_LEG_IPV4 } from "../../../../agent/node/legs.ts";
import { Gathering } from "../../../../agent/node/gathering.ts";
import type { TransportAddress } from "../../../../shared/address.ts";
import { instant } from "../../../../shared/time.ts";
import { decodeStun, encodeStun, STUN_BINDING, type StunMessage } from "../../../../shared/wire/stun.ts";

const LAN = { ip: "10.1.0.10", port: 5000 };
const PUBLIC = { ip: "198.51.100.10", port: 5000 };
const MAPPED = { ip: "198.51.100.10", port: 6000 };
const OTHER_NAT = { ip: "100.127.1.2", port: 6000 };

describe("a port that the router maps", () => {
  test("is a candidate for everybody when STUN shows the same ip", () => {
    const gathering = gathered(PUBLIC);
    gathering.setPortMapping(MAPPED);
    expect(addresses(gathering, false)).toEqual([
      "server-reflexive 198.51.100.10:5000",
      "port-mapped 198.51.100.10:6000",
    ]);
  });

  test("is told only to peers that have authenticated when the router is behind another NAT", () => {
    const gathering = gathered(PUBLIC);
    gathering.setPortMapping(OTHER_NAT);
    expect(addresses(gathering, false)).toEqual(["server-reflexive 198.51.100.10:5000"]);
    expect(addresses(gathering, true)).toContain("port-mapped 100.127.1.2:6000");
  });

  test("tells peers that the router is behind another NAT, when its address is another one or it says that it has none", () => {
    const gathering = gathered(PUBLIC);
    const isInner = (): unknown => gathering.natReport().isRouterBehindNat;
    expect(isInner()).toBeUndefined();
    gathering.setPortMapping(MAPPED);
    expect(isInner()).toBeUndefined();
    gathering.setPortMapping(OTHER_NAT);
    expect(isInner()).toBe(true);
    gathering.setPortMapping(undefined);
    expect(isInner()).toBeUndefined();
    gathering.setPortMapping(undefined, true);
    expect(isInner()).toBe(true);
  });

  test("is how a machine beside the coordinator gets to be seen from outside", () => {
    const gathering = gathered({ ip: "10.1.0.10", port: 5000 });
    expect(gathering.natReport()).toMatchObject({ mapping: undefined, isUnseen: true });
    gathering.setPortMapping(OTHER_NAT);
    expect(gathering.natReport()).toMatchObject({ isUnseen: true, isRouterBehindNat: true });
    gathering.setPortMapping(MAPPED);
    expect(gathering.natReport().isUnseen).toBeUndefined();
    expect(gathered(PUBLIC).natReport().isUnseen).toBeUndefined();
  });

  test("is not named twice when STUN shows the very same address", () => {
    const gathering = gathered(PUBLIC);
    gathering.setPortMapping(PUBLIC);
    expect(addresses(gathering, false)).toEqual(["server-reflexive 198.51.100.10:5000"]);
  });

  test.each(["0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1"])("at %s is nonsense, and none", (ip) => {
    const gathering = gathered(PUBLIC);
    gathering.setPortMapping({ ip, port: 6000 });
    expect(addresses(gathering, true).filter((text) => text.startsWith("port-mapped"))).toEqual([]);
  });

  test("is news when it comes and when it goes, and only then", () => {
    const gathering = gathered(PUBLIC);
    const generation = (): number => gathering.candidates(true).generation;
    const before = generation();
    gathering.setPortMapping(MAPPED);
    const mapped = generation();
    gathering.setPortMapping({ ...MAPPED });
    expect(mapped).toBeGreaterThan(before);
    expect(generation()).toBe(mapped);
    gathering.setPortMapping(undefined);
    expect(generation()).toBeGreaterThan(mapped);
    expect(addresses(gathering, true).filter((text) => text.startsWith("port-mapped"))).toEqual([]);
  });
});

describe("what peers say that they see", () => {
  const reflexive = (gathering: Gathering): string[] =>
    addresses(gathering, true).filter((text) => text.startsWith("server-reflexive"));

  test("counts for nothing while the coordinator sees a public address", () => {
    const gathering = gathered(PUBLIC);
    gathering.noteSeen("nas", { ip: "192.0.2.66", port: 666 }, instant(5000));
    expect(reflexive(gathering)).toEqual(["server-reflexive 198.51.100.10:5000"]);
  });

  test("is a candidate for authenticated peers when the coordinator is in our own LAN", () => {
    const gathering = gathered(LAN);
    gathering.noteSeen("nas", PUBLIC, instant(5000));
    expect(reflexive(gathering)).toContain("server-reflexive 198.51.100.10:5000");
    expect(addresses(gathering, false)).not.toContain("server-reflexive 198.51.100.10:5000");
  });

  test("is one address at most: peers that disagree are not believed, and a private address is none", () => {
    const gathering = gathered(LAN);
    gathering.noteSeen("nas", PUBLIC, instant(5000));
    gathering.noteSeen("desk", { ip: "192.0.2.66", port: 666 }, instant(5000));
    expect(reflexive(gathering)).toEqual(["server-reflexive 10.1.0.10:5000"]);
    gathering.noteSeen("desk", { ip: "10.9.9.9", port: 666 }, instant(5000));
    expect(reflexive(gathering)).toContain("server-reflexive 198.51.100.10:5000");
  });

  test("is forgotten when the network changes", () => {
    const gathering = gathered(LAN);
    gathering.noteSeen("nas", PUBLIC, instant(5000));
    gathering.setInterfaces([{ ip: "10.2.0.10", prefixLength: 24 }], instant(5000));
    expect(reflexive(gathering)).not.toContain("server-reflexive 198.51.100.10:5000");
  });

  test("a coordinator in our own LAN cannot tell what the router does", () => {
    expect(gathered(LAN).natReport()).toMatchObject({ mapping: undefined, filtering: undefined, certain: false });
    expect(gathered(PUBLIC).natReport().mapping).toBe("endpoint-independent");
  });
});

describe("a UDP port that the operator has chosen", () => {
  const forwarded = `server-reflexive ${PUBLIC.ip}:${LAN.port}`;

  test("may be forwarded by the router: peers that have authenticated are told it at the public address", () => {
    const seen = { ip: PUBLIC.ip, port: LAN.port + 1 };
    expect(addresses(gathered(seen, true), true)).toContain(forwarded);
    expect(addresses(gathered(seen, true), false)).not.toContain(forwarded);
    expect(addresses(gathered(seen), true)).not.toContain(forwarded);
  });

  test("is said once where the router keeps it, and not with the address of a coordinator's view from inside", () => {
    const kept = addresses(gathered({ ip: PUBLIC.ip, port: LAN.port }, true), true);
    expect(kept.filter((address) => address === forwarded)).toHaveLength(1);
    expect(addresses(gathered({ ip: "10.1.0.77", port: LAN.port + 1 }, true), true)).not.toContain(
      `server-reflexive 10.1.0.77:${LAN.port}`,
    );
  });
});

describe("peers that see another port than STUN", () => {
  const elsewhere = (port: number): TransportAddress => ({ ip: PUBLIC.ip, port });
  /** STUN is asked whether it still sees what it saw, and says so. */
  function confirm(gathering: Gathering, seen = PUBLIC): void {
    for (let now = 5000; now < 40_000; now += 500) {
      gathering.handleTimeout(instant(now));
      for (let action = gathering.poll(); action !== undefined; action = gathering.poll()) {
        const asked = action.type === "send" ? decodeStun(action.bytes) : undefined;
        if (asked?.class === "request" && asked.changeRequest === undefined) answer(gathering, asked, seen, now);
      }
    }
  }

  test("correct its label, when two of them do and STUN still shows the old one", () => {
    const gathering = gathered(PUBLIC);
    gathering.noteSeen("nas", elsewhere(7001), instant(5000));
    gathering.noteSeen("desk", elsewhere(7002), instant(5000));
    expect(gathering.natReport().mapping).toBe("endpoint-independent");
    confirm(gathering);
    expect(gathering.natReport()).toMatchObject({ mapping: "address-and-port-dependent", certain: false });
  });

  test.each<[string, readonly [string, TransportAddress][]]>([
    ["one alone is not believed", [["nas", elsewhere(7001)]]],
    [
      "nor two against two who see what STUN sees",
      [
        ["nas", elsewhere(7001)],
        ["desk", elsewhere(7002)],
        ["one", PUBLIC],
        ["two", PUBLIC],
      ],
    ],
    [
      "nor about another ip, as behind another uplink",
      [
        ["nas", { ip: "198.51.100.99", port: 1 }],
        ["desk", { ip: "198.51.100.99", port: 2 }],
      ],
    ],
    [
      "nor about the port that the router has mapped",
      [
        ["nas", MAPPED],
        ["desk", MAPPED],
      ],
    ],
  ])("%s", (_, reports) => {
    const gathering = gathered(PUBLIC);
    gathering.setPortMapping(MAPPED);
    for (const [peer, address] of reports) gathering.noteSeen(peer, address, instant(5000));
    confirm(gathering);
    expect(gathering.natReport().mapping).toBe("endpoint-independent");
  });

  test("nor when STUN sees it there too by then: the router has moved us", () => {
    const gathering = gathered(PUBLIC);
    gathering.noteSeen("nas", elsewhere(7001), instant(5000));
    gathering.noteSeen("desk", elsewhere(7001), instant(5000));
    confirm(gathering, elsewhere(7001));
    expect(gathering.natReport().mapping).toBe("endpoint-independent");
  });
});

describe("hairpin", () => {
  test.each([
    ["works where the NAT brings our own packets back", PUBLIC, true, true],
    ["does not where it does not", PUBLIC, false, false],
    ["is no question where there is no NAT", LAN, false, undefined],
  ])("%s", (_, seen, turns, works) => {
    const gathering = gathered(seen, false, turns);
    expect(gathering.tests.hairpin).toBe(works);
    expect(gathering.isComplete).toBe(true);
  });

  test("is not known any more when the network has changed", () => {
    const gathering = gathered(PUBLIC, false, true);
    gathering.setInterfaces([{ ip: "10.2.0.10", prefixLength: 24 }], instant(5000));
    expect(gathering.tests.hairpin).toBeUndefined();
  });
});

const addresses = (gathering: Gathering, withHosts: boolean): string[] =>
  gathering.candidates(withHosts).candidates.map(({ kind, address }) => `${kind} ${address.ip}:${address.port}`);

/**
 * With discovery ended; every STUN server has seen us at `seen`.
 *
 * @param turns the NAT turns packets back
 */
function gathered(seen: TransportAddress, isPortChosen = false, turns = false): Gathering {
  const random = { byte: 0 };
  const gathering = new Gathering((length) => new Uint8Array(length).map(() => random.byte++ & 0xff), isPortChosen);
  const servers = ["203.0.113.10", "203.0.113.11"].flatMap((ip) => [3478, 3479].map((port) => ({ ip, port })));
  gathering.setDataLeg(4, DATA_LEG_IPV4, LAN.port);
  gathering.setInterfaces([{ ip: LAN.ip, prefixLength: 24 }], instant(0));
  gathering.setCredentials({ servers, account: undefined }, instant(0));
  for (let now = 0; now < 5000; now += 20) {
    for (let action = gathering.poll(); action !== undefined; action = gathering.poll()) {
      if (action.type !== "send") continue;
      const asked = decodeStun(action.bytes);
      if (asked?.class === "indication" && turns) gathering.handleStun(action.bytes, action.leg, instant(now));
      // Filtering tests stay without answers: nobody but those asked gets in.
      if (asked?.class !== "request" || asked.changeRequest !== undefined) continue;
      answer(gathering, asked, seen, now);
    }
    gathering.handleTimeout(instant(now));
  }
  while (gathering.poll() !== undefined);
  return gathering;
}

function answer(gathering: Gathering, asked: StunMessage, seen: TransportAddress, now: number): void {
  const message = { class: "success", method: STUN_BINDING, transactionId: asked.transactionId } as const;
  gathering.handleStun(encodeStun({ ...message, xorMappedAddress: seen }), DATA_LEG_IPV4, instant(now));
}
