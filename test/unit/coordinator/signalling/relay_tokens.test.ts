import { expect, test } from "vitest";
import { RelayTokens } from "../../../../coordinator/signalling/relay_tokens.ts";
import { peerIdOf } from "../../../../shared/session/identity.ts";
import { instant } from "../../../../shared/time.ts";

const [a, b] = [peerIdOf(new Uint8Array(32).fill(1)), peerIdOf(new Uint8Array(32).fill(2))];

function tokens(): RelayTokens {
  let next = 0;
  return new RelayTokens((length) => new Uint8Array(length).fill(next++));
}

test("a token names its agent once, and only within ten seconds", () => {
  const store = tokens();
  const [first, late] = [store.issue(a, instant(0)), store.issue(a, instant(0))];
  expect(first).toMatch(/^[a-z2-7]{26}$/);
  expect([store.redeem(first, instant(9999)), store.redeem(first, instant(9999))]).toEqual([a, undefined]);
  expect(store.redeem(late, instant(10_000))).toBe(undefined);
  expect(store.redeem("nonsense", instant(0))).toBe(undefined);
});

test("of more than four of one agent the oldest give way, and nobody else's", () => {
  const store = tokens();
  const other = store.issue(b, instant(0));
  const own = Array.from({ length: 100 }, () => store.issue(a, instant(1)));
  expect(store.size).toBe(5);
  expect(own.map((token) => store.redeem(token, instant(2))).filter((peer) => peer === a).length).toBe(4);
  expect(store.redeem(other, instant(2))).toBe(b);
});

test("those that nobody used are forgotten", () => {
  const store = tokens();
  store.issue(b, instant(0));
  store.issue(a, instant(20_000));
  expect(store.size).toBe(1);
});
