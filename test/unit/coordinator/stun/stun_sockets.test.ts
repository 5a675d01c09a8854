import { execFile } from "node:child_process";
import { createSocket, type Socket } from "node:dgram";
import { existsSync } from "node:fs";
import { afterEach, describe, expect, test } from "vitest";
import type { StunObservation } from "../../../../coordinator/stun/stun_server.ts";
import { openStunSockets, type StunSockets } from "../../../../coordinator/stun/stun_sockets.ts";
import { hmacSha256 } from "../../../../shared/session/primitives.ts";
import { decodeStun, encodeStun, STUN_BINDING, type StunAttributes } from "../../../../shared/wire/stun.ts";

const DEBIAN_CLIENT = "/usr/bin/stun";
const opened: StunSockets[] = [];
afterEach(() => opened.splice(0).forEach((sockets) => sockets.close()));

test("with port 0 all addresses share one primary and one alternate port", async () => {
  const { sockets } = await open(["127.0.0.1", "127.0.0.2"]);
  const [a1, a2, b1, b2] = sockets.bound;
  expect([a1?.ip, a2?.ip, b1?.ip, b2?.ip]).toEqual(["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]);
  expect(a1?.port).toBe(b1?.port);
  expect(a2?.port).toBe(b2?.port);
  expect(a1?.port).not.toBe(a2?.port);
});

test("an answer comes from the address and port that CHANGE-REQUEST asks for", async () => {
  const { sockets } = await open(["127.0.0.1", "127.0.0.2"]);
  const at = sockets.bound[0]!;
  for (const [ip, port, expected] of [
    [false, false, 0],
    [false, true, 1],
    [true, true, 3],
  ] as const) {
    expect((await ask(at.port, { changeRequest: { ip, port } })).from).toEqual(sockets.bound[expected]);
  }
});

test("a signed request that echoes an answer is observed with the address that it came from", async () => {
  const { sockets, observed } = await open(["127.0.0.1"]);
  const secret = new Uint8Array(32).fill(3);
  sockets.addToken("agent", secret);
  const socket = createSocket("udp4");
  const once = async (attributes: StunAttributes) =>
    (await ask(sockets.bound[0]!.port, { username: "agent", ...attributes }, secret, "127.0.0.1", socket)).decoded!;
  const first = await once({ sequence: 1 });
  expect(observed).toEqual([]);
  await once({ sequence: 2, echo: first.echo });
  socket.close();
  expect(observed).toMatchObject([{ tokenId: "agent", from: first.xorMappedAddress }]);
});

test("IPv6 works alone and beside IPv4", async () => {
  const { sockets } = await open(["127.0.0.1", "::1"]);
  const answer = await ask(sockets.bound[2]!.port, { software: "x".repeat(40) }, undefined, "::1");
  expect(answer.decoded?.xorMappedAddress?.ip).toBe("::1");
  expect(answer.decoded?.otherAddress).toBeUndefined();
});

test("a port that is in use is named, with the flags that would help", async () => {
  const { sockets } = await open(["127.0.0.1"]);
  const port = sockets.bound[0]!.port;
  await expect(open(["127.0.0.1"], [port, 0])).rejects.toThrow(
    `Cannot bind STUN on UDP 127.0.0.1:${port}: the port is in use; stop the other program or choose others with --stun-port and --stun-alternate-port`,
  );
  await expect(open(["192.0.2.77"])).rejects.toThrow("this machine has no such address; correct --stun-address");
});

describe.runIf(existsSync(DEBIAN_CLIENT))("Debian's stun client", () => {
  test("finds an open network with two addresses", async () => {
    const { sockets } = await open(["127.0.0.1", "127.0.0.2"]);
    expect(await debianClient(sockets.bound[0]!.port)).toContain("Primary: Open");
  });

  test("takes the stricter of what is possible with one address", async () => {
    const { sockets } = await open(["127.0.0.1"]);
    expect(await debianClient(sockets.bound[0]!.port)).toContain("Primary: Firewall");
  });
});

async function open(ips: string[], ports: [number, number] = [0, 0]) {
  const observed: StunObservation[] = [];
  const sockets = await openStunSockets({
    addresses: ips.map((ip) => ({ ip, publicIp: ip })),
    ports,
    onObserved: (observation) => observed.push(observation),
    onError: () => {},
  });
  opened.push(sockets);
  return { sockets, observed };
}

/** @param kept a socket for several questions; default one of its own */
function ask(port: number, attributes: StunAttributes, secret?: Uint8Array, ip = "127.0.0.1", kept?: Socket) {
  const socket = kept ?? createSocket(ip.includes(":") ? "udp6" : "udp4");
  const request = encodeStun(
    { class: "request", method: STUN_BINDING, transactionId: new Uint8Array(12), ...attributes },
    secret === undefined ? {} : { integrity: { key: secret, hmacSha256 } },
  );
  return new Promise<{ decoded: ReturnType<typeof decodeStun>; from: { ip: string; port: number } }>(
    (resolve, reject) => {
      socket.once("error", reject);
      socket.once("message", (bytes, { address, port: from }) => {
        if (kept === undefined) socket.close();
        resolve({ decoded: decodeStun(bytes), from: { ip: address, port: from } });
      });
      socket.send(request, port, ip);
    },
  );
}

/** Exits with the NAT type as its code, so its text is what counts. */
const debianClient = (port: number): Promise<string> =>
  new Promise((resolve) => {
    execFile(DEBIAN_CLIENT, [`127.0.0.1:${port}`], { timeout: 10_000 }, (_error, stdout, stderr) =>
      resolve(stdout + stderr),
    );
  });
