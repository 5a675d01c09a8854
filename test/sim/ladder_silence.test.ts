/**
 * A direct path that dies in silence under a flow of ten packets a second, one way: nothing but the receiver's reports and the answers to
 * probes tells the sender. Relays are there, and must carry the flow within a second.
 */
import { describe, expect, test } from "vitest";
import type { SimAgent } from "./agent.ts";
import { PORT_RESTRICTED_CONE } from "./nats.ts";
import type { Datagram } from "./network.ts";
import { areDirect, meshPacket, World } from "./world.ts";

const GAP_MS = 100;
const LARGE_BYTES = 1200;
/** As a filter that lets no datagram over a thousand bytes pass. */
const LARGEST_THAT_PASSES = 1000;
/**
 * Less than a second, from the death to the first delivery, with 50 ms to the coordinator. The agents are twice as far from each other, and
 * what is further away is found out later: nobody can miss a report, nor an answer, sooner than a round trip after what it is about.
 */
const LEFT_WITHIN_MS = 1000;
const USUAL_MS = 100;
const leftWithinMs = (betweenMs: number): number => LEFT_WITHIN_MS + 2 * Math.max(0, betweenMs - USUAL_MS);
/** Deaths at every tenth of the gap between two packets, at other moments of the proofs too. */
const PHASES = Array.from({ length: 20 }, (_, index) => index * 10 + index * GAP_MS);

interface Death {
  /** From the death to the first packet that came after one had been lost; nothing was lost: 0. */
  readonly gapMs: number;
  /** Until the sender had left the direct path. */
  readonly senderMs: number;
}

type Flow = { readonly roundTripMs: number; readonly phaseMs: number; readonly bytes: number };

function die(flow: Flow, swallows: (datagram: Datagram, from: SimAgent, to: SimAgent) => boolean): Death {
  const world = new World({ seed: 1 + flow.phaseMs, roundTripMs: flow.roundTripMs, hasRelays: true });
  const one = world.addAgent("one", PORT_RESTRICTED_CONE);
  const two = world.addAgent("two", PORT_RESTRICTED_CONE);
  world.joinAll();
  world.run(5000, () => areDirect(one, two));
  world.run(3000);
  const deliveredAt: number[] = [];
  const talk = (milliseconds: number): void => {
    for (let left = milliseconds; left > 0; left -= GAP_MS) {
      one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, new Uint8Array(flow.bytes)));
      const until = world.now + Math.min(left, GAP_MS);
      while (world.now < until) {
        const before = two.received.length;
        world.run(until - world.now, () => two.received.length > before);
        if (two.received.length > before) deliveredAt.push(world.now);
      }
    }
  };
  talk(2000 + flow.phaseMs);
  const diedAt = world.now;
  world.network.swallows = (datagram) => swallows(datagram, one, two);
  talk(4000);
  const late = deliveredAt.findIndex((at, index) => at > diedAt && at - (deliveredAt[index - 1] ?? at) > 1.5 * GAP_MS);
  const isCutOff = (deliveredAt.at(-1) ?? 0) < world.now - 2 * GAP_MS - flow.roundTripMs;
  const left = one.events.find(
    ({ at, event }) => at > diedAt && event.type === "path_changed" && event.from === "direct",
  );
  return {
    gapMs: isCutOff ? Infinity : late < 0 ? 0 : (deliveredAt[late] ?? Infinity) - diedAt,
    senderMs: (left?.at ?? Infinity) - diedAt,
  };
}

const isFrom = ({ from }: Datagram, agent: SimAgent): boolean => from.ip === agent.host.publicIp;
const isBetween = ({ from, to }: Datagram, one: SimAgent, two: SimAgent): boolean =>
  [one, two].every(({ host }) => from.ip === host.publicIp || to.ip === host.publicIp);

describe.each([0, 50, 200])("at %i ms round trip to the coordinator", (roundTripMs) => {
  test.each([
    [
      "the direction of the data",
      200,
      (d: Datagram, one: SimAgent, two: SimAgent) => isBetween(d, one, two) && isFrom(d, one),
    ],
    [
      "the opposite direction",
      200,
      (d: Datagram, one: SimAgent, two: SimAgent) => isBetween(d, one, two) && isFrom(d, two),
    ],
    [
      "large packets only",
      LARGE_BYTES,
      (d: Datagram, one: SimAgent, two: SimAgent) => isBetween(d, one, two) && d.bytes.length > LARGEST_THAT_PASSES,
    ],
    [
      "packets of the data's size, while probes pass",
      450,
      (d: Datagram, one: SimAgent, two: SimAgent) =>
        isBetween(d, one, two) && d.bytes.length > 400 && d.bytes.length < 600,
    ],
  ] as const)("a path that dies in %s is left in time", (name, bytes, swallows) => {
    const deaths = PHASES.map((phaseMs) => die({ roundTripMs, phaseMs, bytes }, swallows));
    const worst = (of: (death: Death) => number): number => Math.max(...deaths.map(of));
    console.log(
      `${roundTripMs} ms, ${name}: at worst ${worst(({ gapMs }) => gapMs).toFixed(0)} ms without delivery, left after ${worst(({ senderMs }) => senderMs).toFixed(0)} ms`,
    );
    expect(worst(({ gapMs }) => gapMs)).toBeLessThan(leftWithinMs(2 * roundTripMs));
    expect(worst(({ senderMs }) => senderMs)).toBeLessThan(leftWithinMs(2 * roundTripMs));
  });
});

describe("a path that works is not left", () => {
  test.each([
    { roundTripMs: 0, lossPercent: 2, jitterMs: 20 },
    { roundTripMs: 50, lossPercent: 5, jitterMs: 20 },
    { roundTripMs: 50, lossPercent: 0, jitterMs: 100 },
    { roundTripMs: 200, lossPercent: 5, jitterMs: 50 },
  ])(
    "in a quarter of an hour at $lossPercent % loss, $jitterMs ms of jitter, $roundTripMs ms to the coordinator",
    (options) => {
      const world = new World({ seed: 7, hasRelays: true, ...options });
      const one = world.addAgent("one", PORT_RESTRICTED_CONE);
      const two = world.addAgent("two", PORT_RESTRICTED_CONE);
      world.joinAll();
      world.run(10_000, () => areDirect(one, two));
      const since = world.now;
      for (let ms = 0; ms < 15 * 60_000; ms += GAP_MS) {
        one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, new Uint8Array(200)));
        world.run(GAP_MS);
      }
      const left = [one, two].flatMap((agent) =>
        agent.events.filter(({ at, event }) => at > since && event.type === "path_changed" && event.from === "direct"),
      );
      expect(left).toEqual([]);
    },
  );

  test("when the network stalls for a quarter of a second, again and again", () => {
    const world = new World({ seed: 8, roundTripMs: 20, hasRelays: true });
    const one = world.addAgent("one", PORT_RESTRICTED_CONE);
    const two = world.addAgent("two", PORT_RESTRICTED_CONE);
    world.joinAll();
    world.run(5000, () => areDirect(one, two));
    const since = world.now;
    for (let ms = 0; ms < 60_000; ms += 10) {
      world.network.swallows = ms % 1370 < 250 ? (datagram) => isBetween(datagram, one, two) : undefined;
      one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, new Uint8Array(200)));
      world.run(10);
    }
    expect(one.events.filter(({ at, event }) => at > since && event.type === "path_changed")).toEqual([]);
  });
});
