/**
 * The order of counters (CounterOrder), kept for each flow by itself: where frames wait for a relay, those of one flow may pass those of another
 * (shared/relay/flow_queue.ts). So a leg keeps the order of each flow and no other, and that an older frame is missing says that it is lost
 * only of the flow that goes on without it. The marks of a switch pass nothing, and count for all.
 *
 * What is missing may be any flow's. So at the change of a leg a flow waits for all that was sent before its own frame, as long as a lost
 * frame may be waited for; what begins later does not.
 */
import type { ReplayWindow } from "../../shared/session/replay_window.ts";
import { after, earliest, type Instant } from "../../shared/time.ts";
import {
  FRAGMENT_HEADER_BYTES,
  FRAME_FRAGMENT,
  FRAME_SEGMENT,
  readFragmentHeader,
  SEGMENT_HEADER_BYTES,
  SEGMENT_SIZE_BYTES,
  segmentOffset,
  segmentRunId,
} from "../../shared/wire/frame.ts";
import { flowHash } from "./ip_packet.ts";
import { CounterOrder, ORDER_MS } from "./path_switch.ts";
import { FIRST_RELAY_LEG, type Leg } from "./plane.ts";

/** Flows that share a number are kept in order among themselves, as all were if there were only one. */
const LANES = 64;
/** A flow of which nothing has come for so long has nothing on its way. */
const IN_FLIGHT_MS = 250;
/** Runs and packets in pieces, of which only the first piece says what flow it is of. */
const REMEMBERED = 8;

const NOTHING: readonly Uint8Array[] = [];
const EMPTY = new Uint8Array(0);

interface Lane {
  readonly order: CounterOrder;
  /** The newest frame. */
  at: Instant;
}

export class FlowOrder {
  readonly #window: Pick<ReplayWindow, "mayAccept">;
  readonly #lanes = new Map<number, Lane>();
  /** While it is active: since when, and until when. */
  #active: { readonly at: Instant; readonly until: Instant; readonly isAfterPause: boolean } | undefined;
  /** Of all frames: follows the newest, which came by this leg. */
  #newest = 0;
  #leg: Leg = 0;
  /** The same when another leg took over: what was sent before may still come by this one. */
  #change: { readonly newest: number; readonly leg: Leg; readonly at: Instant } | undefined;
  /** Of a path whose fence has not come. */
  #begin: number | undefined;
  #givenUp = 0;
  /** Of the newest packets in pieces: what names them, and their lane. */
  readonly #pieceIds = new Float64Array(REMEMBERED).fill(-1);
  readonly #pieceLanes = new Uint8Array(REMEMBERED);
  #piece = 0;

  constructor(window: Pick<ReplayWindow, "mayAccept">) {
    this.#window = window;
  }

  get isActive(): boolean {
    return this.#active !== undefined;
  }

  get deadline(): Instant | undefined {
    if (this.#active === undefined) return undefined;
    let first: Instant | undefined = this.#active.until;
    for (const { order } of this.#lanes.values()) if (order.isHolding) first = earliest(first, order.deadline);
    return first;
  }

  /** Changes after which something was waited for in vain, each flow's by itself. */
  get gapsGivenUp(): number {
    let sum = this.#givenUp;
    for (const { order } of this.#lanes.values()) sum += order.gapsGivenUp;
    return sum;
  }

  /** See CounterOrder. */
  start(now: Instant, isAfterPause = false): void {
    if (this.#active === undefined) {
      this.#change = undefined;
      for (const [number, { order, at }] of this.#lanes) {
        if (now - at <= IN_FLIGHT_MS && !isAfterPause) continue;
        this.#givenUp += order.gapsGivenUp;
        this.#lanes.delete(number);
      }
    }
    for (const { order } of this.#lanes.values()) order.start(now, isAfterPause);
    this.#active = { at: now, until: after(now, ORDER_MS), isAfterPause };
  }

  /** See CounterOrder. The mark of a switch has no plaintext (`start` is `end`). */
  accept(
    counter: number,
    leg: Leg,
    bytes: Uint8Array,
    start: number,
    end: number,
    now: Instant,
  ): readonly Uint8Array[] | undefined {
    // Outside of a change it is enough to know what has come of each flow that may have been passed by another.
    if (this.#active === undefined && (leg < FIRST_RELAY_LEG || start === end)) {
      this.#note(counter, leg, now);
      return undefined;
    }
    if (start === end) return this.#acceptMark(counter, leg, now);
    this.#note(counter, leg, now);
    const lane = this.#laneOf(this.#numberOf(bytes, start, end), counter, leg, now);
    lane.at = now;
    const own = lane.order.accept(counter, leg, bytes, start, end, now);
    if (this.#active === undefined) return own;
    // It may have been what another flow's frame was waiting for.
    const others = this.#handleHeld((order) => order.handleOther());
    if (others.length === 0) return own;
    return [...(own ?? [bytes.slice(start, end)]), ...others];
  }

  /** See CounterOrder. */
  handleOther(): readonly Uint8Array[] {
    return this.#handleHeld((order) => order.handleOther());
  }

  /** See CounterOrder. */
  awaitFence(begin: number): void {
    if (this.#active === undefined) return;
    this.#begin = Math.max(this.#begin ?? 0, begin);
    for (const { order } of this.#lanes.values()) order.awaitFence(begin);
  }

  /** See CounterOrder. */
  handleFence(): readonly Uint8Array[] {
    this.#begin = undefined;
    return this.#handleAll((order) => order.handleFence());
  }

  /** See CounterOrder. */
  overdue(now: Instant): readonly Uint8Array[] {
    const released = this.#handleAll((order) => order.overdue(now));
    if (this.#active !== undefined && now >= this.#active.until && !this.#isHolding()) {
      this.#active = undefined;
      this.#begin = undefined;
    }
    return released;
  }

  #acceptMark(counter: number, leg: Leg, now: Instant): readonly Uint8Array[] {
    this.#note(counter, leg, now);
    return this.#handleAll((order) => order.accept(counter, leg, EMPTY, 0, 0, now) ?? NOTHING);
  }

  #note(counter: number, leg: Leg, now: Instant): void {
    if (counter < this.#newest) return;
    // Nothing is waited for that was sent before the first frame after a pause.
    const isFirst = this.#active?.isAfterPause === true && this.#lanes.size === 0;
    if (leg !== this.#leg && this.#active !== undefined && !isFirst && !this.#isChanging(now)) {
      this.#change = { newest: this.#newest, leg: this.#leg, at: now };
    }
    this.#newest = counter + 1;
    this.#leg = leg;
  }

  #isChanging(now: Instant): boolean {
    return this.#change !== undefined && now - this.#change.at <= IN_FLIGHT_MS;
  }

  /**
   * A flow of which nothing has come lately waits for what may have been sent before it only just after a change. If its first frame was passed
   * by others and is still on its way, it may come behind its second: to wait for all that may be lost would cost every new flow more.
   */
  #laneOf(number: number, counter: number, leg: Leg, now: Instant): Lane {
    const known = this.#lanes.get(number);
    if (known !== undefined) return known;
    const order = new CounterOrder(this.#window);
    if (this.#active !== undefined) {
      const before = this.#isChanging(now) ? this.#change : undefined;
      const newest = before?.newest ?? counter;
      if (newest > 0) order.accept(newest - 1, before?.leg ?? leg, EMPTY, 0, 0, now);
      order.start(this.#active.at, newest === 0);
      if (this.#begin !== undefined) order.awaitFence(this.#begin);
    }
    const lane = { order, at: now };
    this.#lanes.set(number, lane);
    return lane;
  }

  /** Which of the flows the plaintext of a data frame is of. */
  #numberOf(bytes: Uint8Array, start: number, end: number): number {
    const type = bytes[start];
    if (type === FRAME_SEGMENT) {
      const headers = start + SEGMENT_HEADER_BYTES + SEGMENT_SIZE_BYTES;
      return this.#numberOfPiece(segmentRunId(bytes, start) >>> 0, segmentOffset(bytes, start), bytes, headers, end);
    }
    if (type !== FRAME_FRAGMENT) return flowHash(bytes, start + 1, end, 0) % LANES;
    const { id = 0, index = 0 } = readFragmentHeader(bytes.subarray(start, end)) ?? {};
    return this.#numberOfPiece(2 ** 32 + id, index, bytes, start + FRAGMENT_HEADER_BYTES, end);
  }

  /** Where the first piece has not come, it is probably of the same flow as the packet before. */
  #numberOfPiece(id: number, index: number, bytes: Uint8Array, packet: number, end: number): number {
    if (index === 0) {
      this.#piece = (this.#piece + 1) % REMEMBERED;
      this.#pieceIds[this.#piece] = id;
      this.#pieceLanes[this.#piece] = flowHash(bytes, packet, end, 0) % LANES;
      return this.#pieceLanes[this.#piece] ?? 0;
    }
    const known = this.#pieceIds.indexOf(id);
    return this.#pieceLanes[known < 0 ? this.#piece : known] ?? 0;
  }

  #isHolding(): boolean {
    for (const { order } of this.#lanes.values()) if (order.isHolding) return true;
    return false;
  }

  #handleHeld(work: (order: CounterOrder) => readonly Uint8Array[]): readonly Uint8Array[] {
    return this.#active === undefined || !this.#isHolding() ? NOTHING : this.#handleAll(work);
  }

  #handleAll(work: (order: CounterOrder) => readonly Uint8Array[]): readonly Uint8Array[] {
    if (this.#active === undefined) return NOTHING;
    const released: Uint8Array[] = [];
    for (const { order } of this.#lanes.values()) released.push(...work(order));
    return released;
  }
}
