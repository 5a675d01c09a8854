import { describe, expect, test } from "vitest";
import { chooseRoute, isSameRoute, type Rungs } from "../../../../agent/node/ladder.ts";
import { Pair } from "../../../../agent/path/pair.ts";
import { packAddress } from "../../../../shared/address.ts";

const rungs = (changes: Partial<Rungs>): Rungs => ({
  pair: undefined,
  relays: { ssh: true, websocket: true },
  remoteLeg: "ssh",
  wish: "auto",
  stayOn: undefined,
  ...changes,
});

const withPair = { pair: newPair() };
const noRemoteSsh = { wish: "ssh", remoteLeg: "websocket" } as const;
const noLocalSsh = { wish: "ssh", relays: { ssh: false, websocket: true } } as const;
const noLocalWebSocket = { wish: "websocket", relays: { ssh: true, websocket: false } } as const;

describe("the rung that carries traffic", () => {
  test.each<[string, Partial<Rungs>, string | undefined]>([
    ["direct where a pair is proven", { pair: newPair() }, "direct"],
    ["ssh where both have it", {}, "ssh"],
    ["websocket when the peer has no better", { remoteLeg: "websocket" }, "websocket"],
    ["websocket when we have no better", { relays: { ssh: false, websocket: true } }, "websocket"],
    ["none when the peer has no relay", { remoteLeg: null }, undefined],
    ["none when we have no relay", { relays: { ssh: false, websocket: false } }, undefined],
    ["direct needs no relay", { pair: newPair(), relays: { ssh: false, websocket: false }, remoteLeg: null }, "direct"],
    ["ssh although direct works, by choice", { pair: newPair(), wish: "ssh" }, "ssh"],
    ["websocket although ssh works, by choice", { wish: "websocket" }, "websocket"],
    [
      "direct after all, when the chosen rung does not work",
      { pair: newPair(), wish: "ssh", remoteLeg: null },
      "direct",
    ],
    ["ssh while the chosen direct path is not there", { wish: "direct" }, "ssh"],
    ["direct, and no third rung, while the peer has no ssh to choose", { ...withPair, ...noRemoteSsh }, "direct"],
    ["direct, and no third rung, while we have no ssh to choose", { ...withPair, ...noLocalSsh }, "direct"],
    ["direct for as long as a chosen ssh may still open", { ...withPair, ...noRemoteSsh, stayOn: "direct" }, "direct"],
    [
      "websocket, and not direct, for as long as a chosen ssh may still open",
      { ...withPair, ...noRemoteSsh, stayOn: "websocket" },
      "websocket",
    ],
    ["ssh as soon as it is there, however long one would wait", { ...withPair, wish: "ssh", stayOn: "direct" }, "ssh"],
    [
      "direct when what one would stay on is gone",
      { ...withPair, wish: "ssh", remoteLeg: null, stayOn: "ssh" },
      "direct",
    ],
    ["ssh rather than nothing, when the chosen websocket is not there", { ...noLocalWebSocket }, "ssh"],
    [
      "ssh for as long as a chosen websocket may still open",
      { ...withPair, ...noLocalWebSocket, stayOn: "ssh" },
      "ssh",
    ],
    ["direct when a chosen websocket does not open", { ...withPair, ...noLocalWebSocket }, "direct"],
  ])("%s", (_name, changes, kind) => expect(chooseRoute(rungs(changes))?.kind).toBe(kind));

  test("has two legs when relayed, and the kind of the worse", () => {
    expect(chooseRoute(rungs({ remoteLeg: "websocket" }))).toEqual({
      kind: "websocket",
      legs: { local: "ssh", remote: "websocket" },
    });
  });
});

test("routes are the same by pair or by legs", () => {
  const pair = newPair();
  const direct = { kind: "direct", pair } as const;
  const relayed = { kind: "ssh", legs: { local: "ssh", remote: "ssh" } } as const;
  const mixed = { kind: "websocket", legs: { local: "ssh", remote: "websocket" } } as const;
  expect(isSameRoute(direct, { kind: "direct", pair })).toBe(true);
  expect(isSameRoute(direct, { kind: "direct", pair: newPair() })).toBe(false);
  expect(isSameRoute(relayed, { ...relayed })).toBe(true);
  expect([isSameRoute(relayed, mixed), isSameRoute(direct, relayed), isSameRoute(undefined, relayed)]).toEqual([
    false,
    false,
    false,
  ]);
  expect(isSameRoute(undefined, undefined)).toBe(true);
});

function newPair(): Pair {
  const remote = { ip: "198.51.100.7", port: 4000 };
  return new Pair({
    leg: 1,
    remote,
    packedRemote: packAddress(remote),
    origin: "host",
    isTrusted: true,
    isLocal: false,
    probesSent: 0,
  });
}
