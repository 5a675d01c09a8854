/** Stream frames pass through the data path as they are: sealed one by one, handed up in one batch per peer and turn. */
import { expect, test } from "vitest";
import { BatchWriter, batchEntries } from "../../../../shared/batch.ts";
import { FRAME_OVERHEAD_BYTES } from "../../../../shared/wire/frame.ts";
import { carry, drops, makePair, makeSide, PEER, T0 } from "./planes.ts";

test("a batch goes out as one frame each, and comes up as one batch with the same bytes in the order of arrival", () => {
  const { a, b } = makePair();
  a.plane.handleCommand({ type: "send_streams", peer: PEER, batch: batchOf([1, 2, 3], [4], [5, 6]) }, T0);
  const sent = a.world.take();
  expect(sent.map(({ bytes }) => bytes.length - FRAME_OVERHEAD_BYTES)).toEqual([3, 1, 2]);
  carry(a, b, sent.toReversed());
  // A repeated frame is a replay and goes nowhere.
  carry(a, b, sent);
  expect(b.plane.deadline()).toBe(T0);
  b.plane.handleTimeout(T0);
  const reports = b.world.reported("stream_frames");
  expect(reports.map(({ peer, batch }) => [peer, [...batchEntries(batch)].map((frame) => [...frame])])).toEqual([
    [PEER, [[5, 6], [4], [1, 2, 3]]],
  ]);
  expect(b.world.delivered).toEqual([]);
});

test("they count as traffic of the peer at both ends", () => {
  const { a, b } = makePair();
  a.plane.handleCommand({ type: "send_streams", peer: PEER, batch: batchOf(Array.from({ length: 700 }, () => 7)) }, T0);
  carry(a, b);
  for (const side of [a, b]) {
    side.plane.handleTimeout(side.plane.deadline() ?? T0);
    const at = side.plane.deadline();
    if (at !== undefined) side.plane.handleTimeout(at);
  }
  expect(a.world.reported("activity")).toMatchObject([
    { peer: PEER, sent: { small: 0, large: 1 }, received: { small: 0, large: 0 } },
  ]);
  expect(b.world.reported("activity")).toMatchObject([
    { peer: PEER, sent: { small: 0, large: 0 }, received: { small: 0, large: 1 } },
  ]);
});

test("without a path or keys they are dropped and counted: the streams repeat them", () => {
  const side = makeSide("a");
  side.plane.handleCommand({ type: "send_streams", peer: PEER, batch: batchOf([1]) }, T0);
  expect(drops(side)["no path for streams"]).toBe(1);
});

function batchOf(...frames: number[][]): Uint8Array {
  const writer = new BatchWriter(64);
  for (const frame of frames) writer.push(Uint8Array.from(frame));
  return writer.take();
}
