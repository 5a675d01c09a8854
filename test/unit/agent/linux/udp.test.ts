import { afterEach, describe, expect, test } from "vitest";
import { EADDRINUSE, EAFNOSUPPORT, EAGAIN, EMSGSIZE } from "../../../../agent/driver/linux/errno.ts";
import { IP_TTL, IPPROTO_IP, libc, libcUnavailable } from "../../../../agent/driver/linux/libc.ts";
import { chooseOffloads } from "../../../../agent/driver/linux/offloads.ts";
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
    const buffer = new Uint8Array(2048);
    const from = new Uint8Array(18);

    expect(a.send(packAddress(b.local), Uint8Array.of(1, 2, 3))).toBe(0);

    expect(b.receive(buffer, from)).toBe(3);
    expect([...buffer.subarray(0, 3)]).toEqual([1, 2, 3]);
    expect(unpackAddress(from)).toEqual(a.local);
    expect(b.receive(buffer, from)).toBe(-EAGAIN);
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
    expect(a.receive(new Uint8Array(16), new Uint8Array(18))).toBe(1);
    expect(ttl()).toBe(before);
  });

  test.each(["", "none", "udp-send", "udp-receive"])(
    "datagrams sent as one arrive as they were cut, with offloads %j",
    (offloads) => {
      const a = open({ family: 4, address: "127.0.0.1", port: 0 }, offloads);
      const b = open({ family: 4, address: "127.0.0.1", port: 0 }, offloads);
      const bytes = Uint8Array.from({ length: 43 * 1000 + 7 }, (_, i) => (i * 7) >>> 3);
      const [buffer, from] = [new Uint8Array(65_536), new Uint8Array(18)];

      expect(a.send(packAddress(b.local), bytes, 1000)).toBe(0);

      const datagrams: Uint8Array[] = [];
      let calls = 0;
      for (let length = b.receive(buffer, from); length >= 0; length = b.receive(buffer, from), calls++) {
        for (let at = 0; at < length; at += b.frameBytes || length) {
          datagrams.push(buffer.slice(at, Math.min(length, at + (b.frameBytes || length))));
        }
      }
      expect(datagrams.map(({ length }) => length)).toEqual([...Array.from({ length: 43 }, () => 1000), 7]);
      expect(Buffer.concat(datagrams).equals(bytes)).toBe(true);
      // One call each way only where both ends may: what is sent alone comes alone over loopback.
      expect(calls).toBe(offloads === "" ? 1 : 44);
      expect(unpackAddress(from)).toEqual(a.local);
    },
  );

  test("an empty datagram is a datagram", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });
    expect(a.send(packAddress(a.local), new Uint8Array(0))).toBe(0);
    expect(a.receive(new Uint8Array(16), new Uint8Array(18))).toBe(0);
  });

  test("a view into a larger buffer sends only its own bytes", () => {
    const a = open({ family: 4, address: "127.0.0.1", port: 0 });
    const large = Uint8Array.from({ length: 100 }, (_, i) => i);
    const buffer = new Uint8Array(200);

    expect(a.send(packAddress(a.local), large.subarray(40, 44))).toBe(0);

    expect(a.receive(buffer.subarray(100), new Uint8Array(18))).toBe(4);
    expect([...buffer.subarray(99, 105)]).toEqual([0, 40, 41, 42, 43, 0]);
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

function failure(act: () => unknown): SystemError {
  try {
    act();
  } catch (error) {
    if (error instanceof SystemError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}
