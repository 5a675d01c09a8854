/**
 * Puts each peer's traffic on its rung: applies the ladder (ladder.ts) to what works at this moment, tells the data path, the relays, the
 * operator and the history.
 */
import type { RelayLeg } from "../../shared/signal/messages.ts";
import { after, type Instant } from "../../shared/time.ts";
import { FRAME_OVERHEAD_BYTES } from "../../shared/wire/frame.ts";
import { type PacketCounts, pathRef } from "../data/plane.ts";
import type { Pair } from "../path/pair.ts";
import { chooseRoute, relayedRoute, isSameRoute } from "./ladder.ts";
import type { Outbox } from "./outbox.ts";
import { type Peer, remember, wishOf } from "./peer.ts";

/** A relay's transport is a byte stream: any frame that its length field can say will do. */
const MTU_RELAY = 65_000;
/** The largest stream frame on a relay, where any size passes: not so large that one stream's frame keeps another's waiting. */
const RELAYED_STREAM_FRAME_BYTES = 1280;
/**
 * How long the peer waits for what is still on the old path after a planned move: twice its round trip, but what the programs on the way may
 * be held up by a busy machine, and what its receiver allows at most (data/path_switch.ts).
 */
const LEAST_HOLD_MS = 200;
const MAX_HOLD_MS = 400;
/** The round trip of a relayed path in use is measured this often. */
const RELAY_ECHO_MS = 5000;
/**
 * A rung that the operator has chosen and that is not there yet may only be opening, here or at the peer: SSH takes some ten round trips, and
 * is tried again each second and a half while it is wanted. So long traffic stays where it is.
 */
const WISH_PATIENCE_MS = 5000;
/** The sequence number of our own echoes, which no ping uses. */
export const OWN_ECHO = 0;

export class Traffic {
  readonly #outbox: Outbox;
  readonly #wallClockUnixMs: () => number;

  constructor(outbox: Outbox, wallClockUnixMs: () => number) {
    this.#outbox = outbox;
    this.#wallClockUnixMs = wallClockUnixMs;
  }

  /** Looks at the ladder again, after anything that may have changed it. `reason` is told if it has. */
  updateRoute(peer: Peer, reason: string, now: Instant): void {
    const before = peer.route;
    // An old path that has died brings nothing more: then there is no end to wait for.
    const isPlanned =
      before !== undefined &&
      (before.kind === "direct"
        ? before.pair.isValid
        : this.#outbox.relays[before.legs.local] && peer.remoteLeg !== null);
    const rungs = {
      pair: peer.paths.selected,
      relays: this.#outbox.relays,
      remoteLeg: peer.remoteLeg,
      wish: wishOf(peer),
      stayOn: peer.wishUntil !== undefined && now < peer.wishUntil ? before?.kind : undefined,
    };
    const route = peer.session.isEstablished ? chooseRoute(rungs) : undefined;
    peer.paths.setRelay(peer.session.isEstablished && relayedRoute(rungs) !== undefined);
    if (route?.kind === wishOf(peer)) peer.wishUntil = undefined;
    if (isSameRoute(before, route)) return;
    // As long as the old path takes, there and back and once more; none is known of a relay that was not measured yet.
    const oldRttMs = before?.kind === "direct" ? before.pair.rttMs : peer.relayRttMs;
    const holdMs =
      oldRttMs === undefined ? undefined : Math.ceil(Math.min(Math.max(2 * oldRttMs, LEAST_HOLD_MS), MAX_HOLD_MS));
    peer.route = route;
    peer.paths.handleRungChange(now);
    peer.relayRttMs = undefined;
    peer.relayWatch.reset();
    peer.relayEchoAt = undefined;
    const path = this.#outbox.routeRef(peer);
    const mtu = route === undefined ? 0 : route.kind === "direct" ? route.pair.mtu.size : MTU_RELAY;
    this.#outbox.plane({ type: "select_path", peer: peer.slot, path, mtu, isPlanned, holdMs });
    const from = before?.kind ?? null;
    const to = route?.kind ?? null;
    const atUnixMs = this.#wallClockUnixMs();
    peer.selectedAtUnixMs = route === undefined ? undefined : atUnixMs;
    if (from !== to) remember(peer, { atUnixMs, from, to, reason });
    const pair = route?.kind === "direct" ? route.pair : undefined;
    this.#outbox.event({
      type: "path_changed",
      id: peer.id,
      name: peer.entry.name,
      from,
      to,
      reason,
      remote: pair?.remote,
      leg: pair?.leg,
      rttMs: pair?.rttMs,
      streamFrameBytes: pair === undefined ? RELAYED_STREAM_FRAME_BYTES : pair.mtu.size - FRAME_OVERHEAD_BYTES,
    });
    if (route === undefined) return;
    const echoes = peer.waitingEchoes;
    peer.waitingEchoes = [];
    for (const sequence of echoes) this.sendEcho(peer, sequence, now);
  }

  /** More, or less, is known of how large frames on the direct path may be. */
  updateMtu(peer: Peer): void {
    if (peer.route?.kind !== "direct") return;
    const { mtu } = peer.route.pair;
    this.#outbox.plane({ type: "set_mtu", peer: peer.slot, mtu: mtu.size });
    this.#outbox.event({
      type: "mtu_changed",
      id: peer.id,
      name: peer.entry.name,
      packetBytes: mtu.size - FRAME_OVERHEAD_BYTES,
      isSettled: !mtu.isSearching,
    });
  }

  /** A direct path measures itself by its probes; a relayed one by an echo now and then. */
  measureRelay(peer: Peer, inUse: boolean, now: Instant): void {
    const isRelayed = peer.route !== undefined && peer.route.kind !== "direct";
    if (!isRelayed || !inUse || (peer.relayEchoAt !== undefined && now < peer.relayEchoAt)) return;
    peer.relayEchoAt = after(now, RELAY_ECHO_MS);
    this.sendEcho(peer, OWN_ECHO, now);
  }

  sendEcho(peer: Peer, sequence: number, now: Instant): void {
    const path = this.#outbox.routeRef(peer);
    if (path === undefined) return;
    this.#outbox.sendControl(peer, path, { type: "echo", sequence, time: Math.floor(now * 1000) });
    // It wants an answer as data does, so silence makes the path suspect as soon.
    peer.paths.handleSent(now);
  }

  /**
   * Packets have come from the peer: it is told how many so far, since it has no other evidence that they arrive.
   *
   * @param pair that they came on: the report retraces it, since our own route may be one that is dead at the peer's end
   */
  reportReceived(peer: Peer, news: PacketCounts, pair: Pair | undefined): void {
    const { received } = peer;
    received.small += news.small;
    received.large += news.large;
    const path = pair === undefined ? this.#outbox.routeRef(peer) : pathRef(pair.leg, pair.packedRemote, undefined);
    if (path !== undefined) this.#outbox.sendControl(peer, path, { type: "received", ...received });
  }

  /** A relay connection of ours is there, or a session: makes the peer known to it. */
  openRelay(peer: Peer, kind: RelayLeg): void {
    if (!this.#outbox.relays[kind]) return;
    if (kind === "websocket") this.#outbox.push({ type: "relay_open", kind, peer: peer.id });
    this.#bindSsh(peer);
    const { ssh, websocket } = this.#outbox.relays;
    if (ssh && websocket && peer.route !== undefined && peer.route.kind !== "direct") this.#keepOrder(peer);
  }

  /** A relay connection of ours was lost: a peer that was to come by it comes by the other one. */
  closeRelay(peer: Peer, kind: RelayLeg): void {
    if (kind === "websocket") this.#bindSsh(peer);
  }

  /** The operator's wish, ours or the peer's, is another one. */
  applyWish(peer: Peer, reason: string, now: Instant): void {
    peer.wishUntil = wishOf(peer) === "auto" ? undefined : after(now, WISH_PATIENCE_MS);
    if (this.#outbox.relays.ssh && peer.session.isEstablished) {
      this.#bindSsh(peer);
      this.#keepOrder(peer);
    }
    this.updateRoute(peer, reason, now);
  }

  /** What the peer sends will come by another of our connections soon, and only we can know. */
  #keepOrder(peer: Peer): void {
    this.#outbox.plane({ type: "keep_order", peer: peer.slot });
  }

  /** Looks whether a wish has been waited for long enough. */
  handleTimeout(peer: Peer, now: Instant): void {
    if (peer.wishUntil === undefined || now < peer.wishUntil) return;
    peer.wishUntil = undefined;
    this.updateRoute(peer, `${wishOf(peer)} was chosen, and is not there`, now);
  }

  /** Without a channel of its own on the SSH connection this peer's frames come in by the WebSocket, if there is one. */
  #bindSsh(peer: Peer): void {
    const { ssh, websocket } = this.#outbox.relays;
    if (!ssh) return;
    const type = wishOf(peer) === "websocket" && websocket ? "relay_close" : "relay_open";
    this.#outbox.push({ type, kind: "ssh", peer: peer.id });
  }
}
