/**
 * A coordinator that lies: it stands before the real hub, has the coordinator's key, and may change, hold back, repeat and invent every
 * message between the hub and an agent.
 *
 * To the hub it pretends to be the agent. A real one would have no need for the agent's key there, since it is the hub; this one
 * borrows it from the world, so that the hub need not know how to lie.
 */
import type { PeerId } from "../../shared/session/identity.ts";
import { X25519Key } from "../../shared/session/primitives.ts";
import { AgentChannel, CoordinatorChannel } from "../../shared/signal/channel.ts";
import {
  type AgentMessage,
  type CoordinatorMessage,
  decodeAgentMessage,
  decodeCoordinatorMessage,
  encodeMessage,
} from "../../shared/signal/messages.ts";
import type { SimCoordinator } from "./coordinator.ts";
import type { AgentKeys } from "./keys.ts";
import type { SeededRandom } from "./random.ts";
import type { SignalClient, SignalEndpoint } from "./signal_link.ts";

interface Session {
  readonly client: SignalClient;
  readonly toAgent: CoordinatorChannel;
  toHub: AgentChannel | undefined;
  hubConnection: number | undefined;
  id: PeerId | undefined;
}

export class HostileCoordinator implements SignalEndpoint {
  /** What an agent gets instead of a message of the hub's. */
  alterToAgent: (to: PeerId, message: CoordinatorMessage) => readonly CoordinatorMessage[] = (_to, message) => [
    message,
  ];
  /** What the hub gets instead of a message of an agent's. */
  alterToHub: (from: PeerId, message: AgentMessage) => readonly AgentMessage[] = (_from, message) => [message];
  readonly #hub: SimCoordinator;
  readonly #random: SeededRandom;
  readonly #keys = new Map<PeerId, AgentKeys>();
  readonly #sessions = new Map<number, Session>();
  #next = 1;

  constructor(hub: SimCoordinator, random: SeededRandom) {
    this.#hub = hub;
    this.#random = random;
  }

  get isUp(): boolean {
    return this.#hub.isUp;
  }

  know(keys: AgentKeys): void {
    this.#keys.set(keys.id, keys);
  }

  /** Says something to an agent that the hub did not. */
  tell(to: PeerId, message: CoordinatorMessage): void {
    for (const session of this.#sessions.values()) if (session.id === to) this.#send(session, message);
  }

  open(client: SignalClient): number {
    const connection = this.#next++;
    this.#sessions.set(connection, {
      client,
      toAgent: new CoordinatorChannel({ staticKey: this.#hub.identity.staticKey, ephemeral: this.#newKey() }),
      toHub: undefined,
      hubConnection: undefined,
      id: undefined,
    });
    return connection;
  }

  receive(connection: number, bytes: Uint8Array): void {
    const session = this.#sessions.get(connection);
    if (session === undefined) return;
    const outcome = session.toAgent.handle(bytes);
    switch (outcome.type) {
      case "reply":
        session.client.receive(outcome.bytes);
        return;
      case "hello": {
        const keys = [...this.#keys.values()].find((known) =>
          known.identity.publicKey.every((byte, i) => byte === outcome.hello.identity[i]),
        );
        if (keys === undefined) return;
        session.id = keys.id;
        const channel = new AgentChannel({
          staticKey: keys.sessionKey,
          ephemeral: this.#newKey(),
          hello: outcome.hello,
          accept: () => true,
        });
        session.toHub = channel;
        session.hubConnection = this.#hub.open({
          source: session.client.source,
          receive: (fromHub) => this.#receiveFromHub(session, fromHub),
          closed: (reason) => session.client.closed(reason),
        });
        this.#hub.receive(session.hubConnection, channel.start());
        return;
      }
      case "message": {
        const message = decodeAgentMessage(outcome.plaintext);
        if (message === undefined || session.id === undefined) return;
        for (const altered of this.alterToHub(session.id, message)) this.#sendToHub(session, altered);
        return;
      }
      case "failed":
        session.client.closed(outcome.reason);
    }
  }

  closed(connection: number): void {
    const session = this.#sessions.get(connection);
    this.#sessions.delete(connection);
    if (session?.hubConnection !== undefined) this.#hub.closed(session.hubConnection);
  }

  #receiveFromHub(session: Session, bytes: Uint8Array): void {
    const outcome = session.toHub?.handle(bytes);
    if (outcome?.type === "reply" && session.hubConnection !== undefined)
      this.#hub.receive(session.hubConnection, outcome.bytes);
    if (outcome?.type !== "message" || session.id === undefined) return;
    const message = decodeCoordinatorMessage(outcome.plaintext);
    if (message === undefined) return;
    for (const altered of this.alterToAgent(session.id, message)) this.#send(session, altered);
  }

  #send(session: Session, message: CoordinatorMessage): void {
    session.client.receive(session.toAgent.seal(encodeMessage(message)));
  }

  #sendToHub(session: Session, message: AgentMessage): void {
    if (session.toHub !== undefined && session.hubConnection !== undefined)
      this.#hub.receive(session.hubConnection, session.toHub.seal(encodeMessage(message)));
  }

  #newKey(): X25519Key {
    return new X25519Key(this.#random.bytes(32));
  }
}
