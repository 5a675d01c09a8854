/**
 * Decides how a STUN request is answered: with which attributes, from which of our sockets, or not at all.
 *
 * Standard clients get RFC 8489 answers with RFC 5780's attributes, classic ones (no cookie) RFC 3489 answers. Agents sign their
 * requests with a token from signalling. A source that has echoed what an answer brought it is an observation that the coordinator
 * attests to peers: whoever forges a source address never sees the answer.
 * An agent may have one sent to another address of its own, to see whether its NAT still knows that one.
 *
 * Nobody can be aimed: an answer has at most 2.5 times the bytes of its request, each source gets 20 a second and 2 a second from
 * another socket than the one it asked. Attributes are left out from the back of this list until the answer fits:
 *
 *   XOR-MAPPED-ADDRESS, OTHER-ADDRESS, RESPONSE-ORIGIN, MAPPED-ADDRESS, SOFTWARE        (classic: MAPPED-, CHANGED-, SOURCE-ADDRESS)
 *
 * so that the bare 20-byte request of any IPv4 client still learns both addresses.
 *
 * Departs from RFC 5780: no RESPONSE-PORT and no PADDING (both would amplify), and CHANGE-REQUEST for another address is answered
 * with 420 where there is none. Classic clients get silence there, since Debian's `stun` takes any answer for a success.
 */
import { formatTransportAddress, isIPv6, isProbeable, type TransportAddress } from "../../shared/address.ts";
import { after, type Instant } from "../../shared/time.ts";
import {
  decodeStun,
  type DecodedStun,
  encodeStun,
  type HmacSha256,
  isClassicStun,
  STUN_BINDING,
  STUN_ECHO_BYTES,
  type StunAttributes,
  type StunSealing,
  verifyStunIntegrity,
} from "../../shared/wire/stun.ts";
import { equalBytes, utf8 } from "../../shared/bytes.ts";
import { SourceLimits, sourceOf, TokenBucket } from "../limits.ts";

/** One address that we answer on, and what the world calls it (`--stun-public`). */
export interface StunAddress {
  readonly ip: string;
  readonly publicIp: string;
}

/** Which of our sockets: an index into the addresses, and 0 for the primary port or 1 for the alternate one. */
export interface StunSocketId {
  readonly address: number;
  readonly port: 0 | 1;
}

export interface StunObservation {
  readonly tokenId: string;
  readonly localAddress: TransportAddress;
  readonly from: TransportAddress;
  readonly at: Instant;
}

export interface StunResult {
  readonly reply?: { readonly bytes: Uint8Array; readonly socket: StunSocketId; readonly to: TransportAddress };
  readonly observed?: StunObservation;
  /** Why there is no reply, for the counters. */
  readonly dropped?: "malformed" | "not a request" | "rate" | "replay" | "source" | "cannot change address" | "return";
}

const AMPLIFICATION_LIMIT = 2.5;
const ANONYMOUS_RATE = { perSecond: 20, burst: 20 };
const ANONYMOUS_CHANGE_RATE = { perSecond: 2, burst: 2 };
/** An agent behind a block of ports asks some 140 questions at once to learn how its NAT uses them. */
const TOKEN_RATE = { perSecond: 50, burst: 150 };
/** Of one agent's questions whose answer goes to another address of its own: it asks three times in a test of minutes. */
const RETURN_RATE = { perSecond: 2, burst: 4 };
/** Each source is about 200 bytes: 2 MB at most. */
const MAX_SOURCES = 10_000;
/** Requests in flight to our several sockets overtake each other, so this many of the newest numbers are told apart. */
const SEQUENCE_WINDOW = 256;
/** An echo is good for this long, and for as long again. Agents refresh each 20 s. */
const ECHO_PERIOD_MS = 120_000;
const SOFTWARE = "TunnelMesh";

interface Token {
  readonly secret: Uint8Array;
  readonly bucket: TokenBucket;
  readonly returns: TokenBucket;
  /** The newest sequence numbers; anything at or below `floor` is old. */
  readonly seen: Set<number>;
  floor: number;
}

export class StunServer {
  readonly #addresses: readonly StunAddress[];
  readonly #ports: readonly [number, number];
  readonly #hmacSha256: HmacSha256;
  readonly #echoKey: Uint8Array;
  readonly #allowLoopback: boolean;
  readonly #tokens = new Map<string, Token>();
  readonly #sources = new SourceLimits(ANONYMOUS_RATE, MAX_SOURCES);
  readonly #changes = new SourceLimits(ANONYMOUS_CHANGE_RATE, MAX_SOURCES);

  constructor(options: {
    readonly addresses: readonly StunAddress[];
    /** Primary and alternate port. */
    readonly ports: readonly [number, number];
    readonly hmacSha256: HmacSha256;
    /** 32 random bytes: what sources are to echo is made of it. */
    readonly echoKey: Uint8Array;
  }) {
    this.#addresses = options.addresses;
    this.#ports = options.ports;
    this.#hmacSha256 = options.hmacSha256;
    this.#echoKey = options.echoKey;
    this.#allowLoopback = options.addresses.some(({ ip }) => ip === "::1" || ip.startsWith("127."));
  }

  addToken(id: string, secret: Uint8Array, now: Instant): void {
    const [bucket, returns] = [new TokenBucket(TOKEN_RATE, now), new TokenBucket(RETURN_RATE, now)];
    this.#tokens.set(id, { secret, bucket, returns, seen: new Set(), floor: -1 });
  }

  removeToken(id: string): void {
    this.#tokens.delete(id);
  }

  handle(bytes: Uint8Array, from: TransportAddress, socket: StunSocketId, now: Instant): StunResult {
    // An answer to one of our own sockets, or to a multicast address, could come back as another request.
    if (from.port === 0 || !isProbeable(from.ip, this.#allowLoopback) || this.#isOurs(from))
      return { dropped: "source" };
    const request = decodeStun(bytes);
    if (request === undefined) return { dropped: "malformed" };
    if (request.class !== "request" || request.method !== STUN_BINDING) return { dropped: "not a request" };

    const limit = Math.floor(bytes.length * AMPLIFICATION_LIMIT);
    const token = this.#authenticate(request);
    if (token === undefined) {
      if (!this.#sources.take(sourceOf(from.ip), now)) return { dropped: "rate" };
      // An agent whose token is gone (a restarted coordinator) must hear so, or it would wait for ever.
      if (request.username !== undefined && !isClassicStun(request))
        return this.#refuse(request, from, socket, 401, "Unauthenticated");
    } else {
      if (!token.bucket.take(now)) return { dropped: "rate" };
      if (!isFresh(token, request.sequence)) return { dropped: "replay" };
    }
    if (request.unknownRequired.length > 0)
      return this.#refuse(request, from, socket, 420, "Unknown", request.unknownRequired);
    if (token !== undefined && request.returnTo !== undefined) return this.#return(request, token, socket, limit, now);

    const change = request.changeRequest ?? { ip: false, port: false };
    const target = this.#changed(socket, change);
    if (target === undefined) {
      if (isClassicStun(request)) return { dropped: "cannot change address" };
      return this.#refuse(request, from, socket, 420, "No other address", [CHANGE_REQUEST]);
    }
    const isChanged = target.address !== socket.address || target.port !== socket.port;
    if (isChanged && token === undefined && !this.#changes.take(sourceOf(from.ip), now)) return { dropped: "rate" };

    const observed: StunObservation | undefined =
      token === undefined ||
      request.username === undefined ||
      !this.#hasEchoed(request.username, request.echo, from, now)
        ? undefined
        : { tokenId: request.username, localAddress: this.#local(socket), from, at: now };
    const signed =
      token === undefined || request.username === undefined
        ? undefined
        : { secret: token.secret, echo: this.#echo(request.username, from, now) };
    const answer = this.#answer(request, from, socket, target, limit, signed);
    return { reply: { bytes: answer, socket: target, to: from }, ...(observed === undefined ? {} : { observed }) };
  }

  /**
   * Answers to another address of the asker's: does its NAT still remember that one? Only what the coordinator has itself sent there within
   * the last minutes proves whose it is, so nobody can be aimed at; the answer brings no new proof, so that it ends by itself.
   */
  #return(request: DecodedStun, token: Token, socket: StunSocketId, limit: number, now: Instant): StunResult {
    const { username, returnTo } = request;
    if (username === undefined || returnTo === undefined) return { dropped: "return" };
    const { address, echo } = returnTo;
    if (!this.#hasEchoed(username, echo, address, now)) return { dropped: "return" };
    if (!token.returns.take(now)) return { dropped: "rate" };
    const signed = { secret: token.secret, echo: undefined };
    return { reply: { bytes: this.#answer(request, address, socket, socket, limit, signed), socket, to: address } };
  }

  #authenticate(request: DecodedStun): Token | undefined {
    if (request.username === undefined || request.integrity === undefined) return undefined;
    const token = this.#tokens.get(request.username);
    if (token === undefined || !verifyStunIntegrity(request, token.secret, this.#hmacSha256)) return undefined;
    return token;
  }

  /** What this source is to send back under this token. */
  #echo(username: string, from: TransportAddress, at: Instant): Uint8Array {
    const period = Math.floor(at / ECHO_PERIOD_MS);
    const text = utf8(`${username} ${formatTransportAddress(from)} ${period}`);
    return this.#hmacSha256(this.#echoKey, text).slice(0, STUN_ECHO_BYTES);
  }

  #hasEchoed(username: string, echo: Uint8Array | undefined, from: TransportAddress, now: Instant): boolean {
    if (echo === undefined) return false;
    return [now, after(now, -ECHO_PERIOD_MS)].some((at) => equalBytes(this.#echo(username, from, at), echo));
  }

  /** The socket that a CHANGE-REQUEST asks for; undefined when there is no other address of this family. */
  #changed(socket: StunSocketId, change: { readonly ip: boolean; readonly port: boolean }): StunSocketId | undefined {
    const port = change.port ? (socket.port === 0 ? 1 : 0) : socket.port;
    if (!change.ip) return { address: socket.address, port };
    const address = this.#otherAddress(socket.address);
    return address === undefined ? undefined : { address, port };
  }

  /** The next address of the same family, in a ring. */
  #otherAddress(index: number): number | undefined {
    const own = this.#addresses[index];
    for (let step = 1; step < this.#addresses.length; step++) {
      const candidate = (index + step) % this.#addresses.length;
      const other = this.#addresses[candidate];
      if (own !== undefined && other !== undefined && isIPv6(own.ip) === isIPv6(other.ip)) return candidate;
    }
    return undefined;
  }

  #answer(
    request: DecodedStun,
    from: TransportAddress,
    socket: StunSocketId,
    target: StunSocketId,
    limit: number,
    signed: { readonly secret: Uint8Array; readonly echo: Uint8Array | undefined } | undefined,
  ): Uint8Array {
    const origin = this.#public(target);
    const otherAddress = this.#otherAddress(socket.address);
    const other =
      otherAddress === undefined ? undefined : this.#public({ address: otherAddress, port: socket.port === 0 ? 1 : 0 });
    // RFC 5780 §7.4: OTHER-ADDRESS must not be there without a second address. Classic clients take CHANGED-ADDRESS the same way.
    const byImportance: StunAttributes[] = isClassicStun(request)
      ? [{ mappedAddress: from }, { changedAddress: other }, { sourceAddress: origin }]
      : [
          { xorMappedAddress: from, echo: signed?.echo },
          { otherAddress: other },
          { responseOrigin: origin },
          { mappedAddress: from },
          { software: SOFTWARE },
        ];
    const sealing: StunSealing = {
      integrity: signed === undefined ? undefined : { key: signed.secret, hmacSha256: this.#hmacSha256 },
      fingerprint: request.fingerprinted,
    };
    for (let count = byImportance.length; ; count--) {
      const attributes: StunAttributes = Object.assign({}, ...byImportance.slice(0, count));
      const bytes = encodeStun({ ...header(request), class: "success", ...attributes }, sealing);
      if (bytes.length <= limit || count === 1) return bytes;
    }
  }

  #refuse(
    request: DecodedStun,
    from: TransportAddress,
    socket: StunSocketId,
    code: number,
    reason: string,
    unknownAttributes?: readonly number[],
  ): StunResult {
    const bytes = encodeStun(
      { ...header(request), class: "error", errorCode: { code, reason }, unknownAttributes },
      { fingerprint: request.fingerprinted },
    );
    return { reply: { bytes, socket, to: from } };
  }

  #local(socket: StunSocketId): TransportAddress {
    return { ip: this.#addresses[socket.address]?.ip ?? "", port: this.#ports[socket.port] };
  }

  #public(socket: StunSocketId): TransportAddress {
    return { ip: this.#addresses[socket.address]?.publicIp ?? "", port: this.#ports[socket.port] };
  }

  #isOurs(from: TransportAddress): boolean {
    return (
      this.#ports.includes(from.port) &&
      this.#addresses.some(({ ip, publicIp }) => ip === from.ip || publicIp === from.ip)
    );
  }
}

const CHANGE_REQUEST = 0x0003;

const header = (request: DecodedStun) => ({ method: request.method, transactionId: request.transactionId });

/** Was this number never seen under the token? Keeps it if so. */
function isFresh(token: Token, sequence: number | undefined): boolean {
  if (sequence === undefined || sequence <= token.floor || token.seen.has(sequence)) return false;
  token.seen.add(sequence);
  if (token.seen.size > SEQUENCE_WINDOW) {
    token.floor = Math.min(...token.seen);
    token.seen.delete(token.floor);
  }
  return true;
}
