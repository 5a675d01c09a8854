/**
 * One world from one seed: random NATs, delays, loss, topology and mishaps, judged by the oracle.
 *
 * The oracle knows physics, not the code: which pairs can be direct, how long that may take when nothing happens, and that after
 * every mishap things are as they were. Packets arrive once, at whom they were sent to. What is sent is bounded.
 */
import type { Filtering, Mapping } from "../../shared/wire/candidates.ts";
import type { SimAgent } from "./agent.ts";
import type { Nat, NatBehavior, PortAllocation } from "./nat.ts";
import type { Site } from "./network.ts";
import { behindCarrier, type Expectation, expectationOf, FILTERINGS, MAPPINGS } from "./oracle.ts";
import { SeededRandom } from "./random.ts";
import { areDirect, meshPacket, World } from "./world.ts";

/** After a mishap: 25 s until a dead signalling connection is noticed, 12 s for its retries, and a round or two. */
const RECOVERY_MS = 50_000;
/** First rounds that lose everything: the second is asked for after 3 s, the third 8 s later. */
const LOSSY_MS = 25_000;
/** Agents behind one address share what an unproven address may get (destination_budget.ts), so a first round may fall short. */
const CROWDED_MS = 8000;
const USE_EVERY_MS = 2000;
/** Discovery, consent, and one attempt after the other; the first that fails is followed by another 5 s later, the next 20 s later. */
const ATTEMPT_MS = 12_000;
/** Where packets are lost, or one agent has several such peers. */
const ATTEMPTS_MS = 60_000;
/** Time in which a path that has just died is replaced. */
const RETRY_MS = 6000;
/** Until a path that died with a mishap is known to be dead. */
const NOTICE_MS = 10_000;
/** Datagrams that an agent may send a second on average, for each peer and for the coordinator. */
const MAX_DATAGRAMS_PER_SECOND = 40;
/** An attempt with many packets sends up to 4000, and the second and third follow within a minute. */
const MAX_DATAGRAMS_AT_ONCE = 12_400;

export interface Verdict {
  readonly seed: number;
  /** What the world was like, for people. */
  readonly story: readonly string[];
  readonly failures: readonly string[];
  readonly pairs: number;
  readonly virtualMs: number;
}

interface Place {
  readonly where: Site | "public";
  /** Of all NATs before it together. */
  readonly behavior: NatBehavior;
  readonly isUdpBlocked: boolean;
}

/** Number 0 of the packets: nobody waits for it. */
const FILLER = new Uint8Array(2);
const OPEN: NatBehavior = { mapping: "none", filtering: "endpoint-independent" };

/** @param hasCarriers some homes are behind a carrier's NAT, some of them behind the same one; everything else about the world is the same */
export function runRandomWorld(seed: number, hasCarriers = true): Verdict {
  // A stream of its own for the plan: what the agents draw does not change the world that they are put in.
  const plan = new SeededRandom(seed ^ 0x5151_5151);
  const carriers = hasCarriers ? new Carriers(new SeededRandom(seed ^ 0x2626_2626)) : undefined;
  const roundTripMs = plan.pick([0, 10, 50, 50, 100, 300]);
  const jitterMs = plan.pick([0, 0, 2, 20]);
  const lossPercent = plan.pick([0, 0, 0, 0, 2, 5, 10]);
  const coordinatorAddresses = plan.pick([1, 2, 2] as const);
  const world = new World({ seed, roundTripMs, jitterMs, lossPercent, coordinatorAddresses });
  const story = [
    `${roundTripMs} ms round trip, ${jitterMs} ms jitter, ${lossPercent} % loss, ${coordinatorAddresses} coordinator address(es)`,
  ];
  const places = new Map<SimAgent, Place>();
  const count = plan.pick([2, 2, 2, 2, 3, 4]);
  for (let i = 0; i < count; i++) {
    const place = choosePlace(plan, world, [...places.values()], carriers);
    const upMs = roundTripMs / 2 + plan.between(0, 15);
    const agent = world.addAgent(`agent-${i}`, place.where, {
      upMs,
      downMs: Math.max(0, upMs + plan.pick([0, 0, 0, 20, -10])),
    });
    agent.host.isUdpBlocked = place.isUdpBlocked;
    places.set(agent, place);
    story.push(
      `${agent.name}: ${JSON.stringify(place.behavior)}${place.isUdpBlocked ? ", UDP blocked" : ""} at ${agent.host.publicIp}`,
    );
  }
  const failures: string[] = [];
  const judge = new Judge(world, places, coordinatorAddresses, failures);
  world.joinAll(plan.between(0, 300));
  if (!world.agents.every((agent) => agent.isJoined)) failures.push("not all have joined within 20 s");

  const isCrowded = new Set(world.agents.map(({ host }) => host.publicIp)).size < count;
  const worstRoundTripMs = Math.max(...world.agents.map(({ host }) => host.delay.upMs + host.delay.downMs));
  // conditions.test.ts says why five round trips; a port that only shows in a probe costs half a trip between the peers more, and then
  // what was lost while the filters were closed.
  const isDependent = [...places.values()].some(
    ({ behavior }) => behavior.mapping.includes("dependent") && !behavior.mapping.includes("endpoint"),
  );
  const quickMs = (isDependent ? 6.5 : 5) * worstRoundTripMs + 100 + 8 * jitterMs;
  const attemptMs = lossPercent > 0 || count > 2 ? ATTEMPTS_MS : ATTEMPT_MS;
  judge.expectPaths("after joining", lossPercent > 0 ? LOSSY_MS : isCrowded ? CROWDED_MS : quickMs, attemptMs);
  judge.expectDelivery("after joining");
  for (let mishaps = plan.between(0, 2); mishaps > 0; mishaps--) {
    const what = mishap(plan, world, (milliseconds) => judge.live(milliseconds));
    story.push(`${(world.now / 1000).toFixed(1)} s: ${what}`);
    judge.live(NOTICE_MS);
    judge.expectPaths(`after: ${what}`, RECOVERY_MS, attemptMs);
    judge.expectDelivery(`after: ${what}`);
  }
  judge.expectModesty();
  return { seed, story, failures, pairs: (count * (count - 1)) / 2, virtualMs: world.now };
}

/** Two agents behind two NATs and nothing else: the oracle on whether there is a path, and within 500 ms. */
export function runPairing(seed: number, { a, b }: { readonly a: NatBehavior; readonly b: NatBehavior }): Verdict {
  const world = new World({ seed, roundTripMs: 50, jitterMs: 2 });
  const [one, two] = [world.addAgent("one", a), world.addAgent("two", b)];
  world.joinAll();
  const expected = expectationOf(a, b);
  const withinMs = { plain: 500, attempt: ATTEMPT_MS, luck: 0, none: 6000 }[expected];
  world.run(withinMs, () => areDirect(one, two));
  const isWrong = expected !== "luck" && areDirect(one, two) !== (expected !== "none");
  const failures = !isWrong ? [] : [expected === "none" ? "an impossible path" : `no path within ${withinMs} ms`];
  return { seed, story: [JSON.stringify(a), JSON.stringify(b)], failures, pairs: 1, virtualMs: world.now };
}

function choosePlace(
  plan: SeededRandom,
  world: World,
  others: readonly Place[],
  carriers: Carriers | undefined,
): Place {
  const isUdpBlocked = plan.chance(4);
  const neighbour = others.find(({ where }) => where !== "public" && where.nat.behavior.mapping !== "none");
  if (neighbour !== undefined && plan.chance(15)) return { ...neighbour, isUdpBlocked };
  if (plan.chance(8)) return { where: "public", behavior: OPEN, isUdpBlocked };
  const behavior = chooseBehavior(plan, plan.pick(FILTERINGS));
  const carrier = behavior.mapping === "endpoint-independent" ? carriers?.choose(world) : undefined;
  return carrier === undefined
    ? { where: world.addSite(behavior), behavior, isUdpBlocked }
    : { where: world.addSite(behavior, carrier), behavior: behindCarrier(behavior, carrier.behavior), isUdpBlocked };
}

function chooseBehavior(plan: SeededRandom, filtering: Filtering): NatBehavior {
  const mapping: Mapping = plan.pick(["endpoint-independent", ...MAPPINGS]);
  if (plan.chance(8)) return { mapping: "none", filtering };
  return {
    mapping,
    filtering,
    filterPerMapping: plan.chance(25),
    lifetimeMs: plan.pick([30_000, 60_000, 120_000]),
    ...chooseAllocation(plan),
    overloads: mapping === filtering && mapping === "address-and-port-dependent" && plan.chance(75),
  };
}

/** Drawn from a stream of their own, so that a world without them is as it was. */
class Carriers {
  readonly #plan: SeededRandom;
  readonly #shared: Nat[] = [];

  constructor(plan: SeededRandom) {
    this.#plan = plan;
  }

  /** For one home in five; one in three of these shares it with an earlier home. */
  choose(world: World): Nat | undefined {
    if (!this.#plan.chance(20)) return undefined;
    if (this.#shared.length > 0 && this.#plan.chance(33)) return this.#plan.pick(this.#shared);
    const behavior = chooseBehavior(this.#plan, this.#plan.pick(FILTERINGS));
    if (behavior.mapping === "none") return undefined;
    // What several homes take from one counter or block is nobody's to foresee.
    const isShared = behavior.mapping === "endpoint-independent";
    const carrier = world.addCarrier({ ...behavior, hairpin: isShared && this.#plan.chance(50) });
    if (isShared) this.#shared.push(carrier);
    return carrier;
  }
}

function chooseAllocation(plan: SeededRandom): { readonly allocation?: PortAllocation } {
  if (plan.chance(40)) return {};
  const first = plan.between(1024, 60_000);
  const allocation = plan.pick<PortAllocation>([
    "random",
    { kind: "sequential", first, stride: plan.pick([1, 1, 2, 4, -1]), traffic: plan.pick([0, 2, 5]) },
    { kind: "block", first, size: plan.pick([256, 512, 1024, 2048]) },
  ]);
  return { allocation };
}

/** Does something to the world, and says what. */
function mishap(plan: SeededRandom, world: World, live: (milliseconds: number) => void): string {
  const agent = plan.pick(world.agents);
  switch (plan.between(0, 5)) {
    case 0:
      agent.restart();
      return `${agent.name} restarted`;
    case 1:
      if (agent.host.site !== undefined) world.rebootNat(agent.host.site);
      return `the router of ${agent.name} rebooted`;
    case 2: {
      const milliseconds = plan.between(1000, 60_000);
      world.coordinator.stop();
      live(milliseconds);
      world.coordinator.start();
      return `the coordinator was away for ${milliseconds} ms`;
    }
    case 3: {
      const before = world.network.lossPercent;
      const milliseconds = plan.between(200, 20_000);
      world.network.lossPercent = 100;
      live(milliseconds);
      world.network.lossPercent = before;
      return `nothing got through for ${milliseconds} ms`;
    }
    case 4: {
      const milliseconds = plan.between(150_000, 400_000);
      world.run(milliseconds);
      return `nobody used anything for ${milliseconds} ms`;
    }
    default:
      for (const other of world.agents) other.restart();
      return "all restarted at once";
  }
}

class Judge {
  readonly #world: World;
  readonly #places: ReadonlyMap<SimAgent, Place>;
  readonly #coordinatorAddresses: 1 | 2;
  readonly #failures: string[];
  readonly #pairs: readonly { readonly a: SimAgent; readonly b: SimAgent; readonly expected: Expectation }[];
  #packets = 0;

  constructor(world: World, places: ReadonlyMap<SimAgent, Place>, coordinatorAddresses: 1 | 2, failures: string[]) {
    this.#coordinatorAddresses = coordinatorAddresses;
    this.#world = world;
    this.#places = places;
    this.#failures = failures;
    this.#pairs = world.agents.flatMap((a, index) =>
      world.agents.slice(index + 1).map((b) => ({ a, b, expected: this.#expectation(a, b) })),
    );
  }

  #expectation(a: SimAgent, b: SimAgent): Expectation {
    const [one, two] = [this.#places.get(a), this.#places.get(b)];
    if (one === undefined || two === undefined || one.isUdpBlocked || two.isUdpBlocked) return "none";
    if (one.where !== "public" && one.where === two.where) return "plain";
    const [carrier, other] = [one, two].map(({ where }) => (where === "public" ? undefined : where.carrier));
    if (carrier !== undefined && carrier === other && carrier.behavior.hairpin !== true) return "none";
    const expected = expectationOf(one.behavior, two.behavior);
    // With one address the coordinator cannot show that a port changes with the address: nobody knows that it takes more.
    const isHidden =
      this.#coordinatorAddresses === 1 && [one, two].some(({ behavior }) => behavior.mapping === "address-dependent");
    return expected !== "plain" && isHidden ? "luck" : expected;
  }

  /** Time in which all peers are in use, and traffic flows where it can. */
  live(milliseconds: number, done: () => boolean = () => false): void {
    for (let left = milliseconds; left > 0 && !done(); left -= USE_EVERY_MS) {
      for (const { a, b } of this.#pairs) {
        a.sendPacket(meshPacket(a.meshIPv4, b.meshIPv4, FILLER));
        b.sendPacket(meshPacket(b.meshIPv4, a.meshIPv4, FILLER));
      }
      this.#world.run(Math.min(left, USE_EVERY_MS), done);
    }
  }

  /** @param attemptMs for paths that take an attempt with many packets, after the others */
  expectPaths(when: string, withinMs: number, attemptMs: number): void {
    const haveAll = (which: Expectation): boolean =>
      this.#pairs.every(({ a, b, expected }) => expected !== which || areDirect(a, b));
    this.live(withinMs, () => haveAll("plain"));
    this.#expectAll("plain", when, withinMs);
    this.live(attemptMs, () => haveAll("attempt"));
    this.#expectAll("attempt", when, withinMs + attemptMs);
    for (const { a, b, expected } of this.#pairs) {
      if (expected === "none" && (a.isDirectTo(b.id) || b.isDirectTo(a.id)))
        this.#failures.push(`${when}: an impossible path between ${a.name} and ${b.name}`);
    }
  }

  #expectAll(which: Expectation, when: string, withinMs: number): void {
    for (const { a, b, expected } of this.#pairs) {
      if (expected === which && !areDirect(a, b))
        this.#failures.push(`${when}: no path between ${a.name} and ${b.name} within ${Math.round(withinMs)} ms`);
    }
  }

  /**
   * Each sends each one packet, over whatever path there is: it comes once, and to nobody else. A second try is granted, since a path
   * may die at that very moment: where both NATs use a port per destination, packets go through mappings that only the coordinator keeps.
   */
  expectDelivery(when: string): void {
    if (this.#undelivered(when).length === 0) return;
    this.live(RETRY_MS);
    for (const packet of this.#undelivered(when)) this.#failures.push(`${when}: ${packet} never came`);
  }

  #undelivered(when: string): string[] {
    const sent = new Map<string, SimAgent>();
    for (const { a, b, expected } of this.#pairs) {
      if (expected === "none" || !areDirect(a, b)) continue;
      for (const [from, to] of [
        [a, b],
        [b, a],
      ] as const) {
        const number = ++this.#packets;
        sent.set(String(number), to);
        from.sendPacket(meshPacket(from.meshIPv4, to.meshIPv4, Uint8Array.of(number >> 8, number & 255)));
      }
    }
    for (const agent of this.#world.agents) agent.received.length = 0;
    this.#world.run(3000);
    for (const agent of this.#world.agents) {
      for (const packet of agent.received) {
        const number = String(((packet[20] ?? 0) << 8) | (packet[21] ?? 0));
        if (number === "0") continue;
        if (sent.get(number) !== agent)
          this.#failures.push(`${when}: ${agent.name} got packet ${number} that was not for it, or got it twice`);
        sent.delete(number);
      }
    }
    if (this.#world.network.lossPercent > 0) return [];
    return [...sent].map(([number, to]) => `packet ${number} to ${to.name}`);
  }

  expectModesty(): void {
    const seconds = this.#world.now / 1000;
    for (const agent of this.#world.agents) {
      const total = [...agent.host.sentTo.values()].reduce((sum, count) => sum + count, 0);
      const allowed = this.#world.agents.length * (MAX_DATAGRAMS_AT_ONCE + MAX_DATAGRAMS_PER_SECOND * seconds);
      if (total > allowed) this.#failures.push(`${agent.name} sent ${total} datagrams in ${seconds.toFixed(0)} s`);
    }
  }
}
