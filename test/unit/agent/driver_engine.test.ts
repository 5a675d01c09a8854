/** One suite for both engines, each in its worker, on loopback: what holds for one holds for the other. */
import { afterEach, describe, expect, test } from "vitest";
import { DataWorkerHost } from "../../../agent/driver/data_worker_host.ts";
import { engineClock, type EngineKind, type Report } from "../../../agent/driver/engine.ts";
import { libcUnavailable } from "../../../agent/driver/linux/libc.ts";
import { packAddress, unpackAddress } from "../../../shared/address.ts";

/** See echo_worker.ts; that file cannot be imported here, it runs when imported. */
const ECHO = 1;
const THROW = 3;
const BATCH = 4;
const TIMER_MS = 30;
const EBADF = 9;

const unavailable = libcUnavailable();
if (unavailable !== undefined) console.log(`The Linux engine is not tested: ${unavailable}`);
const kinds: EngineKind[] = unavailable === undefined ? ["linux", "portable"] : ["portable"];

const running: Agent[] = [];
afterEach(async () => {
  for (const agent of running.splice(0)) await agent.host.stop();
});

describe.each(kinds)("the %s engine", (kind) => {
  test.each([
    { family: 4, ip: "127.0.0.1" },
    { family: 6, ip: "::1" },
  ] as const)("carries datagrams between two engines over $ip", async ({ family, ip }) => {
    const a = await start(kind);
    const b = await start(kind);
    const from = await a.open(1, ip, family);
    const to = await b.open(2, ip, family);

    a.send(1, to, Uint8Array.of(ECHO, 7, 8));
    const echo = await a.next("datagram");

    expect(echo.leg).toBe(1);
    expect(unpackAddress(echo.from)).toEqual(to);
    expect([...echo.bytes]).toEqual([0, 7, 8]);

    b.send(2, from, Uint8Array.of(9));
    expect(unpackAddress((await a.next("datagram")).from)).toEqual(to);
  });

  test("keeps commands and reports in order", async () => {
    const a = await start(kind);
    const own = await a.open(1, "127.0.0.1", 4);

    for (let i = 0; i < 200; i++) a.send(1, own, Uint8Array.of(0, i));
    const seen: (number | undefined)[] = [];
    for (let i = 0; i < 200; i++) seen.push((await a.next("datagram")).bytes[1]);

    expect(seen).toEqual(Array.from({ length: 200 }, (_, i) => i));
  });

  test("sends a batch as one datagram for each frame, the last of them shorter", async () => {
    const a = await start(kind);
    const own = await a.open(1, "127.0.0.1", 4);
    const frameBytes = 1400;
    const frames = Array.from({ length: 40 }, (_, i) =>
      new Uint8Array(i === 39 ? 17 : frameBytes).fill(i).fill(0, 0, 1),
    );

    a.send(1, own, Uint8Array.of(BATCH, frameBytes >> 8, frameBytes & 0xff, ...frames.flatMap((frame) => [...frame])));
    const seen: Uint8Array[] = [];
    for (let i = 0; i < 40; i++) seen.push((await a.next("datagram")).bytes);

    expect(seen).toEqual(frames);
  });

  test("holds 400 sockets at once and closes them again", async () => {
    const a = await start(kind);
    const target = await a.open(1000, "127.0.0.1", 4);

    for (let leg = 0; leg < 400; leg++)
      a.host.send({ type: "open_udp", leg, family: 4, address: "127.0.0.1", port: 0 });
    const ports = new Set<number>();
    for (let i = 0; i < 400; i++) ports.add((await a.next("udp_opened")).localPort);
    expect(ports.size).toBe(400);

    const sources = new Set<number>();
    // In portions that fit a socket's ordinary receive buffer.
    for (let first = 0; first < 400; first += 50) {
      for (let leg = first; leg < first + 50; leg++) a.send(leg, target, Uint8Array.of(0, 1));
      for (let i = 0; i < 50; i++) sources.add(unpackAddress((await a.next("datagram")).from).port);
    }
    expect(sources).toEqual(ports);

    for (let leg = 0; leg < 400; leg++) a.host.send({ type: "close_udp", leg });
    a.send(399, target, Uint8Array.of(1));
    expect(await a.next("send_failed")).toMatchObject({ leg: 399, errno: EBADF });
  });

  test("says why a port cannot be had", async () => {
    const a = await start(kind);
    const { port } = await a.open(1, "127.0.0.1", 4);

    a.host.send({ type: "open_udp", leg: 2, family: 4, address: "127.0.0.1", port });

    const failed = await a.next("udp_failed");
    expect(failed.leg).toBe(2);
    expect(failed.message).toBe(`Cannot bind UDP port ${port} on 127.0.0.1: address already in use`);
  });

  test("a port is free again once its leg is closed", async () => {
    const a = await start(kind);
    const { port } = await a.open(1, "127.0.0.1", 4);

    a.host.send({ type: "close_udp", leg: 1 });
    a.host.send({ type: "open_udp", leg: 2, family: 4, address: "127.0.0.1", port });

    expect((await a.next("udp_opened")).localPort).toBe(port);
  });

  test("calls the plane at its deadline, on the clock that all threads share", async () => {
    const a = await start(kind);
    const clock = engineClock(kind);
    const before = clock();

    a.host.send({ type: "select_path", peer: 1, path: undefined, mtu: 1280, isPlanned: false });

    const { at } = await a.next("wanted");
    expect(at).toBeGreaterThanOrEqual(before + TIMER_MS);
    expect(at).toBeLessThanOrEqual(clock());
  });

  test("survives a plane that throws, and says so once a second at most", async () => {
    const a = await start(kind);
    const own = await a.open(1, "127.0.0.1", 4);

    for (let i = 0; i < 5; i++) a.send(1, own, Uint8Array.of(THROW));
    a.send(1, own, Uint8Array.of(0, 42));

    const failed = await a.next("plane_failed");
    expect(failed.message).toContain("thrown by the test plane");
    expect([...(await a.next("datagram")).bytes]).toEqual([0, 42]);
    expect(a.waiting("plane_failed")).toBe(0);
  });

  test("bytes cut from a large buffer arrive alone", async () => {
    const a = await start(kind);
    const large = Uint8Array.from({ length: 100_000 }, (_, i) => i);

    a.host.send({
      type: "receive_frames",
      leg: 1_000_000,
      from: large.subarray(0, 2),
      frames: [large.subarray(5, 8)],
    });

    const { frames } = await a.next("relay_frames");
    expect(frames[0]?.buffer.byteLength).toBe(3);
    expect([...(frames[0] ?? [])]).toEqual([5, 6, 7]);
  });

  test("stop is answered, ends the worker, and may be repeated", async () => {
    const a = await start(kind);
    await a.open(1, "127.0.0.1", 4);

    await a.host.stop();
    await a.host.stop();

    expect(a.waiting("stopped")).toBe(1);
    expect(a.waiting("engine_failed")).toBe(0);
  });
});

test("the portable engine says that it has no TUN device", async () => {
  const a = await start("portable");
  a.host.send({ type: "open_tun" });
  expect(await a.next("tun_failed")).toMatchObject({ code: "unavailable" });
});

test("a worker that cannot start is an error at start", async () => {
  const workerUrl = new URL("./linux/no_such_worker.ts", import.meta.url);
  await expect(DataWorkerHost.start({ workerUrl })).rejects.toThrow(/no_such_worker/);
});

test("a worker that crashes is reported with its error", async () => {
  const host = await DataWorkerHost.start({ workerUrl: new URL("./linux/crashing_worker.ts", import.meta.url) });
  const crashed = Promise.withResolvers<Report>();
  host.onReport = crashed.resolve;

  host.send({ type: "read_counters" });

  const report = await crashed.promise;
  expect(report).toMatchObject({ type: "engine_failed" });
  expect(JSON.stringify(report)).toContain("crashed by the test");
  await host.stop();
});

interface Agent {
  readonly host: DataWorkerHost;
  open(leg: number, ip: string, family: 4 | 6): Promise<{ ip: string; port: number }>;
  send(leg: number, to: { ip: string; port: number }, bytes: Uint8Array): void;
  /** The next report of this type, skipping others. */
  next<T extends Report["type"]>(type: T): Promise<Extract<Report, { type: T }>>;
  /** How many reports of this type wait unread. */
  waiting(type: Report["type"]): number;
}

async function start(engine: EngineKind): Promise<Agent> {
  const inbox: Report[] = [];
  let arrived = Promise.withResolvers<void>();
  const host = await DataWorkerHost.start({
    engine,
    workerUrl: new URL("./linux/echo_worker.ts", import.meta.url),
    onReport: (report) => {
      inbox.push(report);
      arrived.resolve();
    },
  });
  const agent: Agent = {
    host,
    async open(leg, ip, family) {
      host.send({ type: "open_udp", leg, family, address: ip, port: 0 });
      const { localAddress, localPort } = await agent.next("udp_opened");
      return { ip: localAddress, port: localPort };
    },
    send: (leg, to, bytes) => host.send({ type: "send_datagram", path: { leg, to: packAddress(to) }, bytes }),
    async next(type) {
      for (;;) {
        const at = inbox.findIndex((report) => report.type === type);
        if (at >= 0) return inbox.splice(at, 1)[0] as Extract<Report, { type: typeof type }>;
        arrived = Promise.withResolvers<void>();
        await arrived.promise;
      }
    },
    waiting: (type) => inbox.filter((report) => report.type === type).length,
  };
  running.push(agent);
  return agent;
}
