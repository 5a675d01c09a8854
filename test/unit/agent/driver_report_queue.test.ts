import { expect, test } from "vitest";
import type { Report } from "../../../agent/driver/engine.ts";
import { ReportQueue } from "../../../agent/driver/portable/report_queue.ts";
import { instant } from "../../../shared/time.ts";

test("reports of a turn leave as one batch, in order, each with bytes of its own", () => {
  const batches: (readonly Report[])[] = [];
  const queue = new ReportQueue(
    (batch) => batches.push(batch),
    () => batches.length,
  );
  const buffer = new Uint8Array(1000).fill(1);

  queue.push(datagram(buffer.subarray(0, 3)));
  queue.push({ type: "tun_opened", name: "tm0" });
  buffer.fill(2);
  queue.flush();
  queue.flush();

  expect(batches).toEqual([[datagram(Uint8Array.of(1, 1, 1)), { type: "tun_opened", name: "tm0" }]]);
  const first = batches[0]?.[0];
  expect(first?.type === "datagram" && first.bytes.buffer.byteLength).toBe(3);
});

test("a reader that falls behind loses strangers' datagrams, then frames of peers, and nothing else", () => {
  let delivered = 0;
  const queue = new ReportQueue(
    (batch) => (delivered += batch.length),
    () => 0,
  );
  const fill = (report: Report): number => {
    const before = delivered;
    for (let i = 0; i < 10_000; i++) {
      queue.push(report);
      queue.flush();
    }
    return delivered - before;
  };

  const datagrams = fill(datagram(new Uint8Array(1000)));
  const frames = fill({
    type: "relay_frames",
    leg: 1_000_000,
    to: new Uint8Array(18),
    frames: [new Uint8Array(1000)],
    lanes: [0],
  });

  expect(datagrams * 1000).toBeLessThan(1.1 * 1024 * 1024);
  expect(datagrams).toBeGreaterThan(500);
  expect(frames * 1000).toBeLessThan(4.1 * 1024 * 1024);
  expect(frames).toBeGreaterThan(1500);
  expect(queue.dropped).toBe(20_000 - datagrams - frames);
  expect(fill({ type: "udp_failed", leg: 1, errno: 1, message: "" })).toBe(10_000);
});

test("a reader that catches up gets datagrams again, also when its counter wraps", () => {
  let read = -2;
  let delivered = 0;
  const queue = new ReportQueue(
    () => delivered++,
    () => read,
  );
  queue.flush();
  const burst = () => {
    for (let i = 0; i < 2000; i++) queue.push(datagram(new Uint8Array(1000)));
    queue.flush();
  };

  burst();
  const full = queue.dropped;
  expect(full).toBeGreaterThan(0);
  burst();
  expect(delivered).toBe(1);
  expect(queue.dropped).toBe(full + 2000);

  read = -1;
  queue.flush();
  burst();
  read = 0;
  queue.flush();
  burst();
  expect(delivered).toBe(3);
});

const datagram = (bytes: Uint8Array): Report & { type: "datagram" } => ({
  type: "datagram",
  leg: 1,
  from: new Uint8Array(18),
  bytes,
  at: instant(5),
});
