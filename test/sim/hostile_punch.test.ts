/** Actors who want volleys sent where they do not belong: by false addresses, by offers nobody agreed to, by offers without end. */
import { describe, expect, test } from "vitest";
import { packedSlot, SIGNAL_LEG } from "../../agent/node/legs.ts";
import type { TransportAddress } from "../../shared/address.ts";
import type { CandidateList, NatReport } from "../../shared/wire/candidates.ts";
import { type ControlMessage, encodeControl, type PunchOffer } from "../../shared/wire/control.ts";
import type { SimAgent } from "./agent.ts";
import { FULL_CONE, PORT_RESTRICTED_CONE, SYMMETRIC } from "./nats.ts";
import { areDirect, World } from "./world.ts";

const VICTIM: TransportAddress = { ip: "192.88.99.7", port: 41_641 };
/** PROTOCOL.md, "Nobody can be aimed". */
const UNTRUSTED_PROBES = 5;
/** PROTOCOL.md, "Punching with many packets". */
const MAX_PACKETS = 4000;
const PAUSES_SECONDS = [5, 20, 60, 300, 600];

const SYMMETRIC_REPORT: NatReport = {
  mapping: "address-and-port-dependent",
  filtering: "address-and-port-dependent",
  allocation: "random",
  udpBlocked: false,
  certain: true,
};
const OFFER: PunchOffer = {
  type: "punch_offer",
  attempt: 1,
  role: "spread",
  isAnswer: false,
  sockets: 60_000,
  probes: 60_000,
  perSecond: 60_000,
};

/** One agent behind a port-restricted cone, and one that says what it likes. */
function pair(options: { readonly seed: number; readonly isHostile?: boolean; readonly a?: typeof SYMMETRIC }): {
  readonly world: World;
  readonly one: SimAgent;
  readonly mallory: SimAgent;
} {
  const { seed, isHostile = false, a = PORT_RESTRICTED_CONE } = options;
  const world = new World({ seed, roundTripMs: 20, isHostile });
  const one = world.addAgent("one", a);
  const mallory = world.addAgent("mallory", FULL_CONE);
  world.joinAll();
  world.run(3000, () => areDirect(one, mallory));
  return { world, one, mallory };
}

/** Seals what no honest agent would say. The only peer has slot 1. */
function say(agent: SimAgent, message: ControlMessage): void {
  const path = { leg: SIGNAL_LEG, to: packedSlot(1) };
  agent.do((_node, now) =>
    agent.plane.handleCommand({ type: "send_control", peer: 1, path, body: encodeControl(message) }, now),
  );
}

/** As if its router were symmetric, and at this address. */
function claim(agent: SimAgent, address: TransportAddress, generation: number): void {
  const list: CandidateList = {
    generation,
    nat: SYMMETRIC_REPORT,
    candidates: [{ kind: "server-reflexive", address }],
  };
  say(agent, { type: "candidates", list });
}

/** From here on nothing of its own goes by UDP, so that it has no path. */
function vanish(world: World, agent: SimAgent): void {
  agent.host.isUdpBlocked = true;
  world.run(5000);
}

const volleysOf = (agent: SimAgent): number => agent.events.filter(({ event }) => event.type === "punched").length;

describe("a peer that names a victim as its address", () => {
  test("and offers to be guessed at: the coordinator does not attest it, so the victim gets no volley", () => {
    const { world, one, mallory } = pair({ seed: 1 });
    vanish(world, mallory);
    for (let i = 0; i < 60; i++) {
      claim(mallory, VICTIM, 1_000_000 + i);
      say(mallory, { ...OFFER, attempt: i });
      say(mallory, { ...OFFER, attempt: i, isAnswer: true });
      one.do((node, now) => node.use(mallory.id, now));
      world.run(1000);
    }
    expect(volleysOf(one)).toBe(0);
    expect(one.sentTo(VICTIM.ip)).toBeLessThanOrEqual(UNTRUSTED_PROBES);
  });

  test("with a coordinator in league that attests it: volleys within the caps, and ever longer pauses", () => {
    const { world, one, mallory } = pair({ seed: 2, isHostile: true });
    world.hostile.alterToAgent = (_to, message) => [
      message.type === "from_peer" || message.type === "punch" ? { ...message, attested: [VICTIM] } : message,
    ];
    vanish(world, mallory);
    const minutes = 12;
    for (let i = 0; i < minutes * 60; i++) {
      // Another network each time, as far as one can be told.
      claim(mallory, VICTIM, 1_000_000 + i);
      say(mallory, { ...OFFER, attempt: i, isAnswer: i % 2 === 1 });
      one.do((node, now) => node.use(mallory.id, now));
      world.run(1000);
    }
    // One at once, and one after each pause; the last of them repeats.
    const pauses = PAUSES_SECONDS.slice(0, -1).reduce((sum, seconds) => sum + seconds, 0);
    const most = PAUSES_SECONDS.length + Math.ceil((minutes * 60 - pauses) / (PAUSES_SECONDS.at(-1) ?? 1));
    expect(volleysOf(one)).toBeGreaterThan(1);
    expect(volleysOf(one)).toBeLessThanOrEqual(most);
    expect(one.sentTo(VICTIM.ip)).toBeLessThanOrEqual(most * MAX_PACKETS);
    for (const { event } of one.events)
      if (event.type === "punched") expect(event.packets).toBeLessThanOrEqual(MAX_PACKETS);
  });
});

describe("consent", () => {
  test("a peer that never agrees is offered, and gets nothing else", () => {
    const world = new World({ seed: 3, roundTripMs: 20, isHostile: true });
    const [one, two] = [world.addAgent("one", PORT_RESTRICTED_CONE), world.addAgent("two", SYMMETRIC)];
    // Its answers are lost on the way: to the other side it looks as if it did not agree.
    let isCut = false;
    world.hostile.alterToAgent = (to, message) =>
      isCut && to === one.id && message.type === "from_peer" ? [] : [message];
    one.start();
    two.start();
    world.run(300);
    isCut = true;
    world.run(10_000);
    const before = one.sentTo(two.host.publicIp);
    world.run(60_000);
    expect(volleysOf(one)).toBe(0);
    expect(one.sentTo(two.host.publicIp) - before).toBeLessThan(400);
  });

  test("a refusal stops a volley in the middle", () => {
    const world = new World({ seed: 4, roundTripMs: 20 });
    const [one, two] = [world.addAgent("one", PORT_RESTRICTED_CONE), world.addAgent("two", SYMMETRIC)];
    world.joinAll();
    const isKnown = (agent: SimAgent): boolean => agent.events.some(({ event }) => event.type === "nat_detected");
    world.run(3000, () => isKnown(one) && isKnown(two));
    // Nothing that is sent to the other arrives any more, so that the volley goes on.
    const { site } = two.host;
    if (site === undefined) throw new Error("A site expected");
    site.nat.inbound = () => undefined;
    const isRunning = (): boolean => one.sentTo(two.host.publicIp) > 300;
    world.run(5000, isRunning);
    expect(isRunning()).toBe(true);
    say(two, { type: "punch_end", attempt: 1, reason: "stopped", retryAfterSeconds: 60 });
    world.run(100);
    const before = one.sentTo(two.host.publicIp);
    world.run(300);
    expect(one.sentTo(two.host.publicIp) - before).toBeLessThan(20);
    expect(volleysOf(one)).toBe(1);
  });

  test("an answer to nothing that was offered starts nothing", () => {
    const { world, one, mallory } = pair({ seed: 5 });
    for (let i = 0; i < 20; i++) {
      say(mallory, { ...OFFER, attempt: i, isAnswer: true });
      world.run(100);
    }
    expect(volleysOf(one)).toBe(0);
    expect(areDirect(one, mallory)).toBe(true);
  });
});

test("a thousand offers of any content: no volley without need, nothing grows, the path lives", () => {
  const { world, one, mallory } = pair({ seed: 6 });
  for (let i = 0; i < 1000; i++) {
    const role = (["spread", "guess", "meet"] as const)[i % 3] ?? "meet";
    say(mallory, { ...OFFER, attempt: i, role, isAnswer: i % 5 === 0, ports: { first: 1, last: 65_535, stride: i } });
    world.run(10);
  }
  expect(volleysOf(one)).toBe(0);
  expect(one.pathSockets).toBe(1);
  expect(areDirect(one, mallory)).toBe(true);
});
