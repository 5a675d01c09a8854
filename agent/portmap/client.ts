/**
 * What the three protocols have in common for the machine that chooses among them (port_mapping.ts), and how all of them repeat a
 * datagram.
 */
import type { TransportAddress } from "../../shared/address.ts";
import { after, type Instant } from "../../shared/time.ts";

export const PROTOCOLS = ["pcp", "nat-pmp", "upnp"] as const;
export type Protocol = (typeof PROTOCOLS)[number];

/** As people write them. */
export const PROTOCOL_NAME: Readonly<Record<Protocol, string>> = { pcp: "PCP", "nat-pmp": "NAT-PMP", upnp: "UPnP" };

/** Seconds asked for; gateways give what they like, two hours is what RFC 6886 §3.3 recommends. */
export const WISHED_LIFETIME = 7200;

export interface Target {
  /** Of the default route. Nobody else is listened to. */
  readonly gateway: string;
  /** Our own address towards it. */
  readonly local: string;
  /** The local UDP port to map; undefined only finds out what the gateway speaks. */
  readonly port: number | undefined;
}

export interface Lease {
  readonly external: TransportAddress;
  /** Undefined: until it is removed, or the gateway restarts. */
  readonly lifetimeMs: number | undefined;
}

export type ClientAction =
  | { readonly type: "send"; readonly to: TransportAddress; readonly bytes: Uint8Array }
  /** One exchange over a TCP connection to the gateway; its end is reported to `handleHttp`, whatever becomes of it. */
  | { readonly type: "http"; readonly id: number; readonly to: TransportAddress; readonly bytes: Uint8Array };

/** "no address" is a gateway without a public address to map; the rest is for people, and follows "the router ...". */
export type RefusalReason = "no address" | `it ${string}` | `its ${string}` | `this ${string}` | `another ${string}`;

/** How a request for a mapping, or a look at one, has ended. */
export type Outcome =
  | { readonly type: "leased"; readonly lease: Lease }
  | { readonly type: "refused"; readonly reason: RefusalReason }
  | { readonly type: "silent" }
  /** The gateway has lost its state, or its address has changed: the mapping must be asked for anew. */
  | { readonly type: "lost" };

export interface MappingClient {
  readonly protocol: Protocol;
  /** Does the gateway speak this? Undefined until it has answered or been silent for long enough. */
  readonly isSpoken: boolean | undefined;
  /** Asks whether the gateway speaks this. */
  search(now: Instant): void;
  /** Asks for the mapping, or for more time for the one that it has. */
  request(now: Instant): void;
  /** Asks, cheaply, whether the gateway still has what it gave. Says nothing when all is well. */
  check(now: Instant): void;
  /** Removes the mapping, without waiting. */
  release(now: Instant): void;
  /** False when the datagram is none of this protocol's. Its sender has been checked to be the gateway. */
  handleDatagram(from: TransportAddress, bytes: Uint8Array, now: Instant): boolean;
  /** @param bytes the whole response, undefined when there was none */
  handleHttp(id: number, bytes: Uint8Array | undefined, now: Instant): void;
  handleTimeout(now: Instant): void;
  deadline(): Instant | undefined;
  poll(): ClientAction | undefined;
  outcome(): Outcome | undefined;
}

/** RFC 6886 §3.1 begins at 250 ms and doubles; four requests in all, since the gateway is one hop away and we come back later. */
const SEND_AT_MS: readonly number[] = [0, 250, 750, 1750];
const GIVE_UP_MS = 2750;

/** When to send a datagram that has not been answered. */
export class Retransmission {
  #startedAt: Instant | undefined;
  #sent = 0;

  start(now: Instant): void {
    this.#startedAt = now;
    this.#sent = 0;
  }

  stop(): void {
    this.#startedAt = undefined;
  }

  get isRunning(): boolean {
    return this.#startedAt !== undefined;
  }

  deadline(): Instant | undefined {
    return this.#startedAt === undefined ? undefined : after(this.#startedAt, SEND_AT_MS[this.#sent] ?? GIVE_UP_MS);
  }

  /** What is due. After "gave up" it has stopped. */
  next(now: Instant): "send" | "gave up" | undefined {
    const at = this.deadline();
    if (at === undefined || now < at) return undefined;
    if (this.#sent >= SEND_AT_MS.length) {
      this.stop();
      return "gave up";
    }
    this.#sent++;
    return "send";
  }
}
