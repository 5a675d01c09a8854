import { describe, expect, test } from "vitest";
import { Pair } from "../../../../agent/path/pair.ts";
import { packAddress } from "../../../../shared/address.ts";
import { instant } from "../../../../shared/time.ts";

/** PRODUCT.md, "Nobody can be aimed": not imported, since the number is the promise. */
const UNTRUSTED_PROBES = 5;

const remote = { ip: "198.51.100.7", port: 4000 };
const elsewhere = { ip: "198.51.100.7", port: 5000 };

describe("a pair", () => {
  test("is valid from the first answer to a probe of ours, and to nothing else", () => {
    const pair = newPair();
    pair.onProbeSent(1, instant(0));
    expect(pair.onAnswer(2, instant(30))).toBe(false);
    expect(pair.isValid).toBe(false);
    expect(pair.onAnswer(1, instant(30))).toBe(true);
    expect(pair).toMatchObject({ isValid: true, isTrusted: true, rttMs: 30, unanswered: 0 });
  });

  test("takes each answer once", () => {
    const pair = newPair();
    pair.onProbeSent(1, instant(0));
    pair.onAnswer(1, instant(30));
    expect(pair.onAnswer(1, instant(40))).toBe(false);
  });

  test("smooths the round trip by an eighth of each new sample", () => {
    const pair = newPair();
    pair.onProbeSent(1, instant(0));
    pair.onAnswer(1, instant(40));
    pair.onProbeSent(2, instant(100));
    pair.onAnswer(2, instant(220));
    expect(pair.rttMs).toBe(50);
  });

  test("that nobody vouches for gets five probes until it has answered", () => {
    const pair = newPair();
    for (let i = 0; i < UNTRUSTED_PROBES; i++) {
      expect(pair.mayProbe).toBe(true);
      pair.onProbeSent(i, instant(i));
    }
    expect(pair.mayProbe).toBe(false);
    pair.onAnswer(0, instant(50));
    expect(pair.mayProbe).toBe(true);
  });

  test("counts probes that its address had before", () => {
    expect(newPair({ probesSent: UNTRUSTED_PROBES }).mayProbe).toBe(false);
  });

  test("remembers the probes of a whole round, whose answers are all still on their way", () => {
    const pair = newPair();
    for (let i = 0; i < 40; i++) pair.onProbeSent(i, instant(i));
    expect(pair.onAnswer(0, instant(900))).toBe(true);
  });

  test("hears the peer where it sends to and where answers come from", () => {
    const pair = newPair();
    expect([pair.hears(remote), pair.hears(elsewhere), pair.isStraight]).toEqual([true, false, true]);
    pair.answersFrom = elsewhere;
    expect([pair.hears(remote), pair.hears(elsewhere), pair.isStraight]).toEqual([true, true, false]);
  });

  test("that is invalidated forgets proof, round trip and probes in flight", () => {
    const pair = newPair();
    pair.onProbeSent(1, instant(0));
    pair.onAnswer(1, instant(10));
    pair.onProbeSent(2, instant(20));
    pair.invalidate();
    expect(pair).toMatchObject({ isValid: false, rttMs: undefined, unanswered: 0, peerConfirmed: false });
    expect(pair.onAnswer(2, instant(30))).toBe(false);
  });
});

const newPair = (options: { readonly probesSent?: number } = {}): Pair =>
  new Pair({
    leg: 1,
    remote,
    packedRemote: packAddress(remote),
    origin: "server-reflexive",
    isTrusted: false,
    isLocal: false,
    probesSent: options.probesSent ?? 0,
  });
