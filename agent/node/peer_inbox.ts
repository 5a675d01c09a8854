/**
 * What peers send, once somebody vouches for it: control frames that the data path has opened, handshakes that signalling, a relay or
 * UDP brought, and what has moved along a path. Each goes to the machine that it is for (ARCHITECTURE.md).
 */
import { unpackAddress } from "../../shared/address.ts";
import { assertNever } from "../../shared/assert.ts";
import type { Instant } from "../../shared/time.ts";
import { decodeControl } from "../../shared/wire/control.ts";
import { datagramKind } from "../../shared/wire/demux.ts";
import { FIRST_RELAY_LEG, type Leg, type PlaneReport } from "../data/plane.ts";
import type { Gathering } from "./gathering.ts";
import type { Handshakes } from "./handshakes.ts";
import type { HardPunching } from "./hard_punching.ts";
import { packedSlot, SIGNAL_LEG, slotOf } from "./legs.ts";
import type { News } from "./news.ts";
import type { Outbox } from "./outbox.ts";
import { markUsed, type Peer } from "./peer.ts";
import type { PeerBook } from "./peer_book.ts";
import { OWN_ECHO, type Traffic } from "./traffic.ts";

interface Parts {
  readonly gathering: Gathering;
  readonly book: PeerBook;
  readonly outbox: Outbox;
  readonly traffic: Traffic;
  readonly news: News;
  readonly handshakes: Handshakes;
  readonly hardPunching: HardPunching;
  readonly letGo: (peer: Peer, reason: string, now: Instant) => void;
}

export class PeerInbox {
  readonly #parts: Parts;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** A handshake message or a sealed frame that came by way of signalling. */
  handleRelayedBySignalling(peer: Peer, body: Uint8Array, now: Instant): void {
    switch (datagramKind(body)) {
      case "handshake":
        this.#parts.handshakes.handleHandshake(body, peer, undefined, now);
        break;
      case "sealed":
        this.#parts.outbox.plane({
          type: "receive_frames",
          leg: SIGNAL_LEG,
          from: packedSlot(peer.slot),
          frames: [body],
        });
        break;
      case "stun":
      case "unknown":
        break;
    }
  }

  /** What the data path does not keep for itself: STUN and handshakes. */
  handleDatagram(leg: Leg, from: Uint8Array, bytes: Uint8Array, now: Instant): void {
    const kind = datagramKind(bytes);
    if (kind === "stun") this.#parts.gathering.handleStun(bytes, leg, now);
    else if (kind === "handshake") {
      // On a relay the coordinator vouches for the sender, and `from` is the sender's slot.
      const sender = leg >= FIRST_RELAY_LEG ? this.#parts.book.bySlot(slotOf(from)) : undefined;
      if (leg < FIRST_RELAY_LEG || sender !== undefined)
        this.#parts.handshakes.handleHandshake(bytes, sender, { leg, to: from }, now);
    }
  }

  /** An authentic control frame, which the data path has opened. */
  handleControl(report: PlaneReport & { readonly type: "control" }, now: Instant): void {
    const peer = this.#parts.book.bySlot(report.peer);
    const message = decodeControl(report.body);
    if (peer === undefined || message === undefined || peer.trust !== "pinned") return;
    const isUdp = report.leg < FIRST_RELAY_LEG;
    const from = isUdp ? unpackAddress(report.from) : undefined;
    if (!isUdp && report.leg !== SIGNAL_LEG) peer.relayWatch.onHeard(report.at);
    if (from !== undefined) peer.paths.handleReceived(report.leg, from, message.type === "probe", report.at);
    switch (message.type) {
      case "probe":
        if (from !== undefined) peer.paths.handleProbe(message, report.leg, from, report.at);
        break;
      case "probe_answer":
        if (from !== undefined) peer.paths.handleProbeAnswer(message, report.leg, from, report.at);
        break;
      case "echo":
        // A ping is use; the measuring of a relayed path would keep it in use at both ends for ever.
        if (message.sequence !== OWN_ECHO) {
          markUsed(peer, now);
        }
        this.#parts.outbox.sendControl(peer, { leg: report.leg, to: report.from }, { ...message, type: "echo_answer" });
        break;
      case "echo_answer": {
        const roundTripMs = report.at - message.time / 1000;
        if (message.sequence === OWN_ECHO) {
          peer.relayRttMs = roundTripMs;
          break;
        }
        const path = isUdp ? "direct" : (peer.route?.kind ?? "websocket");
        this.#parts.outbox.event({ type: "echo_answer", id: peer.id, sequence: message.sequence, roundTripMs, path });
        break;
      }
      case "candidates":
        this.#parts.handshakes.applyList(peer, message.list, now);
        this.#parts.news.confirm(peer, { leg: report.leg, to: report.from });
        break;
      case "wish":
        if (peer.remoteWish !== message.rung) {
          peer.remoteWish = message.rung;
          this.#parts.traffic.applyWish(peer, "chosen by the peer's operator", now);
        }
        this.#parts.news.confirm(peer, { leg: report.leg, to: report.from });
        break;
      case "received":
        peer.paths.handleDeliveryReport(message, report.at);
        break;
      case "known":
        this.#parts.news.handleKnown(peer, message);
        break;
      case "punch_offer":
        this.#parts.hardPunching.handleOffer(peer, message, now);
        break;
      case "punch_end":
        this.#parts.hardPunching.handleEnd(peer, message, now);
        break;
      case "close":
        this.#parts.letGo(
          peer,
          message.reason === "stopping" ? "the peer has stopped" : `the peer closed: ${message.reason}`,
          now,
        );
        break;
      default:
        assertNever(message);
    }
  }

  /** What moved along a path since the last report: it keeps the peer in use, and is evidence about the path. */
  handleActivity(report: PlaneReport & { readonly type: "activity" }, now: Instant): void {
    const peer = this.#parts.book.bySlot(report.peer);
    if (peer === undefined) return;
    markUsed(peer, now);
    const hasReceived = report.received.small + report.received.large > 0;
    const from = hasReceived && report.leg < FIRST_RELAY_LEG ? unpackAddress(report.from) : undefined;
    if (hasReceived) {
      const pair = from === undefined ? undefined : peer.paths.provenPair(report.leg, from);
      this.#parts.traffic.reportReceived(peer, report.received, pair);
    }
    if (from !== undefined) peer.paths.handleReceived(report.leg, from, false, report.at);
    if (peer.route === undefined) return;
    if (peer.route.kind === "direct") {
      peer.paths.handleTraffic(report.sent, report.received, report.at);
      return;
    }
    peer.relayWatch.onMoved(report.at);
    if (hasReceived) peer.relayWatch.onHeard(report.at);
  }
}
