/**
 * Numbered packets between two simulated agents, small and large ones, and what became of them: for worlds that are judged by whether
 * traffic gets through, and by whether moves lose, repeat or reorder anything.
 */
import type { SimAgent } from "./agent.ts";
import { meshPacket, type World } from "./world.ts";

/** So large that a filter which lets only small datagrams pass stops it. */
const LARGE_BYTES = 1200;
const SMALL_BYTES = 40;
const HEADER_BYTES = 20;

export interface Faults {
  readonly lost: number;
  readonly duplicated: number;
  readonly reordered: number;
}

/** One direction. */
class Direction {
  readonly from: SimAgent;
  readonly to: SimAgent;
  sent = 0;
  readonly #counts = new Map<number, number>();
  #highest = 0;
  #reordered = 0;
  #duplicated = 0;
  #missing = 0;
  /** When each size last arrived. */
  readonly heardAt = { small: -Infinity, large: -Infinity };

  constructor(from: SimAgent, to: SimAgent) {
    this.from = from;
    this.to = to;
  }

  /** Small and large in turn. */
  send(): void {
    const body = new Uint8Array(this.sent % 2 === 0 ? SMALL_BYTES : LARGE_BYTES);
    new DataView(body.buffer).setUint32(0, ++this.sent);
    this.from.sendPacket(meshPacket(this.from.meshIPv4, this.to.meshIPv4, body));
  }

  receive(now: number): void {
    for (const packet of this.to.received) {
      const number = new DataView(packet.buffer, packet.byteOffset).getUint32(HEADER_BYTES);
      this.heardAt[packet.length > LARGE_BYTES ? "large" : "small"] = now;
      const count = (this.#counts.get(number) ?? 0) + 1;
      this.#counts.set(number, count);
      if (count > 1) this.#duplicated++;
      else if (number < this.#highest) this.#reordered++;
      this.#highest = Math.max(this.#highest, number);
    }
    this.to.received.length = 0;
  }

  /** Since the last time. Nothing may be under way. */
  take(): Faults {
    const missing = this.sent - this.#counts.size;
    const faults = { lost: missing - this.#missing, duplicated: this.#duplicated, reordered: this.#reordered };
    this.#missing = missing;
    this.#duplicated = 0;
    this.#reordered = 0;
    return faults;
  }
}

export class LadderTraffic {
  readonly #world: World;
  readonly #directions: readonly Direction[];

  constructor(world: World, one: SimAgent, two: SimAgent) {
    this.#world = world;
    this.#directions = [new Direction(one, two), new Direction(two, one)];
  }

  /** Both send a packet of each size so often, unless it is one that is asleep. */
  talk(milliseconds: number, gapMs: number, asleep?: SimAgent): void {
    for (let left = milliseconds; left > 0; left -= gapMs / 2) {
      for (const direction of this.#directions) if (direction.from !== asleep) direction.send();
      this.#world.run(Math.min(left, gapMs / 2));
      for (const direction of this.#directions) direction.receive(this.#world.now);
    }
  }

  /** Do packets of every size get through both ways? */
  isAlive(withinMs: number): boolean {
    return this.#directions.every(
      ({ heardAt }) => this.#world.now - Math.min(heardAt.small, heardAt.large) <= withinMs,
    );
  }

  /** What has gone wrong since the last time, both ways together; waits until what was sent must have come. */
  takeFaults(waitMs: number): Faults {
    this.#world.run(waitMs);
    for (const direction of this.#directions) direction.receive(this.#world.now);
    const [there, back] = this.#directions.map((direction) => direction.take());
    return {
      lost: (there?.lost ?? 0) + (back?.lost ?? 0),
      duplicated: (there?.duplicated ?? 0) + (back?.duplicated ?? 0),
      reordered: (there?.reordered ?? 0) + (back?.reordered ?? 0),
    };
  }
}
