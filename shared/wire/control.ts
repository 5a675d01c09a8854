/**
 * Control messages: the body of a control frame (frame.ts), always sealed. One kind byte, then fields, big-endian.
 *
 *   0x01 probe          transaction 4, round 4, flags 1 (1: I have had an answer of yours on this pair, 2: echo follows), echo 4
 *   0x02 probe answer   transaction 4, flags 1 (as above), packed address 18 where the probe came from, as the answerer saw it, echo 4
 *   0x03 echo           sequence 4, time 8 (opaque to the answerer)      what `tunnelmesh-agent ping` sends along the selected path
 *   0x04 echo answer    sequence 4, time 8
 *   0x05 candidates     candidate list (candidates.ts)
 *   0x06 close          reason 1
 *   0x07 wish           rung 1 (0 auto, 1 direct, 2 ssh, 3 websocket)    the operator's choice on the sender's side
 *   0x08 known          generation 4, rung 1    the newest candidates and wish of the receiver that the sender has
 *   0x09 received       small packets 8, large packets 8         what has come from the receiver of this, since the session began
 *   0x0a punch offer    attempt 4, role 1, flags 1 (1: answers yours, 2: own packets follow), sockets 2, probes 2, per second 2, ports 6 (zeros: unknown), own packets 2
 *   0x0b punch end      attempt 4, reason 1, retry after 2 (seconds)
 *
 * Unknown kinds are counted and ignored; trailing bytes are ignored.
 */
import { PACKED_ADDRESS_BYTES, packAddress, type TransportAddress, unpackAddress } from "../address.ts";
import { assertNever } from "../assert.ts";
import {
  type CandidateList,
  type PortRange,
  readCandidates,
  readPorts,
  writeCandidates,
  writePorts,
} from "./candidates.ts";
import { Reader, Writer } from "./cursor.ts";

/** Why an agent ends a session, as a closed set. */
export const CLOSE_REASONS = ["stopping", "idle", "blocked"] as const;
export type CloseReason = (typeof CLOSE_REASONS)[number];

/** What an operator may ask for: a rung, or the best there is. */
export const RUNG_WISHES = ["auto", "direct", "ssh", "websocket"] as const;
export type RungWish = (typeof RUNG_WISHES)[number];

/** What the sender of an offer will do: send from many ports to one address, from one port to many, or both at once. */
export const PUNCH_ROLES = ["spread", "guess", "meet"] as const;
export type PunchRole = (typeof PUNCH_ROLES)[number];

/** Why an agent takes no part in an attempt, or no longer. */
export const PUNCH_END_REASONS = ["stopped", "busy", "too soon", "not attested", "unwilling"] as const;
export type PunchEndReason = (typeof PUNCH_END_REASONS)[number];

/** Offers, or agrees to, sending more than a plain round: what at most, and which ports our own NAT will use. */
export interface PunchOffer {
  readonly type: "punch_offer";
  readonly attempt: number;
  readonly role: PunchRole;
  readonly isAnswer: boolean;
  readonly sockets: number;
  readonly probes: number;
  readonly perSecond: number;
  /** Of two sides that meet: what the sender of the offer itself will send, where its NAT has no room for `probes`. */
  readonly ownPackets?: number | undefined;
  readonly ports?: PortRange | undefined;
}

export type ControlMessage =
  | {
      readonly type: "probe";
      readonly transaction: number;
      readonly round: number;
      readonly answered: boolean;
      /** What the newest answer on this pair asked for: the answerer then knows that its packets arrive here. */
      readonly echo?: number | undefined;
    }
  | {
      readonly type: "probe_answer";
      readonly transaction: number;
      readonly answered: boolean;
      readonly seenFrom: TransportAddress;
      /** To be repeated in the next probe on this pair. */
      readonly echo?: number | undefined;
    }
  | { readonly type: "echo"; readonly sequence: number; readonly time: number }
  | { readonly type: "echo_answer"; readonly sequence: number; readonly time: number }
  | { readonly type: "candidates"; readonly list: CandidateList }
  | { readonly type: "close"; readonly reason: CloseReason }
  | { readonly type: "wish"; readonly rung: RungWish }
  | { readonly type: "known"; readonly generation: number; readonly rung: RungWish }
  | { readonly type: "received"; readonly small: number; readonly large: number }
  | PunchOffer
  | {
      readonly type: "punch_end";
      readonly attempt: number;
      readonly reason: PunchEndReason;
      readonly retryAfterSeconds: number;
    };

const KIND = {
  probe: 1,
  probe_answer: 2,
  echo: 3,
  echo_answer: 4,
  candidates: 5,
  close: 6,
  wish: 7,
  known: 8,
  received: 9,
  punch_offer: 10,
  punch_end: 11,
} as const;
const FLAG_ANSWERED = 1;
const FLAG_ECHO = 2;
const FLAG_IS_ANSWER = 1;
const FLAG_OWN_PACKETS = 2;
const NO_PORTS: PortRange = { first: 0, last: 0, stride: 0 };

export function encodeControl(message: ControlMessage): Uint8Array {
  const writer = new Writer(64).u8(KIND[message.type]);
  switch (message.type) {
    case "probe":
      writer.u32(message.transaction).u32(message.round).u8(probeFlags(message));
      if (message.echo !== undefined) writer.u32(message.echo);
      break;
    case "probe_answer":
      writer.u32(message.transaction).u8(probeFlags(message)).bytes(packAddress(message.seenFrom));
      if (message.echo !== undefined) writer.u32(message.echo);
      break;
    case "echo":
    case "echo_answer":
      writer.u32(message.sequence).u64(message.time);
      break;
    case "candidates":
      writeCandidates(writer, message.list);
      break;
    case "close":
      writer.u8(CLOSE_REASONS.indexOf(message.reason));
      break;
    case "wish":
      writer.u8(RUNG_WISHES.indexOf(message.rung));
      break;
    case "received":
      writer.u64(message.small).u64(message.large);
      break;
    case "known":
      writer.u32(message.generation).u8(RUNG_WISHES.indexOf(message.rung));
      break;
    case "punch_offer":
      writer
        .u32(message.attempt)
        .u8(PUNCH_ROLES.indexOf(message.role))
        .u8((message.isAnswer ? FLAG_IS_ANSWER : 0) | (message.ownPackets === undefined ? 0 : FLAG_OWN_PACKETS))
        .u16(message.sockets)
        .u16(message.probes)
        .u16(message.perSecond);
      writePorts(writer, message.ports ?? NO_PORTS);
      if (message.ownPackets !== undefined) writer.u16(message.ownPackets);
      break;
    case "punch_end":
      writer.u32(message.attempt).u8(PUNCH_END_REASONS.indexOf(message.reason)).u16(message.retryAfterSeconds);
      break;
    default:
      assertNever(message);
  }
  return writer.finish();
}

const probeFlags = ({ answered, echo }: { readonly answered: boolean; readonly echo?: number | undefined }): number =>
  (answered ? FLAG_ANSWERED : 0) | (echo === undefined ? 0 : FLAG_ECHO);

const readEcho = (flags: number, reader: Reader): { readonly echo?: number } =>
  (flags & FLAG_ECHO) === 0 ? {} : { echo: reader.u32() };

/** Undefined for an unknown kind and for anything malformed. */
export function decodeControl(body: Uint8Array): ControlMessage | undefined {
  const reader = new Reader(body);
  const message = readBody(reader.u8(), reader);
  return reader.failed ? undefined : message;
}

function readBody(kind: number, reader: Reader): ControlMessage | undefined {
  switch (kind) {
    case KIND.probe: {
      const [transaction, round, flags] = [reader.u32(), reader.u32(), reader.u8()];
      const answered = (flags & FLAG_ANSWERED) !== 0;
      return { type: "probe", transaction, round, answered, ...readEcho(flags, reader) };
    }
    case KIND.probe_answer: {
      const [transaction, flags] = [reader.u32(), reader.u8()];
      const answered = (flags & FLAG_ANSWERED) !== 0;
      const packed = reader.bytes(PACKED_ADDRESS_BYTES);
      const echo = readEcho(flags, reader);
      return reader.failed
        ? undefined
        : { type: "probe_answer", transaction, answered, seenFrom: unpackAddress(packed), ...echo };
    }
    case KIND.echo:
    case KIND.echo_answer:
      return { type: kind === KIND.echo ? "echo" : "echo_answer", sequence: reader.u32(), time: reader.u64() };
    case KIND.candidates: {
      const list = readCandidates(reader);
      return list === undefined ? undefined : { type: "candidates", list };
    }
    case KIND.close: {
      const reason = CLOSE_REASONS[reader.u8()];
      return reason === undefined ? undefined : { type: "close", reason };
    }
    case KIND.wish: {
      const rung = RUNG_WISHES[reader.u8()];
      return rung === undefined ? undefined : { type: "wish", rung };
    }
    case KIND.received:
      return { type: "received", small: reader.u64(), large: reader.u64() };
    case KIND.known: {
      const generation = reader.u32();
      const rung = RUNG_WISHES[reader.u8()];
      return rung === undefined ? undefined : { type: "known", generation, rung };
    }
    case KIND.punch_offer:
      return readOffer(reader);
    case KIND.punch_end: {
      const attempt = reader.u32();
      const reason = PUNCH_END_REASONS[reader.u8()];
      const retryAfterSeconds = reader.u16();
      return reason === undefined ? undefined : { type: "punch_end", attempt, reason, retryAfterSeconds };
    }
    default:
      return undefined;
  }
}

function readOffer(reader: Reader): PunchOffer | undefined {
  const attempt = reader.u32();
  const role = PUNCH_ROLES[reader.u8()];
  const flags = reader.u8();
  const isAnswer = (flags & FLAG_IS_ANSWER) !== 0;
  const [sockets, probes, perSecond] = [reader.u16(), reader.u16(), reader.u16()];
  const ports = readPorts(reader);
  const ownPackets = (flags & FLAG_OWN_PACKETS) === 0 ? undefined : reader.u16();
  if (role === undefined) return undefined;
  const known = { ...(ports === undefined ? {} : { ports }), ...(ownPackets === undefined ? {} : { ownPackets }) };
  return { type: "punch_offer", attempt, role, isAnswer, sockets, probes, perSecond, ...known };
}
