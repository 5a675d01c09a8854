/**
 * Drives the streams of all peers (agent/overlay): gives the machine the time, frames and paths, and hands what comes out to those
 * who opened or took a stream.
 *
 * As in the agent's own step: one input in, every action out, one timer armed. What a stream brought in one step is told by one `flush`.
 */
import { assertNever } from "../../../shared/assert.ts";
import type { PeerId } from "../../../shared/session/identity.ts";
import type { Instant } from "../../../shared/time.ts";
import type { ResetCode } from "../../../shared/wire/stream.ts";
import type { NodeEvent } from "../../node/contract.ts";
import type { CloseCode, MuxAction, StreamId } from "../../overlay/contract.ts";
import { StreamHub } from "../../overlay/stream_hub.ts";
import type { StreamMux } from "../../overlay/stream_mux.ts";

/** What the owner of a stream hears of it. After `closed` or `finished` nothing more comes. */
export interface StreamEvents {
  accepted(): void;
  /** Bytes in order, borrowed until `flush`. Say `consumed` once they have gone on. */
  data(bytes: Uint8Array): void;
  /** All that this step brought has been told. */
  flush(): void;
  /** The peer's program sends nothing more. */
  ended(): void;
  /** After a `write` that returned false. */
  writable(): void;
  finished(): void;
  closed(code: CloseCode): void;
}

export interface StreamHandle {
  accept(): void;
  /** Takes all bytes (a copy). False: pause until `writable`. */
  write(bytes: Uint8Array): boolean;
  end(): void;
  reset(code: ResetCode): void;
  consumed(bytes: number): void;
}

export interface StreamDriverOptions {
  readonly now: () => Instant;
  /** A random number from 1 to 2^32 - 1. */
  readonly newInstance: () => number;
  /** Sends frames along the peer's selected path. */
  readonly send: (peer: PeerId, batch: Uint8Array) => void;
  /** The peer is needed: opens a path to it. */
  readonly use: (peer: PeerId) => void;
}

export class StreamDriver {
  /** A peer has opened a stream: who takes it? Undefined: it has been reset. */
  onOpened: (peer: PeerId, port: number, stream: StreamHandle) => StreamEvents | undefined = (_peer, _port, stream) => {
    stream.reset("not_exposed");
    return undefined;
  };
  onDatagram: (peer: PeerId, flow: StreamId, port: number, bytes: Uint8Array) => void = () => {};
  readonly #options: StreamDriverOptions;
  readonly #hub: StreamHub;
  readonly #owners = new Map<PeerId, Map<StreamId, StreamEvents>>();
  readonly #toFlush = new Set<StreamEvents>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #timerAt: Instant | undefined;
  #isDraining = false;
  #isStopped = false;

  constructor(options: StreamDriverOptions) {
    this.#options = options;
    this.#hub = new StreamHub(options.newInstance);
  }

  /** Opens a stream to a port of the peer. Undefined: there are too many already. */
  open(peer: PeerId, port: number, events: (stream: StreamHandle) => StreamEvents): StreamHandle | undefined {
    if (this.#isStopped) return undefined;
    let handle: StreamHandle | undefined;
    this.#step((now) => {
      const id = this.#hub.mux(peer, now).open(port, now);
      if (id === undefined) return;
      handle = this.#handle(peer, id);
      this.#ownersOf(peer).set(id, events(handle));
    });
    this.#options.use(peer);
    return handle;
  }

  sendDatagram(peer: PeerId, flow: StreamId, port: number, bytes: Uint8Array): void {
    this.#input(peer, (mux, now) => mux.sendDatagram(flow, port, bytes, now));
    this.#options.use(peer);
  }

  handleFrames(peer: PeerId, batch: Uint8Array): void {
    this.#input(peer, (mux, now) => mux.handleFrames(batch, now));
  }

  handleNodeEvent(event: NodeEvent): void {
    if (event.type === "path_changed") {
      const { rttMs, streamFrameBytes: frameBytes } = event;
      const path = event.to === null ? undefined : { rttMs, frameBytes };
      this.#step((now) => this.#hub.handlePath(event.id, path, now));
    } else if (event.type === "mtu_changed") {
      this.#step((now) => this.#hub.handleFrameBytes(event.id, event.packetBytes, now));
    } else if (event.type === "route_removed") {
      this.#step((now) => this.#hub.handleGone(event.id, "unreachable", now));
    }
  }

  /** Tells every peer that its streams are over. */
  stop(): void {
    for (const [peer, owners] of this.#owners) {
      for (const [id, owner] of owners) {
        this.#input(peer, (mux, now) => mux.reset(id, "stopping", now));
        owner.closed("stopping");
      }
    }
    this.#owners.clear();
    this.#isStopped = true;
    clearTimeout(this.#timer);
  }

  now(): Instant {
    return this.#options.now();
  }

  streamCount(peer: PeerId): number {
    return this.#hub.streamCount(peer);
  }

  #handle(peer: PeerId, id: StreamId): StreamHandle {
    return {
      accept: () => this.#input(peer, (mux, now) => mux.accept(id, now)),
      write: (bytes) => {
        let hasRoom = true;
        this.#input(peer, (mux, now) => {
          hasRoom = mux.write(id, bytes, now);
        });
        return hasRoom;
      },
      end: () => this.#input(peer, (mux, now) => mux.end(id, now)),
      reset: (code) => {
        this.#owners.get(peer)?.delete(id);
        this.#input(peer, (mux, now) => mux.reset(id, code, now));
      },
      consumed: (bytes) => this.#input(peer, (mux, now) => mux.consumed(id, bytes, now)),
    };
  }

  #input(peer: PeerId, input: (mux: StreamMux, now: Instant) => void): void {
    if (this.#isStopped) return;
    this.#step((now) => input(this.#hub.mux(peer, now), now));
  }

  /** Owners call back in from within: their input joins the step that is under way. */
  #step(input: (now: Instant) => void): void {
    input(this.#options.now());
    if (this.#isDraining) return;
    this.#isDraining = true;
    do {
      for (let next = this.#hub.poll(); next !== undefined; next = this.#hub.poll())
        this.#perform(next.peer, next.action);
      for (const owner of this.#toFlush) {
        this.#toFlush.delete(owner);
        owner.flush();
      }
      // Flushing gives credit back, which is worth a frame.
    } while (this.#hub.hasActions);
    this.#isDraining = false;
    this.#arm();
  }

  #perform(peer: PeerId, action: MuxAction): void {
    if (action.type === "transmit") {
      this.#options.send(peer, action.batch);
      return;
    }
    if (action.type === "datagram") {
      this.onDatagram(peer, action.flow, action.port, action.bytes);
      return;
    }
    const owners = this.#ownersOf(peer);
    if (action.type === "opened") {
      const owner = this.onOpened(peer, action.port, this.#handle(peer, action.stream));
      if (owner !== undefined) owners.set(action.stream, owner);
      return;
    }
    const owner = owners.get(action.stream);
    if (owner === undefined) return;
    switch (action.type) {
      case "accepted":
        owner.accepted();
        break;
      case "data":
        owner.data(action.bytes);
        this.#toFlush.add(owner);
        break;
      case "ended":
        this.#flushOne(owner);
        owner.ended();
        break;
      case "writable":
        owner.writable();
        break;
      case "finished":
      case "closed":
        owners.delete(action.stream);
        this.#flushOne(owner);
        if (action.type === "finished") owner.finished();
        else owner.closed(action.code);
        break;
      default:
        assertNever(action);
    }
  }

  #flushOne(owner: StreamEvents): void {
    if (this.#toFlush.delete(owner)) owner.flush();
  }

  #ownersOf(peer: PeerId): Map<StreamId, StreamEvents> {
    let owners = this.#owners.get(peer);
    if (owners === undefined) {
      owners = new Map();
      this.#owners.set(peer, owners);
    }
    return owners;
  }

  #arm(): void {
    const deadline = this.#isStopped ? undefined : this.#hub.deadline();
    if (deadline === this.#timerAt) return;
    clearTimeout(this.#timer);
    this.#timerAt = deadline;
    if (deadline === undefined) return;
    this.#timer = setTimeout(
      () => {
        this.#timerAt = undefined;
        this.#step((now) => this.#hub.handleTimeout(now));
      },
      Math.max(0, deadline - this.#options.now()),
    );
  }
}
