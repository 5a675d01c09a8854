/** The search for the largest datagram, with a path that the test makes up: what it carries, and what it loses. */
import { assert, integer, property } from "fast-check";
import { describe, expect, test } from "vitest";
import { PathMtu } from "../../../../agent/path/path_mtu.ts";
import { type Instant, instant } from "../../../../shared/time.ts";

/** RFC 8200 §5 and Ethernet, less the headers: not imported, since they are the promise. */
const BASE_IPV4 = 1280 - 28;
const USUAL_IPV4 = 1500 - 28;
const JUMBO_IPV4 = 9000 - 28;
const PATIENCE_MS = 100;

/** A path that carries datagrams up to `carries` and answers after `delayMs`, unless `isLost` says otherwise. */
class Path {
  readonly mtu: PathMtu;
  carries: number;
  now: Instant = instant(0);
  readonly probed: number[] = [];
  readonly #delayMs: number;
  readonly #isLost: () => boolean;
  #transactions = 0;

  constructor(carries: number, options: { isLocal?: boolean; delayMs?: number; isLost?: () => boolean } = {}) {
    this.carries = carries;
    this.mtu = new PathMtu(4, options.isLocal ?? false);
    this.#delayMs = options.delayMs ?? 20;
    this.#isLost = options.isLost ?? (() => false);
    this.mtu.start(this.now);
  }

  /** Runs until nothing is due within the time. */
  pass(milliseconds: number, isInUse = true): void {
    const end = this.now + milliseconds;
    const answers: { readonly at: number; readonly transaction: number }[] = [];
    for (;;) {
      const probeAt = this.mtu.dueAt(isInUse);
      const answerAt = answers[0]?.at;
      const next = Math.min(probeAt ?? Infinity, answerAt ?? Infinity);
      if (next > end) break;
      this.now = instant(Math.max(this.now, next));
      if (answerAt !== undefined && answerAt <= this.now) {
        this.mtu.handleAnswer(answers.shift()?.transaction ?? -1, this.now);
        continue;
      }
      const transaction = ++this.#transactions;
      const size = this.mtu.takeProbe(transaction, PATIENCE_MS, this.now);
      if (size === undefined) continue;
      this.probed.push(size);
      if (size <= this.carries && !this.#isLost()) answers.push({ at: this.now + this.#delayMs, transaction });
    }
    this.now = instant(end);
  }
}

describe("a path", () => {
  test("of Ethernet is known after one probe and one round trip", () => {
    const path = new Path(USUAL_IPV4);
    expect(path.mtu.size).toBe(BASE_IPV4);
    path.pass(25);
    expect([path.mtu.size, path.mtu.isSearching, path.probed]).toEqual([USUAL_IPV4, false, [USUAL_IPV4]]);
    path.pass(3_600_000);
    expect(path.probed).toHaveLength(1);
  });

  test("of IPv6 begins with what IPv6 promises", () => {
    expect(new PathMtu(6, false).size).toBe(1280 - 48);
  });

  test("that carries the base size and no more is known soon, and stays there", () => {
    const path = new Path(BASE_IPV4);
    path.pass(3000);
    expect([path.mtu.size, path.mtu.isSearching]).toEqual([BASE_IPV4, false]);
  });

  test("within one's own network may carry jumbo frames", () => {
    const path = new Path(JUMBO_IPV4, { isLocal: true });
    path.pass(60);
    expect([path.mtu.size, path.probed]).toEqual([JUMBO_IPV4, [USUAL_IPV4, JUMBO_IPV4]]);
  });

  test("within one's own network that does not is not searched in between", () => {
    const path = new Path(USUAL_IPV4, { isLocal: true });
    path.pass(1000);
    expect([path.mtu.size, path.mtu.isSearching]).toEqual([USUAL_IPV4, false]);
    expect(path.probed).toEqual([USUAL_IPV4, JUMBO_IPV4, JUMBO_IPV4, JUMBO_IPV4]);
  });

  test("of any size is found to the byte or nearly, within the probes that are stated", () => {
    assert(
      property(integer({ min: BASE_IPV4, max: USUAL_IPV4 }), (carries) => {
        const path = new Path(carries);
        path.pass(10_000);
        expect(path.mtu.isSearching).toBe(false);
        expect(path.mtu.size).toBeLessThanOrEqual(carries);
        expect(carries - path.mtu.size).toBeLessThan(4);
        expect(path.probed.length).toBeLessThanOrEqual(3 * 8);
      }),
    );
  });

  test("that has become wider is found so after ten minutes, if it is used", () => {
    const path = new Path(1400);
    path.pass(5000);
    path.carries = USUAL_IPV4;
    path.pass(700_000, false);
    expect(path.mtu.size).toBeLessThanOrEqual(1400);
    path.pass(1000, true);
    expect(path.mtu.size).toBe(USUAL_IPV4);
  });
});

describe("loss", () => {
  test("of a probe costs nothing but another one", () => {
    let lost = 0;
    const path = new Path(USUAL_IPV4, { isLost: () => ++lost <= 2 });
    path.pass(3 * PATIENCE_MS);
    expect([path.mtu.size, path.probed]).toEqual([USUAL_IPV4, [USUAL_IPV4, USUAL_IPV4, USUAL_IPV4]]);
  });

  test("of one in ten probes leaves nearly every path at its size, and no path without one", () => {
    let seed = 7;
    const random = (): number => (seed = (seed * 48_271) % 2_147_483_647) / 2_147_483_647;
    let full = 0;
    for (let i = 0; i < 500; i++) {
      const path = new Path(USUAL_IPV4, { isLost: () => random() < 0.1 });
      path.pass(20_000);
      expect(path.mtu.isSearching).toBe(false);
      if (path.mtu.size === USUAL_IPV4) full++;
    }
    expect(full).toBeGreaterThanOrEqual(495);
  });

  test("that was only lateness is taken back", () => {
    const path = new Path(USUAL_IPV4, { delayMs: 3 * PATIENCE_MS + 10 });
    path.pass(3000);
    expect(path.mtu.size).toBe(USUAL_IPV4);
  });
});

describe("a path that has become narrower", () => {
  test("is at the base size at once, and at its new one a moment later", () => {
    const path = new Path(USUAL_IPV4);
    path.pass(1000);
    path.carries = 1350;
    path.mtu.shrink(path.now);
    expect([path.mtu.size, path.mtu.isSearching]).toEqual([BASE_IPV4, true]);
    path.pass(3000);
    expect(path.mtu.size).toBeLessThanOrEqual(1350);
    expect(path.mtu.size).toBeGreaterThan(1346);
  });

  test("is told from a dead one by a probe of the base size", () => {
    const path = new Path(USUAL_IPV4);
    path.pass(1000);
    expect(path.mtu.takeBaseProbe(77)).toBe(BASE_IPV4);
    expect(path.mtu.baseAnsweredAt).toBeUndefined();
    expect(path.mtu.handleAnswer(77, instant(1100))).toBe(true);
    expect([path.mtu.baseAnsweredAt, path.mtu.size]).toEqual([1100, USUAL_IPV4]);
    expect(path.mtu.handleAnswer(77, instant(1200))).toBe(false);
  });
});

test("probes without answers are forgotten in the end", () => {
  const mtu = new PathMtu(4, false);
  for (let i = 0; i < 1000; i++) mtu.takeBaseProbe(i);
  expect(mtu.handleAnswer(0, instant(1))).toBe(false);
  expect(mtu.handleAnswer(999, instant(1))).toBe(true);
});
