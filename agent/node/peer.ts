/** One peer as the node knows it: its registry entry, session, paths, use, and what to say about it. */
import { formatTransportAddress, type TransportAddress } from "../../shared/address.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import type { PeerSession } from "../../shared/session/peer_session.ts";
import type { PeerEntry, RelayLeg } from "../../shared/signal/messages.ts";
import type { Instant } from "../../shared/time.ts";
import type { NatReport } from "../../shared/wire/candidates.ts";
import type { RungWish } from "../../shared/wire/control.ts";
import type { PeerSlot } from "../data/plane.ts";
import { explainNoDirect, type PunchRecord } from "../path/explain_no_direct.ts";
import type { Pair } from "../path/pair.ts";
import type { PeerPaths } from "../path/peer_paths.ts";
import type { PunchLimits } from "../path/punch_plan.ts";
import { whyNotSsh } from "./explain_no_ssh.ts";
import type { PathKind, Route } from "./ladder.ts";
import type { Told } from "./news.ts";
import type { RelayWatch } from "./relay_watch.ts";

/** PRODUCT.md, "In use": data, a stream, `ping` or `forward` moved within this time. */
export const IN_USE_MS = 120_000;
/** After this long without use the path is let go. */
export const IDLE_MS = 300_000;
/** Path changes remembered for `status`. */
const MAX_HISTORY = 20;

export interface PathChange {
  readonly atUnixMs: number;
  readonly from: PathKind | null;
  readonly to: PathKind | null;
  readonly reason: string;
}

/** Whether the name still belongs to the key that we first saw for it. */
export type PeerTrust = "pinned" | "changed" | "blocked";

export interface Peer {
  readonly id: PeerId;
  readonly slot: PeerSlot;
  readonly session: PeerSession;
  readonly paths: PeerPaths;
  entry: PeerEntry;
  trust: PeerTrust;
  /** When data, a ping or a stream last moved, or the peer was opened on joining. */
  usedAt: Instant | undefined;
  /** The NAT behind which the peer says it is. */
  nat: NatReport | undefined;
  /** It has no network device: it takes streams only. */
  isRootless: boolean;
  /** Its operator has switched attempts with many packets off. */
  isGuessingOff: boolean;
  /** What it knows of us. */
  told: Told;
  selectedAtUnixMs: number | undefined;
  handshakesSent: number;
  initiationsHeard: { second: Instant; count: number };
  /** IP packets that have come from it since the session began. */
  received: { small: number; large: number };
  /** The rung that carries traffic. */
  route: Route | undefined;
  /** The peer's best relay connection, as the coordinator tells; null: none that we know of. */
  remoteLeg: RelayLeg | null;
  /** What the operator wants for this peer, here and at the peer. Our own operator comes first. */
  wish: RungWish;
  remoteWish: RungWish;
  /** Until when a wish that cannot be had yet leaves the traffic where it is. */
  wishUntil: Instant | undefined;
  relayRttMs: number | undefined;
  readonly relayWatch: RelayWatch;
  relayEchoAt: Instant | undefined;
  /** How attempts with many packets have gone. */
  punches: PunchRecord;
  isPunching: boolean;
  /** Echoes that wait for a path. */
  waitingEchoes: number[];
  rxBytes: number;
  txBytes: number;
  history: PathChange[];
}

export function isInUse(peer: Peer, now: Instant): boolean {
  return peer.usedAt !== undefined && now - peer.usedAt < IN_USE_MS;
}

/** Something moved to or from this peer, or somebody asks for it. */
export function markUsed(peer: Peer, now: Instant): void {
  peer.usedAt = now;
  peer.paths.setInUse(true, now);
}

export const wishOf = (peer: Peer): RungWish => (peer.wish === "auto" ? peer.remoteWish : peer.wish);

/** Which operator: said only of the peer's. */
export const whoseOperator = (peer: Peer): string => (peer.wish === "auto" ? `of "${peer.entry.name}" ` : "");

export function isIdle(peer: Peer, now: Instant): boolean {
  return peer.usedAt === undefined || now - peer.usedAt >= IDLE_MS;
}

export function remember(peer: Peer, change: PathChange): void {
  peer.history = [...peer.history.slice(1 - MAX_HISTORY), change];
}

export interface WhyContext {
  readonly nat: NatReport;
  /** Where the internet sees us. */
  readonly publicAddresses: readonly TransportAddress[];
  readonly connected: boolean;
  readonly useDirect: boolean;
  readonly punchLimits: PunchLimits;
  /** Why this machine has no SSH connection to the coordinator; asked only when it has none. */
  readonly whyNoSsh: () => string;
  readonly now: Instant;
}

/** One plain sentence about what this peer's traffic gets, and why not better. */
export function whySentence(peer: Peer, context: WhyContext): string {
  const { name, online } = peer.entry;
  if (peer.trust === "blocked")
    return `"${name}" is blocked here; "tunnelmesh-agent trust ${name}" would admit it again`;
  if (peer.trust === "changed") {
    return `The key of "${name}" is not the one this machine knows, so nothing is sent; if that is right, accept it with "tunnelmesh-agent trust ${name}"`;
  }
  const pair = peer.paths.selected;
  if (peer.route !== undefined && peer.route.kind !== "direct" && wishOf(peer) === peer.route.kind) {
    return `${relaySentence(peer.route)}, as the operator ${whoseOperator(peer)}chose with "path"`;
  }
  if (pair !== undefined) {
    const wish = wishOf(peer);
    const isWaiting = wish === "ssh" || wish === "websocket";
    const chosen = isWaiting
      ? `; ${wish}, which the operator ${whoseOperator(peer)}chose with "path", is not there`
      : "";
    const { route } = peer;
    const how = route !== undefined && route.kind !== "direct" ? relaySentence(route) : directSentence(pair);
    return `${how}${chosen}`;
  }
  if (peer.route !== undefined && peer.route.kind !== "direct") {
    const noSsh = whyNotSsh(peer.route.legs, name, context.whyNoSsh);
    const reasons = [whyNotDirect(peer, context), ...(noSsh === undefined ? [] : [noSsh])];
    return `${relaySentence(peer.route)}: ${lowerFirst(reasons.join(". "))}`;
  }
  if (!context.connected)
    return `The coordinator is not reachable, and there is no direct path that could do without it`;
  if (!online) return `"${name}" is offline`;
  if (!peer.session.isEstablished) {
    return peer.session.isHandshaking ? `Agreeing on keys with "${name}"` : `Idle: a path opens when it is first used`;
  }
  return whyNotDirect(peer, context);
}

export function whyNotDirect(peer: Peer, context: WhyContext): string {
  const { name } = peer.entry;
  const guessing = { limits: context.punchLimits, isOffThere: peer.isGuessingOff };
  if (!context.useDirect) return `Direct paths are switched off on this machine by --no-direct`;
  if (peer.isPunching || (!peer.paths.hasFailedRound && !isIdle(peer, context.now)))
    return `Looking for a direct path to "${name}"`;
  const target = peer.paths.attestedTarget;
  const isOneAddress = context.publicAddresses.some(({ ip }) => ip === target?.ip);
  return peer.nat === undefined
    ? `No direct path yet, and "${name}" has not said how its network behaves`
    : `No direct path: ${lowerFirst(explainNoDirect(context.nat, peer.nat, name, peer.punches, isOneAddress, guessing))}`;
}

const RELAY_WORDS: Readonly<Record<RelayLeg, string>> = { ssh: "SSH", websocket: "WebSocket" };

function relaySentence(route: Route & { readonly kind: RelayLeg }): string {
  const { local, remote } = route.legs;
  return local === remote
    ? `Relayed through the coordinator by ${RELAY_WORDS[local]}`
    : `Relayed through the coordinator by ${RELAY_WORDS[local]} here and ${RELAY_WORDS[remote]} there`;
}

function directSentence(pair: Pair): string {
  const how = pair.isLocal
    ? "over the local network"
    : pair.remote.ip.includes(":")
      ? "over IPv6"
      : "through both routers";
  return `Direct path ${how} to ${formatTransportAddress(pair.remote)}`;
}

const lowerFirst = (text: string): string => text.slice(0, 1).toLowerCase() + text.slice(1);
