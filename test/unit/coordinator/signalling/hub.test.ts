import * as fc from "fast-check";
import { instant } from "../../../../shared/time.ts";
import { describe, expect, test, vi } from "vitest";
import { approve, remove } from "../../../../coordinator/registry/admission.ts";
import { utf8 } from "../../../../shared/bytes.ts";
import { signSessionKey } from "../../../../shared/session/identity.ts";
import { at, START_UNIX_MS, TestAgent, World } from "./hub_world.ts";

const body = Uint8Array.of(1, 2, 3);

describe("joining", () => {
  test("with a key a machine is welcomed with its name, addresses, STUN token and listeners", () => {
    const world = new World();
    const laptop = world.join("Laptop");
    expect(laptop.received.slice(0, 3).map(({ type }) => type)).toEqual(["welcome", "clock_request", "peers"]);
    expect(laptop.last("welcome")).toMatchObject({
      id: laptop.id,
      name: "laptop",
      stun: [{ ip: "203.0.113.1", port: 3478 }],
      listeners: ["http://coordinator.example:8080"],
    });
    expect(world.events).toContainEqual({ event: "agent_joined", id: laptop.id, name: "laptop", isNew: true });
    const token = world.actions.find((action) => action.type === "add_token");
    expect(token).toMatchObject({
      id: laptop.last("welcome")?.stunUsername,
      secret: laptop.last("welcome")?.stunSecret,
    });
  });

  test("with a token that opens one relay connection, without having been asked for", () => {
    const world = new World();
    const laptop = world.join("Laptop");
    const token = laptop.last("welcome")?.relayToken ?? "";
    expect(world.hub.redeemRelayToken(token, instant(world.now))).toBe(laptop.id);
    expect(world.hub.redeemRelayToken(token, instant(world.now))).toBeUndefined();
  });

  test("each learns about the others, and when they go and come back", () => {
    const world = new World();
    const a = world.join("a");
    const b = world.join("b");
    expect([a.view(), b.view()]).toEqual([{ b: { online: true, instance: 1 } }, { a: { online: true, instance: 1 } }]);
    world.input({ type: "closed", connection: b.connection });
    world.run(200);
    expect(a.view()).toEqual({ b: { online: false, instance: 1 } });
    const again = world.agent("b", { sameAs: b, instance: 2 });
    world.connect(again);
    world.run(500);
    expect(a.view()).toEqual({ b: { online: true, instance: 2 } });
    expect(again.view()).toEqual({ a: { online: true, instance: 1 } });
    expect(again.last("welcome")?.meshIPv4).toBe(b.last("welcome")?.meshIPv4);
  });

  test("a long list comes in parts, and only the first replaces what was known", () => {
    const world = new World();
    for (let i = 0; i < 70; i++) {
      const agent = world.agent(`m${i}`, { key: world.key });
      world.connect(agent, `source ${i}`);
    }
    world.run(1000);
    const late = world.join("late");
    expect(late.all("peers").map(({ reset, peers }) => [reset, peers.length])).toEqual([
      [true, 64],
      [false, 6],
    ]);
    expect(Object.keys(late.view()).length).toBe(70);
  });

  test("without a key it waits with a code, and joins on the same connection once approved", () => {
    const world = new World();
    const nas = world.agent("nas");
    world.connect(nas);
    world.run(60_000);
    const code = nas.last("pending")?.code ?? "";
    expect(world.events).toContainEqual({ event: "agent_pending", id: nas.id, name: "nas", code });
    expect(nas.closedWith).toBeUndefined();
    approve(world.store, world.identity, code);
    world.input({ type: "store_changed" });
    world.run(100);
    expect(nas.last("welcome")?.name).toBe("nas");
  });

  test("a machine that is removed hears so at once, and so do the others", () => {
    const world = new World();
    const a = world.join("a");
    const b = world.join("b");
    remove(world.store, "b");
    world.input({ type: "store_changed" });
    world.run(200);
    expect(b.last("refused")).toMatchObject({ reason: "removed" });
    expect([b.closedWith, a.view()]).toEqual(["removed", {}]);
  });

  test("refusals say which, why and what to do", () => {
    const world = new World();
    const refusalOf = (agent: TestAgent) => {
      world.connect(agent);
      world.run(200);
      return agent.last("refused")?.message;
    };
    expect(refusalOf(world.agent("x", { key: "tmk_wrong" }))).toBe(
      'The join key is unknown, used up or revoked; create a new one with "key create"',
    );
    world.join("taken");
    expect(refusalOf(world.agent("taken", { key: world.key, nameIsExplicit: true }))).toBe(
      'The name belongs to another machine; choose another --name than "taken"',
    );
  });

  test("an identity that did not sign the session key is refused", () => {
    const world = new World();
    const thief = world.agent("thief", { key: world.key });
    const victim = world.join("victim");
    const signature = signSessionKey(victim.ed25519, victim.x25519.publicKey);
    world.connect(thief, "elsewhere", { identity: victim.ed25519.publicKey, signature });
    world.run(200);
    expect(thief.last("refused")?.reason).toBe("identity_invalid");
    expect(victim.closedWith).toBeUndefined();
  });

  test("a second agent on a copied state directory replaces the first, which hears why", () => {
    const world = new World();
    const first = world.join("a", { instance: 7 });
    const second = world.agent("a", { sameAs: first, instance: 8 });
    world.connect(second);
    world.run(500);
    expect(first.last("refused")?.reason).toBe("replaced");
    expect(second.last("welcome")?.name).toBe("a");
    expect(world.events.some((event) => event.event === "agent_left")).toBe(false);
  });

  test("the same agent on a new connection replaces the old one silently and keeps what is attested", () => {
    const world = new World();
    const first = world.join("a", { instance: 7 });
    const b = world.join("b");
    observe(world, first, "198.51.100.7", 5);
    const second = world.agent("a", { sameAs: first, instance: 7 });
    world.connect(second);
    world.run(500);
    expect(first.last("refused")).toBeUndefined();
    second.send({ type: "to_peer", to: b.id, body });
    world.run(100);
    expect(b.last("from_peer")?.attested).toEqual([{ ip: "198.51.100.7", port: 5 }]);
  });

  test("a store that cannot be written refuses the one client and keeps the rest", () => {
    const world = new World();
    const a = world.join("a");
    world.store.putPeer = () => {
      throw new Error("database or disk is full");
    };
    const b = world.agent("b", { key: world.key });
    world.connect(b);
    world.run(200);
    expect(b.closedWith).toBe("cannot write the database");
    expect(world.actions).toContainEqual({ type: "failed", message: 'Cannot let "b" in: database or disk is full' });
    expect(a.closedWith).toBeUndefined();
  });
});

describe("before authentication", () => {
  test("a client that says nothing is closed after 5 s", () => {
    const world = new World();
    world.input({ type: "opened", connection: 900, source: "s" });
    world.run(4999);
    expect(world.actions).not.toContainEqual(expect.objectContaining({ type: "close" }));
    world.run(1);
    expect(world.actions).toContainEqual({ type: "close", connection: 900, code: 1008, reason: "took too long" });
  });

  test("one source has 16 connections and all have 256; members do not count", () => {
    const world = new World();
    for (let i = 0; i < 20; i++) world.join(`m${i}`);
    let next = 1000;
    const open = (source: string): boolean => {
      const isAllowed = world.hub.mayOpen(source);
      world.input({ type: "opened", connection: next++, source });
      return isAllowed;
    };
    expect(Array.from({ length: 18 }, () => open("one")).filter(Boolean).length).toBe(16);
    expect(Array.from({ length: 300 }, (_, i) => open(`other ${i}`)).filter(Boolean).length).toBe(240);
    world.run(5000);
    expect(open("one")).toBe(true);
  });

  test("noise, too large messages and half handshakes close the connection and change nothing", () => {
    const world = new World();
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 4 }), (messages) => {
        const connection = 5000 + world.actions.length;
        world.input({ type: "opened", connection, source: `${connection}` });
        for (const bytes of messages) world.input({ type: "message", connection, bytes });
        world.input({ type: "closed", connection });
      }),
    );
    world.input({ type: "opened", connection: 1, source: "s" });
    world.input({ type: "message", connection: 1, bytes: new Uint8Array(4097) });
    expect(world.actions).toContainEqual({ type: "close", connection: 1, code: 1008, reason: "message too large" });
    expect([world.hub.onlineCount, world.store.peers("approved").length]).toEqual([0, 0]);
  });
});

describe("between members", () => {
  test("a body arrives with the sender's true id and its attested addresses", () => {
    const world = new World();
    const [a, b] = [world.join("a"), world.join("b")];
    observe(world, a, "198.51.100.7", 4000);
    observe(world, a, "198.51.100.7", 4001);
    a.send({ type: "to_peer", to: b.id, body });
    world.run(100);
    expect(b.all("from_peer")).toEqual([
      {
        type: "from_peer",
        from: a.id,
        body,
        attested: [
          { ip: "198.51.100.7", port: 4001 },
          { ip: "198.51.100.7", port: 4000 },
        ],
      },
    ]);
    expect(a.last("observed")?.addresses.length).toBe(2);
  });

  test("nothing goes to a peer that blocks the sender, nor back, and it stays so across restarts", () => {
    const world = new World();
    const [a, b] = [world.join("a"), world.join("b")];
    b.send({ type: "block", peers: [a.id] });
    world.run(100);
    a.send({ type: "to_peer", to: b.id, body });
    b.send({ type: "to_peer", to: a.id, body });
    a.send({ type: "punch_request", peer: b.id, round: 1 });
    world.run(100);
    expect([...a.all("from_peer"), ...b.all("from_peer"), ...a.all("punch"), ...b.all("punch")]).toEqual([]);
    expect(world.store.blocks().get(b.id)).toEqual(new Set([a.id]));
    b.send({ type: "block", peers: [] });
    world.run(100);
    a.send({ type: "to_peer", to: b.id, body });
    world.run(100);
    expect(b.all("from_peer").length).toBe(1);
  });

  test("a machine that waits for approval reaches nobody and is reached by nobody", () => {
    const world = new World();
    const a = world.join("a");
    const waiting = world.agent("waiting");
    world.connect(waiting, "elsewhere");
    world.run(100);
    waiting.send({ type: "to_peer", to: a.id, body });
    a.send({ type: "to_peer", to: waiting.id, body });
    world.run(100);
    expect([a.all("from_peer"), waiting.all("from_peer"), a.view()]).toEqual([[], [], {}]);
  });

  test("a flood from one member is dropped, not queued, and others are not touched", () => {
    const world = new World();
    const [a, b, c] = [world.join("a"), world.join("b"), world.join("c")];
    for (let i = 0; i < 2000; i++) a.send({ type: "to_peer", to: b.id, body });
    c.send({ type: "to_peer", to: b.id, body });
    world.run(100);
    const from = b.all("from_peer").map((message) => message.from);
    expect(from.filter((id) => id === a.id).length).toBeLessThanOrEqual(420);
    expect(from).toContain(c.id);
    expect(world.hub.droppedMessages).toBeGreaterThan(1500);
  });

  test("malformed messages of a member are dropped, forged ones close its connection", () => {
    const world = new World();
    const a = world.join("a");
    for (const text of ["", "{", "[]", '{"type":"to_peer"}', '{"type":"unknown"}', '{"type":"block","peers":["x"]}'])
      a.sendRaw(utf8(text));
    world.run(100);
    expect([a.closedWith, world.hub.droppedMessages]).toEqual([undefined, 6]);
    a.sendBytes(new Uint8Array(64));
    world.run(100);
    expect(a.closedWith).toBe("not authentic");
  });

  test("one that leaves is offline at once, one that falls silent after 25 s", () => {
    const world = new World();
    const [a, b, c] = [world.join("a"), world.join("b"), world.join("c")];
    b.send({ type: "leave" });
    world.run(150);
    expect(a.view()["b"]?.online).toBe(false);
    c.answersClock = false;
    world.run(36_000);
    expect([a.view()["c"]?.online, c.closedWith]).toEqual([false, "silent"]);
    expect(a.closedWith).toBeUndefined();
    expect(world.store.peer(b.id)?.lastSeenUnixMs).toBeGreaterThan(START_UNIX_MS + 2900);
  });

  test("an observation counts for two minutes and only the newest eight are kept", () => {
    const world = new World();
    const [a, b] = [world.join("a"), world.join("b")];
    for (let port = 1; port <= 10; port++) observe(world, a, "198.51.100.7", port);
    const attested = () => {
      a.send({ type: "to_peer", to: b.id, body });
      world.run(100);
      return b.last("from_peer")?.attested.map(({ port }) => port);
    };
    expect(attested()).toEqual([10, 9, 8, 7, 6, 5, 4, 3]);
    world.run(120_000);
    expect(attested()).toEqual([]);
  });

  test("an observation under a token of a connection that is gone is ignored", () => {
    const world = new World();
    const a = world.join("a");
    const tokenId = a.last("welcome")?.stunUsername ?? "";
    world.input({ type: "closed", connection: a.connection });
    expect(world.actions).toContainEqual({ type: "remove_token", id: tokenId });
    world.input({
      type: "observed",
      observation: {
        tokenId,
        localAddress: { ip: "203.0.113.1", port: 3478 },
        from: { ip: "1.1.1.1", port: 1 },
        at: at(0),
      },
    });
    world.run(100);
  });
});

describe("punching", () => {
  test("both fire within a millisecond, whatever their clocks and delays are", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 200 }),
        fc.integer({ min: 1, max: 200 }),
        fc.integer({ min: -1e9, max: 1e9 }),
        (delayA, delayB, offset) => {
          const world = new World();
          const a = world.join("a", { delayMs: delayA, clockOffsetMs: offset });
          const b = world.join("b", { delayMs: delayB });
          world.run(2000);
          const askedAt = world.now;
          a.send({ type: "punch_request", peer: b.id, round: 5 });
          world.run(1500);
          const [forA, forB] = [a.last("punch"), b.last("punch")];
          expect([forA?.peer, forB?.peer, forA?.round, forB?.round]).toEqual([b.id, a.id, 5, 5]);
          expect(Math.abs((forA?.fireAt ?? 0) - offset - (forB?.fireAt ?? 0))).toBeLessThan(0.001);
          // Not before the slower one has heard of it, and not much later.
          const slack = (forB?.fireAt ?? 0) - askedAt - delayA - Math.max(delayA, delayB);
          expect(slack).toBeGreaterThanOrEqual(0);
          expect(slack).toBeLessThan(15);
          const skews = world.events.flatMap((event) => (event.event === "punch_signalled" ? [event] : []));
          expect(skews).toMatchObject([{ round: 5 }]);
          expect(skews[0]?.skewMs).toBeLessThan(0.001);
        },
      ),
      { numRuns: 30 },
    );
  });

  test("the skew that was achieved is measured", () => {
    const world = new World();
    const a = world.join("a", { clockOffsetMs: 12_345 });
    const b = world.join("b", { fireLateMs: 7 });
    a.send({ type: "punch_request", peer: b.id, round: 1 });
    world.run(500);
    const event = world.events.find(({ event }) => event === "punch_signalled");
    expect(event).toMatchObject({ peers: ["a", "b"], round: 1 });
    expect(event?.event === "punch_signalled" ? event.skewMs : 0).toBeCloseTo(7, 3);
  });

  test("when both ask at the same time, one punch is arranged", () => {
    const world = new World();
    const [a, b] = [world.join("a"), world.join("b")];
    a.send({ type: "punch_request", peer: b.id, round: 1 });
    b.send({ type: "punch_request", peer: a.id, round: 9 });
    world.run(500);
    expect([a.all("punch").map((m) => m.round), b.all("punch").map((m) => m.round)]).toEqual([[1], [1]]);
    b.send({ type: "punch_request", peer: a.id, round: 10 });
    world.run(500);
    expect(a.all("punch").map((m) => m.round)).toEqual([1, 10]);
  });

  test("a request right after joining waits for the first clock sample instead of guessing", () => {
    const world = new World();
    const a = world.join("a");
    const b = world.agent("b", { key: world.key, delayMs: 100, clockOffsetMs: 5_000_000 });
    world.connect(b);
    world.run(310);
    a.send({ type: "punch_request", peer: b.id, round: 1 });
    world.run(2000);
    const [forA, forB] = [a.last("punch"), b.last("punch")];
    expect((forB?.fireAt ?? 0) - 5_000_000).toBeCloseTo(forA?.fireAt ?? -1, 3);
  });

  test("no agent is told anything about a punch with one that is offline", () => {
    const world = new World();
    const [a, b] = [world.join("a"), world.join("b")];
    world.input({ type: "closed", connection: b.connection });
    a.send({ type: "punch_request", peer: b.id, round: 1 });
    world.run(500);
    expect(a.all("punch")).toEqual([]);
  });
});

function observe(world: World, agent: TestAgent, ip: string, port: number): void {
  const tokenId = agent.last("welcome")?.stunUsername ?? "";
  const localAddress = { ip: "203.0.113.1", port: 3478 };
  world.input({ type: "observed", observation: { tokenId, localAddress, from: { ip, port }, at: at(world.now) } });
  world.run(50);
}

test("sixty agents that are merely there wake the hub four times a second at most", () => {
  const world = new World();
  for (let i = 0; i < 60; i++) {
    world.connect(world.agent(`agent-${i}`, { key: world.key }), `source-${i}`);
    world.run(167);
  }
  world.run(12_000);
  const asked = world.actions.length;
  const handle = vi.spyOn(world.hub, "handle");
  world.run(10_000);
  const wakes = handle.mock.calls.filter(([input]) => input.type === "timeout").length;
  handle.mockRestore();
  // Everybody was asked once.
  expect(world.actions.slice(asked).filter(({ type }) => type === "send")).toHaveLength(60);
  expect(wakes).toBeLessThanOrEqual(41);
});
