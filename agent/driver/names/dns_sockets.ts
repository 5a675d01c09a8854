/**
 * Port 53 of this machine's own mesh addresses, UDP and TCP, for programs of this machine only.
 *
 * Peers know the names of the mesh anyway and need no resolver of ours: a question from anywhere else is not answered, so that nobody can
 * use this one to hit a third party.
 */
import { createSocket, type RemoteInfo, type Socket as UdpSocket } from "node:dgram";
import { createServer, type Server, type Socket } from "node:net";
import { concatBytes } from "../../../shared/bytes.ts";
import { answerQuery } from "../../dns/answerer.ts";
import type { Zone } from "../../dns/zone.ts";
import { systemReason } from "../../state/user_error.ts";

export const DNS_PORT = 53;
/** RFC 7766 §6.2.3 asks for a few seconds; a resolver on the same machine needs less than one. */
const TCP_IDLE_MS = 5000;
const MAX_TCP_CONNECTIONS = 32;
/** RFC 1035 §4.2.2: two bytes of length before each message. */
const LENGTH_BYTES = 2;
/** Beyond what any question needs; a longer one ends the connection. */
const MAX_TCP_QUERY_BYTES = 1024;

export class DnsSockets {
  readonly addresses: readonly string[];
  readonly #udp: readonly UdpSocket[];
  readonly #tcp: readonly Server[];

  private constructor(addresses: readonly string[], udp: readonly UdpSocket[], tcp: readonly Server[]) {
    this.addresses = addresses;
    this.#udp = udp;
    this.#tcp = tcp;
  }

  /** Listens on those of the addresses that can be bound. Throws when there is none, with the reason. */
  static async open(addresses: readonly string[], zone: () => Zone, port = DNS_PORT): Promise<DnsSockets> {
    const isOwn = (ip: string | undefined): boolean => ip !== undefined && (addresses.includes(ip) || isLoopback(ip));
    const bound: string[] = [];
    const udp: UdpSocket[] = [];
    const tcp: Server[] = [];
    let problem: unknown;
    for (const address of addresses) {
      try {
        udp.push(await bindUdp(address, port, zone, isOwn));
        bound.push(address);
        tcp.push(await listenTcp(address, port, zone, isOwn));
      } catch (error) {
        problem = error;
      }
    }
    if (bound.length > 0) return new DnsSockets(bound, udp, tcp);
    throw new Error(`Cannot listen on port ${port} of ${addresses.join(" and ")}: ${systemReason(problem)}`, {
      cause: problem,
    });
  }

  close(): void {
    for (const socket of this.#udp) socket.close();
    for (const server of this.#tcp) server.close();
  }
}

const isLoopback = (ip: string): boolean => ip.startsWith("127.") || ip === "::1";

async function bindUdp(
  address: string,
  port: number,
  zone: () => Zone,
  isOwn: (ip: string) => boolean,
): Promise<UdpSocket> {
  const socket = createSocket(address.includes(":") ? { type: "udp6", ipv6Only: true } : { type: "udp4" });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  socket.once("error", reject);
  socket.bind(port, address, resolve);
  try {
    await promise;
  } catch (error) {
    socket.close();
    throw error;
  }
  socket.off("error", reject);
  // An answer that the kernel refuses is lost, as any datagram may be; whoever asked asks again.
  socket.on("error", () => {});
  socket.on("message", (bytes: Buffer, from: RemoteInfo) => {
    const answer = isOwn(from.address) ? answerQuery(bytes, zone()) : undefined;
    if (answer !== undefined) socket.send(answer, from.port, from.address, () => {});
  });
  return socket;
}

async function listenTcp(
  address: string,
  port: number,
  zone: () => Zone,
  isOwn: (ip: string | undefined) => boolean,
): Promise<Server> {
  const server = createServer((socket) => {
    if (isOwn(socket.remoteAddress)) serve(socket, zone);
    else socket.destroy();
  });
  server.maxConnections = MAX_TCP_CONNECTIONS;
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(port, address, resolve);
  await promise;
  server.off("error", reject);
  server.on("error", () => {});
  return server;
}

/** Answers one question after the other (RFC 7766 §6.2.1), until the other side has none left or is silent. */
function serve(socket: Socket, zone: () => Zone): void {
  let pending: Uint8Array = new Uint8Array(0);
  socket.setTimeout(TCP_IDLE_MS, () => socket.destroy());
  socket.on("error", () => socket.destroy());
  socket.on("data", (chunk: Buffer) => {
    const { answers, rest } = answerStream(concatBytes(pending, chunk), zone());
    for (const answer of answers) socket.write(answer);
    if (rest === undefined) socket.destroy();
    else pending = rest;
  });
}

/** Each whole message answered; `rest` is the beginning of the next one, undefined after something that deserves no answer. */
function answerStream(bytes: Uint8Array, zone: Zone): { answers: Uint8Array[]; rest: Uint8Array | undefined } {
  const answers: Uint8Array[] = [];
  let rest = bytes;
  while (rest.length >= LENGTH_BYTES) {
    const length = ((rest[0] ?? 0) << 8) | (rest[1] ?? 0);
    if (length > MAX_TCP_QUERY_BYTES) return { answers, rest: undefined };
    if (rest.length < LENGTH_BYTES + length) break;
    const answer = answerQuery(rest.subarray(LENGTH_BYTES, LENGTH_BYTES + length), zone);
    if (answer === undefined) return { answers, rest: undefined };
    answers.push(concatBytes(Uint8Array.of(answer.length >> 8, answer.length & 0xff), answer));
    rest = rest.subarray(LENGTH_BYTES + length);
  }
  return { answers, rest };
}
