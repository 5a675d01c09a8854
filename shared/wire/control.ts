/**
 * Control messages: the body of a control frame (frame.ts), always sealed. One kind byte, then fields, big-endian.
 *
 *   0x01 probe          transaction 4, round 4, flags 1 (1: I have had an answer of yours on this pair)
 *   0x02 probe answer   transaction 4, flags 1, packed address 18 where the probe came from, as the answerer saw it
 *   0x03 echo           sequence 4, time 8 (opaque to the answerer)      what `tunnelmesh-agent ping` sends along the selected path
 *   0x04 echo answer    sequence 4, time 8
 *   0x05 candidates     candidate list (candidates.ts)
 *   0x06 close          reason 1
 *   0x07 wish           rung 1 (0 auto, 1 direct, 2 ssh, 3 websocket)    the operator's choice on the sender's side
 *   0x08 known          generation 4, rung 1    the newest candidates and wish of the receiver that the sender has
 *   0x09 received       small packets 8, large packets 8         what has come from the receiver of this, since the session began
 *
 * Unknown kinds are counted and ignored; trailing bytes are ignored.
 */
import { PACKED_ADDRESS_BYTES, packAddress, type TransportAddress, unpackAddress } from "../address.ts";
import { assertNever } from "../assert.ts";
import { type CandidateList, readCandidates, writeCandidates } from "./candidates.ts";
import { Reader, Writer } from "./cursor.ts";

/** Why an agent ends a session, as a closed set. */
export const CLOSE_REASONS = ["stopping", "idle", "blocked"] as const;
export type CloseReason = (typeof CLOSE_REASONS)[number];

/** What an operator may ask for: a rung, or the best there is. */
export const RUNG_WISHES = ["auto", "direct", "ssh", "websocket"] as const;
export type RungWish = (typeof RUNG_WISHES)[number];

export type ControlMessage =
  | { readonly type: "probe"; readonly transaction: number; readonly round: number; readonly answered: boolean }
  | {
      readonly type: "probe_answer";
      readonly transaction: number;
      readonly answered: boolean;
      readonly seenFrom: TransportAddress;
    }
  | { readonly type: "echo"; readonly sequence: number; readonly time: number }
  | { readonly type: "echo_answer"; readonly sequence: number; readonly time: number }
  | { readonly type: "candidates"; readonly list: CandidateList }
  | { readonly type: "close"; readonly reason: CloseReason }
  | { readonly type: "wish"; readonly rung: RungWish }
  | { readonly type: "known"; readonly generation: number; readonly rung: RungWish }
  | { readonly type: "received"; readonly small: number; readonly large: number };

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
} as const;
const FLAG_ANSWERED = 1;

export function encodeControl(message: ControlMessage): Uint8Array {
  const writer = new Writer(64).u8(KIND[message.type]);
  switch (message.type) {
    case "probe":
      writer
        .u32(message.transaction)
        .u32(message.round)
        .u8(message.answered ? FLAG_ANSWERED : 0);
      break;
    case "probe_answer":
      writer
        .u32(message.transaction)
        .u8(message.answered ? FLAG_ANSWERED : 0)
        .bytes(packAddress(message.seenFrom));
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
    default:
      assertNever(message);
  }
  return writer.finish();
}

/** Undefined for an unknown kind and for anything malformed. */
export function decodeControl(body: Uint8Array): ControlMessage | undefined {
  const reader = new Reader(body);
  const message = readBody(reader.u8(), reader);
  return reader.failed ? undefined : message;
}

function readBody(kind: number, reader: Reader): ControlMessage | undefined {
  switch (kind) {
    case KIND.probe:
      return {
        type: "probe",
        transaction: reader.u32(),
        round: reader.u32(),
        answered: (reader.u8() & FLAG_ANSWERED) !== 0,
      };
    case KIND.probe_answer: {
      const transaction = reader.u32();
      const answered = (reader.u8() & FLAG_ANSWERED) !== 0;
      const packed = reader.bytes(PACKED_ADDRESS_BYTES);
      return reader.failed
        ? undefined
        : { type: "probe_answer", transaction, answered, seenFrom: unpackAddress(packed) };
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
    default:
      return undefined;
  }
}
