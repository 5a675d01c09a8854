/**
 * How each kind of golden vector (wire.json) becomes bytes and a value again. Values are JSON: bytes are hex. Keys are fixed, so
 * every byte follows from the value.
 */
import { PacketHeaders } from "../../agent/data/packet_headers.ts";
import { RunAssembly } from "../../agent/data/run_assembly.ts";
import { cutRun, RUN_ROOM_BEFORE, RUN_ROOM_BEHIND } from "../../agent/data/run_cutter.ts";
import { fromHex, toHex, utf8 } from "../../shared/bytes.ts";
import { mac1Of, openCookie } from "../../shared/session/handshake_guard.ts";
import { type IdentityChain, signSessionKey, verifyIdentityChain } from "../../shared/session/identity.ts";
import { type EpochKeys, openInitiation, PeerSession, type SessionAction } from "../../shared/session/peer_session.ts";
import { aeadOpen, aeadSeal, counterNonce, Ed25519Key, sha256, X25519Key } from "../../shared/session/primitives.ts";
import { AgentChannel, CoordinatorChannel } from "../../shared/signal/channel.ts";
import { decodeHello, encodeMessage, type Hello } from "../../shared/signal/messages.ts";
import { instant } from "../../shared/time.ts";
import { type CandidateList, readCandidates, writeCandidates } from "../../shared/wire/candidates.ts";
import { type ControlMessage, decodeControl, encodeControl } from "../../shared/wire/control.ts";
import { Reader, Writer } from "../../shared/wire/cursor.ts";
import {
  FRAGMENT_HEADER_BYTES,
  FRAME_HEADER_BYTES,
  FRAME_SEGMENT,
  frameCounter,
  frameReceiver,
  isSealedFrame,
  readFragmentHeader,
  SEGMENT_HEADER_BYTES,
  segmentOffset,
  segmentRunId,
  segmentTotal,
  writeFragmentHeader,
  writeFrameHeader,
  writeSegmentHeader,
} from "../../shared/wire/frame.ts";
import { decodeRelay, encodeRelay, type RelayMessage } from "../../shared/wire/relay.ts";
import { decodeHandshake, encodeCookie, handshakeMacs } from "../../shared/wire/handshake.ts";
import {
  decodeStreamFrame,
  type StreamFrame,
  StreamFrameWriter,
  type StreamRecord,
} from "../../shared/wire/stream.ts";

export interface Vector {
  readonly name: string;
  readonly kind: keyof typeof CODECS;
  readonly value: never;
  /** The bytes, field by field: hex and what it is. */
  readonly fields: readonly (readonly [hex: string, meaning: string])[];
}

export const bytesOf = (vector: Vector): Uint8Array => fromHex(vector.fields.map(([hex]) => hex).join(""));

interface Codec<T> {
  encode(value: T): Uint8Array;
  /** The value again; what cannot be read back without the value (private keys) is taken from it. */
  decode(bytes: Uint8Array, value: T): T | undefined;
}

interface FrameValue {
  readonly key: string;
  readonly receiverIndex: number;
  readonly counter: number;
  readonly plaintext: string;
}
interface FragmentValue {
  readonly id: number;
  readonly index: number;
  readonly count: number;
  readonly body: string;
}
interface HandshakeValue {
  readonly initiatorStatic: string;
  readonly initiatorEphemeral: string;
  readonly responderStatic: string;
  readonly responderEphemeral: string;
  readonly initiatorIndex: number;
  readonly responderIndex: number;
  readonly timestamp: number;
  readonly initiatorList: CandidateList;
  readonly responderList: CandidateList;
  /** With a cookie in hand the initiation carries a mac2. */
  readonly cookie?: string;
  /** Keys of the epoch that the handshake makes. */
  readonly initiatorSends?: string;
  readonly responderSends?: string;
}
interface SegmentValue {
  readonly runId: number;
  readonly offset: number;
  readonly total: number;
  readonly body: string;
}
interface RunValue {
  readonly id: number;
  readonly segmentBytes: number;
  /** What fits a frame behind the segment's header. */
  readonly bodyBytes: number;
  /** The super-packet as the TUN device gives it. */
  readonly packet: string;
}
interface CookieValue {
  readonly responderPublic: string;
  readonly receiverIndex: number;
  readonly nonce: string;
  readonly mac1: string;
  readonly cookie: string;
}
interface CertificateValue {
  readonly identitySeed: string;
  readonly sessionKey: string;
  readonly identity: string;
  readonly id: string;
}
interface ChannelValue {
  readonly agentStatic: string;
  readonly agentEphemeral: string;
  readonly coordinatorStatic: string;
  readonly coordinatorEphemeral: string;
  readonly identitySeed: string;
  readonly message: 1 | 2 | 3 | "first of the agent" | "first of the coordinator";
  readonly plaintext: string;
}

const control: Codec<ControlMessage> = { encode: encodeControl, decode: decodeControl };

const relay: Codec<RelayMessage> = { encode: encodeRelay, decode: decodeRelay };

const candidates: Codec<CandidateList> = {
  encode: (list) => {
    const writer = new Writer();
    writeCandidates(writer, list);
    return writer.finish();
  },
  decode: (bytes) => readCandidates(new Reader(bytes)),
};

const fragment: Codec<FragmentValue> = {
  encode: (value) => {
    const body = fromHex(value.body);
    const out = new Uint8Array(FRAGMENT_HEADER_BYTES + body.length);
    writeFragmentHeader(out, value);
    out.set(body, FRAGMENT_HEADER_BYTES);
    return out;
  },
  decode: (bytes) => {
    const header = readFragmentHeader(bytes);
    return header === undefined ? undefined : { ...header, body: toHex(bytes.subarray(FRAGMENT_HEADER_BYTES)) };
  },
};

const segment: Codec<SegmentValue> = {
  encode: ({ runId, offset, total, body }) => {
    const bytes = fromHex(body);
    const out = new Uint8Array(SEGMENT_HEADER_BYTES + bytes.length);
    writeSegmentHeader(out, 0, runId, offset, total);
    out.set(bytes, SEGMENT_HEADER_BYTES);
    return out;
  },
  decode: (bytes) => {
    if (bytes[0] !== FRAME_SEGMENT || bytes.length <= SEGMENT_HEADER_BYTES) return undefined;
    return {
      runId: segmentRunId(bytes, 0) >>> 0,
      offset: segmentOffset(bytes, 0),
      total: segmentTotal(bytes, 0),
      body: toHex(bytes.subarray(SEGMENT_HEADER_BYTES)),
    };
  },
};

/** All frames of a run, one behind the other as on SSH: length u16, plaintext. */
const run: Codec<RunValue> = {
  encode: ({ id, segmentBytes, bodyBytes, packet }) => {
    const bytes = Uint8Array.of(
      ...new Uint8Array(RUN_ROOM_BEFORE),
      ...fromHex(packet),
      ...new Uint8Array(RUN_ROOM_BEHIND),
    );
    const end = bytes.length - RUN_ROOM_BEHIND;
    const headers = new PacketHeaders();
    if (!headers.parse(bytes, RUN_ROOM_BEFORE, end)) throw new Error("No TCP or UDP packet");
    const frames: number[] = [];
    cutRun(bytes, RUN_ROOM_BEFORE, end, { id, headers, segmentBytes, bodyBytes, isAligned: false }, (from, length) => {
      frames.push(length >> 8, length & 0xff, ...bytes.subarray(from, from + length));
    });
    return Uint8Array.from(frames);
  },
  decode: (bytes, value) => {
    let decoded: RunValue | undefined;
    const assembly = new RunAssembly(
      {
        isWelcome: () => true,
        deliver: (packet, start, end, _headers, segmentBytes) => {
          decoded = { ...value, segmentBytes, packet: toHex(packet.subarray(start, end)) };
        },
      },
      instant(0),
    );
    for (let at = 0; at < bytes.length; ) {
      const length = ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
      if (!assembly.add(bytes, at + 2, at + 2 + length, instant(0))) return undefined;
      at += 2 + length;
    }
    return decoded;
  },
};

const frame: Codec<FrameValue> = {
  encode: ({ key, receiverIndex, counter, plaintext }) => {
    const header = new Uint8Array(FRAME_HEADER_BYTES);
    writeFrameHeader(header, receiverIndex, counter);
    return Uint8Array.of(...header, ...aeadSeal(fromHex(key), counterNonce(counter), header, fromHex(plaintext)));
  },
  decode: (bytes, { key }) => {
    if (!isSealedFrame(bytes)) return undefined;
    const counter = frameCounter(bytes);
    const header = bytes.subarray(0, FRAME_HEADER_BYTES);
    const plaintext = aeadOpen(fromHex(key), counterNonce(counter), header, bytes.subarray(FRAME_HEADER_BYTES));
    if (plaintext === undefined) return undefined;
    return { key, receiverIndex: frameReceiver(bytes), counter, plaintext: toHex(Uint8Array.from(plaintext)) };
  },
};

const initiation: Codec<HandshakeValue> = {
  encode: (value) => handshake(value).initiation,
  decode: (bytes, value) => {
    const packet = decodeHandshake(bytes);
    const responder = new X25519Key(fromHex(value.responderStatic));
    if (packet?.type !== "initiation") return undefined;
    const opened = openInitiation(responder, packet, () => fromHex(value.responderEphemeral));
    if (opened === undefined || !isMac1Right(bytes, responder.publicKey)) return undefined;
    const { timestamp, list } = opened.payload;
    return { ...value, initiatorIndex: packet.senderIndex, timestamp, initiatorList: list };
  },
};

const response: Codec<HandshakeValue> = {
  encode: (value) => handshake(value).response,
  decode: (bytes, value) => {
    const packet = decodeHandshake(bytes);
    if (packet?.type !== "response") return undefined;
    const { initiator } = handshake(value);
    if (!initiator.handleResponse(packet, instant(0))) return undefined;
    const actions = drain(initiator);
    const keys = keysOf(actions);
    const established = actions.find((action) => action.type === "established");
    if (established?.type !== "established") return undefined;
    return {
      ...value,
      responderIndex: packet.senderIndex,
      initiatorIndex: packet.receiverIndex,
      responderList: established.payload.list,
      initiatorSends: toHex(keys.sendKey),
      responderSends: toHex(keys.receiveKey),
    };
  },
};

const cookie: Codec<CookieValue> = {
  encode: ({ responderPublic, receiverIndex, nonce, mac1, cookie: secret }) => {
    const key = sha256(utf8("TunnelMesh cookie v1"), fromHex(responderPublic));
    const sealed = aeadSeal(key, fromHex(nonce), fromHex(mac1), fromHex(secret));
    return encodeCookie({ type: "cookie", receiverIndex, nonce: fromHex(nonce), sealed });
  },
  decode: (bytes, value) => {
    const packet = decodeHandshake(bytes);
    if (packet?.type !== "cookie") return undefined;
    const secret = openCookie(fromHex(value.responderPublic), packet.nonce, fromHex(value.mac1), packet.sealed);
    if (secret === undefined) return undefined;
    const { receiverIndex, nonce } = packet;
    return { ...value, receiverIndex, nonce: toHex(nonce), cookie: toHex(Uint8Array.from(secret)) };
  },
};

const certificate: Codec<CertificateValue> = {
  encode: ({ identitySeed, sessionKey }) => signSessionKey(new Ed25519Key(fromHex(identitySeed)), fromHex(sessionKey)),
  decode: (bytes, value) => {
    const { publicKey } = new Ed25519Key(fromHex(value.identitySeed));
    const chain: IdentityChain = { identity: publicKey, sessionKey: fromHex(value.sessionKey), signature: bytes };
    const id = verifyIdentityChain(chain);
    return id === undefined ? undefined : { ...value, identity: toHex(publicKey), id };
  },
};

const channel: Codec<ChannelValue> = {
  encode: (value) => {
    const { messages, agent, coordinator } = channelOf(value);
    if (value.message === "first of the agent") return agent.seal(fromHex(value.plaintext));
    if (value.message === "first of the coordinator") return coordinator.seal(fromHex(value.plaintext));
    return messages[value.message - 1] ?? new Uint8Array();
  },
  decode: (bytes, value) => {
    const { agent, coordinator, fresh } = channelOf(value);
    const end = value.message === "first of the coordinator" ? agent : coordinator;
    if (typeof value.message === "string") {
      const outcome = end.handle(bytes);
      return outcome.type === "message"
        ? { ...value, plaintext: toHex(Uint8Array.from(outcome.plaintext)) }
        : undefined;
    }
    const { agent: newAgent, coordinator: newCoordinator } = fresh();
    const first = newAgent.start();
    if (value.message === 1) return newCoordinator.handle(bytes).type === "reply" ? value : undefined;
    const second = newCoordinator.handle(first);
    if (value.message === 2) return newAgent.handle(bytes).type === "reply" ? value : undefined;
    if (second.type !== "reply") return undefined;
    const outcome = newCoordinator.handle(bytes);
    return outcome.type === "hello" ? { ...value, plaintext: toHex(encodeMessage(outcome.hello)) } : undefined;
  },
};

type StreamRecordValue<T = StreamRecord> = T extends { readonly bytes: Uint8Array }
  ? Omit<T, "bytes"> & { readonly bytes: string }
  : T;
type StreamFrameValue = Omit<StreamFrame, "records"> & { readonly records: readonly StreamRecordValue[] };

const stream: Codec<StreamFrameValue> = {
  encode: ({ records, ...header }) =>
    encodeStreamFrame({
      ...header,
      records: records.map((record) =>
        "bytes" in record ? { ...record, bytes: fromHex(record.bytes) } : record,
      ) as readonly StreamRecord[],
    }),
  decode: (bytes) => {
    const frame = decodeStreamFrame(bytes);
    if (frame === undefined) return undefined;
    const records = frame.records.map((record) =>
      "bytes" in record ? { ...record, bytes: toHex(record.bytes) } : record,
    ) as readonly StreamRecordValue[];
    return { ...frame, records };
  },
};

/** A whole frame by the writer that agents use record by record. */
export function encodeStreamFrame({ from, to, number, records }: StreamFrame): Uint8Array {
  const writer = new StreamFrameWriter(65_536);
  writer.begin(from, to, number, 65_536);
  for (const record of records) writeStreamRecord(writer, record);
  return writer.bytes.slice();
}

function writeStreamRecord(writer: StreamFrameWriter, record: StreamRecord): void {
  switch (record.type) {
    case "ack":
      writer.ack(record.ranges, record.delayMs);
      break;
    case "open":
      writer.open(record.stream, record.port);
      break;
    case "accept":
      writer.accept(record.stream);
      break;
    case "data":
      writer.data(record.stream, record.offset, record.bytes.length, record.isLast).set(record.bytes);
      break;
    case "reset":
      writer.reset(record.stream, record.code, record.finalSize);
      break;
    case "stream_credit":
      writer.streamCredit(record.stream, record.limit);
      break;
    case "session_credit":
      writer.sessionCredit(record.limit);
      break;
    case "datagram":
      writer.datagram(record.flow, record.port, record.bytes);
      break;
    case "ping":
      writer.ping();
      break;
  }
}

export const CODECS = {
  control,
  relay,
  stream,
  candidates,
  fragment,
  segment,
  run,
  frame,
  initiation,
  response,
  cookie,
  certificate,
  channel,
} as const;

export function encodeVector(kind: keyof typeof CODECS, value: unknown): Uint8Array {
  return (CODECS[kind] as Codec<unknown>).encode(value);
}

export function decodeVector(kind: keyof typeof CODECS, bytes: Uint8Array, value: unknown): unknown {
  return (CODECS[kind] as Codec<unknown>).decode(bytes, value);
}

/** Both packets of a handshake, and the initiator's session that waits for the second. */
function handshake(value: HandshakeValue): { initiation: Uint8Array; response: Uint8Array; initiator: PeerSession } {
  const keys = [new X25519Key(fromHex(value.initiatorStatic)), new X25519Key(fromHex(value.responderStatic))] as const;
  const initiator = sessionOf(keys[0], keys[1], value.initiatorEphemeral, value.initiatorIndex, value.timestamp);
  if (value.cookie !== undefined) giveCookie(initiator, value);
  initiator.initiate(value.initiatorList, instant(0));
  const sent = packetOf(drain(initiator));
  const packet = decodeHandshake(sent);
  if (packet?.type !== "initiation") throw new Error("No initiation");
  const opened = openInitiation(keys[1], packet, () => fromHex(value.responderEphemeral));
  if (opened === undefined) throw new Error("Initiation does not open");
  const responder = sessionOf(keys[1], keys[0], value.responderEphemeral, value.responderIndex, 0);
  responder.respond(opened, value.responderList, instant(0));
  return { initiation: sent, response: packetOf(drain(responder)), initiator };
}

function sessionOf(
  key: X25519Key,
  remote: X25519Key,
  ephemeral: string,
  index: number,
  timestamp: number,
): PeerSession {
  return new PeerSession({
    staticKey: key,
    remoteStatic: remote.publicKey,
    environment: { random: () => fromHex(ephemeral), timestamp: () => timestamp, newIndex: () => index },
    greatestTimestamp: 0,
  });
}

/** Puts a cookie into a session as a flooded responder does: an initiation, and the cookie reply to it. */
function giveCookie(initiator: PeerSession, value: HandshakeValue): void {
  initiator.initiate(value.initiatorList, instant(0));
  const mac1 = toHex(handshakeMacs(packetOf(drain(initiator)))?.mac1 ?? new Uint8Array());
  const responderPublic = toHex(new X25519Key(fromHex(value.responderStatic)).publicKey);
  const given = { responderPublic, receiverIndex: value.initiatorIndex, nonce: "00".repeat(12), mac1 };
  const packet = decodeHandshake(cookie.encode({ ...given, cookie: value.cookie ?? "" }));
  if (packet?.type === "cookie") initiator.handleCookie(packet, instant(0));
}

function drain(session: PeerSession): SessionAction[] {
  const actions: SessionAction[] = [];
  for (let action = session.poll(); action !== undefined; action = session.poll()) actions.push(action);
  return actions;
}

function packetOf(actions: readonly SessionAction[]): Uint8Array {
  const sent = actions.find((action) => action.type === "send_handshake");
  if (sent?.type !== "send_handshake") throw new Error("Nothing was sent");
  return sent.bytes;
}

function keysOf(actions: readonly SessionAction[]): EpochKeys {
  const installed = actions.find((action) => action.type === "install_epoch");
  if (installed?.type !== "install_epoch") throw new Error("No epoch was installed");
  return installed.keys;
}

function isMac1Right(bytes: Uint8Array, responder: Uint8Array): boolean {
  const macs = handshakeMacs(bytes);
  return macs !== undefined && toHex(mac1Of(responder)(macs.covered1)) === toHex(macs.mac1);
}

function channelOf(value: ChannelValue) {
  const identity = new Ed25519Key(fromHex(value.identitySeed));
  const staticKey = new X25519Key(fromHex(value.agentStatic));
  const hello: Hello = decodeHello(fromHex(value.plaintext)) ?? {
    version: 1,
    features: 0,
    identity: identity.publicKey,
    signature: signSessionKey(identity, staticKey.publicKey),
    name: "laptop",
    nameIsExplicit: false,
    software: "golden",
    instance: 1,
  };
  const fresh = () => ({
    agent: new AgentChannel({
      staticKey,
      ephemeral: new X25519Key(fromHex(value.agentEphemeral)),
      hello,
      accept: () => true,
    }),
    coordinator: new CoordinatorChannel({
      staticKey: new X25519Key(fromHex(value.coordinatorStatic)),
      ephemeral: new X25519Key(fromHex(value.coordinatorEphemeral)),
    }),
  });
  const { agent, coordinator } = fresh();
  const first = agent.start();
  const second = coordinator.handle(first);
  const third = second.type === "reply" ? agent.handle(second.bytes) : second;
  if (second.type !== "reply" || third.type !== "reply") throw new Error("The channel did not open");
  coordinator.handle(third.bytes);
  return { agent, coordinator, fresh, messages: [first, second.bytes, third.bytes] };
}
