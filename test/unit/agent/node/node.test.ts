import { describe, expect, test, vi } from "vitest";
import { PeerPaths } from "../../../../agent/path/peer_paths.ts";
import { packAddress } from "../../../../shared/address.ts";
import { PeerSession } from "../../../../shared/session/peer_session.ts";
import { INITIATION } from "../../../../shared/wire/handshake.ts";
import { NodeBench, type Somebody, somebody, STUN_SERVER } from "./node_bench.ts";

const two = somebody(2, "two");
const three = somebody(3, "three");

const initiationsTo = (bench: NodeBench, peer: Somebody): number =>
  bench.signalled("to_peer").filter(({ to, body }) => to === peer.id && body[0] === INITIATION).length;

describe("on joining", () => {
  test("the peers that are online are opened, once our own addresses are known or 600 ms have gone by", () => {
    const bench = new NodeBench();
    bench.join(two, { ...three, entry: { ...three.entry, online: false } });
    bench.pass(590);
    expect(initiationsTo(bench, two)).toBe(0);
    bench.pass(20);
    expect([initiationsTo(bench, two), initiationsTo(bench, three)]).toEqual([1, 0]);
  });

  test("no more than sixteen are", () => {
    const bench = new NodeBench();
    const crowd = Array.from({ length: 30 }, (_, index) => somebody(10 + index, `peer-${index}`));
    bench.join(...crowd);
    bench.pass(700);
    expect(crowd.filter((peer) => initiationsTo(bench, peer) > 0)).toHaveLength(16);
  });

  test("our own address is asked for from the data socket and from two that never sent anything", () => {
    const bench = new NodeBench();
    bench.join();
    const asked = bench.actions.flatMap((action) =>
      action.type === "plane" && action.command.type === "send_datagram" ? [action.command.path.leg] : [],
    );
    expect(new Set(asked).size).toBeGreaterThanOrEqual(2);
    expect(bench.actions.filter(({ type }) => type === "open_leg").length).toBeGreaterThanOrEqual(1);
    expect(STUN_SERVER.port).toBe(3478);
  });

  test("each peer's mesh addresses lead into the TUN device, until it is removed", () => {
    const bench = new NodeBench();
    bench.join(two);
    expect(bench.events("route_added")).toMatchObject([{ id: two.id, meshIPv4: "100.96.0.2" }]);
    bench.signal({ type: "peer_removed", id: two.id });
    expect(bench.events("route_removed")).toMatchObject([{ id: two.id }]);
    expect(bench.node.peers(bench.now)).toEqual([]);
  });
});

describe("an initiation that nobody answers", () => {
  test("is repeated ever more slowly and given up after 30 s; the peer being in use, another begins", () => {
    const bench = new NodeBench();
    bench.join(two);
    bench.pass(700);
    bench.pass(29_000);
    expect(initiationsTo(bench, two)).toBe(6);
    bench.pass(10_000);
    expect(initiationsTo(bench, two)).toBeGreaterThan(6);
  });

  test("is not sent at all to a peer that is offline, nor while there is no coordinator", () => {
    const bench = new NodeBench();
    bench.join({ ...two, entry: { ...two.entry, online: false } });
    bench.do((node, now) => node.use(two.id, now));
    bench.pass(5000);
    expect(initiationsTo(bench, two)).toBe(0);
    bench.signal({ type: "peers", reset: false, peers: [two.entry] });
    expect(initiationsTo(bench, two)).toBe(1);
  });
});

describe("entries of the coordinator's list", () => {
  test.each<[string, Partial<Somebody["entry"]>]>([
    ["another session key", { sessionKey: three.entry.sessionKey }],
    ["another signature", { signature: three.entry.signature }],
    ["another identity key", { identity: three.entry.identity }],
    ["another id", { id: three.id }],
  ])("with %s than the rest proves is not taken", (_name, changes) => {
    const bench = new NodeBench();
    bench.join({ ...two, entry: { ...two.entry, ...changes } });
    expect(bench.node.peers(bench.now)).toEqual([]);
    expect(bench.pinned.size).toBe(0);
  });

  test("of ourselves is not a peer", () => {
    const bench = new NodeBench();
    bench.join(bench.self);
    expect(bench.node.peers(bench.now)).toEqual([]);
  });

  test("with a name that belongs to another key is shown as changed, and nothing is sent to it", () => {
    const bench = new NodeBench();
    bench.pinned.set("two", three.id);
    bench.join(two);
    bench.do((node, now) => node.use(two.id, now));
    bench.pass(3000);
    expect(bench.events("key_changed")).toMatchObject([{ name: "two", id: two.id }]);
    expect(bench.signalled("to_peer")).toEqual([]);
    expect(bench.node.echo(two.id, 1, bench.now)).toBe(false);
    bench.pinned.set("two", two.id);
    bench.do((node, now) => node.handleTrustChange(now));
    bench.do((node, now) => node.use(two.id, now));
    expect(initiationsTo(bench, two)).toBe(1);
  });

  test("that is blocked here is told to the coordinator", () => {
    const bench = new NodeBench();
    bench.join(two, three);
    bench.blocked.add("two");
    bench.do((node, now) => node.handleTrustChange(now));
    expect(bench.signalled("block").at(-1)?.peers).toEqual([two.id]);
    expect(bench.why(two)).toBe(`"two" is blocked here; "tunnelmesh-agent trust two" would admit it again`);
  });

  test("whose instance a restarted coordinator does not know has not restarted", () => {
    const bench = new NodeBench();
    bench.join(two);
    bench.signal({ type: "peers", reset: true, peers: [{ ...two.entry, online: false, instance: 0 }] });
    bench.signal({ type: "peers", reset: false, peers: [two.entry] });
    expect(bench.node.peers(bench.now)[0]?.entry).toMatchObject({ online: true, instance: 1 });
    expect(bench.events("peer_online")).toHaveLength(2);
  });
});

test("a punch for a peer without keys begins a session: the peer wants a path that we have let go", () => {
  const bench = new NodeBench();
  bench.join();
  bench.signal({ type: "peers", reset: false, peers: [two.entry] });
  expect(initiationsTo(bench, two)).toBe(0);
  bench.signal({ type: "punch", peer: two.id, round: 1, fireAt: 50, attested: [] });
  expect(initiationsTo(bench, two)).toBe(1);
});

test("stopping says so to the coordinator", () => {
  const bench = new NodeBench();
  bench.join(two);
  bench.do((node, now) => node.close(now));
  expect(bench.signalled("leave")).toHaveLength(1);
});

describe("why, in one sentence", () => {
  test("for each state before there is a path", () => {
    const bench = new NodeBench();
    bench.join({ ...two, entry: { ...two.entry, online: false } });
    expect(bench.why(two)).toBe(`"two" is offline`);
    bench.signal({ type: "peers", reset: false, peers: [two.entry] });
    expect(bench.why(two)).toBe("Idle: a path opens when it is first used");
    bench.do((node, now) => node.use(two.id, now));
    expect(bench.why(two)).toBe(`Agreeing on keys with "two"`);
    bench.do((node, now) => node.handleSignalState(false, now));
    expect(bench.why(two)).toBe(
      "The coordinator is not reachable, and there is no direct path that could do without it",
    );
    bench.pinned.set("two", three.id);
    bench.do((node, now) => node.handleTrustChange(now));
    expect(bench.why(two)).toBe(
      `The key of "two" is not the one this machine knows, so nothing is sent; if that is right, accept it with "tunnelmesh-agent trust two"`,
    );
  });
});

describe("peers that are idle", () => {
  /** How often a part of any peer is asked or told something. */
  function countWork(): () => number {
    const [session, paths] = [PeerSession.prototype, PeerPaths.prototype];
    const spies = [
      ...(["poll", "deadline", "handleTimeout"] as const).map((method) => vi.spyOn(session, method)),
      ...(["poll", "deadline", "handleTimeout"] as const).map((method) => vi.spyOn(paths, method)),
    ];
    return () => {
      const calls = spies.reduce((sum, spy) => sum + spy.mock.calls.length, 0);
      for (const spy of spies) spy.mockRestore();
      return calls;
    };
  }

  /** With one peer in use and so many that are not: the work of a second with ten reports of activity. */
  function workWith(idle: number): number {
    const bench = new NodeBench();
    bench.join(two);
    bench.pass(700);
    bench.signal({ type: "peers", reset: false, peers: crowd.slice(0, idle) });
    bench.pass(5000);
    const slot = bench.node.slotOf(two.id) ?? 0;
    const work = countWork();
    const counts = { small: 0, large: 1 };
    for (let i = 0; i < 10; i++) {
      const at = bench.now;
      bench.do((node, now) =>
        node.handleReport(
          { type: "activity", peer: slot, sent: counts, received: counts, leg: 1, from: FROM, at },
          now,
        ),
      );
      bench.pass(100);
    }
    return work();
  }

  const FROM = packAddress({ ip: "198.51.100.2", port: 41_641 });
  const crowd = Array.from({ length: 1000 }, (_, index) => {
    const seed = Uint8Array.of(index >> 8, index & 0xff, ...new Uint8Array(30).fill(7));
    return somebody(
      seed,
      `peer-${index}`,
      `100.96.${4 + (index >> 8)}.${index & 0xff}`,
      `fd00::1:${index.toString(16)}`,
    ).entry;
  });

  test("cost an input nothing, a thousand as little as ten", () => {
    const few = workWith(10);
    expect(few).toBeGreaterThan(10);
    expect(workWith(1000)).toBe(few);
  });

  test("and have been used are asleep again after their five minutes", () => {
    const bench = new NodeBench();
    bench.join();
    const used = crowd.slice(0, 50);
    bench.signal({ type: "peers", reset: false, peers: used });
    for (const { id } of used) bench.do((node, now) => node.use(id, now));
    bench.pass(400_000);
    const work = countWork();
    bench.pass(10_000);
    expect(work()).toBe(0);
  });
});
