import { describe, expect, test } from "vitest";
import { Pair } from "../../../../agent/path/pair.ts";
import { PathWatch } from "../../../../agent/path/path_watch.ts";
import { packAddress } from "../../../../shared/address.ts";
import { instant } from "../../../../shared/time.ts";

const at = (ms: number) => instant(100_000 + ms);
const ROUND_TRIP_MS = 40;
/** As path_watch.ts: after a switch nothing is compared for a second, and then silence is believed after 550 ms and a round trip. */
const VERDICT_MS = 1000 + 550 + ROUND_TRIP_MS;
/** Counts and reports come each 100 ms, and may just have been missed. */
const STEPS_MS = 2 * 110;

describe("reports count what came by any path, so late frames of the old one are in them", () => {
  /** After a switch at 0 the new path answers probes and swallows data; the old one brings its last frames until `lateMs`. */
  const deafAfter = (lateMs: number): number | undefined => {
    const watch = new PathWatch();
    const pair = newPair();
    let reported = 1000;
    watch.onDeliveryReport({ small: reported, large: 0 }, pair, at(0));
    watch.onRungChange(at(0));
    for (let now = 0; now <= 5000; now += 10) {
      if (now % 100 === 0) {
        pair.onProbeSent(now + 1, at(now - ROUND_TRIP_MS));
        pair.onAnswer(now + 1, at(now));
        watch.onTraffic(false, 0, at(now));
        watch.onDataSent({ small: 10, large: 0 }, at(now));
        if (now <= lateMs) watch.onDeliveryReport({ small: ++reported, large: 0 }, pair, at(now));
      }
      const dueAt = watch.dueAt(pair, true, 15_000);
      if (dueAt !== undefined && at(now) >= dueAt && watch.verdict(pair, at(now)) === "deaf") return now;
    }
    return undefined;
  };

  test("they vouch for nothing that is judged: the verdict on the new path comes when it would without them", () => {
    const without = deafAfter(-1);
    expect(without).toBeLessThanOrEqual(VERDICT_MS + STEPS_MS);
    for (const lateMs of [100, 400, 900]) expect(deafAfter(lateMs)).toBe(without);
  });

  test("those that come later still put it off by no longer than they themselves come", () => {
    expect(deafAfter(2000)).toBeLessThanOrEqual(2000 + 550 + ROUND_TRIP_MS + STEPS_MS);
  });

  test("a report that is missing because nothing was sent condemns nobody", () => {
    const watch = new PathWatch();
    const pair = newPair();
    watch.onDeliveryReport({ small: 5, large: 0 }, pair, at(0));
    watch.onRungChange(at(0));
    watch.onDataSent({ small: 10, large: 0 }, at(1100));
    for (let now = 1100; now < 6000; now += 100) {
      pair.onProbeSent(now, at(now - ROUND_TRIP_MS));
      pair.onAnswer(now, at(now));
      expect(watch.verdict(pair, at(now))).toBe("probe");
    }
  });
});

test("three probes go unanswered while reports come: the next ones leave all the same", () => {
  const watch = new PathWatch();
  const pair = newPair();
  pair.onProbeSent(1, at(0));
  pair.onAnswer(1, at(400));
  const probesAt: number[] = [];
  for (let now = 400; now < 1500; now += 10) {
    if (now % 100 === 0) {
      watch.onTraffic(false, 0, at(now));
      watch.onDataSent({ small: 10, large: 0 }, at(now));
      watch.onDeliveryReport({ small: now, large: 0 }, pair, at(now));
      watch.onHeard();
    }
    const dueAt = watch.dueAt(pair, true, 15_000);
    if (dueAt === undefined || at(now) < dueAt) continue;
    if (watch.verdict(pair, at(now)) !== "probe") break;
    probesAt.push(now);
    pair.onProbeSent(1000 + now, at(now));
  }
  expect(probesAt.length).toBe(5);
  expect(Math.max(...probesAt.map((sentAt, index) => sentAt - (probesAt[index - 1] ?? sentAt)))).toBeLessThanOrEqual(
    100,
  );
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
