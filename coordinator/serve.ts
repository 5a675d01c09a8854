/**
 * Runs the coordinator: opens the database and every listener, wires STUN and signalling together, and stops cleanly.
 *
 * Loaded by main.ts once the permissions are there. Returns the exit code; only main.ts exits.
 */
import { randomBytes } from "node:crypto";
import { readFileSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import { createApp } from "./app.ts";
import { runCommand } from "./commands/run_command.ts";
import { EXIT_BAD_CONFIG, EXIT_FAILED, type Listener, parseInvocation, type ServeConfig } from "./config.ts";
import { ConnectionGuard } from "./connection_guard.ts";
import { openHttpListener } from "./http_listener.ts";
import { createLog, type Log } from "./log.ts";
import { ENVIRONMENT } from "./permissions.ts";
import { type CoordinatorIdentity, loadIdentity, MeshRangeConflict } from "./registry/coordinator_identity.ts";
import { JOIN_KEY_RANDOM_BYTES, newJoinKey } from "./registry/join_key.ts";
import { advertised, type Reachable } from "./signalling/advertised.ts";
import { createSignallingServer } from "./signalling/signalling_server.ts";
import { createRelayService, type RelayService } from "./relay/relay_service.ts";
import { createRelayWebSocketServer, RELAY_PATH } from "./relay/relay_websocket.ts";
import { loadHostKey } from "./ssh/host_key.ts";
import { openSshServer, type SshServer } from "./ssh/ssh_server.ts";
import { openSqliteStore } from "./store/sqlite_store.ts";
import type { PeerId } from "../shared/session/identity.ts";
import type { Store } from "./store/store.ts";
import { defaultStunAddresses, type LocalNetwork, readLocalNetwork } from "./stun/stun_addresses.ts";
import { openStunSockets } from "./stun/stun_sockets.ts";

/** How often the relay's counters are logged, while they move. */
const RELAY_COUNTERS_MS = 60_000;
/** PRODUCT.md: what the command line changes takes effect within 2 s. */
const STORE_POLL_MS = 500;
const FIRST_KEY_LIFETIME_MS = 24 * 3_600_000;
const SETTLE_TIMEOUT_MS = 3000;
const SETTLE_POLL_MS = 100;
/** Time for close frames to leave. */
const SHUTDOWN_MS = 300;

export async function start(argv: readonly string[]): Promise<number> {
  const env = Object.fromEntries(ENVIRONMENT.map((name) => [name, process.env[name]]));
  const invocation = parseInvocation(argv, env, process.getuid?.() === 0);
  switch (invocation.type) {
    case "help":
      print(1, invocation.text);
      return 0;
    case "error":
      for (const message of invocation.messages) print(2, message);
      return invocation.exitCode;
    case "command": {
      try {
        const { text, error, exitCode } = runCommand(invocation.command, Date.now());
        if (text !== undefined) print(1, text);
        if (error !== undefined) print(2, error);
        return exitCode;
      } catch (error) {
        print(2, messageOf(error));
        return EXIT_FAILED;
      }
    }
    default:
      return serve(invocation.config);
  }
}

/** A start that cannot succeed until the configuration changes. */
class BadConfig extends Error {}

async function serve(config: ServeConfig): Promise<number> {
  const log = createLog(config.logLevel, config.logFormat, (line) => print(2, line));
  const closers: (() => void)[] = [];
  const stopped = waitForSignal();
  try {
    await open(config, log, closers);
    log.event({ event: "stopped", reason: await stopped });
    return 0;
  } catch (error) {
    log.error(messageOf(error));
    return error instanceof BadConfig || error instanceof MeshRangeConflict ? EXIT_BAD_CONFIG : EXIT_FAILED;
  } finally {
    for (const close of closers.reverse()) close();
    await new Promise((resolve) => setTimeout(resolve, SHUTDOWN_MS));
  }
}

async function open(config: ServeConfig, log: Log, closers: (() => void)[]): Promise<void> {
  const tls = readTls(config);
  const store = openSqliteStore(config.dataDir);
  closers.push(() => store.close());
  const identity = loadIdentity(store, config, (length) => new Uint8Array(randomBytes(length)));

  const ips =
    config.stunAddresses.length > 0
      ? config.stunAddresses
      : defaultStunAddresses(
          await settledNetwork(),
          config.listeners.map(({ host }) => host),
        );
  for (const ip of config.stunPublic.keys()) {
    if (!ips.includes(ip))
      throw new BadConfig(`--stun-public names ${ip}, which is no STUN address; there are ${ips.join(", ")}`);
  }
  // STUN needs to know signalling and the other way round: tokens go one way, observations the other.
  let onObserved: Parameters<typeof openStunSockets>[0]["onObserved"] = () => {};
  const stun = await openStunSockets({
    addresses: ips.map((ip) => ({ ip, publicIp: config.stunPublic.get(ip) ?? ip })),
    ports: config.stunPorts,
    onObserved: (observation) => onObserved(observation),
    onError: (message) => log.warn(message),
  });
  closers.push(() => stun.close());
  for (const { ip, port } of stun.bound) log.event({ event: "listening", kind: "stun", address: ip, port });

  // Filled in as the listeners come up; nobody is welcomed before all of them are there.
  const listeners: Listener[] = [];
  const hostKey = loadHostKey(store, (length) => new Uint8Array(randomBytes(length)));
  let ssh: SshServer | undefined;
  const reachable: Reachable = {
    listeners,
    stun: stun.reported,
    publicHost: config.publicHost,
    get ssh() {
      return ssh === undefined ? undefined : { ...ssh.bound, hostKey: hostKey.publicBlob };
    },
  };
  // The relay asks signalling who may talk to whom, and tells it about legs; signalling tells the relay what changed.
  let relay: RelayService | undefined;
  const signalling = createSignallingServer({
    identity,
    store,
    reachable,
    log,
    addToken: (id, secret) => stun.addToken(id, secret),
    removeToken: (id) => stun.removeToken(id),
    onJoined: (peer) => relay?.onAgentJoined(peer),
    onLegLost: (peer, leg) => relay?.onLegLost(peer, leg),
    onRulesChanged: (peer) => {
      relay?.onRulesChanged(peer);
      ssh?.onRulesChanged();
    },
  });
  closers.push(() => signalling.close());
  onObserved = (observation) => signalling.onObserved(observation);
  const members = {
    isMember: (peer: PeerId) => signalling.isMember(peer),
    mayTalk: (a: PeerId, b: PeerId) => signalling.mayTalk(a, b),
  };
  relay = createRelayService({ ...members, log, tellLeg: (to, peer, leg) => signalling.tellLeg(to, peer, leg) });
  const relayWebSockets = createRelayWebSocketServer({
    relay,
    log,
    redeem: (token) => signalling.redeemRelayToken(token),
  });
  closers.push(() => relayWebSockets.close());
  const peerOfName = (name: string): PeerId | undefined =>
    store.peers("approved").find((peer) => peer.name === name)?.id;
  ssh = await openSshServer({ listen: config.sshListen, hostKey, relay, log, isMember: members.isMember, peerOfName });
  closers.push(() => ssh?.close());
  log.event({ event: "listening", kind: "ssh", address: ssh.bound.host, port: ssh.bound.port });

  let isHealthy = false;
  closers.push(() => {
    isHealthy = false;
  });
  const guard = new ConnectionGuard();
  const app = createApp({ isHealthy: () => isHealthy, reachable: (host) => advertised(reachable, host) });
  for (const listener of config.listeners) {
    const http = await openHttpListener({
      listener,
      tls,
      app,
      guard,
      onUpgrade: (request, socket, head) => {
        const isRelay = request.url?.split("?")[0] === RELAY_PATH;
        (isRelay ? relayWebSockets : signalling).onUpgrade(request, socket, head);
      },
    });
    closers.push(() => http.close());
    listeners.push(http.bound);
    log.event({ event: "listening", kind: listener.scheme, address: listener.host, port: http.bound.port });
  }

  let version = store.version();
  const poll = setInterval(() => {
    try {
      const seen = store.version();
      if (seen === version) return;
      version = seen;
      signalling.onStoreChanged();
    } catch (error) {
      log.error(`Cannot read the database: ${messageOf(error)}`);
    }
  }, STORE_POLL_MS);
  closers.push(() => clearInterval(poll));
  let told = "";
  const counting = setInterval(() => {
    const counters = Object.entries(relay.counters).map(([name, count]) => `${name} ${count}`);
    const line = `Relay, ${relay.legCount} legs: ${counters.join(", ")}`;
    if (line !== told) log.debug(line);
    told = line;
  }, RELAY_COUNTERS_MS);
  closers.push(() => clearInterval(counting));

  isHealthy = true;
  printJoinLine(store, identity, reachable, log);
  log.event({ event: "ready", fingerprint: identity.fingerprint });
}

/** The machine's addresses, once IPv6 has finished looking for duplicates: a service that starts with the machine is often too early. */
async function settledNetwork(): Promise<LocalNetwork> {
  for (let waited = 0; ; waited += SETTLE_POLL_MS) {
    const network = readLocalNetwork();
    if (!network.isSettling || waited >= SETTLE_TIMEOUT_MS) return network;
    await new Promise((resolve) => setTimeout(resolve, SETTLE_POLL_MS));
  }
}

/** At the first start only: later the secret is no longer known, and `key create` makes another. */
function printJoinLine(store: Store, identity: CoordinatorIdentity, reachable: Reachable, log: Log): void {
  if (store.meta("first_key") !== undefined) return;
  const key = newJoinKey({
    random: new Uint8Array(randomBytes(JOIN_KEY_RANDOM_BYTES)),
    fingerprint: identity.fingerprint,
    nowUnixMs: Date.now(),
    lifetimeMs: FIRST_KEY_LIFETIME_MS,
    reusable: true,
  });
  store.transaction(() => {
    store.putKey(key.record);
    store.setMeta("first_key", key.record.id);
  });
  const [url = ""] = advertised(reachable, ownHost(reachable)).listeners;
  log.event({ event: "join_line", command: `tunnelmesh-agent up ${url} --key ${key.text}` });
}

/** By what name others most likely reach this machine: an address that STUN answers on, else its host name. */
function ownHost(reachable: Reachable): string {
  const ip = reachable.stun[0]?.ip;
  if (ip === undefined) return hostname();
  return ip.includes(":") ? `[${ip}]` : ip;
}

function readTls(config: ServeConfig): { readonly cert: string; readonly key: string } | undefined {
  if (config.tls === undefined) return undefined;
  const read = (flag: string, path: string): string => {
    try {
      return readFileSync(path, "utf8");
    } catch (error) {
      throw new BadConfig(`Cannot read --${flag} ${path}: ${messageOf(error)}`, { cause: error });
    }
  };
  const tls = { cert: read("tls-cert", config.tls.certFile), key: read("tls-key", config.tls.keyFile) };
  if (!tls.cert.includes("-----BEGIN CERTIFICATE-----"))
    throw new BadConfig(`${config.tls.certFile} has no PEM certificate`);
  if (!/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(tls.key))
    throw new BadConfig(`${config.tls.keyFile} has no PEM private key`);
  return tls;
}

function waitForSignal(): Promise<string> {
  return new Promise((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => resolve(signal));
  });
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Whole lines, at once: a program that reads our logs must see them as they happen, also just before we exit. */
function print(descriptor: 1 | 2, text: string): void {
  try {
    writeSync(descriptor, `${text}\n`);
  } catch {
    // The reader has gone away; that must not stop the coordinator.
  }
}
