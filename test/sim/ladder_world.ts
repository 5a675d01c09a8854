/**
 * One world with relays from one seed: two agents that talk all the time, and a network that changes under them. The oracle knows which
 * rung physics and the operator allow at each moment, how long traffic may stay on a worse one, or on none, and which moves may cost
 * nothing at all.
 */
import type { SimAgent } from "./agent.ts";
import { LadderTraffic } from "./ladder_traffic.ts";
import type { NatBehavior } from "./nat.ts";
import { FULL_CONE, PORT_RESTRICTED_CONE, RESTRICTED_CONE, SYMMETRIC } from "./nats.ts";
import { type Expectation, expectationOf } from "./oracle.ts";
import type { Datagram } from "./network.ts";
import { SeededRandom } from "./random.ts";
import type { Verdict } from "./random_world.ts";
import { World } from "./world.ts";

type Rung = "direct" | "ssh" | "websocket" | "none";
const RANK: Readonly<Record<Rung, number>> = { direct: 3, ssh: 2, websocket: 1, none: 0 };
const CONES = [FULL_CONE, RESTRICTED_CONE, PORT_RESTRICTED_CONE] as const;
/** Ten packets of each size a second each way; a hundred through a move that may lose nothing. */
const GAP_MS = 100;
const PLANNED_GAP_MS = 10;
/** Three packets missing in a row, and jitter. */
const ALIVE_MS = 350;
/** From any change until both are on the rung that it allows: what PRODUCT.md promises, and six round trips to the coordinator. */
const LIMIT_MS = 5000;
const ROUND_TRIPS = 6;
/** The first path of all, with discovery and joining. */
const FIRST_MS = 3000;
/** A coordinator that comes back finds agents between two of their attempts. */
const RETURN_MS = 6000;
/** A rung that the operator has chosen and that is not there is waited for (traffic.ts), and then the best one takes over. */
const PATIENCE_MS = 5000;
/** A path that has swallowed data while it answered must answer two hundred times before it is taken again (stability.ts). */
const DISTRUST_MS = 12_000;
/** So long after a router has forgotten TCP a connection may be dead that nobody has asked: longer than any keepalive. */
const FORGOTTEN_MS = 60_000;
/** An attempt with many packets, one that failed because something was closed, and the pause after it (target_pauses.ts). */
const ATTEMPT_MS = 30_000;
const CHANGES = 6;
const LARGEST_THAT_PASSES = 1000;

export interface LadderVerdict extends Verdict {
  /** The longest time on a worse rung after a change, in ms, by what had changed. */
  readonly worstMs: ReadonlyMap<string, number>;
}

interface Change {
  readonly what: string;
  /** How long the best rung may take from there. */
  readonly limitMs: number;
  /** Both paths work, and the old one is left in good order: nothing may be lost or change places. */
  readonly isPlanned?: boolean;
}

/** @param hasSymmetric symmetric NATs are among those that the agents are behind */
export function runLadderWorld(seed: number, hasSymmetric = false): LadderVerdict {
  return new LadderWorld(seed, hasSymmetric ? [...CONES, SYMMETRIC] : CONES).run();
}

class LadderWorld {
  readonly #seed: number;
  readonly #nats: readonly NatBehavior[];
  readonly #plan: SeededRandom;
  readonly #roundTripMs: number;
  readonly #world: World;
  readonly #one: SimAgent;
  readonly #two: SimAgent;
  readonly #traffic: LadderTraffic;
  readonly #story: string[];
  readonly #failures: string[] = [];
  readonly #worstMs = new Map<string, number>();
  /** What is lost between the two: everything that one of them sends, or everything large. */
  #muted: SimAgent | undefined;
  #isNarrow = false;
  #wish: "auto" | "ssh" | "websocket" = "auto";
  #wishers: readonly SimAgent[] = [];
  #isDistrusted = false;
  /** Something was lost between the two that neither can know of: attempts have failed for no reason, and pauses have become long. */
  #wasDisturbed = false;
  #forgottenAt = -Infinity;

  constructor(seed: number, nats: readonly NatBehavior[]) {
    this.#seed = seed;
    this.#nats = nats;
    this.#plan = new SeededRandom(seed ^ 0x1a2b_3c4d);
    this.#roundTripMs = this.#plan.pick([0, 20, 50, 100, 200]);
    const jitterMs = this.#plan.pick([0, 2]);
    this.#world = new World({ seed, roundTripMs: this.#roundTripMs, jitterMs, hasRelays: true });
    this.#one = this.#world.addAgent("one", this.#plan.pick(this.#nats));
    this.#two = this.#world.addAgent("two", this.#plan.pick(this.#nats));
    for (const { host } of this.#both) {
      host.isUdpBlocked = this.#plan.chance(40);
      host.isSshBlocked = this.#plan.chance(30);
    }
    this.#world.network.swallows = (datagram) => this.#swallows(datagram);
    this.#traffic = new LadderTraffic(this.#world, this.#one, this.#two);
    this.#story = [`${this.#roundTripMs} ms round trip, ${describe(this.#one)}, ${describe(this.#two)}`];
  }

  get #both(): readonly [SimAgent, SimAgent] {
    return [this.#one, this.#two];
  }

  run(): LadderVerdict {
    this.#world.joinAll();
    this.#judge({ what: "joining", limitMs: FIRST_MS });
    for (let i = 0; i < CHANGES && this.#failures.length === 0; i++) {
      // Nothing under way, and nobody between two rungs.
      this.#takeFaults();
      const wasBest = this.#isBest();
      const change = this.#change();
      this.#story.push(`${(this.#world.now / 1000).toFixed(1)} s: ${change.what}`);
      if (change.isPlanned === true && wasBest && this.#isWhole) this.#judgePlanned(change);
      this.#judge(change);
      // Long enough that a path that comes and goes is not what is tried here.
      this.#traffic.talk(this.#plan.between(1000, 20_000), GAP_MS);
    }
    this.#takeFaults();
    return {
      seed: this.#seed,
      story: this.#story,
      failures: this.#failures,
      pairs: 1,
      virtualMs: this.#world.now,
      worstMs: this.#worstMs,
    };
  }

  /** Changes something. */
  #change(): Change {
    const agent = this.#plan.pick(this.#both);
    const { host } = agent;
    switch (this.#plan.between(0, 11)) {
      case 0:
        host.isUdpBlocked = !host.isUdpBlocked;
        return host.isUdpBlocked
          ? { what: `UDP closes at ${agent.name}`, limitMs: LIMIT_MS }
          : { what: `UDP opens at ${agent.name}`, limitMs: LIMIT_MS, isPlanned: true };
      case 1:
        for (const { host: other } of this.#both) other.isUdpBlocked = false;
        return { what: "UDP opens everywhere", limitMs: LIMIT_MS, isPlanned: true };
      case 2:
        host.isSshBlocked = !host.isSshBlocked;
        // A connection that stands is not asked by such a rule.
        return {
          what: `SSH ${host.isSshBlocked ? "closes" : "opens"} at ${agent.name}`,
          limitMs: LIMIT_MS,
          isPlanned: true,
        };
      case 3:
        if (host.site !== undefined) this.#world.rebootNat(host.site);
        this.#forgottenAt = this.#world.now;
        return { what: `the router reboots at ${agent.name}`, limitMs: LIMIT_MS };
      case 4: {
        const awayMs = this.#plan.between(500, 60_000);
        this.#world.coordinator.stop();
        this.#traffic.talk(awayMs, GAP_MS);
        this.#world.coordinator.start();
        return { what: `the coordinator comes back after ${awayMs} ms`, limitMs: RETURN_MS };
      }
      case 5: {
        const awayMs = this.#plan.between(5000, 30_000);
        host.isOffline = true;
        agent.loseSignalling();
        this.#traffic.talk(awayMs, GAP_MS);
        host.isOffline = false;
        agent.challenge();
        return { what: `${agent.name} is let in by a portal after ${awayMs} ms`, limitMs: RETURN_MS };
      }
      case 6: {
        this.#muted = this.#muted === undefined ? agent : undefined;
        this.#wasDisturbed = true;
        const what = this.#muted === undefined ? "both directions pass" : `what ${agent.name} sends vanishes`;
        return { what, limitMs: LIMIT_MS, isPlanned: this.#muted === undefined };
      }
      case 7:
        this.#isNarrow = !this.#isNarrow;
        this.#wasDisturbed = true;
        this.#isDistrusted ||= this.#isNarrow;
        return {
          what: `large datagrams ${this.#isNarrow ? "vanish" : "pass"}`,
          limitMs: LIMIT_MS,
          isPlanned: !this.#isNarrow,
        };
      case 8:
        agent.moveTo(this.#world.addSite(this.#plan.pick(this.#nats)));
        return { what: `${agent.name} moves to another network`, limitMs: LIMIT_MS };
      case 9:
        this.#world.changePublicAddress(agent);
        this.#forgottenAt = this.#world.now;
        return { what: `the router gets another address at ${agent.name}`, limitMs: LIMIT_MS };
      case 10: {
        const wish = this.#plan.pick(["auto", "ssh", "websocket"] as const);
        // One operator at a time: who wins of two is not what is tried here.
        for (const wisher of this.#wishers) if (wisher !== agent) this.#choose(wisher, "auto");
        this.#choose(agent, wish);
        this.#wishers = [agent];
        this.#wish = wish;
        return { what: `the operator of ${agent.name} chooses ${wish}`, limitMs: LIMIT_MS, isPlanned: true };
      }
      default: {
        const site = this.#world.addSite(this.#plan.pick(this.#nats));
        host.isOffline = true;
        agent.loseSignalling();
        agent.sleep();
        this.#traffic.talk(600_000, 1000, agent);
        agent.wake();
        agent.moveTo(site);
        this.#traffic.talk(30_000, GAP_MS);
        host.isOffline = false;
        agent.challenge();
        return {
          what: `${agent.name} has slept for 600 s, and the portal of another network lets it in after 30 s`,
          limitMs: RETURN_MS,
        };
      }
    }
  }

  #choose(agent: SimAgent, wish: "auto" | "ssh" | "websocket"): void {
    const peer = agent === this.#one ? this.#two : this.#one;
    agent.do((node, now) => node.choosePath(peer.id, wish, now));
  }

  #swallows({ from, to, bytes }: Datagram): boolean {
    const [one, two] = [this.#one.host.publicIp, this.#two.host.publicIp];
    const isBetween = (from.ip === one && to.ip === two) || (from.ip === two && to.ip === one);
    if (!isBetween) return false;
    return from.ip === this.#muted?.host.publicIp || (this.#isNarrow && bytes.length > LARGEST_THAT_PASSES);
  }

  /** Whatever path is taken carries everything. */
  get #isWhole(): boolean {
    return this.#muted === undefined && !this.#isNarrow && this.#world.now - this.#forgottenAt > FORGOTTEN_MS;
  }

  /** Until both have the rung that they should have. */
  #judge({ what, limitMs }: Change): void {
    const trustMs = this.#isDistrusted ? DISTRUST_MS : 0;
    const attemptMs = this.#expectation === "attempt" ? ATTEMPT_MS : 0;
    const limit =
      limitMs + attemptMs + trustMs + (this.#wish === "auto" ? 0 : PATIENCE_MS) + ROUND_TRIPS * this.#roundTripMs;
    const tookMs = this.#talkUntilBest(2 * limit);
    const kind = kindOf(what);
    this.#worstMs.set(kind, Math.max(this.#worstMs.get(kind) ?? 0, tookMs));
    if (tookMs <= limit) return;
    const wish = this.#wish === "auto" ? "" : `, and ${this.#wish} is chosen`;
    this.#failures.push(
      `after "${what}": ${rungOf(this.#one, this.#two)} and ${rungOf(this.#two, this.#one)} for ${Math.round(tookMs)} ms, where ${this.#bestRung()} is possible${wish}`,
    );
  }

  /** A hundred packets a second through a move for which there is no need: each comes once, and in its place. */
  #judgePlanned({ what }: Change): void {
    this.#traffic.talk(LIMIT_MS, PLANNED_GAP_MS);
    const { lost, reordered } = this.#takeFaults();
    if (lost + reordered > 0) this.#failures.push(`after "${what}": ${lost} packets lost, ${reordered} out of order`);
  }

  #takeFaults(): { readonly lost: number; readonly reordered: number } {
    const { lost, duplicated, reordered } = this.#traffic.takeFaults(1000 + 2 * this.#roundTripMs);
    if (duplicated > 0) this.#failures.push(`${duplicated} packets came twice`);
    return { lost, reordered };
  }

  get #expectation(): Expectation {
    const [one, two] = this.#both.map(({ host }) => host.site?.nat.behavior);
    return one === undefined || two === undefined ? "plain" : expectationOf(one, two);
  }

  /** By everything but the agents: hosts, sites, and whether the coordinator is there. */
  #bestRung(): Rung {
    const hosts = this.#both.map(({ host }) => host);
    if (hosts.some(({ isOffline }) => isOffline)) return "none";
    const isOpen = this.#muted === undefined && !this.#isNarrow;
    const isReachable = this.#expectation === "plain" || (this.#expectation === "attempt" && !this.#wasDisturbed);
    if (isOpen && isReachable && hosts.every(({ isUdpBlocked }) => !isUdpBlocked)) return "direct";
    if (!this.#world.coordinator.isUp) return "none";
    return hosts.some(({ isSshBlocked }) => isSshBlocked) ? "websocket" : "ssh";
  }

  /** The rung of the oracle, or a better one that still lives; where the operator has chosen, that one, if it is to be had. */
  #isRight(rung: Rung): boolean {
    const isBest = RANK[rung] >= RANK[this.#bestRung()];
    if (this.#wish === "auto") return isBest;
    const hosts = this.#both.map(({ host }) => host);
    const isThere =
      this.#world.coordinator.isUp &&
      hosts.every(({ isOffline }) => !isOffline) &&
      (this.#wish === "websocket" || hosts.every(({ isSshBlocked }) => !isSshBlocked));
    return rung === this.#wish || (!isThere && isBest);
  }

  #isBest(): boolean {
    const rungs = [rungOf(this.#one, this.#two), rungOf(this.#two, this.#one)];
    return rungs.every((rung) => this.#isRight(rung)) && this.#traffic.isAlive(ALIVE_MS + 1000 + 2 * this.#roundTripMs);
  }

  /** How long until both have had the right rung for a moment, and packets came. */
  #talkUntilBest(limitMs: number): number {
    const { now: startedAt } = this.#world;
    let since: number | undefined;
    while (this.#world.now - startedAt < limitMs) {
      this.#traffic.talk(GAP_MS, GAP_MS);
      const rungs = [rungOf(this.#one, this.#two), rungOf(this.#two, this.#one)];
      const isRight = rungs.every((rung) => this.#isRight(rung)) && this.#traffic.isAlive(ALIVE_MS);
      if (!isRight) since = undefined;
      else since ??= this.#world.now;
      if (since !== undefined && this.#world.now - since >= 1000) return since - startedAt;
    }
    return limitMs;
  }
}

const rungOf = (agent: SimAgent, peer: SimAgent): Rung => agent.view(peer.id)?.route?.kind ?? "none";

const kindOf = (what: string): string =>
  what.replace(/ (at|after|by a portal after) .*/, "").replace(/\b(one|two)\b/, "an agent");

const describe = ({ name, host }: SimAgent): string =>
  `${name}: ${host.site?.nat.behavior.filtering ?? "open"}${host.isUdpBlocked ? ", UDP blocked" : ""}${host.isSshBlocked ? ", SSH blocked" : ""}`;
