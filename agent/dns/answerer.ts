/**
 * Answers DNS questions about the mesh, and no others: authoritative for `mesh` and for the reverse names of members' addresses, REFUSED for
 * everything else, so that a machine that asks the wrong server notices and goes on to the next one. Never forwards, never recurses.
 *
 * A function of bytes and zone. Whatever comes in, it returns an answer or nothing and does not throw.
 */
import { decode, encode, type Answer, type DecodedPacket, type Packet } from "dns-packet";
import { MESH_DOMAIN, type Zone } from "./zone.ts";

/** Larger questions are not ours: a name has 255 bytes at most, and EDNS options add a few. */
const MAX_QUERY_BYTES = 1024;
const HEADER_BYTES = 12;
/** Seconds. Members keep their addresses for good, but a name may leave the mesh. */
const TTL_SECONDS = 60;
/** How long a resolver may remember that there is no such machine (RFC 2308 §5): the next one to join should be found soon. */
const NEGATIVE_TTL_SECONDS = 5;
/** What resolvers agree on today for answers that need no fragments (DNS flag day 2020). Ours have a quarter of that. */
const EDNS_BYTES = 1232;

/** RFC 1035 §4.1.1, and RFC 6891 §9 for the last one, of which these are the lower four bits. */
const RCODE = { noError: 0, formatError: 1, noSuchName: 3, notImplemented: 4, refused: 5, badVersion: 0 } as const;
/** RFC 6891 §9: BADVERS is 16, whose upper eight bits travel in the OPT record. */
const BAD_VERSION_UPPER = 1;
const AUTHORITATIVE = 0x0400;
const RECURSION_DESIRED = 0x0100;

interface Verdict {
  readonly rcode: number;
  readonly answers?: readonly Answer[];
  readonly authorities?: readonly Answer[];
}

/** The answer; undefined for what deserves none: too short to be a message, or an answer itself, which would start a loop. */
export function answerQuery(bytes: Uint8Array, zone: Zone): Uint8Array | undefined {
  if (bytes.length < HEADER_BYTES || (bytes[2] ?? 0) >= 0x80) return undefined;
  const query = bytes.length > MAX_QUERY_BYTES ? undefined : decoded(bytes);
  const opcode = ((bytes[2] ?? 0) >> 3) & 0x0f;
  if (opcode !== 0) return encoded(bytes, undefined, { rcode: RCODE.notImplemented });
  if (query === undefined || query.questions?.length !== 1) {
    return encoded(bytes, undefined, { rcode: RCODE.formatError });
  }
  return encoded(bytes, query, isBadVersion(query) ? { rcode: RCODE.badVersion } : verdict(query, zone));
}

function verdict({ questions }: DecodedPacket, zone: Zone): Verdict {
  const [question] = questions ?? [];
  if (question === undefined) return { rcode: RCODE.formatError };
  if (question.class !== "IN" && question.class !== "ANY") return { rcode: RCODE.refused };
  const { name, type } = question;
  const asked = name.toLowerCase().replace(/\.$/, "");
  if (asked === MESH_DOMAIN) return type === "SOA" ? records(soa(name)) : noData(name);
  if (asked.endsWith(`.${MESH_DOMAIN}`)) {
    const member = zone.member(asked.slice(0, -MESH_DOMAIN.length - 1));
    if (member === undefined) return { rcode: RCODE.noSuchName, authorities: [soa(MESH_DOMAIN)] };
    const { meshIPv4, meshIPv6 } = member;
    const answers: Answer[] = [];
    if (meshIPv4 !== undefined && (type === "A" || isAny(type))) answers.push(addressRecord("A", name, meshIPv4));
    if (meshIPv6 !== undefined && (type === "AAAA" || isAny(type))) answers.push(addressRecord("AAAA", name, meshIPv6));
    return answers.length > 0 ? records(...answers) : noData(MESH_DOMAIN);
  }
  const machine = zone.nameOfReverse(asked);
  if (machine === undefined) return { rcode: RCODE.refused };
  if (type !== "PTR" && !isAny(type)) return noData(name);
  return records({ type: "PTR", name, ttl: TTL_SECONDS, data: `${machine}.${MESH_DOMAIN}` });
}

const records = (...answers: readonly Answer[]): Verdict => ({ rcode: RCODE.noError, answers });
/** RFC 2308 §2.2: the name is there, a record of this type is not. */
const noData = (zoneName: string): Verdict => ({ rcode: RCODE.noError, authorities: [soa(zoneName)] });

const addressRecord = (type: "A" | "AAAA", name: string, data: string): Answer => ({
  type,
  name,
  ttl: TTL_SECONDS,
  data,
});

/** The record that negative answers carry (RFC 2308 §3). The serial says nothing: nobody transfers this zone. */
const soa = (name: string): Answer => ({
  type: "SOA",
  name,
  ttl: NEGATIVE_TTL_SECONDS,
  data: {
    mname: `ns.${MESH_DOMAIN}`,
    rname: `nobody.${MESH_DOMAIN}`,
    serial: 1,
    refresh: 3600,
    retry: 600,
    expire: 86_400,
    minimum: NEGATIVE_TTL_SECONDS,
  },
});

/** QTYPE * (RFC 1035 §3.2.3), which dns-packet calls "ANY" though its types do not know it. */
const isAny = (type: string): boolean => type === "ANY";

const optOf = (query: DecodedPacket | undefined) => (query?.additionals ?? []).find(({ type }) => type === "OPT");

function isBadVersion(query: DecodedPacket): boolean {
  const opt = optOf(query);
  return opt !== undefined && "ednsVersion" in opt && opt.ednsVersion !== 0;
}

/** @param query undefined: it could not be read, and only its id and flags are known */
function encoded(
  bytes: Uint8Array,
  query: DecodedPacket | undefined,
  { rcode, answers, authorities }: Verdict,
): Uint8Array | undefined {
  const isOurs = rcode === RCODE.noSuchName || answers !== undefined || authorities !== undefined;
  const echoedFlags = (((bytes[2] ?? 0) << 8) | (bytes[3] ?? 0)) & RECURSION_DESIRED;
  const opcode = (bytes[2] ?? 0) & 0x78;
  const packet: Packet = {
    type: "response",
    id: ((bytes[0] ?? 0) << 8) | (bytes[1] ?? 0),
    flags: echoedFlags | (isOurs ? AUTHORITATIVE : 0) | (opcode << 8) | rcode,
    questions: query?.questions ?? [],
    answers: [...(answers ?? [])],
    authorities: [...(authorities ?? [])],
    additionals: query === undefined || optOf(query) === undefined ? [] : [ourOpt(isBadVersion(query))],
  };
  try {
    return new Uint8Array(encode(packet));
  } catch {
    // A question that can be read but not written again, such as a name with a label of another kind.
    return query === undefined ? undefined : encoded(bytes, undefined, { rcode: RCODE.formatError });
  }
}

/** RFC 6891 §6.1.1: who asks with OPT is answered with OPT. */
const ourOpt = (isBadVersion: boolean): Answer => ({
  type: "OPT",
  name: ".",
  udpPayloadSize: EDNS_BYTES,
  extendedRcode: isBadVersion ? BAD_VERSION_UPPER : 0,
  ednsVersion: 0,
  flags: 0,
  flag_do: false,
  options: [],
});

function decoded(bytes: Uint8Array): DecodedPacket | undefined {
  try {
    return decode(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length));
  } catch {
    return undefined;
  }
}
