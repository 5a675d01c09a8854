/** The streams of all peers as one machine: a `StreamMux` for each peer that ever had any, one queue of actions, one deadline. */
import type { PeerId } from "../../shared/session/identity.ts";
import { earliest, type Instant } from "../../shared/time.ts";
import type { CloseCode, MuxAction, StreamPath } from "./contract.ts";
import { StreamMux } from "./stream_mux.ts";

export interface HubAction {
  readonly peer: PeerId;
  readonly action: MuxAction;
}

export class StreamHub {
  readonly #newInstance: () => number;
  readonly #muxes = new Map<PeerId, StreamMux>();
  readonly #paths = new Map<PeerId, StreamPath>();
  /** Those that may have something to say. */
  readonly #touched = new Set<PeerId>();

  /** @param newInstance a random number from 1 to 2^32 - 1 */
  constructor(newInstance: () => number) {
    this.#newInstance = newInstance;
  }

  /** The peer's machine, for one input; drain the hub after it. */
  mux(peer: PeerId, now: Instant): StreamMux {
    let mux = this.#muxes.get(peer);
    if (mux === undefined) {
      mux = new StreamMux(this.#newInstance, now);
      mux.handlePath(this.#paths.get(peer), now);
      this.#muxes.set(peer, mux);
    }
    this.#touched.add(peer);
    return mux;
  }

  handlePath(peer: PeerId, path: StreamPath | undefined, now: Instant): void {
    if (path === undefined) this.#paths.delete(peer);
    else this.#paths.set(peer, path);
    this.#muxes.get(peer)?.handlePath(path, now);
    this.#touched.add(peer);
  }

  handleFrameBytes(peer: PeerId, frameBytes: number, now: Instant): void {
    const path = this.#paths.get(peer);
    if (path === undefined) return;
    this.#paths.set(peer, { ...path, frameBytes });
    this.#muxes.get(peer)?.handleFrameBytes(frameBytes, now);
    this.#touched.add(peer);
  }

  /** The peer was removed or is refused. */
  handleGone(peer: PeerId, code: CloseCode, now: Instant): void {
    this.#paths.delete(peer);
    this.#muxes.get(peer)?.handlePath(undefined, now);
    this.#muxes.get(peer)?.abandon(code, now);
    this.#touched.add(peer);
  }

  handleTimeout(now: Instant): void {
    for (const [peer, mux] of this.#muxes) {
      const deadline = mux.deadline();
      if (deadline === undefined || now < deadline) continue;
      mux.handleTimeout(now);
      this.#touched.add(peer);
    }
  }

  poll(): HubAction | undefined {
    for (const peer of this.#touched) {
      const action = this.#muxes.get(peer)?.poll();
      if (action !== undefined) return { peer, action };
      this.#touched.delete(peer);
    }
    return undefined;
  }

  /** Has anybody been given an input since the last `poll` that gave nothing? */
  get hasActions(): boolean {
    return this.#touched.size > 0;
  }

  deadline(): Instant | undefined {
    let first: Instant | undefined;
    for (const mux of this.#muxes.values()) first = earliest(first, mux.deadline());
    return first;
  }

  streamCount(peer: PeerId): number {
    return this.#muxes.get(peer)?.streamCount ?? 0;
  }
}
