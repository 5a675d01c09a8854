/**
 * One side of an attempt that both agents have agreed to (punch_plan.ts): opens its sockets, sends its packets no faster than planned,
 * and remembers which probe was sent when, so that an answer proves a pair.
 *
 * What comes in on its sockets is PeerPaths' business; when to begin and to stop is the node's. Every packet goes to one ip, which the
 * peer names and the coordinator attests, so nobody else can be aimed.
 */
import { packAddress, type TransportAddress } from "../../shared/address.ts";
import { after, type Instant } from "../../shared/time.ts";
import type { Leg } from "../data/plane.ts";
import type { PortGuess } from "./port_guess.ts";
import type { PunchPlan } from "./punch_plan.ts";

/** Packets leave in small groups; a timer is no finer than this. */
const TICK_MS = 5;
/** After a pause of the process what was missed is not made up for. */
const MAX_CATCH_UP_MS = 20;
/** The peer may begin later, by a trip through the coordinator, and its last packets take their time. */
const LISTEN_MS = 2000;
/** Answers and checks beside the planned packets: each hit wants a few, and so does a volley's worth of a busy peer. */
const EXTRA_PACKETS = 200;

export type VolleyAction =
  | { readonly type: "open_leg"; readonly leg: Leg }
  | {
      readonly type: "probe";
      readonly leg: Leg;
      readonly to: Uint8Array;
      readonly transaction: number;
      readonly hops: number | undefined;
    };

export interface VolleyOptions {
  readonly plan: PunchPlan;
  /** The peer's attested address. Who guesses uses its ip only. */
  readonly target: TransportAddress;
  readonly dataLeg: Leg;
  /** This leg and those after it are free. */
  readonly firstLeg: Leg;
  readonly guess: PortGuess;
  /** The transaction of the first probe; the others follow. */
  readonly firstTransaction: number;
  readonly now: Instant;
}

export class Volley {
  readonly plan: PunchPlan;
  readonly target: TransportAddress;
  readonly startedAt: Instant;
  readonly #options: VolleyOptions;
  readonly #sentAt: Instant[] = [];
  /** What was sent with few hops and goes all the way later. */
  readonly #primed: { readonly socket: number; readonly port: number }[] = [];
  readonly #actions: VolleyAction[] = [];
  readonly #packets: number;
  #legsOpened = 0;
  #extra = EXTRA_PACKETS;
  #tickAt: Instant | undefined;
  #tickedAt: Instant;
  /** Packets that may leave, with fractions. */
  #allowed: number;

  constructor(options: VolleyOptions) {
    const { plan, now } = options;
    this.plan = plan;
    this.target = options.target;
    this.startedAt = now;
    this.#options = options;
    this.#packets = plan.role === "spread" ? plan.sockets : plan.probes;
    this.#tickAt = now;
    this.#tickedAt = now;
    this.#allowed = (plan.perSecond * TICK_MS) / 1000;
    this.handleTimeout(now);
  }

  get packetsSent(): number {
    return this.#sentAt.length;
  }

  /** Those of our NAT that it has taken: what is sent again takes no other. */
  get mappings(): number {
    return this.#primed.length === 0 ? this.packetsSent : this.#primed.length;
  }

  /** The sockets that it has opened. */
  legs(): readonly Leg[] {
    return Array.from({ length: this.#legsOpened }, (_, index) => this.#options.firstLeg + index);
  }

  hasLeg(leg: Leg): boolean {
    return leg >= this.#options.firstLeg && leg < this.#options.firstLeg + this.#legsOpened;
  }

  /** One packet more to the peer's ip, beside what any address may get. */
  takeExtra(ip: string): boolean {
    return ip === this.target.ip && this.#extra-- > 0;
  }

  /** When the probe with this transaction was sent; undefined when it is none of ours. */
  sentAt(transaction: number): Instant | undefined {
    return this.#sentAt[(transaction - this.#options.firstTransaction) >>> 0];
  }

  /** Nothing more will be sent. */
  stop(): void {
    this.#tickAt = undefined;
    this.#actions.length = 0;
  }

  /** When nothing more can come of it. */
  get endsAt(): Instant {
    const { probes, peerProbes, sockets, perSecond } = this.plan;
    return after(this.startedAt, (Math.max(probes, peerProbes, sockets) / perSecond) * 1000 + LISTEN_MS);
  }

  handleTimeout(now: Instant): void {
    if (this.#tickAt === undefined || now < this.#tickAt) return;
    this.#allowed += (Math.min(now - this.#tickedAt, MAX_CATCH_UP_MS) * this.plan.perSecond) / 1000;
    this.#tickedAt = now;
    for (; this.#allowed >= 1 && this.packetsSent < this.#packets; this.#allowed--) this.#sendNext(now);
    this.#tickAt = this.packetsSent < this.#packets ? after(now, TICK_MS) : undefined;
  }

  deadline(): Instant | undefined {
    return this.#tickAt;
  }

  poll(): VolleyAction | undefined {
    return this.#actions.shift();
  }

  #sendNext(now: Instant): void {
    const { plan, target, firstTransaction } = this.#options;
    const index = this.packetsSent;
    const { socket, port, hops } = this.#aim(index);
    const transaction = (firstTransaction + index) >>> 0;
    const leg = plan.role === "guess" ? this.#options.dataLeg : this.#leg(socket);
    this.#sentAt.push(now);
    this.#actions.push({ type: "probe", leg, to: packAddress({ ip: target.ip, port }), transaction, hops });
  }

  #aim(index: number): { readonly socket: number; readonly port: number; readonly hops: number | undefined } {
    const { plan, target, guess } = this.#options;
    const { hops } = plan;
    const isTwice = plan.role === "meet" && hops !== undefined;
    const again = isTwice ? this.#primed[index - Math.ceil(this.#packets / 2)] : undefined;
    if (again !== undefined) return { ...again, hops: undefined };
    const socket = plan.role === "guess" ? 0 : index % plan.sockets;
    const port = plan.role === "spread" ? target.port : guess(socket, index);
    if (isTwice) this.#primed.push({ socket, port });
    return { socket, port, hops };
  }

  /** Opened when it is first needed, so that sockets and mappings appear at the planned rate. */
  #leg(socket: number): Leg {
    const leg = this.#options.firstLeg + socket;
    if (socket < this.#legsOpened) return leg;
    this.#legsOpened = socket + 1;
    this.#actions.push({ type: "open_leg", leg });
    return leg;
  }
}
