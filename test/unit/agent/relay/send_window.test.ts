/** The window on simulated lines: what waits on the way, and what is used of the line. */
import { describe, expect, test } from "vitest";
import { SendWindow } from "../../../../agent/driver/send_window.ts";
import { instant } from "../../../../shared/time.ts";

interface Line {
  readonly bytesPerMs: number;
  readonly roundTripMs: number;
}

/** A sender that always has more, on a line whose queue is endless: what waits in the second half (95th percentile), and how much of the line was used. */
function saturate(line: (now: number) => Line, milliseconds: number): { waitedMs: number; used: number } {
  const window = new SendWindow();
  const answers: number[] = [];
  let [freeAt, sent, capacity] = [0, 0, 0];
  const waits: number[] = [];
  for (let now = 0; now < milliseconds; now += 0.5) {
    const { bytesPerMs, roundTripMs } = line(now);
    const isLate = now > milliseconds / 2;
    while ((answers[0] ?? Number.POSITIVE_INFINITY) <= now) {
      answers.shift();
      window.onAnswered(instant(now));
    }
    const mark = (): void => {
      window.onMarked(instant(now));
      answers.push(Math.max(now, freeAt) + roundTripMs);
    };
    for (let room = window.room(instant(now)); room > 0; room = window.room(instant(now))) {
      const bytes = 1300;
      freeAt = Math.max(now, freeAt) + bytes / bytesPerMs;
      if (isLate) sent += bytes;
      if (window.onSent(bytes, instant(now))) mark();
    }
    if (window.isStuck(instant(now))) mark();
    if (!isLate) continue;
    capacity += bytesPerMs / 2;
    waits.push(freeAt - now);
  }
  const waitedMs = waits.toSorted((a, b) => a - b)[Math.floor(waits.length * 0.95)] ?? 0;
  return { waitedMs, used: sent / capacity };
}

describe.each([
  // Here the smallest window alone is a quarter of a second.
  { mbits: 1, roundTripMs: 20, mostMs: 1000 },
  { mbits: 10, roundTripMs: 0, mostMs: 100 },
  { mbits: 10, roundTripMs: 50, mostMs: 100 },
  { mbits: 10, roundTripMs: 200, mostMs: 100 },
  { mbits: 100, roundTripMs: 50, mostMs: 100 },
  { mbits: 100, roundTripMs: 200, mostMs: 100 },
  { mbits: 1000, roundTripMs: 10, mostMs: 100 },
])("a saturated line of $mbits Mbit/s with a round trip of $roundTripMs ms", ({ mbits, roundTripMs, mostMs }) => {
  test(`is used, with less than ${mostMs} ms waiting on it nearly always`, () => {
    const { waitedMs, used } = saturate(() => ({ bytesPerMs: mbits * 125, roundTripMs }), 30_000);
    console.log(
      `${mbits} Mbit/s, ${roundTripMs} ms: ${waitedMs.toFixed(0)} ms wait, ${(100 * used).toFixed(0)} % used`,
    );
    expect(waitedMs).toBeLessThan(mostMs);
    expect(used).toBeGreaterThan(0.85);
  });
});

test("a way that has become longer is used again after a while, and one that has become narrower holds less", () => {
  const longer = saturate((now) => ({ bytesPerMs: 1250, roundTripMs: now < 10_000 ? 5 : 150 }), 60_000);
  expect(longer.used).toBeGreaterThan(0.8);
  const narrower = saturate((now) => ({ bytesPerMs: now < 10_000 ? 12_500 : 1250, roundTripMs: 20 }), 60_000);
  expect(narrower.waitedMs).toBeLessThan(150);
  expect(narrower.used).toBeGreaterThan(0.85);
});

test("what was sent in small pieces is never waited for in vain: there is always a mark to come", () => {
  const window = new SendWindow();
  const now = instant(0);
  let marks = 0;
  for (let sent = 0; sent < 10e6; sent += 100) {
    if (window.room(now) <= 0) {
      if (window.isStuck(now)) {
        window.onMarked(now);
        marks++;
      }
      expect(marks).toBeGreaterThan(0);
      for (; marks > 0; marks--) window.onAnswered(now);
    }
    expect(window.room(now)).toBeGreaterThan(0);
    if (!window.onSent(100, now)) continue;
    window.onMarked(now);
    marks++;
  }
});
