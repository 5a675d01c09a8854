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
  /** Sizes of the frames of each call. */
  function sent(isCorked: boolean, sizes: readonly number[], paths: readonly PathRef[] = []): number[][] {
    const calls: number[][] = [];
    const batch = new SendBatch<string>(2000, (_path, bytes, frameBytes) => {
      calls.push([...framesOf(bytes, frameBytes)].map((frame) => frame.length));
    });
    if (isCorked) batch.cork();
    for (const [i, size] of sizes.entries()) {
      batch.place(paths[i] ?? path, size, "owner");
      batch.add(size);
    }
    batch.uncork();
    return calls;
  }

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
