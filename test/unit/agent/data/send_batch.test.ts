import { describe, expect, test } from "vitest";
import { framesOf, SendBatch } from "../../../../agent/data/send_batch.ts";
import type { PathRef } from "../../../../agent/data/plane.ts";

const path: PathRef = { leg: 1, to: Uint8Array.of(1, 2) };

describe("the frames of a batch", () => {
  test.each([
    ["one", 100, 100, [100]],
    ["several of one size", 300, 100, [100, 100, 100]],
    ["the last one shorter", 250, 100, [100, 100, 50]],
    ["one that is shorter than the size", 40, 100, [40]],
    ["none", 0, 100, []],
  ])("%s", (_name, bytes, frameBytes, sizes) => {
    const batch = Uint8Array.from({ length: bytes }, (_, i) => i);
    const frames = [...framesOf(batch, frameBytes)];
    expect(frames.map((frame) => frame.length)).toEqual(sizes);
    expect(frames.flatMap((frame) => [...frame])).toEqual([...batch]);
  });
});

describe("a batch", () => {
  /** Sizes of the frames of each run of each call. */
  function calls(isCorked: boolean, sizes: readonly number[], paths: readonly PathRef[] = []): number[][][] {
    const made: number[][][] = [];
    const batch = new SendBatch<string>(2000, (leg, runs, count) => {
      expect(runs.slice(0, count).map(({ path }) => path.leg)).toEqual(Array.from({ length: count }, () => leg));
      made.push(
        runs
          .slice(0, count)
          .map(({ start, length, frameBytes }) =>
            [...framesOf(batch.bytes.subarray(start, start + length), frameBytes)].map((frame) => frame.length),
          ),
      );
    });
    if (isCorked) batch.cork();
    for (const [i, size] of sizes.entries()) {
      batch.place(paths[i] ?? path, size, "owner");
      batch.add(size);
    }
    batch.uncork();
    return made;
  }
  const sent = (isCorked: boolean, sizes: readonly number[], paths: readonly PathRef[] = []): number[][] =>
    calls(isCorked, sizes, paths).flat();

  test("runs on one leg leave in one call, those on another in another", () => {
    expect(calls(true, [1000, 400, 1000, 70, 80])).toEqual([[[1000, 400], [1000, 70], [80]]]);
    expect(calls(false, [1000, 400])).toEqual([[[1000]], [[400]]]);
    const elsewhere: PathRef = { leg: path.leg, to: Uint8Array.of(1, 3) };
    const other: PathRef = { leg: 2, to: path.to };
    expect(calls(true, [500, 500, 500, 500], [path, elsewhere, other, path])).toEqual([
      [[500], [500]],
      [[500]],
      [[500]],
    ]);
  });

  test("no call has more runs or bytes than fit", () => {
    const growing = Array.from({ length: 70 }, (_, i) => 100 + i);
    expect(calls(true, growing).map((call) => call.length)).toEqual([64, 6]);
    const large = Array.from({ length: 60 }, (_, i) => 1400 + i);
    for (const call of calls(true, large))
      expect(call.flat().reduce((sum, size) => sum + size, 0)).toBeLessThanOrEqual(65_000);
  });

  test("a frame that could not be sealed leaves nothing behind", () => {
    const made: { start: number; length: number; owner: string }[] = [];
    const batch = new SendBatch<string>(2000, (_leg, runs, count) => {
      for (const { start, length, owner } of runs.slice(0, count)) made.push({ start, length, owner });
    });
    batch.cork();
    batch.place(path, 500, "lost");
    batch.place(path, 300, "first");
    batch.add(300);
    batch.place(path, 900, "lost");
    batch.uncork();
    batch.place(path, 100, "lost");
    batch.flush();
    expect(made).toEqual([{ start: 0, length: 300, owner: "first" }]);
  });

  test("holds frames of one size and a shorter one at the end, while there is work at hand", () => {
    expect(sent(true, [1000, 1000, 1000, 400, 1000])).toEqual([[1000, 1000, 1000, 400], [1000]]);
    expect(sent(false, [1000, 1000])).toEqual([[1000], [1000]]);
  });

  test("a larger frame and another path begin another", () => {
    expect(sent(true, [500, 1000])).toEqual([[500], [1000]]);
    expect(sent(true, [500, 500], [path, { leg: 2, to: path.to }])).toEqual([[500], [500]]);
  });

  test("no call has more frames or bytes than every kernel takes", () => {
    expect(
      sent(
        true,
        Array.from({ length: 130 }, () => 100),
      ).map((call) => call.length),
    ).toEqual([64, 64, 2]);
    expect(
      sent(
        true,
        Array.from({ length: 50 }, () => 1472),
      ).map((call) => call.length),
    ).toEqual([44, 6]);
  });
});
