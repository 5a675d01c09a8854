/**
 * One world with relays from one seed: two agents that talk all the time, and a network that changes under them. The oracle knows which
 * rung physics allows at each moment, and how long traffic may stay on a worse one, or on none.
 */
import type { SimAgent } from "./agent.ts";
import { FULL_CONE, PORT_RESTRICTED_CONE, RESTRICTED_CONE } from "./nats.ts";
import { SeededRandom } from "./random.ts";
import type { Verdict } from "./random_world.ts";
import { meshPacket, World } from "./world.ts";

type Rung = "direct" | "ssh" | "websocket" | "none";
const RANK: Readonly<Record<Rung, number>> = { direct: 3, ssh: 2, websocket: 1, none: 0 };
/** Ten packets a second each way. */
const GAP_MS = 100;
/** Three packets missing in a row, and jitter. */
const ALIVE_MS = 350;
/** From any change until both are on the rung that it allows: what PRODUCT.md promises, and six round trips to the coordinator. */
const LIMIT_MS = 5000;
const ROUND_TRIPS = 6;
/** The first path of all, with discovery and joining. */
const FIRST_MS = 3000;
/** A coordinator that comes back finds agents between two of their attempts. */
const RETURN_MS = 6000;
const CHANGES = 6;

export interface LadderVerdict extends Verdict {
  /** The longest time on a worse rung after a change, in ms, by what had changed. */
  readonly worstMs: ReadonlyMap<string, number>;
}

export function runLadderWorld(seed: number): LadderVerdict {
  const plan = new SeededRandom(seed ^ 0x1a2b_3c4d);
  const roundTripMs = plan.pick([0, 20, 50, 100, 200]);
  const world = new World({ seed, roundTripMs, jitterMs: plan.pick([0, 2]), hasRelays: true });
  const nats = [FULL_CONE, RESTRICTED_CONE, PORT_RESTRICTED_CONE] as const;
  const one = world.addAgent("one", plan.pick(nats));
  const two = world.addAgent("two", plan.pick(nats));
  for (const { host } of [one, two]) {
    host.isUdpBlocked = plan.chance(40);
    host.isSshBlocked = plan.chance(30);
  }
  const story = [`${roundTripMs} ms round trip, ${describe(one)}, ${describe(two)}`];
  const failures: string[] = [];
  const worstMs = new Map<string, number>();
  const judge = (what: string, limitMs: number): void => {
    const limit = limitMs + ROUND_TRIPS * roundTripMs;
    const tookMs = talkUntilBest(world, one, two, 2 * limit);
    worstMs.set(kindOf(what), Math.max(worstMs.get(kindOf(what)) ?? 0, tookMs));
    if (tookMs <= limit) return;
    const best = bestRung(world, one, two);
    failures.push(
      `after "${what}": ${rungOf(one, two)} and ${rungOf(two, one)} for ${Math.round(tookMs)} ms, where ${best} is possible`,
    );
  };
  world.joinAll();
  judge("joining", FIRST_MS);
  for (let i = 0; i < CHANGES && failures.length === 0; i++) {
    const [what, limitMs] = change(plan, world, one, two);
    story.push(`${(world.now / 1000).toFixed(1)} s: ${what}`);
    judge(what, limitMs);
    // Long enough that a path that comes and goes is not what is tried here.
    talk(world, one, two, plan.between(1000, 20_000));
  }
  expectOnce(one, two, failures);
  return { seed, story, failures, pairs: 1, virtualMs: world.now, worstMs };
}

/** Changes something, and says what, and how long the best rung may take from there. */
function change(plan: SeededRandom, world: World, one: SimAgent, two: SimAgent): [string, number] {
  const agent = plan.pick([one, two]);
  const { host } = agent;
  switch (plan.between(0, 5)) {
    case 0:
      host.isUdpBlocked = !host.isUdpBlocked;
      return [`UDP ${host.isUdpBlocked ? "closes" : "opens"} at ${agent.name}`, LIMIT_MS];
    case 1:
      for (const { host: other } of [one, two]) other.isUdpBlocked = false;
      return ["UDP opens everywhere", LIMIT_MS];
    case 2:
      host.isSshBlocked = !host.isSshBlocked;
      // A connection that stands is not asked by such a rule.
      return [`SSH ${host.isSshBlocked ? "closes" : "opens"} at ${agent.name}`, LIMIT_MS];
    case 3:
      if (host.site !== undefined) world.rebootNat(host.site);
      return [`the router reboots at ${agent.name}`, LIMIT_MS];
    case 4: {
      const awayMs = plan.between(500, 60_000);
      world.coordinator.stop();
      talk(world, one, two, awayMs);
      world.coordinator.start();
      return [`the coordinator comes back after ${awayMs} ms`, RETURN_MS];
    }
    default: {
      const awayMs = plan.between(5000, 30_000);
      host.isOffline = true;
      agent.loseSignalling();
      talk(world, one, two, awayMs);
      host.isOffline = false;
      agent.challenge();
      return [`${agent.name} is let in by a portal after ${awayMs} ms`, RETURN_MS];
    }
  }
}

/** By everything but the agents: hosts, sites, and whether the coordinator is there. */
function bestRung(world: World, one: SimAgent, two: SimAgent): Rung {
  const hosts = [one.host, two.host];
  if (hosts.some(({ isOffline }) => isOffline)) return "none";
  if (hosts.every(({ isUdpBlocked }) => !isUdpBlocked)) return "direct";
  if (!world.coordinator.isUp) return "none";
  return hosts.some(({ isSshBlocked }) => isSshBlocked) ? "websocket" : "ssh";
}

/** How long until both have had the best rung, or a better one that still lives, for a moment. */
function talkUntilBest(world: World, one: SimAgent, two: SimAgent, limitMs: number): number {
  const startedAt = world.now;
  let since: number | undefined;
  while (world.now - startedAt < limitMs) {
    talk(world, one, two, GAP_MS);
    const rank = Math.min(RANK[rungOf(one, two)], RANK[rungOf(two, one)]);
    const isBest = rank >= RANK[bestRung(world, one, two)] && isAlive(world, one, two);
    if (!isBest) since = undefined;
    else since ??= world.now;
    if (since !== undefined && world.now - since >= 1000) return since - startedAt;
  }
  return limitMs;
}

/** Do packets get through both ways? A rung that is only believed in is none. */
function isAlive(world: World, one: SimAgent, two: SimAgent): boolean {
  return [one, two].every((agent) => world.now - (heardAt.get(agent) ?? 0) <= ALIVE_MS);
}

const heardAt = new WeakMap<SimAgent, number>();

let nextNumber = 1;

/** Both send; what came in the last stretch is what `received` holds. */
function talk(world: World, one: SimAgent, two: SimAgent, milliseconds: number): void {
  for (let left = milliseconds; left > 0; left -= GAP_MS) {
    for (const [from, to] of [
      [one, two],
      [two, one],
    ] as const) {
      account(from);
      const number = nextNumber++;
      from.sendPacket(
        meshPacket(from.meshIPv4, to.meshIPv4, Uint8Array.of(number >> 16, (number >> 8) & 255, number & 255)),
      );
    }
    world.run(Math.min(left, GAP_MS));
    for (const agent of [one, two]) if (agent.received.length > 0) heardAt.set(agent, world.now);
  }
}

const seen = new WeakMap<SimAgent, Map<number, number>>();

function account(agent: SimAgent): void {
  const counts = seen.get(agent) ?? new Map<number, number>();
  seen.set(agent, counts);
  for (const packet of agent.received) {
    const number = ((packet[20] ?? 0) << 16) | ((packet[21] ?? 0) << 8) | (packet[22] ?? 0);
    counts.set(number, (counts.get(number) ?? 0) + 1);
  }
  agent.received.length = 0;
}

function expectOnce(one: SimAgent, two: SimAgent, failures: string[]): void {
  for (const agent of [one, two]) {
    account(agent);
    const twice = [...(seen.get(agent) ?? [])].filter(([, count]) => count > 1);
    if (twice.length > 0) failures.push(`${agent.name} got ${twice.length} packets twice`);
  }
}

const rungOf = (agent: SimAgent, peer: SimAgent): Rung => agent.view(peer.id)?.route?.kind ?? "none";

const kindOf = (what: string): string =>
  what.replace(/ (at|after) .*| is let in.*/, "").replace(/^(one|two)$/, "a portal opens");

const describe = ({ name, host }: SimAgent): string =>
  `${name}: ${host.site?.nat.behavior.filtering ?? "open"}${host.isUdpBlocked ? ", UDP blocked" : ""}${host.isSshBlocked ? ", SSH blocked" : ""}`;
