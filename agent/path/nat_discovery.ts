/**
 * Finds out how this machine's NAT behaves, as RFC 5780 describes, and which addresses it gives us.
 *
 * Mapping (§4.3) is learned on the data socket itself: a mapping seen from another socket is somebody else's mapping. Filtering (§4.4)
 * is learned on two fresh sockets, because the data socket has already sent to the addresses that the test must hear from unasked.
 * All tests run side by side, so the answer takes about one round trip plus the time that silence needs to be certain.
 *
 * With one coordinator address the full and the restricted cone look alike: then the stricter is assumed and `certain` is false.
 *
 * Pure: the node gives it responses and time, it gives back requests to send. One instance serves one address family.
 */
import { sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { Filtering, Mapping } from "../../shared/wire/candidates.ts";

/** Which socket a request leaves from: the data socket, or one of two sockets that have never sent anything. */
export type DiscoverySocket = "data" | "filter-port" | "filter-address";

export interface DiscoveryRequest {
  readonly socket: DiscoverySocket;
  readonly to: TransportAddress;
  readonly change: { readonly ip: boolean; readonly port: boolean } | undefined;
  readonly transactionId: Uint8Array;
}

export interface DiscoveryResult {
  /** Our address as each server saw it, most recent first, without repeats. */
  readonly publicAddresses: readonly TransportAddress[];
  readonly mapping: Mapping | undefined;
  readonly filtering: Filtering | undefined;
  readonly certain: boolean;
  /** No server answered at all. */
  readonly udpBlocked: boolean;
  /** Have the tests ended? Addresses may be used before. */
  readonly isComplete: boolean;
}

/** Early retransmits: a lost request should not cost the user half a second (RFC 8489 §6.2.1 would wait 500 ms). */
const RETRANSMIT_MS: readonly number[] = [0, 100, 250, 500, 1000, 1800];
/** Filtering is decided by silence: this long after the data socket was first answered, plus three of its round trips. */
const SILENCE_MS = 450;
const SILENCE_ROUND_TRIPS = 3;
/** Asked anonymously, the coordinator answers from another socket only twice a second per source: silence needs longer to mean anything. */
const ANONYMOUS_SILENCE_MS = 2500;
/** No answer to anything by then: UDP is blocked. */
const BLOCKED_AFTER_MS = 2800;
const MAX_SERVERS = 8;

interface Transaction {
  readonly request: DiscoveryRequest;
  readonly startedAt: Instant;
  sent: number;
  nextAt: Instant | undefined;
  answer: TransportAddress | undefined;
}

export class NatDiscovery {
  readonly #servers: readonly TransportAddress[];
  readonly #isLocalAddress: (address: TransportAddress) => boolean;
  readonly #silenceMs: number;
  readonly #startedAt: Instant;
  readonly #transactions: Transaction[] = [];
  readonly #requests: DiscoveryRequest[] = [];
  #firstAnswerAt: Instant | undefined;
  #roundTripMs = 0;
  #isComplete = false;

  /**
   * @param servers of one address family: address 1 port 1, address 1 port 2, then address 2 likewise when there is one
   * @param isLocalAddress does this address belong to one of our interfaces and the data socket's port?
   * @param random transaction ids
   */
  constructor(options: {
    readonly servers: readonly TransportAddress[];
    readonly isLocalAddress: (address: TransportAddress) => boolean;
    readonly random: (bytes: number) => Uint8Array;
    readonly testFiltering: boolean;
    readonly isAnonymous: boolean;
    readonly now: Instant;
  }) {
    const { random, now } = options;
    this.#servers = options.servers.slice(0, MAX_SERVERS);
    this.#isLocalAddress = options.isLocalAddress;
    this.#silenceMs = options.isAnonymous ? ANONYMOUS_SILENCE_MS : SILENCE_MS;
    this.#startedAt = now;
    const add = (socket: DiscoverySocket, to: TransportAddress, change: DiscoveryRequest["change"]): void => {
      const request = { socket, to, change, transactionId: random(12) };
      this.#transactions.push({ request, startedAt: now, sent: 0, nextAt: now, answer: undefined });
    };
    for (const server of this.#servers) add("data", server, undefined);
    const [first] = this.#servers;
    if (first !== undefined && options.testFiltering) {
      add("filter-port", first, { ip: false, port: true });
      if (this.#hasTwoAddresses()) add("filter-address", first, { ip: true, port: true });
    }
    this.handleTimeout(now);
  }

  /** @param mapped the XOR-MAPPED-ADDRESS of a success response whose transaction id is ours */
  handleResponse(transactionId: Uint8Array, mapped: TransportAddress, now: Instant): boolean {
    const transaction = this.#transactions.find((t) => sameBytes(t.request.transactionId, transactionId));
    if (transaction === undefined || transaction.answer !== undefined) return transaction !== undefined;
    transaction.answer = mapped;
    transaction.nextAt = undefined;
    if (this.#firstAnswerAt === undefined && transaction.request.socket === "data") {
      this.#firstAnswerAt = now;
      this.#roundTripMs = now - transaction.startedAt;
    }
    this.handleTimeout(now);
    return true;
  }

  handleTimeout(now: Instant): void {
    for (const transaction of this.#transactions) {
      if (transaction.nextAt === undefined || now < transaction.nextAt) continue;
      transaction.sent++;
      const next = RETRANSMIT_MS[transaction.sent];
      transaction.nextAt = next === undefined ? undefined : after(transaction.startedAt, next);
      this.#requests.push(transaction.request);
    }
    if (!this.#isComplete) this.#isComplete = this.#isDecided(now);
    if (this.#isComplete) for (const transaction of this.#transactions) transaction.nextAt = undefined;
  }

  poll(): DiscoveryRequest | undefined {
    return this.#requests.shift();
  }

  deadline(): Instant | undefined {
    if (this.#isComplete) return undefined;
    return earliest(this.#silenceAt(), ...this.#transactions.map((t) => t.nextAt));
  }

  result(): DiscoveryResult {
    const answers = this.#dataAnswers();
    const publicAddresses: TransportAddress[] = [];
    for (const { answer } of answers) {
      if (!publicAddresses.some((known) => sameTransportAddress(known, answer))) publicAddresses.push(answer);
    }
    const mapping = this.#mapping();
    const filtering = this.#isComplete && answers.length > 0 ? this.#filtering() : undefined;
    const udpBlocked = this.#isComplete && answers.length === 0;
    // Silence on the second address means nothing when the coordinator has no second address.
    const certain =
      this.#isComplete && answers.length > 0 && (this.#hasTwoAddresses() || filtering === "address-and-port-dependent");
    return { publicAddresses, mapping, filtering, certain, udpBlocked, isComplete: this.#isComplete };
  }

  #silenceAt(): Instant {
    return this.#firstAnswerAt === undefined
      ? after(this.#startedAt, BLOCKED_AFTER_MS)
      : after(this.#firstAnswerAt, this.#silenceMs + SILENCE_ROUND_TRIPS * this.#roundTripMs);
  }

  #isDecided(now: Instant): boolean {
    if (now >= this.#silenceAt()) return true;
    return this.#transactions.every((t) => t.answer !== undefined);
  }

  #hasTwoAddresses(): boolean {
    return new Set(this.#servers.map((server) => server.ip)).size > 1;
  }

  #dataAnswers(): { readonly server: TransportAddress; readonly answer: TransportAddress }[] {
    return this.#transactions.flatMap(({ request, answer }) =>
      request.socket === "data" && answer !== undefined ? [{ server: request.to, answer }] : [],
    );
  }

  #mapping(): Mapping | undefined {
    const answers = this.#dataAnswers();
    const [first] = answers;
    if (first === undefined) return undefined;
    if (answers.every(({ answer }) => this.#isLocalAddress(answer))) return "none";
    // Two answers are the least that can show a difference.
    if (answers.length < 2) return this.#isComplete ? "endpoint-independent" : undefined;
    if (answers.every(({ answer }) => sameTransportAddress(answer, first.answer))) return "endpoint-independent";
    const differsByPort = answers.some(({ server, answer }) =>
      answers.some((other) => other.server.ip === server.ip && !sameTransportAddress(other.answer, answer)),
    );
    return differsByPort ? "address-and-port-dependent" : "address-dependent";
  }

  #filtering(): Filtering {
    const heard = (socket: DiscoverySocket): boolean =>
      this.#transactions.some((t) => t.request.socket === socket && t.answer !== undefined);
    if (heard("filter-address")) return "endpoint-independent";
    return heard("filter-port") ? "address-dependent" : "address-and-port-dependent";
  }
}

const sameBytes = (a: Uint8Array, b: Uint8Array): boolean =>
  a.length === b.length && a.every((byte, i) => byte === b[i]);
