import { describe, expect, test } from "vitest";
import {
  type EpochKeys,
  openInitiation,
  REJECT_AFTER_MS,
  REKEY_AFTER_MS,
} from "../../../../shared/session/peer_session.ts";
import { X25519Key } from "../../../../shared/session/primitives.ts";
import { after } from "../../../../shared/time.ts";
import { decodeHandshake, handshakeMacs } from "../../../../shared/wire/handshake.ts";
import { End, establish, flipped, flood, LIST, makeEnds, opens, randomOf, START } from "./ends.ts";

describe("a handshake", () => {
  test("installs one epoch on both sides with matching keys, and the initiator may send first", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    expect(a.session.isHandshaking).toBe(true);
    expect(b.receive(a.take(), START)).toBe(true);
    expect(b.active).toBeUndefined();
    expect(b.actions).toEqual(["install_epoch", "send_handshake", "established"]);
    expect(a.receive(b.take(), START)).toBe(true);
    expect(a.actions).toEqual(["send_handshake", "install_epoch", "established"]);

    const mine = a.active as EpochKeys;
    const theirs = b.epochs.get(mine.remoteIndex) as EpochKeys;
    expect(theirs.remoteIndex).toBe(mine.localIndex);
    expect(theirs.receiveKey).toEqual(mine.sendKey);
    expect(theirs.sendKey).toEqual(mine.receiveKey);
    expect(mine.sendKey).not.toEqual(mine.receiveKey);

    b.confirm(theirs.localIndex, START);
    expect(b.active).toBe(theirs);
    expect([a.session.isHandshaking, b.session.isHandshaking]).toEqual([false, false]);
  });

  test("gives each side the other's candidates", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.session.initiate(LIST, START);
    const sent = a.session.poll();
    if (sent?.type !== "send_handshake") throw new Error("no initiation");
    const packet = decodeHandshake(sent.bytes);
    if (packet?.type !== "initiation") throw new Error("not an initiation");
    const opened = openInitiation(b.key, packet, randomOf("x"));
    expect(opened?.payload.list).toEqual(LIST);
    expect(opened?.remoteStatic).toEqual(a.key.publicKey);
    if (opened === undefined) return;
    const answer = { ...LIST, generation: 99 };
    b.session.respond(opened, answer, START);
    const actions = [b.session.poll(), b.session.poll(), b.session.poll()];
    const response = actions.find((action) => action?.type === "send_handshake");
    const decoded = response === undefined ? undefined : decodeHandshake(response.bytes);
    if (decoded?.type !== "response") throw new Error("no response");
    a.session.handleResponse(decoded, START);
    const established = [a.session.poll(), a.session.poll()].find((action) => action?.type === "established");
    expect(established?.payload.list).toEqual(answer);
  });

  test("every transmission of an initiation is a new one, at growing intervals, until the attempt fails", () => {
    const { smaller: a } = makeEnds();
    a.initiate(START);
    const sent: number[] = [];
    const seen = new Set<string>();
    for (let now = a.session.deadline(); now !== undefined; now = a.session.deadline()) {
      seen.add(String(a.outbox.at(-1)));
      const before = a.outbox.length;
      a.timeout(now);
      if (a.outbox.length > before) sent.push(now - START);
    }
    expect(sent).toEqual([1000, 3000, 7000, 15_000, 23_000]);
    expect(seen.size).toBe(sent.length + 1);
    expect(a.actions.at(-1)).toBe("handshake_failed");
    expect(a.session.isHandshaking).toBe(false);
  });

  test("the answer to an earlier transmission is no answer to the newest", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    b.receive(a.take(), START);
    const late = b.take();
    a.timeout(after(START, 1000));
    expect(a.receive(late, after(START, 1001))).toBe(false);
    b.receive(a.take(), after(START, 1002));
    expect(a.receive(b.take(), after(START, 1003))).toBe(true);
    expect(opens(a, b)).toBe(true);
  });

  test("to a peer whose static key is of low order never leaves, and fails in the end", () => {
    const key = new X25519Key(new Uint8Array(32).fill(5));
    const end = new End(key, { publicKey: new Uint8Array(32), dh: () => undefined } as unknown as X25519Key, "low", 1);
    end.initiate(START);
    expect(end.outbox).toEqual([]);
    end.timeout(after(START, 30_000));
    expect(end.actions).toEqual(["handshake_failed"]);
  });
});

describe("replayed initiations", () => {
  test("are refused, and change nothing", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    const initiation = a.take();
    expect(b.receive(initiation, START)).toBe(true);
    a.receive(b.take(), START);
    const before = b.snapshot();
    for (const at of [0, 1, 1000, 100_000]) expect(b.receive(initiation, after(START, at))).toBe(false);
    expect(b.snapshot()).toEqual(before);
  });

  test("are refused after the responder has restarted, when it has kept the greatest timestamp", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    const initiation = a.take();
    b.receive(initiation, START);
    const restarted = new End(b.key, a.key, "restarted", 5000, b.session.greatestTimestamp);
    expect(restarted.receive(initiation, after(START, 5))).toBe(false);
    expect(restarted.epochs.size).toBe(0);
    a.timeout(after(START, 1000));
    expect(restarted.receive(a.take(), after(START, 1000))).toBe(true);
  });

  test("an older initiation that was overtaken is refused too", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    const older = a.take();
    a.timeout(after(START, 1000));
    expect(b.receive(a.take(), after(START, 1001))).toBe(true);
    b.outbox = [];
    expect(b.receive(older, after(START, 1002))).toBe(false);
  });
});

describe("forged, truncated and bit-flipped packets change nothing", () => {
  test("initiation", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    const genuine = a.take();
    const before = b.snapshot();
    for (const bad of damaged(genuine)) expect(b.receive(bad, START)).toBe(false);
    expect(b.snapshot()).toEqual(before);
    expect(b.receive(genuine, START)).toBe(true);
  });

  test("response: the genuine one is still accepted after every forgery", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    b.receive(a.take(), START);
    const genuine = b.take();
    const before = a.snapshot();
    for (const bad of damaged(genuine)) expect(a.receive(bad, START)).toBe(false);
    expect(a.snapshot()).toEqual(before);
    expect(a.receive(genuine, START)).toBe(true);
    expect(opens(a, b)).toBe(true);
  });

  test("response whose sender index was changed by somebody who can compute mac1", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    b.receive(a.take(), START);
    const genuine = decodeHandshake(b.take());
    if (genuine?.type !== "response") throw new Error("no response");
    const before = a.snapshot();
    expect(a.session.handleResponse({ ...genuine, senderIndex: genuine.senderIndex ^ 1 }, START)).toBe(false);
    expect(a.snapshot()).toEqual(before);
    expect(a.session.handleResponse(genuine, START)).toBe(true);
    a.drain();
    expect(opens(a, b)).toBe(true);
  });

  test("initiation whose sender index was changed by somebody who can compute mac1", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    const genuine = decodeHandshake(a.take());
    if (genuine?.type !== "initiation") throw new Error("no initiation");
    const forged = { ...genuine, senderIndex: genuine.senderIndex + 1 };
    expect(openInitiation(b.key, forged, randomOf("x"))).toBeUndefined();
    expect(openInitiation(b.key, genuine, randomOf("x"))).toBeDefined();
  });

  test("cookie reply: what was not sealed for this very initiation is not sent along", () => {
    const { smaller: a, larger: b } = makeEnds();
    flood(b, START);
    a.initiate(START);
    expect(b.receive(a.take(), START, "192.0.2.1")).toBe(false);
    const reply = b.take();
    const before = a.snapshot();
    for (const bad of damaged(reply)) a.receive(bad, START);
    expect(a.snapshot()).toEqual(before);
    a.timeout(after(START, 1000));
    expect(isZero(handshakeMacs(a.take())?.mac2)).toBe(true);
  });
});

describe("under load", () => {
  test("an initiator that is asked for a cookie sends it with its next transmission, and gets in", () => {
    const { smaller: a, larger: b } = makeEnds();
    flood(b, START);
    a.initiate(START);
    expect(b.receive(a.take(), START, "192.0.2.1")).toBe(false);
    a.receive(b.take(), START);
    const retryAt = after(START, 1000);
    a.timeout(retryAt);
    const retry = a.take();
    expect(isZero(handshakeMacs(retry)?.mac2)).toBe(false);
    flood(b, retryAt);
    expect(b.receive(retry, retryAt, "192.0.2.1")).toBe(true);
    a.receive(b.take(), retryAt);
    expect(opens(a, b)).toBe(true);
  });

  test("a cookie is forgotten after two minutes", () => {
    const { smaller: a, larger: b } = makeEnds();
    flood(b, START);
    a.initiate(START);
    b.receive(a.take(), START, "192.0.2.1");
    a.receive(b.take(), START);
    a.session.reset();
    const later = after(START, 120_000);
    a.initiate(later);
    expect(isZero(handshakeMacs(a.outbox.at(-1) ?? new Uint8Array())?.mac2)).toBe(true);
  });
});

describe("rekeying", () => {
  test("is due for the initiator after two minutes, for the responder twenty seconds later", () => {
    const { smaller: a, larger: b } = makeEnds();
    establish(a, b, START);
    const due = (end: End, ms: number) => end.session.isRekeyDue(after(START, ms));
    expect([due(a, REKEY_AFTER_MS - 1), due(a, REKEY_AFTER_MS)]).toEqual([false, true]);
    expect([due(b, 139_999), due(b, 140_000)]).toEqual([false, true]);
  });

  test("keeps the old epoch until the new one is confirmed, and fifteen seconds longer", () => {
    const { smaller: a, larger: b } = makeEnds();
    establish(a, b, START);
    const [oldA, oldB] = [a.active?.localIndex ?? 0, b.active?.localIndex ?? 0];
    const at = after(START, REKEY_AFTER_MS);
    a.initiate(at);
    b.receive(a.take(), at);
    expect(b.active?.localIndex).toBe(oldB);
    expect(opens(b, a)).toBe(true);
    a.receive(b.take(), at);
    expect([opens(a, b), opens(b, a)]).toEqual([true, true]);
    b.confirm(a.active?.remoteIndex ?? 0, at);
    expect(a.epochs.has(oldA) && b.epochs.has(oldB)).toBe(true);
    expect(opens(b, a)).toBe(true);
    for (const end of [a, b]) end.timeout(after(at, 14_999));
    expect(a.epochs.has(oldA) && b.epochs.has(oldB)).toBe(true);
    for (const end of [a, b]) end.timeout(after(at, 15_000));
    expect([...a.epochs.keys(), ...b.epochs.keys()]).toEqual([a.active?.localIndex, b.active?.localIndex]);
  });

  test("an epoch that nobody renewed ends after three minutes", () => {
    const { smaller: a, larger: b } = makeEnds();
    establish(a, b, START);
    for (const end of [a, b]) end.timeout(after(START, REJECT_AFTER_MS - 1));
    expect([a.session.isEstablished, b.session.isEstablished]).toEqual([true, true]);
    for (const end of [a, b]) end.timeout(after(START, REJECT_AFTER_MS));
    expect([a.session.isEstablished, b.session.isEstablished, a.epochs.size, b.epochs.size]).toEqual([
      false,
      false,
      0,
      0,
    ]);
  });

  test("the responder begins anew when its epoch was never confirmed, but not while the peer may still be about to", () => {
    const { smaller: a, larger: b } = makeEnds();
    a.initiate(START);
    b.receive(a.take(), START);
    expect(b.session.isRekeyDue(after(START, 29_999))).toBe(false);
    expect(b.session.isRekeyDue(after(START, 30_000))).toBe(true);
  });

  test("a confirmation of an epoch that is not the awaited one changes nothing", () => {
    const { smaller: a, larger: b } = makeEnds();
    establish(a, b, START);
    const before = b.snapshot();
    b.confirm(b.active?.localIndex ?? 0, START);
    b.confirm(424_242, START);
    expect(b.snapshot()).toEqual(before);
  });

  test("a reset forgets every key and stops every timer", () => {
    const { smaller: a, larger: b } = makeEnds();
    establish(a, b, START);
    a.initiate(after(START, 1));
    a.session.reset();
    a.drain();
    expect(a.epochs.size).toBe(0);
    expect(a.session.deadline()).toBeUndefined();
    expect([a.session.isEstablished, a.session.isHandshaking]).toEqual([false, false]);
  });
});

const isZero = (bytes: Uint8Array | undefined): boolean => bytes?.every((byte) => byte === 0) === true;

/** Every bit flipped, every truncation, and something appended. Reserved bytes are covered by mac1 like all others. */
function* damaged(genuine: Uint8Array): Generator<Uint8Array> {
  // The mac2 of an unloaded handshake is not looked at.
  const isCookie = genuine[0] === 0x07;
  const end = isCookie ? genuine.length : genuine.length - 16;
  for (let bit = isCookie ? 32 : 0; bit < end * 8; bit += 5) yield flipped(genuine, bit);
  for (let length = 0; length < genuine.length; length += 3) yield genuine.subarray(0, length);
  if (!isCookie) yield Uint8Array.from([...genuine, 0]);
}
