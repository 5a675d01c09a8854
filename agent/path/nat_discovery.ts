/**
 * Finds out how this machine's NAT behaves, as RFC 5780 describes, and which addresses it gives us.
 *
 * Mapping (§4.3) is learned on the data socket itself: a mapping seen from another socket is somebody else's mapping. Filtering (§4.4)
 * is learned on two fresh sockets, because the data socket has already sent to the addresses that the test must hear from unasked.
 * All tests run side by side, so the answer takes about one round trip plus the time that silence needs to be certain.
 *
 * A NAT that uses other ports than ours is asked for a few more, from short-lived sockets, to see how it picks them
 * (port_allocation.ts), and one with a small block for more again, to see whether a port serves several destinations (port_reuse.ts). Each answer to the data socket is followed by one request that echoes what it brought, which makes the
 * coordinator believe our address (PROTOCOL.md, "STUN").
 *
 * With one coordinator address the full and the restricted cone look alike: then the stricter is assumed and `certain` is false.
 *
 * Pure: the node gives it responses and time, it gives back requests to send. One instance serves one address family.
 */
import { sameTransportAddress, type TransportAddress } from "../../shared/address.ts";
import { equalBytes } from "../../shared/bytes.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import type { Filtering, Mapping } from "../../shared/wire/candidates.ts";
import { judgePorts, type PortAllocation } from "./port_allocation.ts";
import { judgeReuse, type PortSample, samplesToTell } from "./port_reuse.ts";

/** Which socket a request leaves from: the data socket, one of two sockets that have never sent anything, or one only to see its port. */
export type DiscoverySocket = "data" | "filter-port" | "filter-address" | `sample-${number}`;

export interface DiscoveryRequest {
  readonly socket: DiscoverySocket;
  readonly to: TransportAddress;
  readonly change: { readonly ip: boolean; readonly port: boolean } | undefined;
  readonly transactionId: Uint8Array;
  /** Sent back as an answer brought it. */
  readonly echo?: Uint8Array | undefined;
}

export interface DiscoveryResult {
  /** Our address as each server saw it, most recent first, without repeats. */
  readonly publicAddresses: readonly TransportAddress[];
  readonly mapping: Mapping | undefined;
  readonly filtering: Filtering | undefined;
  readonly certain: boolean;
  /** How our NAT picks ports; told once the tests have ended. */
  readonly allocation: PortAllocation | undefined;
  /** Mappings that the tests have made at a NAT with one for each destination. */
  readonly mappings: number;
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
/** Sockets that only ask for a port of each server: with four servers 24 ports are known, after 30 questions. */
const SAMPLE_SOCKETS = 5;
/** So many of them have been answered before their ports are judged for the first time; the last may be lost. */
const SAMPLES_ANSWERED = 0.8;
/** The questions about reuse are asked last, and a verdict for want of answers costs the user half of an hour or all of a block. */
const REUSE_PATIENCE_MS = 700;
/** Anonymous requests are few: 20 a second for each source. */
const ANONYMOUS_SAMPLE_SOCKETS = 2;

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
  readonly #dataPort: number;
  readonly #random: (bytes: number) => Uint8Array;
  readonly #sampleSockets: number;
  readonly #silenceMs: number;
  readonly #startedAt: Instant;
  readonly #transactions: Transaction[] = [];
  readonly #requests: DiscoveryRequest[] = [];
  #firstAnswerAt: Instant | undefined;
  #roundTripMs = 0;
  #isComplete = false;
  /** So many servers, from the first, the sample sockets have asked. */
  #serversSampled = 0;
  #reuseAskedAt: Instant | undefined;

  /**
   * @param servers of one address family: address 1 port 1, address 1 port 2, then address 2 likewise when there is one
   * @param isLocalAddress does this address belong to one of our interfaces and the data socket's port?
   * @param dataPort the local port of the data socket
   * @param random transaction ids
   */
  constructor(options: {
    readonly servers: readonly TransportAddress[];
    readonly isLocalAddress: (address: TransportAddress) => boolean;
    readonly dataPort: number;
    readonly random: (bytes: number) => Uint8Array;
    readonly testFiltering: boolean;
    readonly isAnonymous: boolean;
    readonly now: Instant;
  }) {
    const { now } = options;
    this.#servers = options.servers.slice(0, MAX_SERVERS);
    this.#isLocalAddress = options.isLocalAddress;
    this.#dataPort = options.dataPort;
    this.#random = options.random;
    // IPv6 is not translated.
    this.#sampleSockets = !options.testFiltering ? 0 : options.isAnonymous ? ANONYMOUS_SAMPLE_SOCKETS : SAMPLE_SOCKETS;
    this.#silenceMs = options.isAnonymous ? ANONYMOUS_SILENCE_MS : SILENCE_MS;
    this.#startedAt = now;
    for (const server of this.#servers) this.#ask("data", server, now);
    const [first] = this.#servers;
    if (first !== undefined && options.testFiltering) {
      this.#ask("filter-port", first, now, { change: { ip: false, port: true } });
      if (this.#hasTwoAddresses()) this.#ask("filter-address", first, now, { change: { ip: true, port: true } });
    }
    this.handleTimeout(now);
  }

  /**
   * Returns the request that this answers, if it is one of ours.
   *
   * @param answer the XOR-MAPPED-ADDRESS of a success response, and what it asks to be echoed
   * @param isAt did it come in on this socket?
   */
  handleResponse(
    transactionId: Uint8Array,
    answer: { readonly mapped: TransportAddress; readonly echo: Uint8Array | undefined },
    now: Instant,
    isAt: (socket: DiscoverySocket) => boolean = () => true,
  ): DiscoveryRequest | undefined {
    const transaction = this.#transactions.find((t) => equalBytes(t.request.transactionId, transactionId));
    if (transaction === undefined) return undefined;
    const { request } = transaction;
    // A NAT with few ports may have given this one to another socket of ours as well, which has sent to where the answer comes from:
    // let in there, it says nothing of the filter.
    if (request.change !== undefined && !isAt(request.socket)) return request;
    if (transaction.answer !== undefined) return request;
    transaction.answer = answer.mapped;
    transaction.nextAt = undefined;
    if (request.socket === "data" && request.echo === undefined) {
      if (this.#firstAnswerAt === undefined) {
        this.#firstAnswerAt = now;
        this.#roundTripMs = now - transaction.startedAt;
      }
      if (answer.echo !== undefined) this.#ask("data", request.to, now, { echo: answer.echo });
      this.#sample(now);
    }
    this.#sampleReuse(now);
    this.handleTimeout(now);
    return request;
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

  /** Has the data socket been answered? */
  get isHeard(): boolean {
    return this.#firstAnswerAt !== undefined;
  }

  poll(): DiscoveryRequest | undefined {
    return this.#requests.shift();
  }

  deadline(): Instant | undefined {
    if (this.#isComplete) return undefined;
    return earliest(this.#decidedAt(), ...this.#transactions.map((t) => t.nextAt));
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
    // Silence on the second address means nothing when the coordinator has no second address, and one answer shows no difference.
    const isCompared = answers.length > 1 || this.#servers.length < 2;
    const certain =
      this.#isComplete &&
      answers.length > 0 &&
      isCompared &&
      (this.#hasTwoAddresses() || filtering === "address-and-port-dependent");
    const allocation = this.#isComplete ? this.#allocation() : undefined;
    const mappings = this.#transactions.filter(({ request }) => request.echo === undefined).length;
    return {
      publicAddresses,
      mapping,
      filtering,
      certain,
      allocation,
      mappings,
      udpBlocked,
      isComplete: this.#isComplete,
    };
  }

  #ask(
    socket: DiscoverySocket,
    to: TransportAddress,
    now: Instant,
    more: { readonly change?: DiscoveryRequest["change"]; readonly echo?: Uint8Array } = {},
  ): void {
    const request = { socket, to, change: more.change, transactionId: this.#random(12), echo: more.echo };
    this.#transactions.push({ request, startedAt: now, sent: 0, nextAt: now, answer: undefined });
  }

  /**
   * Asks for more ports once it shows that the NAT picks its own. One with endpoint-independent mapping has one for each socket; where
   * the first answers look so and a later one does not, the servers that were left out then are asked too.
   */
  #sample(now: Instant): void {
    const mapping = this.#mapping();
    if (mapping === undefined || mapping === "none" || this.#isPreserving()) return;
    const wanted = mapping === "endpoint-independent" ? 1 : this.#servers.length;
    const servers = this.#servers.slice(this.#serversSampled, wanted);
    this.#serversSampled = Math.max(this.#serversSampled, wanted);
    for (let i = 0; i < this.#sampleSockets; i++) for (const to of servers) this.#ask(`sample-${i}`, to, now);
  }

  /** Asks from more sockets where that will show whether the ports of a block serve several destinations each. Once. */
  #sampleReuse(now: Instant): void {
    const asked = this.#transactions.filter(({ request }) => request.socket.startsWith("sample"));
    const answered = asked.filter(({ answer }) => answer !== undefined).length;
    if (this.#reuseAskedAt !== undefined || this.#sampleSockets < SAMPLE_SOCKETS || answered === 0) return;
    if (answered < asked.length * SAMPLES_ANSWERED) return;
    const { ports, sharesPorts } = this.#allocation() ?? {};
    if (ports === undefined || ports.stride !== 0 || sharesPorts !== undefined) return;
    // A NAT that lets others in needs no meeting (punch_plan.ts), so its ports are left alone.
    if (this.#mapping() !== "address-and-port-dependent" || this.#filtering() !== "address-and-port-dependent") return;
    this.#reuseAskedAt = now;
    const wanted = samplesToTell(ports.last - ports.first + 1, this.#servers.length) ?? 0;
    const sockets = Math.ceil(wanted / this.#servers.length);
    for (let i = SAMPLE_SOCKETS; i < sockets; i++) for (const to of this.#servers) this.#ask(`sample-${i}`, to, now);
  }

  #isPreserving(): boolean {
    const answers = this.#dataAnswers();
    return answers.length > 0 && answers.every(({ answer }) => answer.port === this.#dataPort);
  }

  #allocation(): PortAllocation | undefined {
    const mapping = this.#mapping();
    if (mapping === undefined) return undefined;
    if (mapping === "none" || this.#isPreserving()) return { kind: "preserving", ports: undefined };
    const samples = this.#transactions.flatMap(({ request: { socket, to, echo }, answer }): PortSample[] =>
      answer === undefined || echo !== undefined || socket.startsWith("filter")
        ? []
        : [{ port: answer.port, destination: `${to.ip}|${to.port}` }],
    );
    // One mapping that serves several servers shows its port to each of them.
    const judged = judgePorts([...new Set(samples.map(({ port }) => port))]);
    if (judged?.kind !== "block" || judged.ports === undefined || mapping !== "address-and-port-dependent")
      return judged;
    const { first, last } = judged.ports;
    return { ...judged, sharesPorts: judgeReuse(samples, last - first + 1) };
  }

  #silenceAt(): Instant {
    return this.#firstAnswerAt === undefined
      ? after(this.#startedAt, BLOCKED_AFTER_MS)
      : after(this.#firstAnswerAt, this.#silenceMs + SILENCE_ROUND_TRIPS * this.#roundTripMs);
  }

  /** When no more answers are waited for. */
  #decidedAt(): Instant {
    const silenceAt = this.#silenceAt();
    const isSampling = this.#transactions.some(
      ({ request, answer }) => answer === undefined && request.socket.startsWith("sample"),
    );
    if (this.#reuseAskedAt === undefined || !isSampling) return silenceAt;
    const sampledAt = after(this.#reuseAskedAt, REUSE_PATIENCE_MS + SILENCE_ROUND_TRIPS * this.#roundTripMs);
    return sampledAt > silenceAt ? sampledAt : silenceAt;
  }

  #isDecided(now: Instant): boolean {
    if (now >= this.#decidedAt()) return true;
    return this.#transactions.every((t) => t.answer !== undefined);
  }

  #hasTwoAddresses(): boolean {
    return new Set(this.#servers.map((server) => server.ip)).size > 1;
  }

  #dataAnswers(): { readonly server: TransportAddress; readonly answer: TransportAddress }[] {
    return this.#transactions.flatMap(({ request, answer }) =>
      request.socket === "data" && request.echo === undefined && answer !== undefined
        ? [{ server: request.to, answer }]
        : [],
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
