/**
 * Every decoder, fed with random bytes and with damaged golden vectors: it gives a value or nothing, and never throws or loops.
 * What a decoder accepts must encode again to bytes that decode to the same value.
 */
import { readFileSync } from "node:fs";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { answerQuery } from "../../agent/dns/answerer.ts";
import { Zone } from "../../agent/dns/zone.ts";
import { decodeBenchRequest, decodeBenchTotal } from "../../agent/overlay/bench_message.ts";
import { readSignedLogin } from "../../agent/driver/jump/signed_login.ts";
import { unpackAddress } from "../../shared/address.ts";
import { fromHex, utf8 } from "../../shared/bytes.ts";
import { HandshakeGuard } from "../../shared/session/handshake_guard.ts";
import { verifyIdentityChain } from "../../shared/session/identity.ts";
import { openInitiation, PeerSession } from "../../shared/session/peer_session.ts";
import { Ed25519Key, X25519Key } from "../../shared/session/primitives.ts";
import { AgentChannel, CoordinatorChannel } from "../../shared/signal/channel.ts";
import {
  decodeAgentMessage,
  decodeCoordinatorMessage,
  decodeHello,
  encodeMessage,
} from "../../shared/signal/messages.ts";
import { instant } from "../../shared/time.ts";
import {
  type CandidateList,
  MAX_CANDIDATES,
  type PortRange,
  readCandidates,
  UNKNOWN_NAT,
  writeCandidates,
} from "../../shared/wire/candidates.ts";
import { decodeRelay } from "../../shared/wire/relay.ts";
import {
  CLOSE_REASONS,
  type ControlMessage,
  decodeControl,
  encodeControl,
  PUNCH_END_REASONS,
  PUNCH_ROLES,
} from "../../shared/wire/control.ts";
import { Reader, Writer } from "../../shared/wire/cursor.ts";
import { datagramKind } from "../../shared/wire/demux.ts";
import {
  frameCounter,
  frameReceiver,
  isSealedFrame,
  readFragmentHeader,
  readSwitch,
  writeFragmentHeader,
  writeFrameHeader,
} from "../../shared/wire/frame.ts";
import { decodeHandshake, encodeCookie, encodeHandshake, handshakeMacs } from "../../shared/wire/handshake.ts";
import { decodeStreamFrame } from "../../shared/wire/stream.ts";
import { decodeStun } from "../../shared/wire/stun.ts";
import { bytesOf, encodeStreamFrame, type Vector } from "./wire_codecs.ts";

const read = (file: string) => readFileSync(new URL(file, import.meta.url), "utf8");
const vectors = (JSON.parse(read("./wire.json")) as { vectors: Vector[] }).vectors;
const signals = (JSON.parse(read("./signal.json")) as { vectors: { json: unknown }[] }).vectors;
const stun = (JSON.parse(read("./stun.json")) as { hex: string }[]).map(({ hex }) => fromHex(hex));
const samples = [...vectors.map(bytesOf), ...stun, ...signals.map(({ json }) => utf8(JSON.stringify(json)))];

const key = (fill: number) => new X25519Key(new Uint8Array(32).fill(fill));
const [ours, theirs] = [key(0x22), key(0x11)];
const guard = new HandshakeGuard(ours.publicKey, (length) => new Uint8Array(length));
const now = instant(0);

/** A session that waits for a response, and channels at each of their steps: what strangers' bytes reach first. */
const session = waitingSession();

const zone = new Zone([{ name: "nas", meshIPv4: "100.96.0.2", meshIPv6: "fd00::2" }]);

const DECODERS: Readonly<Record<string, (bytes: Uint8Array) => unknown>> = {
  datagramKind,
  answerQuery: (bytes) => answerQuery(bytes, zone),
  decodeBenchRequest,
  decodeBenchTotal,
  readSignedLogin,
  decodeHandshake,
  handshakeMacs,
  decodeControl,
  decodeRelay,
  decodeStreamFrame,
  readSwitch,
  readCandidates: (bytes) => readCandidates(new Reader(bytes)),
  readFragmentHeader,
  frame: (bytes) => [isSealedFrame(bytes), frameReceiver(bytes), frameCounter(bytes)],
  decodeStun,
  // Callers have read exactly as many bytes.
  unpackAddress: (bytes) => unpackAddress(Uint8Array.of(...bytes, ...new Uint8Array(18)).subarray(0, 18)),
  decodeHello,
  decodeAgentMessage,
  decodeCoordinatorMessage,
  guard: (bytes) => guard.admit(bytes, "192.0.2.1", 1, now),
  identity: (bytes) =>
    verifyIdentityChain({
      identity: bytes.subarray(0, 32),
      sessionKey: bytes.subarray(32, 64),
      signature: bytes.subarray(64, 128),
    }),
};

/** Those that do X25519 work get fewer runs. */
const COSTLY: typeof DECODERS = {
  openInitiation: (bytes) => openInitiation(ours, { type: "initiation", senderIndex: 1, noise: bytes }, randomKey),
  handleResponse: (bytes) =>
    session.handleResponse({ type: "response", senderIndex: 1, receiverIndex: 5, noise: bytes }, now),
  handleCookie: (bytes) =>
    session.handleCookie({ type: "cookie", receiverIndex: 5, nonce: bytes.slice(0, 12), sealed: bytes.slice(12) }, now),
  coordinatorChannel: (bytes) => {
    const channel = new CoordinatorChannel({ staticKey: ours, ephemeral: theirs });
    channel.handle(bytes);
    return channel.handle(bytes);
  },
  agentChannel: (bytes) => {
    const channel = new AgentChannel({ staticKey: theirs, ephemeral: ours, hello: HELLO, accept: () => true });
    channel.start();
    return channel.handle(bytes);
  },
};

/** Random bytes; a sample cut, with flipped bits, with bytes put in or taken out; two samples joined. */
const hostile: fc.Arbitrary<Uint8Array> = fc.oneof(
  fc.uint8Array({ maxLength: 300 }),
  fc
    .tuple(fc.integer({ min: 0, max: 8 }), fc.uint8Array({ maxLength: 120 }))
    .map(([first, rest]) => Uint8Array.of(first, ...rest)),
  fc
    .tuple(fc.constantFrom(...samples), fc.nat(2000))
    .map(([sample, length]) => sample.slice(0, length % (sample.length + 1))),
  fc
    .tuple(fc.constantFrom(...samples), fc.array(fc.nat(20_000), { minLength: 1, maxLength: 4 }))
    .map(([sample, bits]) => {
      const bytes = sample.slice();
      for (const bit of bits) {
        const at = (bit >> 3) % bytes.length;
        bytes[at] = (bytes[at] ?? 0) ^ (1 << (bit & 7));
      }
      return bytes;
    }),
  fc
    .tuple(fc.constantFrom(...samples), fc.nat(2000), fc.uint8Array({ maxLength: 20 }))
    .map(([sample, at, extra]) => Uint8Array.of(...sample.subarray(0, at), ...extra, ...sample.subarray(at))),
  fc.tuple(fc.constantFrom(...samples), fc.constantFrom(...samples)).map(([a, b]) => Uint8Array.of(...a, ...b)),
);

describe.each(Object.entries(DECODERS))("%s", (_, decode) => {
  test("gives a value or nothing for any bytes, and leaves them as they were", () => {
    fc.assert(
      fc.property(hostile, (bytes) => {
        const before = bytes.slice();
        decode(bytes);
        expect(bytes).toEqual(before);
      }),
      { numRuns: 300 },
    );
  });
});

describe.each(Object.entries(COSTLY))("%s", (_, decode) => {
  test("gives a value or nothing for any bytes", () => {
    fc.assert(
      fc.property(hostile, (bytes) => {
        decode(bytes);
      }),
      { numRuns: 60 },
    );
  });
});

test("a session that was fed with all that still waits for the genuine response, and has forgotten nothing", () => {
  expect(session.isHandshaking).toBe(true);
  expect(session.isEstablished).toBe(false);
  expect(session.poll()).toBeUndefined();
});

describe("what is accepted encodes to what decodes the same", () => {
  test.each([
    ["control", decodeControl, encodeControl],
    ["stream frame", decodeStreamFrame, encodeStreamFrame],
    ["agent message", decodeAgentMessage, encodeMessage],
    ["coordinator message", decodeCoordinatorMessage, encodeMessage],
    ["hello", decodeHello, encodeMessage],
  ] as [string, (bytes: Uint8Array) => unknown, (value: never) => Uint8Array][])("%s", (_, decode, encode) => {
    fc.assert(
      fc.property(hostile, (bytes) => {
        const value = decode(bytes);
        if (value !== undefined) expect(decode(encode(value as never))).toEqual(value);
      }),
      { numRuns: 300 },
    );
  });
});

describe("round trips", () => {
  const u8 = fc.integer({ min: 0, max: 0xff });
  const u16 = fc.integer({ min: 0, max: 0xffff });
  const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
  const u64 = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
  const address = fc.uint8Array({ minLength: 18, maxLength: 18 }).map(unpackAddress);
  const port = fc.integer({ min: 1, max: 0xffff });
  const ports: fc.Arbitrary<PortRange> = fc
    .tuple(port, port, fc.integer({ min: -0x8000, max: 0x7fff }))
    .map(([a, b, stride]) => ({ first: Math.min(a, b), last: Math.max(a, b), stride }));
  const list: fc.Arbitrary<CandidateList> = fc.record({
    generation: u32,
    nat: fc.record({
      mapping: fc.constantFrom(
        undefined,
        "none" as const,
        "endpoint-independent" as const,
        "address-dependent" as const,
        "address-and-port-dependent" as const,
      ),
      filtering: fc.constantFrom(
        undefined,
        "endpoint-independent" as const,
        "address-dependent" as const,
        "address-and-port-dependent" as const,
      ),
      allocation: fc.constantFrom(
        undefined,
        "preserving" as const,
        "sequential" as const,
        "block" as const,
        "random" as const,
      ),
      ports: fc.option(ports, { nil: undefined }),
      sharesPorts: fc.option(fc.boolean(), { nil: undefined }),
      udpBlocked: fc.boolean(),
      isIPv4Blocked: fc.constantFrom(undefined, true as const),
      isRouterBehindNat: fc.constantFrom(undefined, true as const),
      isUnseen: fc.constantFrom(undefined, true as const),
      certain: fc.boolean(),
    }),
    candidates: fc.array(
      fc.record({
        kind: fc.constantFrom("host" as const, "server-reflexive" as const, "port-mapped" as const),
        address,
      }),
      { maxLength: MAX_CANDIDATES },
    ),
  });
  const message: fc.Arbitrary<ControlMessage> = fc.oneof(
    fc.record(
      { type: fc.constant("probe" as const), transaction: u32, round: u32, answered: fc.boolean(), echo: u32 },
      { requiredKeys: ["type", "transaction", "round", "answered"] },
    ),
    fc.record({
      type: fc.constant("probe_answer" as const),
      transaction: u32,
      answered: fc.boolean(),
      seenFrom: address,
    }),
    fc.record({ type: fc.constantFrom("echo" as const, "echo_answer" as const), sequence: u32, time: u64 }),
    fc.record({ type: fc.constant("candidates" as const), list }),
    fc.record({ type: fc.constant("close" as const), reason: fc.constantFrom(...CLOSE_REASONS) }),
    fc
      .record({
        type: fc.constant("punch_offer" as const),
        attempt: u32,
        role: fc.constantFrom(...PUNCH_ROLES),
        isAnswer: fc.boolean(),
        sockets: u16,
        probes: u16,
        perSecond: u16,
        ports: fc.option(ports, { nil: undefined }),
        ownPackets: fc.option(u16, { nil: undefined }),
      })
      .map(({ ports: known, ownPackets, ...offer }) => ({
        ...offer,
        ...(known === undefined ? {} : { ports: known }),
        ...(ownPackets === undefined ? {} : { ownPackets }),
      })),
    fc.record({
      type: fc.constant("punch_end" as const),
      attempt: u32,
      reason: fc.constantFrom(...PUNCH_END_REASONS),
      retryAfterSeconds: u16,
    }),
  );

  test("control messages", () => {
    fc.assert(
      fc.property(message, fc.uint8Array({ maxLength: 9 }), (value, trailing) => {
        const bytes = encodeControl(value);
        expect(decodeControl(bytes)).toEqual(value);
        expect(decodeControl(Uint8Array.of(...bytes, ...trailing))).toEqual(value);
        for (let length = 0; length < bytes.length; length++) {
          expect(decodeControl(bytes.subarray(0, length))).toBeUndefined();
        }
      }),
    );
  });

  test("handshake packets", () => {
    const noise = fc.uint8Array({ minLength: 48, maxLength: 600 });
    const mac = () => new Uint8Array(16).fill(1);
    fc.assert(
      fc.property(u32, u32, noise, (senderIndex, receiverIndex, body) => {
        const initiation = { type: "initiation", senderIndex, noise: body } as const;
        expect(decodeHandshake(encodeHandshake(initiation, mac))).toEqual(initiation);
        const response = { type: "response", senderIndex, receiverIndex, noise: body } as const;
        const bytes = encodeHandshake(response, mac, mac);
        expect(decodeHandshake(bytes)).toEqual(response);
        expect(handshakeMacs(bytes)?.covered2.length).toBe(bytes.length - 16);
        bytes[1] = 2;
        expect(decodeHandshake(bytes)).toBeUndefined();
        const cookie = { type: "cookie", receiverIndex, nonce: body.slice(0, 12), sealed: body.slice(12, 44) } as const;
        expect(decodeHandshake(encodeCookie(cookie))).toEqual(cookie);
      }),
    );
    expect(
      decodeHandshake(encodeHandshake({ type: "initiation", senderIndex: 1, noise: new Uint8Array(1200) }, mac)),
    ).toBeUndefined();
  });

  test("frame and fragment headers", () => {
    fc.assert(
      fc.property(u32, u64, u32, fc.integer({ min: 2, max: 255 }), u8, (receiver, counter, id, count, pick) => {
        const header = new Uint8Array(30);
        writeFrameHeader(header, receiver, counter);
        expect([isSealedFrame(header), frameReceiver(header), frameCounter(header)]).toEqual([true, receiver, counter]);
        const fragment = { id, index: pick % count, count };
        const plaintext = new Uint8Array(8);
        writeFragmentHeader(plaintext, fragment);
        expect(readFragmentHeader(plaintext)).toEqual(fragment);
      }),
    );
  });
});

describe("candidate lists", () => {
  const candidate = { kind: "host", address: { ip: "192.0.2.1", port: 1 } } as const;

  test("are cut to the maximum by the writer, and refused above it by the reader", () => {
    const writer = new Writer();
    const candidates = Array.from({ length: 40 }, () => candidate);
    writeCandidates(writer, { generation: 1, nat: UNKNOWN_NAT, candidates });
    const bytes = writer.finish();
    expect(readCandidates(new Reader(bytes))?.candidates.length).toBe(MAX_CANDIDATES);
    bytes[8] = MAX_CANDIDATES + 1;
    expect(readCandidates(new Reader(Uint8Array.of(...bytes, ...new Uint8Array(19))))).toBeUndefined();
  });

  test("leave out kinds that a later version has added, and keep the others", () => {
    const writer = new Writer();
    writeCandidates(writer, { generation: 1, nat: UNKNOWN_NAT, candidates: [candidate, candidate] });
    const bytes = writer.finish();
    bytes[9] = 77;
    expect(readCandidates(new Reader(bytes))?.candidates).toEqual([candidate]);
    for (const at of [4, 5, 6]) bytes[at] = 200;
    expect(readCandidates(new Reader(bytes))?.nat).toEqual(UNKNOWN_NAT);
  });
});

function randomKey(length: number): Uint8Array {
  return new Uint8Array(length).fill(0x44);
}

function waitingSession(): PeerSession {
  const environment = { random: randomKey, timestamp: () => 1, newIndex: () => 5 };
  const waiting = new PeerSession({
    staticKey: ours,
    remoteStatic: theirs.publicKey,
    environment,
    greatestTimestamp: 0,
  });
  waiting.initiate({ generation: 1, nat: UNKNOWN_NAT, candidates: [] }, now);
  waiting.poll();
  return waiting;
}

const HELLO = {
  version: 1,
  features: 0,
  identity: new Ed25519Key(new Uint8Array(32)).publicKey,
  signature: new Uint8Array(64),
  name: "fuzz",
  nameIsExplicit: false,
  software: "fuzz",
  instance: 1,
} as const;
