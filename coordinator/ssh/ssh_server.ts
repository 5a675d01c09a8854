/**
 * The SSH endpoint: a listener with limits on what has not logged in, ssh2 on each connection, and ssh_connection.ts behind that.
 */
import { createServer, type Socket, type AddressInfo } from "node:net";
// @ts-types="@types/ssh2"
import { type Connection, Server } from "ssh2";
import { formatTransportAddress } from "../../shared/address.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { type Instant, instant } from "../../shared/time.ts";
import type { HostPort } from "../config.ts";
import { type ClientKey, ConnectionGuard } from "../connection_guard.ts";
import { SourceLimits, sourceOf, TokenBucket } from "../limits.ts";
import type { Log } from "../log.ts";
import type { RelayService } from "../relay/relay_service.ts";
import type { HostKey } from "./host_key.ts";
import { JumpBoard } from "./jump_board.ts";
import { REKEY_AFTER_BYTES, REKEY_AFTER_MS, SshConnection } from "./ssh_connection.ts";

/** Key exchange and login, over a slow line too. */
const LOGIN_TIMEOUT_MS = 10_000;
/** Each new connection costs a key exchange, about 1 ms. */
const CONNECTION_RATE = { perSecond: 100, burst: 300 };
const SOURCE_RATE = { perSecond: 10, burst: 50 };
const MAX_SOURCES = 10_000;
const TICK_MS = 500;
/** Dead after 45 s: ssh2 gives up at the third interval in which nothing at all has come. */
const KEEPALIVE_INTERVAL_MS = 15_000;
const KEEPALIVE_MISSES = 2;

/**
 * What OpenSSH since 6.7 (2014) speaks too. AES only, since Bun has no ChaCha20-Poly1305 for SSH; the MAC is of the encrypted packet; no
 * finite-field groups, whose exponents are work that strangers could ask for; no compression.
 */
const ALGORITHMS = {
  cipher: ["aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "aes256-ctr"],
  hmac: ["hmac-sha2-256-etm@openssh.com"],
  kex: ["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"],
  serverHostKey: ["ssh-ed25519"],
  compress: ["none"],
} as const;

export interface SshServer {
  /** With the real port where 0 was asked for. */
  readonly bound: HostPort;
  readonly connectionCount: number;
  onRulesChanged(): void;
  close(): void;
}

export interface SshServerOptions {
  readonly listen: HostPort;
  readonly hostKey: HostKey;
  readonly relay: RelayService;
  readonly log: Log;
  readonly isMember: (peer: PeerId) => boolean;
  /** An approved peer by its name. */
  readonly peerOfName: (name: string) => PeerId | undefined;
  readonly rekeyAfterMs?: number;
  readonly rekeyAfterBytes?: number;
  readonly keepaliveIntervalMs?: number;
}

/** Listens, or throws an error that says where and why not. */
export async function openSshServer(options: SshServerOptions): Promise<SshServer> {
  const guard = new ConnectionGuard(LOGIN_TIMEOUT_MS);
  const all = new TokenBucket(CONNECTION_RATE, now());
  const perSource = new SourceLimits(SOURCE_RATE, MAX_SOURCES);
  const jumps = new JumpBoard();
  const sockets = new Map<ClientKey, Socket>();
  const connections = new Map<ClientKey, SshConnection>();

  const ssh = new Server({
    hostKeys: [options.hostKey.privateKey],
    ident: "TunnelMesh",
    algorithms: {
      ...ALGORITHMS,
      cipher: [...ALGORITHMS.cipher],
      hmac: [...ALGORITHMS.hmac],
      kex: [...ALGORITHMS.kex],
      serverHostKey: [...ALGORITHMS.serverHostKey],
      compress: [...ALGORITHMS.compress],
    },
    keepaliveInterval: options.keepaliveIntervalMs ?? KEEPALIVE_INTERVAL_MS,
    keepaliveCountMax: KEEPALIVE_MISSES,
  });
  ssh.on("connection", (connection: Connection, info: { readonly ip: string; readonly port: number }) => {
    const client = keyOf(info.ip, info.port);
    const socket = sockets.get(client);
    connection.on("error", (error: Error) => {
      options.log.debug(`SSH connection from ${client}: ${error.message}`);
      // After an error of the protocol nothing more can be read; ssh2 alone would wait for the client to close.
      socket?.destroySoon();
    });
    // It has closed in the meantime.
    if (socket === undefined) return;
    connections.set(
      client,
      new SshConnection(
        connection,
        socket,
        {
          relay: options.relay,
          isMember: options.isMember,
          peerOfName: options.peerOfName,
          jumps,
          rekeyAfterMs: options.rekeyAfterMs ?? REKEY_AFTER_MS,
          rekeyAfterBytes: options.rekeyAfterBytes ?? REKEY_AFTER_BYTES,
        },
        () => guard.release(client),
      ),
    );
  });

  const listener = createServer((socket) => {
    socket.on("error", () => socket.destroy());
    const client = keyOf(socket.remoteAddress ?? "", socket.remotePort ?? 0);
    const source = sourceOf(socket.remoteAddress ?? "");
    const at = now();
    if (!perSource.take(source, at) || !all.take(at) || !guard.accept(client, socket.remoteAddress ?? "", at)) {
      socket.destroy();
      return;
    }
    socket.setNoDelay(true);
    sockets.set(client, socket);
    socket.on("close", () => {
      sockets.delete(client);
      guard.release(client);
      connections.get(client)?.closed();
      connections.delete(client);
    });
    ssh.injectSocket(socket);
  });
  const timer = setInterval(() => {
    for (const client of guard.overdue(now())) sockets.get(client)?.destroy();
    for (const connection of connections.values()) connection.tick();
  }, TICK_MS);

  try {
    await listen(listener, options.listen);
  } catch (error) {
    clearInterval(timer);
    throw error;
  }
  return {
    bound: { ...options.listen, port: (listener.address() as AddressInfo).port },
    get connectionCount() {
      return connections.size;
    },
    onRulesChanged() {
      for (const connection of connections.values()) connection.applyRules();
    },
    close() {
      clearInterval(timer);
      listener.close();
      for (const [client, socket] of sockets) {
        if (connections.has(client)) connections.get(client)?.end();
        else socket.destroy();
      }
    },
  };
}

const now = (): Instant => instant(performance.now());
const keyOf = (ip: string, port: number): ClientKey => formatTransportAddress({ ip, port });

function listen(server: ReturnType<typeof createServer>, { host, port }: HostPort): Promise<void> {
  return new Promise((resolve, reject) => {
    const onError = (error: NodeJS.ErrnoException): void => {
      const why =
        error.code === "EADDRINUSE"
          ? "the port is in use; stop the other program or choose another with --ssh-listen"
          : error.code === "EADDRNOTAVAIL"
            ? "this machine has no such address; correct --ssh-listen"
            : error.code === "EACCES"
              ? "ports below 1024 are for root; choose another with --ssh-listen"
              : error.message;
      reject(
        new Error(`Cannot listen for SSH on ${formatTransportAddress({ ip: host, port })}: ${why}`, { cause: error }),
      );
    };
    server.once("error", onError);
    server.listen({ host, port, exclusive: true }, () => {
      server.removeListener("error", onError);
      resolve();
    });
  });
}
