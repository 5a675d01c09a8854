/** Actors who lie, repeat, forge and flood. What they may not get: a peer's data, a session in another's name, packets aimed at a victim. */
import { describe, expect, test } from "vitest";
import type { TransportAddress } from "../../shared/address.ts";
import type { CoordinatorMessage, PeerEntry } from "../../shared/signal/messages.ts";
import type { SimAgent } from "./agent.ts";
import { FULL_CONE, PORT_RESTRICTED_CONE } from "./nats.ts";
import type { Datagram } from "./network.ts";
import { SeededRandom } from "./random.ts";
import { areDirect, meshPacket, World } from "./world.ts";

/** PRODUCT.md, "Nobody can be aimed": not imported, since the number is the promise. */
const UNTRUSTED_PROBES = 5;

const VICTIM = "192.88.99.7";
const ATTACKER: TransportAddress = { ip: "192.88.99.66", port: 6666 };
/** destination_budget.ts: what any unproven address may get in so many seconds, from all peers together. */
const capOver = (seconds: number): number => 60 + 20 * seconds;

interface Trio {
  readonly world: World;
  readonly one: SimAgent;
  readonly two: SimAgent;
  readonly mallory: SimAgent;
}

/** Two agents and a third that is in league with the coordinator. */
function hostileWorld(seed = 1): Trio {
  const world = new World({ seed, roundTripMs: 50, isHostile: true });
  const [one, two, mallory] = [
    world.addAgent("one", PORT_RESTRICTED_CONE),
    world.addAgent("two", PORT_RESTRICTED_CONE),
    world.addAgent("mallory", FULL_CONE),
  ];
  return { world, one, two, mallory };
}

const entryOf = (agent: SimAgent, changes: Partial<PeerEntry> = {}): PeerEntry => ({
  id: agent.id,
  name: agent.name,
  identity: agent.keys.identity.publicKey,
  sessionKey: agent.keys.sessionKey.publicKey,
  signature: agent.keys.signature,
  meshIPv4: agent.meshIPv4,
  meshIPv6: "fd00::99",
  online: true,
  instance: 1,
  ...changes,
});

describe("a coordinator that swaps a key", () => {
  test("under a name that is known: the impostor is refused, shown as changed, and gets no data", () => {
    const { world, one, two, mallory } = hostileWorld();
    world.joinAll();
    world.run(2000);
    world.hostile.alterToAgent = (to, message) => [
      to === one.id && message.type === "peers" ? { ...message, peers: message.peers.flatMap(swap) } : message,
    ];
    const swap = (entry: PeerEntry): PeerEntry[] =>
      entry.id === two.id
        ? [entryOf(mallory, { name: "two", meshIPv4: entry.meshIPv4 })]
        : entry.id === mallory.id
          ? []
          : [entry];
    one.restart();
    world.run(3000);
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(1)));
    world.run(5000);
    const view = one.view(mallory.id);
    expect(view).toMatchObject({ trust: "changed", entry: { name: "two" } });
    expect(view?.why).toContain('The key of "two" is not the one this machine knows');
    expect(one.events.some(({ event }) => event.type === "key_changed" && event.name === "two")).toBe(true);
    expect(one.isDirectTo(mallory.id)).toBe(false);
    expect(mallory.received).toEqual([]);
    expect(one.pinned.get("two")).toBe(two.id);
  });

  test.each([
    [
      "another session key under the right id",
      (mallory: SimAgent) => ({ sessionKey: mallory.keys.sessionKey.publicKey }),
    ],
    [
      "another session key with the impostor's signature",
      (mallory: SimAgent) => ({ sessionKey: mallory.keys.sessionKey.publicKey, signature: mallory.keys.signature }),
    ],
    ["the impostor's whole chain under the peer's id", (mallory: SimAgent) => ({ ...chainOf(mallory) })],
  ])("%s proves nothing: such an entry is not taken at all", (_name, changes) => {
    const { world, one, two, mallory } = hostileWorld();
    world.hostile.alterToAgent = (to, message) => [
      to === one.id && message.type === "peers"
        ? {
            ...message,
            peers: message.peers.map((entry) => (entry.id === two.id ? { ...entry, ...changes(mallory) } : entry)),
          }
        : message,
    ];
    world.joinAll();
    world.run(5000);
    expect(one.view(two.id)).toBeUndefined();
    expect(one.pinned.get("two")).toBeUndefined();
    expect(areDirect(one, two)).toBe(false);
  });

  test("while a path lives: the path goes on with the peer that proved itself", () => {
    const { world, one, two, mallory } = hostileWorld();
    world.joinAll();
    world.run(2000);
    world.hostile.tell(one.id, {
      type: "peers",
      reset: false,
      peers: [entryOf(two, { sessionKey: mallory.keys.sessionKey.publicKey }), entryOf(mallory, { name: "two" })],
    });
    world.run(2000);
    expect(areDirect(one, two)).toBe(true);
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(9)));
    world.run(500);
    expect([two.received.length, mallory.received.length]).toEqual([1, 0]);
  });
});

const chainOf = ({ keys }: SimAgent) => ({
  identity: keys.identity.publicKey,
  sessionKey: keys.sessionKey.publicKey,
  signature: keys.signature,
});

describe("a coordinator that repeats", () => {
  test("every message twice, and all of them again later and backwards: paths stay, data comes once", () => {
    const { world, one, two } = hostileWorld();
    const told: { to: SimAgent; message: CoordinatorMessage }[] = [];
    world.hostile.alterToAgent = (to, message) => {
      const agent = to === one.id ? one : to === two.id ? two : undefined;
      if (agent === undefined || message.type === "welcome" || message.type === "clock_request") return [message];
      told.push({ to: agent, message });
      return [message, message];
    };
    world.joinAll();
    world.run(3000);
    const changesBefore = pathChanges(one) + pathChanges(two);
    for (const { to, message } of told.toReversed()) if (message.type !== "peers") world.hostile.tell(to.id, message);
    world.run(5000);
    expect(pathChanges(one) + pathChanges(two)).toBe(changesBefore);
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(3)));
    world.run(500);
    expect(two.received).toHaveLength(1);
  });

  test("a recorded registration does not let anybody in, nor throw anybody out", () => {
    const world = new World({ seed: 1, roundTripMs: 50 });
    const recorded: Uint8Array[] = [];
    const receive = world.coordinator.receive.bind(world.coordinator);
    world.coordinator.receive = (connection, bytes) => {
      recorded.push(bytes.slice());
      receive(connection, bytes);
    };
    const one = world.addAgent("one", FULL_CONE);
    world.joinAll();
    world.coordinator.receive = receive;
    const answers: Uint8Array[] = [];
    let reason: string | undefined;
    const connection = world.coordinator.open({
      source: ATTACKER.ip,
      receive: (bytes) => answers.push(bytes),
      closed: (why) => (reason = why),
    });
    for (const bytes of recorded) receive(connection, bytes);
    world.run(1000);
    // The coordinator's half of the handshake, sealed for somebody who has the agent's keys, and then the door.
    expect(answers).toHaveLength(1);
    expect(reason).toBe("not authentic");
    expect(world.coordinator.events.filter(({ event }) => event.event === "agent_left")).toEqual([]);
    expect(one.isJoined).toBe(true);
  });

  test("an old registration of a peer that has restarted costs a moment and no more", () => {
    const { world, one, two } = hostileWorld();
    world.joinAll();
    world.run(2000);
    const old = entryOf(two);
    two.restart();
    world.run(3000);
    expect(areDirect(one, two)).toBe(true);
    world.hostile.tell(one.id, { type: "peers", reset: false, peers: [old] });
    world.run(3000, () => false);
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(3)));
    world.run(3000);
    expect(two.received).toHaveLength(1);
  });
});

describe("a coordinator that lies about addresses", () => {
  test("an address that it alone names gets nothing", () => {
    const { world, one, two } = hostileWorld();
    world.hostile.alterToAgent = (_to, message) => [attestVictim(message)];
    world.joinAll();
    world.run(20_000);
    expect(areDirect(one, two)).toBe(true);
    expect(world.agents.map((agent) => agent.sentTo(VICTIM))).toEqual([0, 0, 0]);
  });

  test("together with a peer that names it too, the victim gets no more than the cap over all peers", () => {
    const { world, one, mallory } = hostileWorld();
    world.hostile.alterToAgent = (_to, message) => [attestVictim(message)];
    world.joinAll();
    name(mallory, [VICTIM]);
    const seconds = 60;
    for (let i = 0; i < seconds * 5; i++) {
      for (const peer of [mallory])
        world.hostile.tell(one.id, {
          type: "punch",
          peer: peer.id,
          round: 100 + i,
          fireAt: one.now,
          attested: [{ ip: VICTIM, port: 41_641 }],
        });
      world.run(200);
    }
    expect(one.sentTo(VICTIM)).toBeGreaterThan(UNTRUSTED_PROBES);
    expect(one.sentTo(VICTIM)).toBeLessThanOrEqual(capOver(seconds + 2));
  });

  test("nonsense addresses and hostile names change nothing and stop nothing", () => {
    const { world, one, two, mallory } = hostileWorld();
    world.joinAll();
    world.run(2000);
    for (const changes of [
      { meshIPv4: "not an address" },
      { meshIPv6: "zz::1" },
      { meshIPv4: "" },
      { meshIPv4: "127.0.0.1" },
    ]) {
      world.hostile.tell(one.id, { type: "peers", reset: false, peers: [entryOf(mallory, changes)] });
    }
    for (const fireAt of [-1e300, 1e300, 0]) {
      world.hostile.tell(one.id, {
        type: "punch",
        peer: two.id,
        round: 4_294_967_295,
        fireAt,
        attested: [
          { ip: "224.0.0.1", port: 1 },
          { ip: "0.0.0.0", port: 0 },
        ],
      });
    }
    world.run(2000);
    expect(areDirect(one, two)).toBe(true);
    expect([one.sentTo("224.0.0.1"), one.sentTo("0.0.0.0")]).toEqual([0, 0]);
  });
});

describe("a peer that names a victim", () => {
  test("five probes for each address, however long it is in use", () => {
    const { world, one, two, mallory } = hostileWorld();
    world.joinAll();
    const victims = Array.from({ length: 10 }, (_, index) => `192.88.99.${10 + index}`);
    name(mallory, victims);
    for (let i = 0; i < 60; i++) {
      for (const agent of [one, two]) agent.do((node, now) => node.use(mallory.id, now));
      world.run(1000);
    }
    for (const victim of victims) {
      expect(one.sentTo(victim)).toBeGreaterThan(0);
      expect(one.sentTo(victim)).toBeLessThanOrEqual(UNTRUSTED_PROBES);
    }
  });

  test("and fifty that all name the same: no more than the cap over all peers", () => {
    const world = new World({ seed: 3, roundTripMs: 20, isHostile: true });
    const one = world.addAgent("one", FULL_CONE);
    const crowd = Array.from({ length: 50 }, (_, index) => world.addAgent(`mallory-${index}`, "public"));
    // They know nobody but the one that they are to use.
    world.hostile.alterToAgent = (to, message) => [
      to !== one.id && message.type === "peers"
        ? { ...message, peers: message.peers.filter(({ id }) => id === one.id) }
        : message,
    ];
    for (const agent of world.agents) agent.start();
    world.run(10_000, () => world.agents.every((agent) => agent.isJoined));
    for (const agent of crowd) name(agent, [VICTIM]);
    for (const agent of crowd) agent.do((node, now) => node.use(one.id, now));
    const sentBefore = one.sentTo(VICTIM);
    world.run(2000);
    const inTwoSeconds = one.sentTo(VICTIM) - sentBefore;
    expect(inTwoSeconds).toBeLessThanOrEqual(capOver(2));
    world.run(60_000);
    expect(one.sentTo(VICTIM)).toBeLessThanOrEqual(Math.min(crowd.length * UNTRUSTED_PROBES, capOver(62)));
    expect(one.sentTo(VICTIM)).toBeGreaterThan(UNTRUSTED_PROBES);
  });
});

describe("an attacker who sees and sends datagrams", () => {
  test("replays from other addresses: nothing is answered, nothing moves", () => {
    const { world, one, two, captured } = tapped();
    world.run(3000);
    const seen = captured.splice(0);
    const changes = pathChanges(one) + pathChanges(two);
    const spoofed: TransportAddress = { ip: VICTIM, port: 53 };
    for (const { to, bytes } of seen) {
      for (const from of [spoofed, ATTACKER]) world.network.inject({ from, to, bytes });
    }
    world.run(10_000);
    for (const agent of [one, two]) expect([agent.sentTo(VICTIM), agent.sentTo(ATTACKER.ip)]).toEqual([0, 0]);
    expect(pathChanges(one) + pathChanges(two)).toBe(changes);
    for (const { to, bytes, from } of seen) world.network.inject({ from, to, bytes });
    world.run(2000);
    expect(areDirect(one, two)).toBe(true);
    expect(two.received).toEqual([]);
  });

  test("is faster than the network and writes a victim's address on copies: the victim gets no more than the cap", () => {
    const { world, one, two } = tapped({ copyAs: { ip: VICTIM, port: 53 } });
    const seconds = 20;
    for (let i = 0; i < seconds; i++) {
      for (const [a, b] of [
        [one, two],
        [two, one],
      ] as const)
        a.do((node, now) => node.use(b.id, now));
      world.run(1000);
    }
    for (const agent of [one, two]) expect(agent.sentTo(VICTIM)).toBeLessThanOrEqual(capOver(seconds + 3));
    // As soon as he stops, all is well again.
    world.network.tap = undefined;
    world.run(10_000, () => areDirect(one, two));
    expect(areDirect(one, two)).toBe(true);
  });

  test("forged, truncated, flipped and random datagrams at every port change nothing and get no answer", () => {
    const { world, one, two, captured } = tapped();
    world.run(3000);
    const seen = captured.splice(0);
    const changes = pathChanges(one) + pathChanges(two);
    const random = new SeededRandom(99);
    const destinations = [...new Map(seen.map(({ to }) => [`${to.ip}:${to.port}`, to])).values()];
    for (let i = 0; i < 4000; i++) {
      const to = random.pick(destinations);
      const bytes = mangled(random, random.pick(seen).bytes);
      world.network.inject(
        { from: random.pick([ATTACKER, { ip: VICTIM, port: i }]), to, bytes },
        random.between(0, 5000),
      );
    }
    world.run(8000);
    for (const agent of [one, two]) expect([agent.sentTo(VICTIM), agent.sentTo(ATTACKER.ip)]).toEqual([0, 0]);
    expect(pathChanges(one) + pathChanges(two)).toBe(changes);
    expect([one.received, two.received]).toEqual([[], []]);
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, Uint8Array.of(5)));
    world.run(500);
    expect(two.received).toHaveLength(1);
  });

  test("random bytes on signalling connections: each is closed, nobody else notices", () => {
    const { world, one, two } = tapped();
    const random = new SeededRandom(5);
    for (let i = 0; i < 300; i++) {
      const connection = world.coordinator.open({ source: ATTACKER.ip, receive: () => {}, closed: () => {} });
      for (let part = 0; part < 3; part++) world.coordinator.receive(connection, random.bytes(random.between(0, 5000)));
      world.run(10);
    }
    world.run(6000);
    expect(areDirect(one, two)).toBe(true);
    expect([one.isJoined, two.isJoined]).toEqual([true, true]);
  });
});

/** Two full cones, which let anybody's datagrams in, with a path between them and somebody who sees all datagrams. */
function tapped(options: { readonly copyAs?: TransportAddress } = {}): {
  readonly world: World;
  readonly one: SimAgent;
  readonly two: SimAgent;
  readonly captured: Datagram[];
} {
  const world = new World({ seed: 2, roundTripMs: 50 });
  const captured: Datagram[] = [];
  const { copyAs } = options;
  world.network.tap = (datagram) => {
    if (captured.length < 2000) captured.push({ ...datagram, bytes: datagram.bytes.slice() });
    if (copyAs !== undefined) world.network.inject({ ...datagram, from: copyAs, bytes: datagram.bytes.slice() });
  };
  const [one, two] = [world.addAgent("one", FULL_CONE), world.addAgent("two", FULL_CONE)];
  world.joinAll();
  if (copyAs === undefined) world.run(2000, () => areDirect(one, two));
  return { world, one, two, captured };
}

function mangled(random: SeededRandom, original: Uint8Array): Uint8Array {
  const bytes = original.slice();
  switch (random.between(0, 3)) {
    case 0:
      return bytes.subarray(0, random.between(0, bytes.length - 1));
    case 1: {
      const at = random.between(0, bytes.length - 1);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << random.between(0, 7));
      return bytes;
    }
    case 2: {
      const noise = random.bytes(random.between(0, 1400));
      // Every kind of datagram has its first byte.
      if (noise.length > 0) noise[0] = random.between(0, 8);
      return noise;
    }
    default:
      bytes.set(random.bytes(Math.min(8, bytes.length)), random.between(0, Math.max(0, bytes.length - 8)));
      return bytes;
  }
}

/** Has this agent say that it has these addresses, from which its peers make host candidates. */
function name(agent: SimAgent, ips: readonly string[]): void {
  agent.do((node, now) =>
    node.handleInterfaces(
      ips.map((ip) => ({ ip, prefixLength: 32 })),
      now,
    ),
  );
}

function attestVictim(message: CoordinatorMessage): CoordinatorMessage {
  if (message.type !== "from_peer" && message.type !== "punch") return message;
  return { ...message, attested: [{ ip: VICTIM, port: 41_641 }, ...message.attested].slice(0, 8) };
}

const pathChanges = (agent: SimAgent): number =>
  agent.events.filter(({ event }) => event.type === "path_changed").length;
