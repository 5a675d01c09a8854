/**
 * The local API: what the command line and a running agent say to each other over a unix socket.
 *
 * The types are what `--json` prints, so they are stable: fields may be added, never changed. The schemas are for the reading side,
 * which may be older or newer than the agent; they let unknown fields through.
 */
import * as v from "valibot";
import { MAX_BENCH_SECONDS } from "../overlay/bench_message.ts";
import { RUNG_WISHES, type RungWish } from "../../shared/wire/control.ts";
import type { ForwardSpec, ListenSpec } from "../state/forward_spec.ts";

const Text = (maximum: number) => v.pipe(v.string(), v.maxLength(maximum));
const Milliseconds = v.pipe(v.number(), v.finite());
const Count = v.pipe(v.number(), v.integer(), v.minValue(0));
const Name = Text(64);
const Sentence = Text(1000);
const Address = Text(64);
/** ISO 8601. */
const Moment = Text(40);

export const PathKind = v.picklist(["direct", "ssh", "websocket"]);
export type PathKind = v.InferOutput<typeof PathKind>;

export const NatLabel = v.picklist([
  "open",
  "full cone",
  "restricted cone",
  "port-restricted cone",
  "symmetric",
  "udp blocked",
  "unknown",
]);

const natFields = {
  label: NatLabel,
  /** False while a stricter label stands for one that could not be told apart from it. */
  certain: v.boolean(),
  /** RFC 4787 §4.1, `none` without a NAT; null while not known. */
  mapping: v.nullable(v.picklist(["none", "endpoint-independent", "address-dependent", "address-and-port-dependent"])),
  /** RFC 4787 §5; null while not known. */
  filtering: v.nullable(v.picklist(["endpoint-independent", "address-dependent", "address-and-port-dependent"])),
  /** How the NAT picks external ports; null while not known. */
  allocation: v.nullable(v.picklist(["preserving", "sequential", "block", "random"])),
  /** Of a block: its borders, as far as known. Of a counter: the port that came next, and its step. */
  ports: v.optional(v.nullable(v.object({ first: v.number(), last: v.number(), stride: v.number() }))),
  publicAddress: v.nullable(Address),
  /** How long an idle mapping has been seen to live, at least; keepalives follow it. Null or absent: not known, or nothing to keep open. */
  mappingLifetimeSeconds: v.optional(v.nullable(v.number())),
  /** A silence that was too long for it; null or absent: none has been so far. */
  mappingForgottenSeconds: v.optional(v.nullable(v.number())),
};
export const NatStatus = v.looseObject(natFields);
export type NatStatus = v.InferOutput<typeof NatStatus>;

export const PathStatus = v.looseObject({
  kind: PathKind,
  /** Of a relayed path: each agent's own connection to the coordinator. */
  legs: v.nullable(v.looseObject({ local: PathKind, remote: PathKind })),
  localAddress: v.nullable(Address),
  remoteAddress: v.nullable(Address),
  rttMs: v.nullable(Milliseconds),
  /** The largest packet that goes in one frame, in bytes; null where any size does. Absent from an agent that does not tell. */
  mtu: v.optional(v.nullable(Count)),
  since: Moment,
});
export type PathStatus = v.InferOutput<typeof PathStatus>;

export const PathChange = v.looseObject({
  at: Moment,
  from: v.nullable(PathKind),
  to: v.nullable(PathKind),
  reason: Sentence,
});
export type PathChange = v.InferOutput<typeof PathChange>;

export const PeerStatus = v.looseObject({
  name: Name,
  id: Name,
  fingerprint: Name,
  meshIPv4: v.nullable(Address),
  meshIPv6: v.nullable(Address),
  online: v.boolean(),
  path: v.nullable(PathStatus),
  /** One plain sentence: why this path and not a better one. */
  why: Sentence,
  rxBytes: Count,
  txBytes: Count,
  history: v.array(PathChange),
  /** The peer's NAT, as it told us. */
  nat: v.optional(v.nullable(NatLabel)),
  trust: v.optional(v.picklist(["new", "pinned", "changed", "blocked"])),
});
export type PeerStatus = v.InferOutput<typeof PeerStatus>;

export const NamesStatus = v.looseObject({
  /** `mesh`: a machine `nas` is `nas.mesh`. */
  domain: Name,
  /** What makes names resolve in all programs of this machine; null: nothing does. */
  how: v.nullable(v.picklist(["systemd-resolved", "hosts file"])),
  /** Does `nas` alone resolve too? Not where resolv.conf has no search list of systemd-resolved's. */
  isBareEnough: v.boolean(),
  /** Where the agent's own resolver answers programs of this machine, on port 53. */
  server: v.nullable(Address),
  /** Why nothing does. */
  message: v.nullable(Sentence),
});
export type NamesStatus = v.InferOutput<typeof NamesStatus>;

/** What the router forwards to this machine, and what stands against its use. */
const portMappingFields = {
  protocol: v.nullable(Text(16)),
  address: v.nullable(Address),
  note: v.nullable(Sentence),
};
export const PortMappingStatus = v.looseObject(portMappingFields);
export type PortMappingStatus = v.InferOutput<typeof PortMappingStatus>;

/** One of our own connections to the coordinator that carry relayed frames. */
export const RelayStatus = v.looseObject({
  connected: v.boolean(),
  /** Since the agent started. Dropped: there was more than the line carries. */
  sentFrames: Count,
  droppedFrames: Count,
});
export type RelayStatus = v.InferOutput<typeof RelayStatus>;

export const Status = v.looseObject({
  schema: v.literal(1),
  self: v.looseObject({
    /** Null until the coordinator has let this machine in. */
    name: v.nullable(Name),
    id: Name,
    meshIPv4: v.nullable(Address),
    meshIPv6: v.nullable(Address),
    tun: v.nullable(Name),
    nat: NatStatus,
    names: v.optional(NamesStatus),
    portMapping: v.optional(PortMappingStatus),
    relays: v.optional(v.looseObject({ ssh: RelayStatus, websocket: RelayStatus })),
    coordinator: v.looseObject({
      url: Text(512),
      connected: v.boolean(),
      rttMs: v.nullable(Milliseconds),
      /** What is wrong while it is not connected, or what it waits for (approval). */
      message: v.optional(v.nullable(Sentence)),
    }),
  }),
  peers: v.array(PeerStatus),
});
export type Status = v.InferOutput<typeof Status>;

export const WhyAnswer = v.looseObject({
  schema: v.literal(1),
  name: Name,
  online: v.boolean(),
  path: v.nullable(PathStatus),
  /** The sentence of `status`. */
  why: Sentence,
  /** Better kinds of path that are not in use, and what stands against each. */
  better: v.array(v.looseObject({ kind: PathKind, reason: Sentence })),
  /** What a person could do. */
  help: v.array(Sentence),
  nat: v.optional(v.looseObject({ local: v.nullable(NatLabel), remote: v.nullable(NatLabel) })),
  history: v.array(PathChange),
});
export type WhyAnswer = v.InferOutput<typeof WhyAnswer>;

/** `true`: works; `false`: tried without success; null: not tried. */
const Verdict = v.nullable(v.boolean());
export const Netcheck = v.looseObject({
  schema: v.literal(1),
  udp: v.boolean(),
  ipv4: v.nullable(v.looseObject({ ...natFields, hairpin: Verdict })),
  ipv6: v.looseObject({ available: v.boolean(), publicAddress: v.nullable(Address) }),
  /** The verdicts are about what the router speaks. */
  portMapping: v.looseObject({ upnp: Verdict, natPmp: Verdict, pcp: Verdict, ...v.partial(PortMappingStatus).entries }),
  ssh: Verdict,
  websocket: Verdict,
  proxy: v.nullable(Text(512)),
  summary: Sentence,
});
export type Netcheck = v.InferOutput<typeof Netcheck>;

export const PingEvent = v.union([
  v.object({ seq: Count, rttMs: Milliseconds, path: PathKind }),
  v.object({ seq: Count, lost: v.literal(true) }),
  /** The peer's traffic has moved, between two pings. For people: `ping --json` leaves it out. */
  v.object({ from: v.nullable(PathKind), to: v.nullable(PathKind), reason: Sentence }),
]);
export type PingEvent = v.InferOutput<typeof PingEvent>;

export interface PingOptions {
  /** Undefined: until stopped. */
  readonly count: number | undefined;
  readonly intervalMs: number;
  /** End with the first answer that came on a direct path. */
  readonly untilDirect: boolean;
  /** Of the whole run. Undefined: none. */
  readonly timeoutMs: number | undefined;
}

export const BenchEvent = v.object({
  /** Arrived so far, and the time from the first byte on. */
  bytes: Count,
  ms: Count,
  /** The path that carried it, and those that it moved to. */
  paths: v.array(PathKind),
  isFinal: v.boolean(),
});
export type BenchEvent = v.InferOutput<typeof BenchEvent>;

export interface BenchOptions {
  readonly seconds: number;
  /** From the peer to here. */
  readonly reverse: boolean;
}

export const WAIT_KINDS = ["joined", "peer", "direct"] as const;
export type WaitCondition =
  | { readonly for: "joined" }
  /** The peer is online and answers. */
  | { readonly for: "peer"; readonly peer: string }
  | { readonly for: "direct"; readonly peer: string };

/**
 * What the agent does for the command line. Methods throw `UserError` for what the user should read: its text and exit code reach
 * the terminal as they are. `peer` and `name` are lower case: a peer's name, id, or mesh address.
 */
export interface AgentControl {
  status(): Promise<Status>;
  /** Undefined: no such peer. */
  why(peer: string): WhyAnswer | undefined;
  /**
   * Sends pings and tells of each, until the count is reached, the time is up, `untilDirect` came true, or `signal` aborts: then it
   * returns. Throws UserError 5 for a peer that is unknown or offline at the start.
   */
  ping(peer: string, options: PingOptions, onEvent: (event: PingEvent) => void, signal: AbortSignal): Promise<void>;
  /**
   * True once the condition holds, false when `timeoutMs` (undefined: never) has passed. A peer that is not there yet is waited for.
   * Throws UserError 4 or 78 when it can never hold: the coordinator refused this machine.
   */
  wait(condition: WaitCondition, timeoutMs: number | undefined, signal: AbortSignal): Promise<boolean>;
  netcheck(signal: AbortSignal): Promise<Netcheck>;
  /**
   * The operator's choice of rung for this peer. Returns the path once the switch is complete. Throws UserError 5 for a peer that is unknown
   * or offline, 7 when the rung did not come to work in time: the choice stays, and holds as soon as it does.
   */
  choosePath(peer: string, rung: RungWish, signal: AbortSignal): Promise<PathStatus>;
  /** Accepts the key that this name has now. Returns the fingerprint that is trusted from here on; undefined: no such peer. */
  trust(name: string): string | undefined;
  /** Refuses this peer from here on. False: no such peer. */
  block(name: string): boolean;
  /**
   * Sends zeroes for a time, or has them sent, and tells how much has arrived, now and then and at the end. Throws UserError 5 for a peer that
   * is unknown or offline.
   */
  bench(peer: string, options: BenchOptions, onEvent: (event: BenchEvent) => void, signal: AbortSignal): Promise<void>;
  /** Listens for a forward until `signal` aborts, and says on which address. Throws UserError 1 when the port cannot be had. */
  forward(spec: ForwardSpec, onListening: (address: string) => void, signal: AbortSignal): Promise<void>;
  /** The same for SOCKS5 and HTTP CONNECT. */
  socks(spec: ListenSpec, onListening: (address: string) => void, signal: AbortSignal): Promise<void>;
  /** Begins a graceful stop; the process ends some time after. */
  stop(): void;
}

/** Bodies of requests, checked by the server. */
export const PingRequest = v.object({
  peer: Name,
  count: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
  intervalMs: v.pipe(v.number(), v.minValue(1), v.maxValue(3_600_000)),
  untilDirect: v.boolean(),
  timeoutMs: v.optional(v.pipe(v.number(), v.minValue(0))),
});
export const WaitRequest = v.object({
  condition: v.variant("for", [
    v.object({ for: v.literal("joined") }),
    v.object({ for: v.literal("peer"), peer: Name }),
    v.object({ for: v.literal("direct"), peer: Name }),
  ]),
  timeoutMs: v.optional(v.pipe(v.number(), v.minValue(0))),
});
export const PathRequest = v.object({ peer: Name, rung: v.picklist(RUNG_WISHES) });
const Port = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(65_535));
export const SocksRequest = v.object({ bind: Address, port: Port });
export const ForwardRequest = v.object({
  protocol: v.picklist(["tcp", "udp"]),
  bind: Address,
  port: Port,
  peer: Name,
  peerPort: v.pipe(Port, v.minValue(1)),
});
/** First line on the socket for streams (agent/driver/streams/stream_door.ts). */
export const StreamRequest = v.union([
  v.object({ peer: Name, port: v.pipe(Port, v.minValue(1)) }),
  /** Did the stream of this id end in good order? */
  v.object({ outcome: Count }),
]);
export const BenchRequest = v.object({
  peer: Name,
  seconds: v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(MAX_BENCH_SECONDS)),
  reverse: v.boolean(),
});
export const NameRequest = v.object({ name: Name });

/** Body of every answer that is not 2xx, and the last line of a stream that failed. */
export const ErrorAnswer = v.object({ error: v.object({ exitCode: v.number(), message: Text(2000) }) });
export type ErrorAnswer = v.InferOutput<typeof ErrorAnswer>;
/** Last line of a stream that went well. */
export const EndOfStream = v.object({ end: v.literal(true) });
/** Lines of the answer to `ping`. */
export const PingLine = v.union([PingEvent, EndOfStream, ErrorAnswer]);

/** Lines of the answer to `bench`. */
export const BenchLine = v.union([BenchEvent, EndOfStream, ErrorAnswer]);

/** Lines of the answer to `forward` and `socks`: the address, then nothing until it ends. */
export const ListenLine = v.union([v.object({ listening: Address }), EndOfStream, ErrorAnswer]);
/** The line that answers a `StreamRequest`; after a favourable one come the bytes of the stream. */
export const StreamAnswer = v.union([v.object({ ok: v.literal(true), id: Count }), ErrorAnswer]);
export type StreamAnswer = v.InferOutput<typeof StreamAnswer>;

export const WaitAnswer = v.object({ reached: v.boolean() });
export const TrustAnswer = v.object({ fingerprint: v.string() });
/** `stateDir` lets `down` see when the agent has given its lock back. */
export const StopAnswer = v.object({ stateDir: v.string() });

/** The socket for streams, beside the agent's own, in the directory that only its owner may enter. */
export const streamSocketPath = (socketPath: string): string => `${socketPath}.streams`;
