/** Both sides begin at once. Whatever is lost, late or reordered, both must end in one epoch that they share. */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { after, type Instant } from "../../../../shared/time.ts";
import { type End, establish, makeEnds, opens, randomOf, START } from "./ends.ts";

const bothOpen = (a: End, b: End): boolean => opens(a, b) && opens(b, a);

describe("crossing initiations", () => {
  test("the larger key's arrives first: the smaller key's wins", () => {
    const { smaller, larger } = bothBegin();
    const [fromSmaller, fromLarger] = [smaller.take(), larger.take()];
    expect(smaller.receive(fromLarger, START)).toBe(false);
    expect(larger.receive(fromSmaller, START)).toBe(true);
    expect(smaller.receive(larger.take(), START)).toBe(true);
    larger.confirm(smaller.active?.remoteIndex ?? 0, START);
    expect(bothOpen(smaller, larger)).toBe(true);
    expect(larger.session.isHandshaking).toBe(false);
  });

  test("the smaller key's arrives first: it wins as well", () => {
    const { smaller, larger } = bothBegin();
    const [fromSmaller, fromLarger] = [smaller.take(), larger.take()];
    expect(larger.receive(fromSmaller, START)).toBe(true);
    expect(smaller.receive(fromLarger, START)).toBe(false);
    expect(smaller.receive(larger.take(), START)).toBe(true);
    larger.confirm(smaller.active?.remoteIndex ?? 0, START);
    expect(bothOpen(smaller, larger)).toBe(true);
  });

  test("both are lost: the retries of a second later cross again, and the smaller key's wins", () => {
    const { smaller, larger } = bothBegin();
    smaller.take();
    larger.take();
    const now = after(START, 1000);
    for (const end of [smaller, larger]) end.timeout(now);
    const [fromSmaller, fromLarger] = [smaller.take(), larger.take()];
    expect(smaller.receive(fromLarger, now)).toBe(false);
    expect(larger.receive(fromSmaller, now)).toBe(true);
    expect(smaller.receive(larger.take(), now)).toBe(true);
    larger.confirm(smaller.active?.remoteIndex ?? 0, now);
    expect(bothOpen(smaller, larger)).toBe(true);
  });

  test("only the smaller key's is lost: the larger key's is refused at first, then either retry will do", () => {
    const { smaller, larger } = bothBegin();
    smaller.take();
    expect(smaller.receive(larger.take(), START)).toBe(false);
    const now = after(START, 1600);
    larger.timeout(now);
    expect(smaller.receive(larger.take(), now)).toBe(true);
    expect(larger.receive(smaller.take(), now)).toBe(true);
    smaller.confirm(larger.active?.remoteIndex ?? 0, now);
    expect(bothOpen(smaller, larger)).toBe(true);
    expect([smaller.session.isHandshaking, larger.session.isHandshaking]).toEqual([false, false]);
  });

  test("each answers the other's: the larger key takes the response to its own, so nobody waits for ever", () => {
    const { smaller, larger } = bothBegin();
    const late = after(START, 1600);
    const [fromSmaller, fromLarger] = [smaller.take(), larger.take()];
    expect(larger.receive(fromSmaller, late)).toBe(true);
    expect(smaller.receive(fromLarger, late)).toBe(true);
    const [answerOfSmaller, answerOfLarger] = [smaller.take(), larger.take()];
    expect(smaller.receive(answerOfLarger, late)).toBe(false);
    expect(larger.receive(answerOfSmaller, late)).toBe(true);
    smaller.confirm(larger.active?.remoteIndex ?? 0, late);
    expect(bothOpen(smaller, larger)).toBe(true);
  });

  test("during a rekey they leave the epoch before in use until the new one stands", () => {
    const { smaller, larger } = makeEnds("rekey");
    establish(larger, smaller, START);
    const now = after(START, 120_000);
    for (const end of [smaller, larger]) end.initiate(now);
    const [fromSmaller, fromLarger] = [smaller.take(), larger.take()];
    expect(bothOpen(smaller, larger)).toBe(true);
    smaller.receive(fromLarger, now);
    larger.receive(fromSmaller, now);
    expect(bothOpen(smaller, larger)).toBe(true);
    smaller.receive(larger.take(), now);
    expect(bothOpen(smaller, larger)).toBe(true);
    larger.confirm(smaller.active?.remoteIndex ?? 0, now);
    expect(bothOpen(smaller, larger)).toBe(true);
  });
});

test("two ends that begin at any moments, over a network that loses, delays and reorders, soon share one epoch", () => {
  fc.assert(
    fc.property(
      fc.record({
        seed: fc.integer({ min: 0, max: 1e9 }),
        beginAt: fc.tuple(fc.integer({ min: 0, max: 4000 }), fc.integer({ min: 0, max: 4000 })),
        lossPercent: fc.integer({ min: 0, max: 50 }),
        delayMs: fc.integer({ min: 1, max: 2500 }),
        lossyForMs: fc.integer({ min: 0, max: 20_000 }),
      }),
      (world) => {
        const { agreedAtMs, installs } = simulate(world);
        // A retry each 8 s at most, a failed attempt begun anew within a second, a handshake and its confirmation.
        expect(agreedAtMs).toBeLessThan(world.lossyForMs + 50_000);
        expect(installs).toBeLessThan(40);
      },
    ),
    { numRuns: 60 },
  );
});

interface World {
  readonly seed: number;
  readonly beginAt: readonly [number, number];
  readonly lossPercent: number;
  readonly delayMs: number;
  readonly lossyForMs: number;
}

/**
 * Virtual time in steps of 10 ms. An initiator sends frames under its newest epoch every 100 ms, as probes do; every second each end
 * that has no session begins one, as the node does. Agreement must last for five seconds.
 */
function simulate(world: World): { readonly agreedAtMs: number; readonly installs: number } {
  const random = randomOf(`world ${world.seed}`);
  const chance = () => ((random(1)[0] ?? 0) * 100) / 256;
  const { smaller, larger } = makeEnds(`ends ${world.seed % 8}`);
  const ends = [smaller, larger] as const;
  const flying: { readonly at: number; readonly to: 0 | 1; readonly bytes?: Uint8Array; readonly index?: number }[] =
    [];
  let agreedSince: number | undefined;
  for (let ms = 0; ms < 120_000; ms += 10) {
    const now: Instant = after(START, ms);
    const send = (to: 0 | 1, packet: { readonly bytes?: Uint8Array; readonly index?: number }) => {
      if (ms < world.lossyForMs && chance() < world.lossPercent) return;
      const delay = ms < world.lossyForMs ? world.delayMs * (0.2 + chance() / 100) : 50;
      flying.push({ at: ms + delay, to, ...packet });
    };
    for (const [i, end] of ends.entries()) {
      const other: 0 | 1 = i === 0 ? 1 : 0;
      const begin = world.beginAt[i] ?? 0;
      const deadline = end.session.deadline();
      if (deadline !== undefined && now >= deadline) end.timeout(now);
      const isIdle = !end.session.isEstablished && !end.session.isHandshaking;
      if (ms >= begin && (ms - begin) % 1000 < 10 && (isIdle || end.session.isRekeyDue(now))) end.initiate(now);
      for (const bytes of end.outbox.splice(0)) send(other, { bytes });
      if (ms % 100 === 0 && end.active !== undefined) send(other, { index: end.active.remoteIndex });
    }
    for (const packet of flying.filter(({ at }) => at <= ms)) {
      flying.splice(flying.indexOf(packet), 1);
      const end = ends[packet.to];
      if (packet.bytes !== undefined) end.receive(packet.bytes, now);
      if (packet.index !== undefined && end.epochs.has(packet.index)) end.confirm(packet.index, now);
    }
    if (!bothOpen(smaller, larger)) agreedSince = undefined;
    else agreedSince ??= ms;
    if (agreedSince !== undefined && ms - agreedSince >= 5000) break;
  }
  const installs = ends.flatMap(({ actions }) => actions.filter((type) => type === "install_epoch")).length;
  return { agreedAtMs: agreedSince ?? Number.POSITIVE_INFINITY, installs };
}

function bothBegin(): { smaller: End; larger: End } {
  const pair = makeEnds();
  pair.smaller.initiate(START);
  pair.larger.initiate(START);
  return pair;
}
