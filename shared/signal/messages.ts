/**
 * Signalling messages: JSON inside the Noise channel of `channel.ts`. One variant per direction; every string and array has a
 * maximum. Unknown keys are ignored and unknown types are dropped by `decode...`, so that both sides may be upgraded apart.
 *
 * "Agent clock" values are milliseconds on the agent's own monotonic clock; the coordinator converts (signalling/clock.ts).
 */
import * as v from "valibot";
import { canonicalIp, isIPv6, isPrivate, parseTransportAddress } from "../address.ts";
import { fromBase64, toBase64, utf8, utf8Text } from "../bytes.ts";
import { isPeerId, type PeerId } from "../session/identity.ts";

export const PROTOCOL_VERSION = 1;

/** Largest signalling message after authentication; the peer list is sent in several. */
export const MAX_SIGNAL_BYTES = 65_000;
/** Largest message before authentication (PRODUCT.md allows 4 KiB). */
export const MAX_UNAUTHENTICATED_BYTES = 4096;
/** Largest opaque body that one agent may send another through the coordinator: a handshake or one sealed control frame. */
export const MAX_PEER_BODY_BYTES = 4096;
export const MAX_PEERS_PER_MESSAGE = 64;
export const MAX_ATTESTED = 8;

const PeerIdText = v.pipe(
  v.string(),
  v.length(26),
  v.check((text) => isPeerId(text)),
  v.transform((text) => text as PeerId),
);
const Base64 = (maximum: number) =>
  v.pipe(
    v.string(),
    v.maxLength(Math.ceil(maximum / 3) * 4),
    v.rawTransform(({ dataset, addIssue, NEVER }) => {
      const bytes = fromBase64(dataset.value);
      if (bytes !== undefined && bytes.length <= maximum) return bytes;
      addIssue({ message: "not base64" });
      return NEVER;
    }),
  );
const Address = v.pipe(
  v.string(),
  v.maxLength(56),
  v.rawTransform(({ dataset, addIssue, NEVER }) => {
    const address = parseTransportAddress(dataset.value);
    if (address !== undefined) return address;
    addIssue({ message: "not an address" });
    return NEVER;
  }),
);
/**
 * A mesh address in canonical text: the agent takes it as it is, for packets and for routes. Only private ranges, so that a hostile
 * coordinator cannot draw traffic for public addresses into the mesh.
 */
const MeshAddress = (version: 4 | 6) =>
  v.pipe(
    v.string(),
    v.maxLength(39),
    v.check((text) => canonicalIp(text) === text && isIPv6(text) === (version === 6) && isPrivate(text)),
  );
const Name = v.pipe(v.string(), v.regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/));
const Milliseconds = v.pipe(v.number(), v.finite());
const Round = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(2 ** 32 - 1));
const Text = (maximum: number) => v.pipe(v.string(), v.maxLength(maximum));

/** The kinds of relay leg, best first. */
const RelayLeg = v.picklist(["ssh", "websocket"]);
export type RelayLeg = v.InferOutput<typeof RelayLeg>;

/** Payload of the agent's last handshake message: who it is and why it may come in. */
export const Hello = v.object({
  version: v.literal(PROTOCOL_VERSION),
  features: v.pipe(v.number(), v.integer(), v.minValue(0)),
  identity: Base64(32),
  signature: Base64(64),
  name: Text(63),
  /** Chosen by the user: refused when taken, instead of getting a number. */
  nameIsExplicit: v.boolean(),
  /** `tmk_<id>_<secret>_<fingerprint>`, for an identity that is not registered yet. */
  key: v.optional(Text(200)),
  software: Text(64),
  /** A number that the agent picks anew each time it starts, so that peers know when it has lost its sessions. */
  instance: v.pipe(v.number(), v.integer(), v.minValue(1)),
});
export type Hello = v.InferOutput<typeof Hello>;

export const PeerEntry = v.object({
  id: PeerIdText,
  name: Name,
  identity: Base64(32),
  sessionKey: Base64(32),
  signature: Base64(64),
  meshIPv4: MeshAddress(4),
  meshIPv6: MeshAddress(6),
  online: v.boolean(),
  /** The `instance` of its last `Hello`; 0 when it has not been seen. */
  instance: v.pipe(v.number(), v.integer(), v.minValue(0)),
});
export type PeerEntry = v.InferOutput<typeof PeerEntry>;

/** Why the coordinator refuses, as a closed set; `message` says it in words. */
export const REFUSALS = {
  key_invalid: "the join key is unknown, used up or revoked",
  key_expired: "the join key has expired",
  name_taken: "the name belongs to another machine",
  name_invalid: "the name is not usable",
  removed: "the machine was removed from the mesh",
  identity_invalid: "the identity does not prove itself",
  version: "the protocol versions do not fit",
  replaced: "another agent with the same identity has connected",
  full: "the mesh has no free address",
} as const;
export type Refusal = keyof typeof REFUSALS;

export const AgentMessage = v.variant("type", [
  v.object({ type: v.literal("clock_reply"), id: Round, receivedAt: Milliseconds, sentAt: Milliseconds }),
  v.object({ type: v.literal("to_peer"), to: PeerIdText, body: Base64(MAX_PEER_BODY_BYTES) }),
  /** Asks that both sides fire their first probes at one instant. */
  v.object({ type: v.literal("punch_request"), peer: PeerIdText, round: Round }),
  /** When this agent really fired, on its own clock: the coordinator logs the skew. */
  v.object({ type: v.literal("punch_fired"), peer: PeerIdText, round: Round, firedAt: Milliseconds }),
  /** The whole list of peers that this agent refuses. */
  v.object({ type: v.literal("block"), peers: v.pipe(v.array(PeerIdText), v.maxLength(1000)) }),
  /** Proves that the connection lives: answered by `pong` at once. */
  v.object({ type: v.literal("ping"), id: Round }),
  /** Asks for a token to open a relay connection with. */
  v.object({ type: v.literal("relay_token_request") }),
  /** We have no such relay leg: what the coordinator still has of it is a connection that has died without a word. */
  v.object({ type: v.literal("leg_lost"), leg: RelayLeg }),
  v.object({ type: v.literal("leave") }),
]);
export type AgentMessage = v.InferOutput<typeof AgentMessage>;

export const CoordinatorMessage = v.variant("type", [
  v.object({
    type: v.literal("welcome"),
    id: PeerIdText,
    name: Name,
    meshIPv4: MeshAddress(4),
    meshIPv6: MeshAddress(6),
    /** STUN transport addresses: [address 1 port 1, address 1 port 2, address 2 port 1, address 2 port 2], as many as there are, per family. */
    stun: v.pipe(v.array(Address), v.maxLength(16)),
    stunUsername: Text(64),
    stunSecret: Base64(32),
    /** URLs of all listeners, to be tried when the first fails. */
    listeners: v.pipe(v.array(Text(256)), v.maxLength(16)),
    /** Where the SSH endpoint listens, and its host key (RFC 4253 §6.6 blob), for agents to pin. Absent: it has none. */
    ssh: v.optional(
      v.object({ host: Text(253), port: v.pipe(v.number(), v.integer(), v.maxValue(65_535)), hostKey: Base64(256) }),
    ),
    /** As `relay_token`, without having been asked for. */
    relayToken: v.optional(Text(64)),
  }),
  /** Waiting for approval; `code` is what the operator types. */
  v.object({ type: v.literal("pending"), code: Text(16) }),
  v.object({ type: v.literal("refused"), reason: v.picklist(Object.keys(REFUSALS) as Refusal[]), message: Text(300) }),
  /** New or changed entries. The first such message after `welcome` has `reset` set: peers that it and its followers do not name are gone. */
  v.object({
    type: v.literal("peers"),
    reset: v.boolean(),
    peers: v.pipe(v.array(PeerEntry), v.maxLength(MAX_PEERS_PER_MESSAGE)),
  }),
  v.object({ type: v.literal("peer_removed"), id: PeerIdText }),
  /** `roundTripMs`: what the coordinator has measured so far, for the agent's `status`. */
  v.object({ type: v.literal("clock_request"), id: Round, roundTripMs: v.optional(Milliseconds) }),
  v.object({
    type: v.literal("from_peer"),
    from: PeerIdText,
    body: Base64(MAX_PEER_BODY_BYTES),
    /** Server-reflexive addresses of the sender that the coordinator itself has seen. */
    attested: v.pipe(v.array(Address), v.maxLength(MAX_ATTESTED)),
  }),
  v.object({
    type: v.literal("punch"),
    peer: PeerIdText,
    round: Round,
    /** Agent clock. The same instant for both agents. */
    fireAt: Milliseconds,
    attested: v.pipe(v.array(Address), v.maxLength(MAX_ATTESTED)),
  }),
  v.object({ type: v.literal("pong"), id: Round }),
  /** Good for one relay WebSocket, within ten seconds. */
  v.object({ type: v.literal("relay_token"), token: Text(64) }),
  /** The best relay leg that a peer has at this moment, for agents that may use it; null: none. */
  v.object({ type: v.literal("peer_leg"), peer: PeerIdText, leg: v.nullable(RelayLeg) }),
  /** Our own addresses as the coordinator attests them. */
  v.object({ type: v.literal("observed"), addresses: v.pipe(v.array(Address), v.maxLength(MAX_ATTESTED)) }),
]);
export type CoordinatorMessage = v.InferOutput<typeof CoordinatorMessage>;

/** JSON form: byte arrays as base64, addresses as `ip:port`. */
function toJson(_key: string, value: unknown): unknown {
  if (value instanceof Uint8Array) return toBase64(value);
  if (typeof value === "object" && value !== null && "ip" in value && "port" in value) {
    const { ip, port } = value as { ip: string; port: number };
    return ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`;
  }
  return value;
}

export const encodeMessage = (message: Readonly<AgentMessage | CoordinatorMessage | Hello>): Uint8Array =>
  utf8(JSON.stringify(message, toJson));

function decode<TSchema extends v.GenericSchema>(
  schema: TSchema,
  bytes: Uint8Array,
): v.InferOutput<TSchema> | undefined {
  const text = utf8Text(bytes);
  if (text === undefined) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  const result = v.safeParse(schema, value);
  return result.success ? result.output : undefined;
}

export const decodeHello = (bytes: Uint8Array): Hello | undefined => decode(Hello, bytes);
export const decodeAgentMessage = (bytes: Uint8Array): AgentMessage | undefined => decode(AgentMessage, bytes);
export const decodeCoordinatorMessage = (bytes: Uint8Array): CoordinatorMessage | undefined =>
  decode(CoordinatorMessage, bytes);
