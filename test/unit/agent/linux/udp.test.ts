import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { EADDRINUSE, EAFNOSUPPORT, EAGAIN, EMSGSIZE, ENOSYS, EPERM } from "../../../../agent/driver/linux/errno.ts";
import { IP_TTL, IPPROTO_IP, libc, libcUnavailable } from "../../../../agent/driver/linux/libc.ts";
import { chooseOffloads } from "../../../../agent/driver/linux/offloads.ts";
import { framesOf } from "../../../../agent/data/send_batch.ts";
import type { SealedRun } from "../../../../agent/data/plane.ts";
import { SystemError, UdpSocket, type UdpSocketOptions } from "../../../../agent/driver/linux/udp.ts";
import { packAddress, unpackAddress } from "../../../../shared/address.ts";

const unavailable = libcUnavailable();
if (unavailable !== undefined) console.log(`UDP by libc is not tested: ${unavailable}`);

const opened: UdpSocket[] = [];
afterEach(() => {
  for (const socket of opened.splice(0)) socket.close();
});

describe.runIf(unavailable === undefined)("a UDP socket by libc", () => {
  test.each([
    { family: 4, ip: "127.0.0.1" },
    { family: 6, ip: "::1" },
  ] as const)("carries a datagram over $ip and names its sender", ({ family, ip }) => {
    const a = open({ family, address: ip, port: 0 });
    const b = open({ family, address: ip, port: 0 });

    expect(a.send(packAddress(b.local), Uint8Array.of(1, 2, 3))).toBe(0);

    expect(b.receive()).toBe(1);
    expect(b.incoming[0]?.length).toBe(3);
    expect([...(b.incoming[0]?.bytes.subarray(0, 3) ?? [])]).toEqual([1, 2, 3]);
    expect(unpackAddress(b.incoming[0]?.from ?? new Uint8Array(18))).toEqual(a.local);
    expect(b.receive()).toBe(-EAGAIN);
  });

  test("with few hops a datagram still reaches a neighbour, and the next has all of them again", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });
    const ttl = (): number => {
      const value = new Int32Array(1);
      libc().getsockopt(a.fd, IPPROTO_IP, IP_TTL, value, Uint32Array.of(4));
      return value[0] ?? 0;
    };
    const before = ttl();
    expect(a.send(packAddress(a.local), Uint8Array.of(7), 1, 4)).toBe(0);
    expect(received(a).map(({ bytes }) => bytes.length)).toEqual([1]);
    expect(ttl()).toBe(before);
  });

  test.each(["", "none", "udp-send", "udp-receive", "udp-many"])(
    "datagrams sent as one arrive as they were cut, with offloads %j",
    (offloads) => {
      const a = open({ family: 4, address: "127.0.0.1", port: 0 }, offloads);
      const b = open({ family: 4, address: "127.0.0.1", port: 0 }, offloads);
      const bytes = Uint8Array.from({ length: 43 * 1000 + 7 }, (_, i) => (i * 7) >>> 3);

      expect(a.send(packAddress(b.local), bytes, 1000)).toBe(0);

      const messages = received(b);
      const datagrams = messages.flatMap(({ bytes: message, frameBytes }) => [...framesOf(message, frameBytes)]);
      expect(datagrams.map(({ length }) => length)).toEqual([...Array.from({ length: 43 }, () => 1000), 7]);
      expect(Buffer.concat(datagrams).equals(bytes)).toBe(true);
      // One message each way only where both ends may: what is sent alone comes alone over loopback.
      expect(messages.length).toBe(offloads === "" ? 1 : 44);
      expect(new Set(messages.map(({ call }) => call)).size).toBe({ "": 1, "udp-many": 3 }[offloads] ?? 44);
      for (const { from } of messages) expect(unpackAddress(from)).toEqual(a.local);
    },
  );

  test.each(["", "none", "udp-many", "udp-send,udp-many"])(
    "runs of several sizes to several peers arrive as if each had been sent alone, with offloads %j",
    (offloads) => {
      const a = open({ family: 4, address: "127.0.0.1", port: 0 }, offloads);
      const peers = [1, 2, 3].map(() => open({ family: 4, address: "127.0.0.1", port: 0 }, offloads));
      const bytes = Uint8Array.from({ length: 60_000 }, (_, i) => (i * 11) >>> 2);
      const runs: SealedRun[] = [];
      const expected = peers.map((): Uint8Array[] => []);
      let start = 0;
      // More than a call takes.
      for (let i = 0; i < 100; i++) {
        const [peer, frameBytes] = [i % 3, 100 + i];
        const length = i % 5 === 0 ? 5 * frameBytes - 40 : frameBytes;
        const to = packAddress(peers[peer]?.local ?? a.local);
        runs.push({ path: { leg: 1, to, ...(i === 50 ? { hops: 9 } : {}) }, start, length, frameBytes, errno: -1 });
        expected[peer]?.push(...framesOf(bytes.subarray(start, start + length), frameBytes));
        start += length;
      }

      a.sendRuns(bytes, runs, runs.length);

      expect(runs.map(({ errno }) => errno)).toEqual(runs.map(() => 0));
      for (const [i, peer] of peers.entries()) {
        const datagrams = received(peer).flatMap(({ bytes: message, frameBytes }) => [
          ...framesOf(message, frameBytes),
        ]);
        expect(datagrams.map(({ length }) => length)).toEqual(expected[i]?.map(({ length }) => length));
        expect(Buffer.concat(datagrams).equals(Buffer.concat(expected[i] ?? []))).toBe(true);
      }
    },
  );

  test("of several runs each is told what became of it, and one that is refused takes no other with it", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });
    const to = packAddress(a.local);
    const six = packAddress({ ip: "::1", port: 9 });
    const bytes = new Uint8Array(70_000);
    const run = (at: Uint8Array, start: number, length: number, frameBytes = length): SealedRun => ({
      path: { leg: 1, to: at },
      start,
      length,
      frameBytes,
      errno: -1,
    });
    const runs = [
      run(to, 0, 10),
      run(six, 10, 20),
      run(to, 30, 66_000),
      run(to, 40, 11),
      run(to, 60, 12),
      run(to, 80, 13),
    ];

    a.sendRuns(bytes, runs, 5);

    expect(runs.map(({ errno }) => errno)).toEqual([0, EAFNOSUPPORT, EMSGSIZE, 0, 0, -1]);
    expect(received(a).map(({ bytes: message }) => message.length)).toEqual([10, 11, 12]);
  });

  test.each([
    ["a kernel that does not know them", ENOSYS],
    ["a sandbox that forbids them", EPERM],
  ])("without the calls for many messages, by %s, everything goes by others", async (_, errno) => {
    const scenario = fileURLToPath(new URL("./forbidden_calls_scenario.ts", import.meta.url));
    const child = Bun.spawn([process.execPath, scenario, `${errno}`], {
      stdout: "pipe",
      stderr: "pipe",
      timeout: 10_000,
    });
    const [output, errors] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    expect(await child.exited, errors).toBe(0);
    const once = [100, 400, 400, 100, 70, 1000, 71];
    expect(JSON.parse(output)).toEqual({ errnos: [0, 0, 0, 0, 0], received: [...once, ...once] });
  });

  test("what comes in one call is no more than waits, and the next call begins behind it", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });
    const to = packAddress(a.local);
    for (let i = 0; i < 20; i++) expect(a.send(to, new Uint8Array(10 + i))).toBe(0);
    const call = (): unknown => {
      const count = a.receive();
      return [count, a.isDrained, a.incoming.slice(0, count).map(({ length }) => length)];
    };
    const sizes = Array.from({ length: 20 }, (_, i) => 10 + i);
    expect(call()).toEqual([16, false, sizes.slice(0, 16)]);
    expect(call()).toEqual([4, true, sizes.slice(16)]);
  });

  test("large ones come one a call, so that each is worked on while it is in the cache", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });
    const to = packAddress(a.local);
    const sizes = [100, 100, 40_000, 40_000, 100, 100];
    for (const size of sizes.slice(0, 3)) expect(a.send(to, new Uint8Array(size))).toBe(0);
    expect(a.receive()).toBe(3);
    for (const size of sizes.slice(3)) expect(a.send(to, new Uint8Array(size))).toBe(0);
    const calls = [a.receive(), a.receive(), a.receive()];
    expect(calls).toEqual([1, 1, 1]);
    expect(a.receive()).toBe(-EAGAIN);
  });

  test("an empty datagram is a datagram", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });
    expect(a.send(packAddress(a.local), new Uint8Array(0))).toBe(0);
    expect(a.receive()).toBe(1);
    expect(a.incoming[0]?.length).toBe(0);
  });

  test("a view into a larger buffer sends only its own bytes", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });
    const large = Uint8Array.from({ length: 100 }, (_, i) => i);

    expect(a.send(packAddress(a.local), large.subarray(40, 44))).toBe(0);

    expect(received(a).map(({ bytes }) => [...bytes])).toEqual([[40, 41, 42, 43]]);
  });

  test("refusals to send are error numbers", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });
    expect(a.send(packAddress({ ip: "::1", port: 9 }), Uint8Array.of(1))).toBe(EAFNOSUPPORT);
    expect(a.send(packAddress(a.local), new Uint8Array(65_530))).toBe(EMSGSIZE);
  });

  test("a taken port is refused with words", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });

    const error = failure(() => open({ family: 4, address: "127.0.0.1", port: a.local.port }));

    expect(error.errno).toBe(EADDRINUSE);
    expect(error.message).toBe(`Cannot bind UDP port ${a.local.port} on 127.0.0.1: address already in use`);
  });

  test("one port serves IPv4 and IPv6 with a socket each", () => {
    const four = open({ family: 4, port: 0 });
    const six = open({ family: 6, port: four.local.port });
    expect(six.local).toEqual({ ip: "::", port: four.local.port });
  });
});

function open(options: Omit<UdpSocketOptions, "offloads">, offloads?: string): UdpSocket {
  const socket = UdpSocket.open({ ...options, offloads: chooseOffloads(offloads) });
  opened.push(socket);
  return socket;
}

/** Everything that waits: each message, and by the how-manyeth call it came. */
function received(socket: UdpSocket): { bytes: Uint8Array; frameBytes: number; from: Uint8Array; call: number }[] {
  const messages = [];
  for (let call = 0, count = socket.receive(); count >= 0; count = socket.receive(), call++) {
    for (const { bytes, length, frameBytes, from } of socket.incoming.slice(0, count)) {
      messages.push({ bytes: bytes.slice(0, length), frameBytes, from: from.slice(), call });
    }
  }
  return messages;
}

function failure(act: () => unknown): SystemError {
  try {
    act();
  } catch (error) {
    if (error instanceof SystemError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}
