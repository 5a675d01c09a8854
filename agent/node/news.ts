/**
 * What each peer must know of us, and does it: our candidates and our operator's wish.
 *
 * Told along the path at once; the peer answers with what it has (`known`). News that are not confirmed are told again, in turn through
 * signalling and along the path, since the path they took may have died with the very change that made them news.
 */
import { after, type Instant } from "../../shared/time.ts";
import type { CandidateList } from "../../shared/wire/candidates.ts";
import type { ControlMessage, RungWish } from "../../shared/wire/control.ts";
import type { PathRef } from "../data/plane.ts";
import type { Gathering } from "./gathering.ts";
import type { Outbox } from "./outbox.ts";
import { isInUse, type Peer } from "./peer.ts";

/** The first repetition: later than an answer over most paths. Then each time twice as late. */
const RETELL_MS = 400;
const MAX_RETELL_MS = 12_800;

/** What a peer says that it knows of us, and when it is told again. One for each peer. */
export interface Told {
  known: { readonly generation: number; readonly rung: RungWish } | undefined;
  tries: number;
  retellAt: Instant | undefined;
}

export const nothingTold = (): Told => ({ known: undefined, tries: 0, retellAt: undefined });

export class News {
  readonly #outbox: Outbox;
  readonly #gathering: Gathering;

  constructor(outbox: Outbox, gathering: Gathering) {
    this.#outbox = outbox;
    this.#gathering = gathering;
  }

  /** Something has changed, or keys are new: tells it at once. `way` where the path is not the best choice. */
  tell(peer: Peer, now: Instant, way?: PathRef): void {
    if (!peer.session.isEstablished) return;
    peer.told.tries = 0;
    this.#send(peer, this.#gathering.candidates(true), way ?? this.#outbox.routeRef(peer), now);
  }

  /** The peer has told its own news: what we have of it now, along the way that they came. */
  confirm(peer: Peer, way: PathRef): void {
    const generation = peer.paths.remoteGeneration ?? 0;
    this.#outbox.sendControl(peer, way, { type: "known", generation, rung: peer.remoteWish });
  }

  handleKnown(peer: Peer, message: ControlMessage & { readonly type: "known" }): void {
    peer.told.known = message;
    if (this.#isCurrent(peer, this.#gathering.candidates(true))) peer.told.retellAt = undefined;
  }

  /** The session has ended: the next one begins with nothing known. */
  forget(peer: Peer): void {
    peer.told = nothingTold();
  }

  handleTimeout(peer: Peer, now: Instant): void {
    const { told } = peer;
    if (told.retellAt === undefined || now < told.retellAt) return;
    const list = this.#gathering.candidates(true);
    if (!peer.session.isEstablished || !isInUse(peer, now) || this.#isCurrent(peer, list)) {
      told.retellAt = undefined;
      return;
    }
    told.tries++;
    const route = this.#outbox.routeRef(peer);
    this.#send(peer, list, told.tries % 2 === 0 ? route : undefined, now);
  }

  /** Looks whether anything is left to tell to a peer that has just come into use. */
  review(peer: Peer, now: Instant): void {
    if (peer.told.retellAt !== undefined || !peer.session.isEstablished) return;
    if (!this.#isCurrent(peer, this.#gathering.candidates(true))) this.tell(peer, now);
  }

  #send(peer: Peer, list: CandidateList, way: PathRef | undefined, now: Instant): void {
    const { told } = peer;
    if (this.#isCurrent(peer, list)) {
      told.retellAt = undefined;
      return;
    }
    const path = way ?? this.#outbox.signalRef(peer);
    if (told.known?.generation !== list.generation) {
      this.#outbox.sendControl(peer, path, { type: "candidates", list });
    }
    if (told.known === undefined ? peer.wish !== "auto" : told.known.rung !== peer.wish) {
      this.#outbox.sendControl(peer, path, { type: "wish", rung: peer.wish });
    }
    told.retellAt = after(now, Math.min(RETELL_MS * 2 ** told.tries, MAX_RETELL_MS));
  }

  #isCurrent({ told, wish }: Peer, list: CandidateList): boolean {
    return told.known !== undefined && told.known.generation === list.generation && told.known.rung === wish;
  }
}
