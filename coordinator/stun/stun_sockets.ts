/**
 * The UDP sockets of STUN: one per address and port, never a wildcard, because a wildcard socket answers from whatever address the
 * route prefers, and an answer from the wrong address tells a client lies about its NAT.
 *
 * Which datagram is answered, and how, is stun_server.ts.
 */
import { randomBytes } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { formatTransportAddress, isIPv6, type TransportAddress } from "../../shared/address.ts";
import { hmacSha256 } from "../../shared/session/primitives.ts";
import { type Instant, instant } from "../../shared/time.ts";
import { type StunAddress, type StunObservation, StunServer } from "./stun_server.ts";

/** Tries to find a port that is free on every address, when port 0 is asked for. */
const PORT_ATTEMPTS = 20;

export interface StunSockets {
  /** What is bound, as [address 1 port 1, address 1 port 2, address 2 port 1, ...]. */
  readonly bound: readonly TransportAddress[];
  /** The same as agents are told. */
  readonly reported: readonly TransportAddress[];
  addToken(id: string, secret: Uint8Array): void;
  removeToken(id: string): void;
  /** Datagrams that were not answered, by reason. */
  readonly dropped: Readonly<Record<string, number>>;
  close(): void;
}

export interface StunSocketsOptions {
  readonly addresses: readonly StunAddress[];
  /** Primary and alternate port; 0 for any. */
  readonly ports: readonly [number, number];
  readonly onObserved: (observation: StunObservation) => void;
  /** A socket failed after it was bound. */
  readonly onError: (message: string) => void;
}

/** Binds all sockets, or throws an error that says which one could not be bound and why. */
export async function openStunSockets(options: StunSocketsOptions): Promise<StunSockets> {
  const sockets: { socket: Socket; address: number; port: 0 | 1 }[] = [];
  const closeAll = (): void => {
    for (const { socket } of sockets.splice(0)) socket.close();
  };
  const ports: [number, number] = [0, 0];
  try {
    for (const port of [0, 1] as const) {
      const wanted = options.ports[port];
      const bound = await bindOnAll(
        options.addresses.map(({ ip }) => ip),
        wanted,
      );
      ports[port] = bound.port;
      bound.sockets.forEach((socket, address) => sockets.push({ socket, address, port }));
    }
  } catch (error) {
    closeAll();
    throw error;
  }

  const server = new StunServer({
    addresses: options.addresses,
    ports,
    hmacSha256,
    echoKey: new Uint8Array(randomBytes(32)),
  });
  const dropped: Record<string, number> = {};
  const find = (address: number, port: 0 | 1): Socket | undefined =>
    sockets.find((entry) => entry.address === address && entry.port === port)?.socket;
  for (const { socket, address, port } of sockets) {
    socket.on("message", (bytes, { address: ip, port: remotePort }) => {
      const result = server.handle(bytes, { ip: plainIp(ip), port: remotePort }, { address, port }, now());
      if (result.dropped !== undefined) dropped[result.dropped] = (dropped[result.dropped] ?? 0) + 1;
      if (result.observed !== undefined) options.onObserved(result.observed);
      if (result.reply === undefined) return;
      const target = find(result.reply.socket.address, result.reply.socket.port);
      // An unreachable client is its own loss: the error comes back here and is of no use to anybody.
      target?.send(result.reply.bytes, result.reply.to.port, result.reply.to.ip, () => {});
    });
    const local = { ip: options.addresses[address]?.ip ?? "", port: ports[port] };
    socket.on("error", (error) => options.onError(`STUN on ${formatTransportAddress(local)}: ${error.message}`));
  }

  const list = (ip: (address: StunAddress) => string): TransportAddress[] =>
    options.addresses.flatMap((address) => ports.map((port) => ({ ip: ip(address), port })));
  return {
    bound: list(({ ip }) => ip),
    reported: list(({ publicIp }) => publicIp),
    addToken: (id, secret) => server.addToken(id, secret, now()),
    removeToken: (id) => server.removeToken(id),
    dropped,
    close: closeAll,
  };
}

const now = (): Instant => instant(performance.now());

/** Node names IPv4 clients of no IPv6 socket plainly; only a zone id has to go. */
const plainIp = (ip: string): string => ip.split("%")[0] ?? ip;

/** The same port on every address. With port 0 the first address chooses, and all try again when another has it in use. */
async function bindOnAll(ips: readonly string[], port: number): Promise<{ sockets: Socket[]; port: number }> {
  for (let attempt = 1; ; attempt++) {
    const sockets: Socket[] = [];
    let chosen = port;
    try {
      for (const ip of ips) {
        const socket = await bind(ip, chosen);
        sockets.push(socket);
        chosen = socket.address().port;
      }
      return { sockets, port: chosen };
    } catch (error) {
      for (const socket of sockets) socket.close();
      if (port !== 0 || attempt === PORT_ATTEMPTS) throw error;
    }
  }
}

function bind(ip: string, port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createSocket(isIPv6(ip) ? { type: "udp6", ipv6Only: true } : { type: "udp4" });
    const onError = (error: NodeJS.ErrnoException): void => {
      const what = formatTransportAddress({ ip, port });
      const why =
        error.code === "EADDRINUSE"
          ? "the port is in use; stop the other program or choose others with --stun-port and --stun-alternate-port"
          : error.code === "EADDRNOTAVAIL"
            ? "this machine has no such address; correct --stun-address"
            : error.message;
      reject(new Error(`Cannot bind STUN on UDP ${what}: ${why}`, { cause: error }));
    };
    socket.once("error", onError);
    socket.bind({ address: ip, port, exclusive: true }, () => {
      socket.removeListener("error", onError);
      resolve(socket);
    });
  });
}
