/** An agent without a mesh: answers with what the test sets and remembers what it was asked. */
import type {
  AgentControl,
  BenchEvent,
  BenchOptions,
  Netcheck,
  PathStatus,
  PeerStatus,
  PingEvent,
  PingOptions,
  Status,
  WaitCondition,
  WhyAnswer,
} from "../../../../agent/local/contract.ts";
import type { ForwardSpec, ListenSpec } from "../../../../agent/state/forward_spec.ts";
import { EXIT, UserError } from "../../../../agent/state/user_error.ts";
import type { RungWish } from "../../../../shared/wire/control.ts";

/** The tests' present. */
export const NOW = Date.parse("2026-06-01T12:00:00Z");
const at = (secondsAgo: number): string => new Date(NOW - secondsAgo * 1000).toISOString();

export const peerStatus = (name: string, change: Partial<PeerStatus> = {}): PeerStatus => ({
  name,
  id: "a".repeat(26),
  fingerprint: "aaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aa",
  meshIPv4: "100.96.0.2",
  meshIPv6: "fd00::2",
  online: true,
  path: {
    kind: "direct",
    legs: null,
    localAddress: "192.168.1.5:41641",
    remoteAddress: "203.0.113.9:5000",
    rttMs: 12.34,
    since: at(200),
  },
  why: "Direct: both routers let the first packets cross",
  rxBytes: 1,
  txBytes: 2,
  history: [],
  nat: "full cone",
  ...change,
});

export const STATUS: Status = {
  schema: 1,
  self: {
    name: "laptop",
    id: "b".repeat(26),
    meshIPv4: "100.96.0.1",
    meshIPv6: "fd00::1",
    tun: "tm0",
    nat: {
      label: "port-restricted cone",
      certain: true,
      mapping: "endpoint-independent",
      filtering: "address-and-port-dependent",
      allocation: null,
      publicAddress: "198.51.100.7:41641",
    },
    coordinator: { url: "http://c.example:8080", connected: true, rttMs: 50.2 },
  },
  peers: [
    peerStatus("old-nas", { online: false, path: null, why: "Offline since yesterday", nat: null }),
    peerStatus("nas"),
    peerStatus("phone", {
      path: {
        kind: "websocket",
        legs: { local: "ssh", remote: "websocket" },
        localAddress: null,
        remoteAddress: null,
        rttMs: 130.6,
        since: at(7200),
      },
      nat: "udp blocked",
      why: 'The network of "phone" blocks UDP',
    }),
  ],
};

export const NETCHECK: Netcheck = {
  schema: 1,
  udp: true,
  ipv4: { ...STATUS.self.nat, hairpin: false },
  ipv6: { available: false, publicAddress: null },
  portMapping: { upnp: true, natPmp: false, pcp: null },
  ssh: null,
  websocket: true,
  proxy: null,
  summary: "Direct paths work to everybody but symmetric NATs",
};

export class FakeControl implements AgentControl {
  current: Status = STATUS;
  pings: PingEvent[] = [];
  /** Keeps the answer to `ping` open after its events until the reader goes. */
  pingsForever = false;
  reached = true;
  netcheckAnswer: () => Promise<Netcheck> = () => Promise.resolve(NETCHECK);
  onStop: () => void = () => {};
  readonly asked: unknown[] = [];
  readonly pingEnded = Promise.withResolvers<void>();

  status(): Promise<Status> {
    return Promise.resolve(this.current);
  }

  why(peer: string): WhyAnswer | undefined {
    const found = this.current.peers.find(({ name }) => name === peer);
    if (found === undefined) return undefined;
    return {
      schema: 1,
      name: found.name,
      online: found.online,
      path: found.path,
      why: found.why,
      better: found.path?.kind === "direct" ? [] : [{ kind: "direct", reason: "Its network blocks UDP" }],
      help: found.path?.kind === "direct" ? [] : ["Allow outgoing UDP there"],
      nat: { local: "port-restricted cone", remote: found.nat ?? null },
      history: [{ at: at(60), from: "ssh", to: "direct", reason: "A direct path was proven" }],
    };
  }

  choosePath(peer: string, rung: RungWish): Promise<PathStatus> {
    this.asked.push({ peer, rung });
    const path = this.current.peers.find(({ name }) => name === peer)?.path;
    if (path === undefined || path === null) throw new UserError(EXIT.peerUnavailable, `There is no peer "${peer}"`);
    return Promise.resolve({ ...path, kind: rung === "auto" ? path.kind : rung });
  }

  async ping(
    peer: string,
    options: PingOptions,
    onEvent: (event: PingEvent) => void,
    signal: AbortSignal,
  ): Promise<void> {
    this.asked.push({ peer, ...options });
    for (const event of this.pings) onEvent(event);
    if (this.pingsForever) {
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
    }
    this.pingEnded.resolve();
  }

  async wait(condition: WaitCondition, timeoutMs: number | undefined): Promise<boolean> {
    this.asked.push({ condition, timeoutMs });
    return this.reached;
  }

  netcheck(): Promise<Netcheck> {
    return this.netcheckAnswer();
  }

  trust(name: string): string | undefined {
    this.asked.push({ trust: name });
    return this.current.peers.find((peer) => peer.name === name)?.fingerprint;
  }

  block(name: string): boolean {
    this.asked.push({ block: name });
    return this.current.peers.some((peer) => peer.name === name);
  }

  benchEvents: BenchEvent[] = [];
  bench(peer: string, options: BenchOptions, onEvent: (event: BenchEvent) => void): Promise<void> {
    this.asked.push({ peer, ...options });
    for (const event of this.benchEvents) onEvent(event);
    return Promise.resolve();
  }

  forward(spec: ForwardSpec, onListening: (address: string) => void, signal: AbortSignal): Promise<void> {
    return this.#listen(spec, onListening, signal);
  }

  socks(spec: ListenSpec, onListening: (address: string) => void, signal: AbortSignal): Promise<void> {
    return this.#listen(spec, onListening, signal);
  }

  async #listen(spec: ListenSpec, onListening: (address: string) => void, signal: AbortSignal): Promise<void> {
    this.asked.push(spec);
    if (spec.port === 1) throw new UserError(EXIT.failed, "Cannot listen on 127.0.0.1:1: permission denied");
    onListening(`${spec.bind}:${spec.port}`);
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
    this.pingEnded.resolve();
  }

  stop(): void {
    this.onStop();
  }
}
