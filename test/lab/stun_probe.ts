/** Asks stun_server.ts what RFC 3489 clients ask: which address does this socket have outside, and who may answer it? */
import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { ipFromBytes, type TransportAddress } from "../../shared/address.ts";
import type { Lab } from "./topology.ts";
import type { Datagram, ProbeSocket } from "./udp_probe.ts";

const SERVER = fileURLToPath(new URL("stun_server.ts", import.meta.url));
const START_MS = 5_000;
/** After the last answer of a series has come, how long the earlier ones get to turn up. Nothing in the lab reorders by more. */
const GRACE_MS = 100;

export async function startStunServer(lab: Lab): Promise<void> {
  const server = lab.coordinator.spawn([
    process.execPath,
    SERVER,
    ...lab.coordinator.addresses,
    ...(lab.coordinator.addresses.length === 1 ? lab.coordinator.ipv6Addresses : []),
  ]);
  await server.waitFor("ready", (line) => (line.text === "ready" ? true : undefined), START_MS);
}

/** The external address of `socket` towards `server`; undefined when no answer comes. */
export async function mappedAddress(
  socket: ProbeSocket,
  server: TransportAddress,
  timeoutMs?: number,
): Promise<TransportAddress | undefined> {
  const request = bindingRequest(0);
  socket.send(server, request);
  const answer = await socket.receive((datagram) => answers(datagram, request), timeoutMs);
  // The MAPPED-ADDRESS comes first: header 20, attribute header 4, family 2, port 2, address.
  if (answer === undefined) return undefined;
  const view = Buffer.from(answer.bytes);
  return { ip: ipFromBytes(view.subarray(28, 24 + view.readUInt16BE(22))), port: view.readUInt16BE(26) };
}

export type Filtering = "endpoint-independent" | "address-dependent" | "address-and-port-dependent";

/** Who may answer a socket that has sent to `server` alone. The socket must be fresh. */
export async function filtering(socket: ProbeSocket, server: TransportAddress): Promise<Filtering | undefined> {
  const requests = { both: bindingRequest(6), port: bindingRequest(2), none: bindingRequest(0) };
  // The plain answer comes last: once it is here, what the others got has either arrived or been dropped.
  for (const request of [requests.both, requests.port, requests.none]) socket.send(server, request);
  if ((await socket.receive((datagram) => answers(datagram, requests.none))) === undefined) return undefined;
  if ((await socket.receive((datagram) => answers(datagram, requests.both), GRACE_MS)) !== undefined) {
    return "endpoint-independent";
  }
  return (await socket.receive((datagram) => answers(datagram, requests.port), GRACE_MS)) === undefined
    ? "address-and-port-dependent"
    : "address-dependent";
}

/** A Binding request, RFC 3489 §8.1, with CHANGE-REQUEST when there is something to change. */
function bindingRequest(change: number): Uint8Array {
  const request = Buffer.alloc(change === 0 ? 20 : 28);
  request.writeUInt16BE(0x0001, 0);
  request.writeUInt16BE(request.length - 20, 2);
  request.set(randomBytes(16), 4);
  if (change !== 0) {
    request.writeUInt32BE(0x0003_0004, 20);
    request.writeUInt32BE(change, 24);
  }
  return request;
}

const answers = (datagram: Datagram, request: Uint8Array): boolean =>
  Buffer.from(datagram.bytes.subarray(4, 20)).equals(Buffer.from(request.subarray(4, 20)));
