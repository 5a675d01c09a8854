/** A simulated coordinator: the real STUN rules on virtual sockets, and signalling that honours or, as an actor, breaks its promises. */
import type { TransportAddress } from "../../shared/address.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { hmacSha256 } from "../../shared/session/primitives.ts";
import type { AgentMessage, CoordinatorMessage, PeerEntry } from "../../shared/signal/messages.ts";
import { StunServer } from "../../coordinator/stun/stun_server.ts";
import type { SimAgent } from "./agent.ts";
import type { VirtualClock } from "./clock.ts";
import type { Host, Network } from "./network.ts";
import type { SeededRandom } from "./random.ts";

const STUN_PORTS: readonly [number, number] = [3478, 3479];
/** The punch fires when both have been told, and a little later: what the coordinator's clock sync cannot see. */
const PUNCH_MARGIN_MS = 5;

interface Member {
  readonly agent: SimAgent;
  readonly entry: PeerEntry;
  readonly attested: TransportAddress[];
}

export class SimCoordinator {
  readonly #clock: VirtualClock;
  readonly #random: SeededRandom;
  readonly #members = new Map<PeerId, Member>();
  readonly #stun: StunServer;
  readonly #addresses: readonly string[];
  isUp = true;
  /** For hostile coordinators: may change every message on its way to an agent. */
  tamper: (to: SimAgent, message: CoordinatorMessage) => CoordinatorMessage | undefined = (_to, message) => message;

  constructor(clock: VirtualClock, network: Network, random: SeededRandom, addresses: readonly string[]) {
    this.#clock = clock;
    this.#random = random;
    this.#addresses = addresses;
    this.#stun = new StunServer({
      addresses: addresses.map((ip) => ({ ip, publicIp: ip })),
      ports: STUN_PORTS,
      hmacSha256,
    });
    const hosts = addresses.map((ip) => network.addHost(ip, undefined, 0));
    hosts.forEach((host, address) => this.#listen(network, hosts, host, address));
  }

  join(agent: SimAgent): void {
    const index = this.#members.size + 1;
    const entry: PeerEntry = {
      id: agent.id,
      name: agent.name,
      identity: agent.identity.publicKey,
      sessionKey: agent.sessionKey.publicKey,
      signature: agent.signature,
      meshIPv4: `100.96.0.${index}`,
      meshIPv6: `fd00::${index}`,
      online: true,
      instance: agent.instance,
    };
    const known = this.#members.get(agent.id);
    const member = {
      agent,
      entry: { ...entry, ...(known === undefined ? {} : addressesOf(known.entry)) },
      attested: [],
    };
    this.#members.set(agent.id, member);
    const secret = this.#random.bytes(32);
    this.#stun.addToken(agent.id, secret, this.#clock.now);
    agent.sendSignal = (message) => {
      this.#clock.after(agent.host.delayMs, () => this.#handle(agent, message));
    };
    const stun = this.#addresses.flatMap((ip) => STUN_PORTS.map((port) => ({ ip, port })));
    this.#send(agent, {
      type: "welcome",
      id: agent.id,
      name: agent.name,
      meshIPv4: member.entry.meshIPv4,
      meshIPv6: member.entry.meshIPv6,
      stun,
      stunUsername: agent.id,
      stunSecret: secret,
      listeners: [],
    });
    const others = [...this.#members.values()].filter((other) => other.agent !== agent);
    this.#send(agent, { type: "peers", reset: true, peers: others.map((other) => other.entry) });
    for (const other of others) this.#send(other.agent, { type: "peers", reset: false, peers: [member.entry] });
    this.#clock.after(agent.host.delayMs, () => agent.handleSignalState(true));
  }

  #handle(agent: SimAgent, message: AgentMessage): void {
    const sender = this.#members.get(agent.id);
    if (!this.isUp || sender === undefined) return;
    if (message.type === "to_peer") {
      const target = this.#members.get(message.to);
      if (target === undefined) return;
      const attested = sender.attested.slice(0, 8);
      this.#send(target.agent, { type: "from_peer", from: agent.id, body: message.body, attested });
    } else if (message.type === "punch_request") {
      const target = this.#members.get(message.peer);
      if (target !== undefined) this.#punch(sender, target, message.round);
    }
  }

  #punch(a: Member, b: Member, round: number): void {
    const wait = Math.max(a.agent.host.delayMs, b.agent.host.delayMs) + PUNCH_MARGIN_MS;
    for (const [to, other] of [
      [a, b],
      [b, a],
    ] as const) {
      const fireAt = this.#clock.now + wait + to.agent.clockOffsetMs;
      const attested = other.attested.slice(0, 8);
      this.#send(to.agent, { type: "punch", peer: other.agent.id, round, fireAt, attested });
    }
  }

  #send(agent: SimAgent, message: CoordinatorMessage): void {
    this.#clock.after(agent.host.delayMs, () => {
      const altered = this.isUp ? this.tamper(agent, message) : undefined;
      if (altered !== undefined) agent.handleSignal(altered);
    });
  }

  #listen(network: Network, hosts: readonly Host[], host: Host, address: number): void {
    STUN_PORTS.forEach((port, portIndex) => {
      host.sockets.set(port, (bytes, from) => {
        const socket = { address, port: portIndex === 0 ? 0 : 1 } as const;
        const { reply, observed } = this.#stun.handle(bytes, from, socket, this.#clock.now);
        if (observed !== undefined) this.#observe(observed.tokenId as PeerId, observed.from);
        const source = reply === undefined ? undefined : hosts[reply.socket.address];
        if (reply !== undefined && source !== undefined) {
          network.send(source, STUN_PORTS[reply.socket.port], from, reply.bytes);
        }
      });
    });
  }

  #observe(id: PeerId, address: TransportAddress): void {
    const member = this.#members.get(id);
    if (member === undefined) return;
    const others = member.attested.filter((known) => known.ip !== address.ip || known.port !== address.port);
    member.attested.splice(0, member.attested.length, address, ...others.slice(0, 7));
  }
}

const addressesOf = (entry: PeerEntry) => ({ meshIPv4: entry.meshIPv4, meshIPv6: entry.meshIPv6 });
