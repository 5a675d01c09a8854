/**
 * What the hub keeps of an agent that is in the mesh and connected: its clock and when to ask for it again, what STUN has seen of it, and
 * how much more it may send.
 */
import type { PeerId } from "../../shared/session/identity.ts";
import type { AgentMessage } from "../../shared/signal/messages.ts";
import { after, type Instant, instant } from "../../shared/time.ts";
import { TokenBucket } from "../limits.ts";
import { AgentClock } from "./clock.ts";
import { Observations } from "./observations.ts";

/** First requests come close together, since a punch may be asked for at once and needs a good sample. */
const CLOCK_REQUEST_DELAYS_MS = [50, 150, 400];
const CLOCK_INTERVAL_MS = 10_000;
/** Later ones leave on this grid: every wake-up looks at all connections, and a thousand of them shall not cause a hundred a second. */
const CLOCK_GRID_MS = 250;
const MAX_CLOCK_REQUESTS = 8;

const MESSAGE_RATE = { perSecond: 200, burst: 400 };
/** Each block list is written to the disk. */
const BLOCK_RATE = { perSecond: 1, burst: 5 };
const TOKEN_RATE = { perSecond: 2, burst: 20 };
const PUNCH_RATE = { perSecond: 20, burst: 40 };

export class OnlineAgent {
  readonly id: PeerId;
  readonly instance: number;
  readonly tokenId: string;
  readonly clock = new AgentClock();
  readonly observations: Observations;
  readonly messages: TokenBucket;
  readonly blockChanges: TokenBucket;
  readonly punches: TokenBucket;
  readonly relayTokens: TokenBucket;
  /** When it is to be told what STUN has seen. */
  observedDueAt: Instant | undefined;
  heardAt: Instant;
  readonly #clockRequests = new Map<number, Instant>();
  #clockRequestCount = 0;
  #nextClockRequestAt: Instant;

  /** @param before the same process on an earlier connection: its sockets are the same ones, so what was seen of them still holds */
  constructor(id: PeerId, instance: number, tokenId: string, before: OnlineAgent | undefined, now: Instant) {
    this.id = id;
    this.instance = instance;
    this.tokenId = tokenId;
    this.observations = before?.observations ?? new Observations();
    this.messages = new TokenBucket(MESSAGE_RATE, now);
    this.blockChanges = new TokenBucket(BLOCK_RATE, now);
    this.punches = new TokenBucket(PUNCH_RATE, now);
    this.relayTokens = new TokenBucket(TOKEN_RATE, now);
    this.heardAt = now;
    this.#nextClockRequestAt = now;
  }

  get nextClockRequestAt(): Instant {
    return this.#nextClockRequestAt;
  }

  /** The number of the clock request that is sent now. */
  requestClock(now: Instant): number {
    const id = this.#clockRequestCount++;
    this.#clockRequests.set(id, now);
    const [oldest] = this.#clockRequests.keys();
    if (this.#clockRequests.size > MAX_CLOCK_REQUESTS && oldest !== undefined) this.#clockRequests.delete(oldest);
    const delayMs = CLOCK_REQUEST_DELAYS_MS[id];
    this.#nextClockRequestAt =
      delayMs === undefined ? onGrid(after(now, CLOCK_INTERVAL_MS), CLOCK_GRID_MS) : after(now, delayMs);
    return id;
  }

  /** False for an answer to nothing that was asked. */
  handleClockReply(reply: Extract<AgentMessage, { type: "clock_reply" }>, now: Instant): boolean {
    const requestSentAt = this.#clockRequests.get(reply.id);
    if (requestSentAt === undefined) return false;
    this.#clockRequests.delete(reply.id);
    const { receivedAt: agentReceivedAt, sentAt: agentSentAt } = reply;
    this.clock.add({ requestSentAt, replyReceivedAt: now, agentReceivedAt, agentSentAt });
    return true;
  }
}

const onGrid = (at: Instant, gridMs: number): Instant => instant(Math.ceil(at / gridMs) * gridMs);
