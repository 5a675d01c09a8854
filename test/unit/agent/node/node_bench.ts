/** One node on a bench: time is an argument, actions are recorded, peers are entries of the coordinator's list. */
import type { NodeAction, NodeEvent } from "../../../../agent/node/contract.ts";
import { Node } from "../../../../agent/node/node.ts";
import { type PeerId, peerIdOf, signSessionKey } from "../../../../shared/session/identity.ts";
import { Ed25519Key, X25519Key } from "../../../../shared/session/primitives.ts";
import type { AgentMessage, CoordinatorMessage, PeerEntry } from "../../../../shared/signal/messages.ts";
import { type Instant, instant } from "../../../../shared/time.ts";

export interface Somebody {
  readonly sessionKey: X25519Key;
  readonly id: PeerId;
  readonly entry: PeerEntry;
}

export function somebody(
  seed: number | Uint8Array,
  name: string,
  meshIPv4 = `100.96.0.${String(seed)}`,
  meshIPv6 = `fd00::${String(seed)}`,
): Somebody {
  const [one, two] =
    typeof seed === "number" ? [new Uint8Array(32).fill(seed), new Uint8Array(32).fill(seed + 100)] : [seed, seed];
  const identity = new Ed25519Key(one);
  const sessionKey = new X25519Key(two);
  const id = peerIdOf(identity.publicKey);
  const entry: PeerEntry = {
    id,
    name,
    identity: identity.publicKey,
    sessionKey: sessionKey.publicKey,
    signature: signSessionKey(identity, sessionKey.publicKey),
    meshIPv4,
    meshIPv6,
    online: true,
    instance: 1,
  };
  return { sessionKey, id, entry };
}

export const STUN_SERVER = { ip: "203.0.113.1", port: 3478 };

export class NodeBench {
  readonly node: Node;
  readonly self = somebody(1, "self");
  readonly actions: NodeAction[] = [];
  readonly pinned = new Map<string, PeerId>();
  readonly blocked = new Set<string>();
  now: Instant = instant(0);
  #random = 1;

  constructor(options: { readonly useDirect?: boolean } = {}) {
    this.node = new Node({
      id: this.self.id,
      staticKey: this.self.sessionKey,
      environment: {
        random: (length) =>
          Uint8Array.from({ length }, () => (this.#random = (this.#random * 48_271) % 2_147_483_647) & 0xff),
        timestamp: () => 1_790_000_000_000 + this.now,
        greatestTimestamp: () => 0,
        rememberTimestamp: () => {},
        wallClockUnixMs: () => 1_790_000_000_000 + this.now,
      },
      trust: {
        check: (name, id) => {
          if (this.blocked.has(name)) return "blocked";
          const known = this.pinned.get(name);
          return known === undefined ? "new" : known === id ? "pinned" : "changed";
        },
        pin: (name, id) => this.pinned.set(name, id),
      },
      useDirect: options.useDirect ?? true,
      allowLoopback: false,
      isMeshAddress: (ip) => ip.startsWith("100.96."),
    });
    this.do((node, now) => {
      node.handleDataLegs(41_641, undefined, now);
      node.handleInterfaces([{ ip: "10.0.0.2", prefixLength: 24 }], now);
    });
  }

  /** Joined, with these peers in the first list. */
  join(...peers: readonly Somebody[]): void {
    this.do((node, now) => node.handleSignalState(true, now));
    this.signal({
      type: "welcome",
      id: this.self.id,
      name: "self",
      meshIPv4: "100.96.0.1",
      meshIPv6: "fd00::1",
      stun: [STUN_SERVER],
      stunUsername: "token",
      stunSecret: new Uint8Array(32),
      listeners: [],
    });
    this.signal({ type: "peers", reset: true, peers: peers.map(({ entry }) => entry) });
  }

  signal(message: CoordinatorMessage): void {
    this.do((node, now) => node.handleSignal(message, now));
  }

  do(action: (node: Node, now: Instant) => void): void {
    action(this.node, this.now);
    for (let next = this.node.poll(); next !== undefined; next = this.node.poll()) this.actions.push(next);
  }

  pass(milliseconds: number): void {
    const end = this.now + milliseconds;
    for (;;) {
      const deadline = this.node.deadline();
      if (deadline === undefined || deadline > end) break;
      this.now = instant(Math.max(this.now, deadline));
      this.do((node, now) => node.handleTimeout(now));
    }
    this.now = instant(end);
  }

  signalled<T extends AgentMessage["type"]>(type: T): Extract<AgentMessage, { type: T }>[] {
    return this.actions.flatMap((action) =>
      action.type === "signal" && action.message.type === type
        ? [action.message as Extract<AgentMessage, { type: T }>]
        : [],
    );
  }

  events<T extends NodeEvent["type"]>(type: T): Extract<NodeEvent, { type: T }>[] {
    return this.actions.flatMap((action) =>
      action.type === "event" && action.event.type === type ? [action.event as Extract<NodeEvent, { type: T }>] : [],
    );
  }

  why(peer: Somebody): string | undefined {
    return this.node.peers(this.now).find(({ id }) => id === peer.id)?.why;
  }
}
