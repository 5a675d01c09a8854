import { beforeEach, describe, expect, test } from "vitest";
import { type RelayAction, RelayHub, type RelayInput } from "../../../../coordinator/relay/relay_hub.ts";
import { type PeerId, peerIdOf } from "../../../../shared/session/identity.ts";
import { instant } from "../../../../shared/time.ts";

const peer = (fill: number): PeerId => peerIdOf(new Uint8Array(32).fill(fill));
const [A, B, C] = [peer(1), peer(2), peer(3)];

let hub: RelayHub;
let members: Set<PeerId>;
let blocked: Set<string>;
let now: number;

beforeEach(() => {
  members = new Set([A, B, C]);
  blocked = new Set();
  now = 0;
  hub = new RelayHub({
    isMember: (id) => members.has(id),
    mayTalk: (a, b) =>
      a !== b && members.has(a) && members.has(b) && !blocked.has(`${a}${b}`) && !blocked.has(`${b}${a}`),
    agentRate: { perSecond: 100_000, burst: 1_000_000 },
  });
});

function give(...inputs: RelayInput[]): RelayAction[] {
  const actions: RelayAction[] = [];
  for (const input of inputs) {
    hub.handle(input, instant(now));
    for (let action = hub.poll(); action !== undefined; action = hub.poll()) actions.push(action);
  }
  return actions;
}

const open = (leg: number, id: PeerId, kind: "ssh" | "websocket"): RelayInput => ({
  type: "leg_opened",
  leg,
  peer: id,
  kind,
});
const bind = (leg: number, to: PeerId): RelayInput => ({ type: "bind", leg, peer: to });
const send = (leg: number, to: PeerId, ...fills: number[]): RelayInput => ({
  type: "frames",
  leg,
  frames: fills.map((fill) => ({ to, frame: Uint8Array.of(fill) })),
});
const notices = (actions: RelayAction[]) =>
  actions.flatMap((action) =>
    action.type === "peer_leg" ? [`${nameOf(action.to)}: ${nameOf(action.peer)} ${action.leg}`] : [],
  );
const nameOf = (id: PeerId): string => ({ [A]: "A", [B]: "B", [C]: "C" })[id] ?? id;
const taken = (leg: number, isReady?: (source: PeerId) => boolean) =>
  hub.take(leg, instant(now), 65_536, 4, isReady).map(({ from, frame }) => `${nameOf(from)}${frame[0]}`);

describe("where frames go", () => {
  test("to the SSH leg with a channel for the sender, else to the WebSocket leg, else they wait for the channel", () => {
    give(open(1, A, "websocket"), open(2, B, "ssh"), bind(1, B));
    expect(give(send(1, B, 1))).toEqual([{ type: "ready", leg: 2 }]);
    expect(taken(2, () => false)).toEqual([]);
    // A WebSocket needs no channel: what waits moves there.
    expect(give(open(3, B, "websocket"))).toContainEqual({ type: "ready", leg: 3 });
    expect(taken(3)).toEqual(["A1"]);
    give(bind(2, A), send(1, B, 2));
    expect([taken(3), taken(2)]).toEqual([[], ["A2"]]);
    give({ type: "leg_closed", leg: 2 }, send(1, B, 3));
    expect(taken(3)).toEqual(["A3"]);
  });

  test("what waits for a leg that closes or is replaced goes on by the next one", () => {
    give(open(1, A, "websocket"), open(2, B, "ssh"), bind(2, A), bind(1, B), open(3, B, "websocket"), send(1, B, 1));
    give({ type: "leg_closed", leg: 2 });
    expect(taken(3)).toEqual(["A1"]);
    give(send(1, B, 2));
    expect(give(open(4, B, "websocket"))).toContainEqual({ type: "close", leg: 3, reason: "replaced" });
    expect(taken(4)).toEqual(["A2"]);
    // Closing the replaced one later takes nothing from its successor.
    give({ type: "leg_closed", leg: 3 }, send(1, B, 3));
    expect(taken(4)).toEqual(["A3"]);
  });

  test("nowhere without a leg, to oneself, to strangers, or where one refuses the other; each is counted", () => {
    const stranger = peer(9);
    blocked.add(`${C}${A}`);
    give(open(1, A, "websocket"), open(3, C, "websocket"), bind(1, B));
    give(send(1, B, 1), send(1, A, 1), send(1, stranger, 1, 2), send(1, C, 1));
    expect(hub.counters).toMatchObject({ droppedNoLeg: 1, droppedRefused: 4, forwardedFrames: 0 });
    expect(taken(3)).toEqual([]);
  });

  test("a frame is copied: the sender's buffer may change afterwards", () => {
    const frame = Uint8Array.of(1);
    give(open(1, A, "websocket"), open(2, B, "websocket"), { type: "frames", leg: 1, frames: [{ to: B, frame }] });
    frame[0] = 9;
    expect(taken(2)).toEqual(["A1"]);
  });
});

describe("what agents are told", () => {
  test("a binding tells both sides at once what leg the other has, and every change of it", () => {
    give(open(1, A, "websocket"));
    expect(give(bind(1, B))).toEqual([
      // So that it opens a leg of its own.
      { type: "peer_leg", to: B, peer: A, leg: "websocket" },
      { type: "peer_leg", to: A, peer: B, leg: null },
      { type: "unbound", leg: 1, peer: B, reason: "no_leg" },
    ]);
    expect(notices(give(open(2, B, "websocket")))).toEqual(["A: B websocket"]);
    expect(notices(give(open(3, B, "ssh")))).toEqual([]);
    expect(notices(give(bind(3, A)))).toEqual(["A: B ssh", "B: A websocket"]);
    expect(notices(give({ type: "release", leg: 3, peer: A }))).toEqual(["A: B websocket"]);
    expect(give({ type: "leg_closed", leg: 2 }, { type: "leg_closed", leg: 3 })).toEqual([
      { type: "peer_leg", to: A, peer: B, leg: "ssh" },
      { type: "unbound", leg: 1, peer: B, reason: "no_leg" },
      { type: "peer_leg", to: A, peer: B, leg: null },
    ]);
  });

  test("the other side hears of a binding too, so that it opens its own channel", () => {
    give(open(1, A, "websocket"), open(2, B, "ssh"));
    expect(notices(give(bind(1, B)))).toEqual(["B: A websocket", "A: B ssh"]);
  });

  test("a leg that is replaced by one of its kind is no news", () => {
    give(open(1, A, "websocket"), open(2, B, "websocket"), bind(1, B));
    expect(notices(give(open(3, B, "websocket")))).toEqual([]);
  });

  test("an agent whose signalling comes back is told again", () => {
    give(open(1, A, "websocket"), open(2, B, "websocket"), bind(1, B));
    expect(notices(give({ type: "agent_joined", peer: A }))).toEqual(["A: B websocket"]);
    expect(give({ type: "agent_joined", peer: C })).toEqual([]);
  });
});

describe("rules", () => {
  beforeEach(() => {
    give(open(1, A, "websocket"), open(2, B, "ssh"), open(3, C, "websocket"));
    give(bind(1, B), bind(2, A), bind(3, B), bind(2, C));
  });

  test("a block ends the binding on both sides at once and drops what waits, and others stay", () => {
    give(send(1, B, 1), send(3, B, 2));
    blocked.add(`${B}${A}`);
    const actions = give({ type: "rules_changed", peer: B });
    expect(actions).toContainEqual({ type: "unbound", leg: 1, peer: B, reason: "refused" });
    expect(actions).toContainEqual({ type: "unbound", leg: 2, peer: A, reason: "refused" });
    expect(notices(actions).sort()).toEqual(["A: B null", "B: A null"]);
    give(send(1, B, 3));
    expect(taken(2)).toEqual(["C2"]);
    expect(hub.counters.droppedRefused).toBe(2);
    expect(give(bind(1, B))).toEqual([{ type: "unbound", leg: 1, peer: B, reason: "refused" }]);
    blocked.clear();
    give({ type: "rules_changed", peer: B }, bind(1, B), bind(2, A), send(1, B, 4));
    expect(taken(2)).toEqual(["A4"]);
  });

  test("a member that is removed loses its legs, and a stranger gets none", () => {
    members.delete(B);
    expect(give({ type: "rules_changed" })).toContainEqual({ type: "close", leg: 2, reason: "removed" });
    expect(give(open(4, B, "websocket"))).toEqual([{ type: "close", leg: 4, reason: "removed" }]);
    expect(hub.legCount).toBe(2);
  });
});

describe("limits", () => {
  const large = (leg: number, to: PeerId, count: number): RelayInput => ({
    type: "frames",
    leg,
    frames: Array.from({ length: count }, (_, i) => {
      const frame = new Uint8Array(1300);
      new DataView(frame.buffer).setUint32(0, i);
      return { to, frame };
    }),
  });

  test("a queue that is full loses its oldest frames", () => {
    give(open(1, A, "websocket"), open(2, B, "websocket"), large(1, B, 300));
    const frames: number[] = [];
    for (let part = hub.take(2, instant(now), 65_536, 4); part.length > 0; part = hub.take(2, instant(now), 65_536, 4))
      frames.push(...part.map(({ frame }) => new DataView(frame.buffer, frame.byteOffset).getUint32(0)));
    expect(frames.length).toBe(Math.floor((256 * 1024) / (1300 + 64)));
    expect(frames.at(-1)).toBe(299);
    expect(frames[0]).toBe(300 - frames.length);
    expect(hub.counters.droppedOverflow).toBe(300 - frames.length);
  });

  test("sources take turns by bytes, and one batch never grows beyond its limit", () => {
    give(open(1, A, "websocket"), open(2, B, "websocket"), open(3, C, "websocket"));
    give(large(1, B, 150), large(3, B, 20));
    const part = hub.take(2, instant(now), 40_000, 4);
    const fromC = part.filter(({ from }) => from === C).length;
    expect(Math.abs(part.length - 2 * fromC)).toBeLessThanOrEqual(7);
    expect(part.reduce((sum, { frame }) => sum + frame.length + 4, 0)).toBeLessThanOrEqual(40_000);
  });

  test("all sources together keep at most 2 MiB for one leg, at the cost of the greediest", () => {
    const many = Array.from({ length: 20 }, (_, i) => peer(50 + i));
    give(open(2, B, "websocket"));
    for (const [i, id] of many.entries()) {
      members.add(id);
      give(open(100 + i, id, "websocket"), large(100 + i, B, i === 19 ? 10 : 190));
    }
    expect(hub.queuedBytes(2)).toBeLessThanOrEqual(2 * 1024 * 1024);
    expect(hub.queuedBytes(2)).toBeGreaterThan(2 * 1024 * 1024 - 2000);
    const all: PeerId[] = [];
    for (let part = hub.take(2, instant(now), 65_536, 4); part.length > 0; part = hub.take(2, instant(now), 65_536, 4))
      all.push(...part.map(({ from }) => from));
    expect(all.filter((id) => id === many[19]).length).toBe(10);
  });

  test("an agent may send only so much, and again after a while", () => {
    give(open(1, A, "websocket"), open(2, B, "websocket"));
    for (let i = 0; i < 10; i++) give(large(1, B, 100));
    const { droppedRate } = hub.counters;
    expect(droppedRate).toBe(1000 - Math.floor(1_000_000 / (1300 + 64)));
    now = 1000;
    give(large(1, B, 100));
    expect(hub.counters.droppedRate - droppedRate).toBe(100 - Math.floor(100_000 / (1300 + 64)));
  });

  test("an agent that binds and releases without end is stopped, and costs its peers no more notices", () => {
    give(open(1, A, "ssh"), open(2, B, "websocket"));
    let told = 0;
    for (let i = 0; i < 5000; i++)
      told += notices(give(bind(1, B), { type: "release", leg: 1, peer: B })).filter((text) =>
        text.startsWith("B"),
      ).length;
    expect(told).toBeLessThanOrEqual(2000 * 2);
  });
});

describe("what has waited", () => {
  test("for more than a second is dropped and counted", () => {
    give(open(1, A, "websocket"), open(2, B, "websocket"), bind(1, B), send(1, B, 1));
    now = 600;
    give(send(1, B, 2));
    now = 1100;
    expect(taken(2)).toEqual(["A2"]);
    expect(hub.counters.droppedLate).toBe(1);
  });

  test.each(["replaced", "closed"])(
    "for a leg that is %s goes on by the next one only while it is fresh: newer frames may have come by other ways",
    (how) => {
      give(open(1, A, "websocket"), open(2, B, "websocket"), bind(1, B), send(1, B, 1));
      now = 300;
      give(send(1, B, 2));
      now = 350;
      if (how === "replaced") give(open(3, B, "websocket"));
      else give(open(3, B, "ssh"), { type: "leg_closed", leg: 2 });
      expect(taken(3)).toEqual(["A2"]);
      expect(hub.counters.droppedLate).toBe(1);
    },
  );
});
