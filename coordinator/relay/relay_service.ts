/**
 * Drives the relay hub: gives it the time, and hands what it decides to the legs, whatever kind they are. Legs are added by the
 * WebSocket server of this folder and by the SSH server.
 */
import { assertNever } from "../../shared/assert.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import type { RelayLeg } from "../../shared/signal/messages.ts";
import { instant } from "../../shared/time.ts";
import type { Log } from "../log.ts";
import type { TakenFrame } from "../../shared/relay/fair_queue.ts";
import { type LegId, type RelayAction, type RelayCounters, RelayHub, type RelayInput } from "./relay_hub.ts";

/** A connection, as the service sees it. */
export interface LegPort {
  /** There may be something to take. */
  pump(): void;
  unbound(peer: PeerId, reason: "no_leg" | "refused"): void;
  close(reason: "replaced" | "removed"): void;
}

/** What a connection may do with its leg. */
export interface LegHandle {
  /** Before anything else. The port may be called from here on. */
  open(): void;
  bind(peer: PeerId): void;
  release(peer: PeerId): void;
  mayBind(peer: PeerId): boolean;
  frames(frames: Extract<RelayInput, { type: "frames" }>["frames"]): void;
  /** See FairQueue. */
  take(maximumBytes: number, perFrame: number, isReady?: (source: PeerId) => boolean): TakenFrame[];
  readonly queuedBytes: number;
  malformed(): void;
  closed(): void;
}

export interface RelayService {
  leg(peer: PeerId, kind: RelayLeg, port: LegPort): LegHandle;
  onRulesChanged(peer?: PeerId): void;
  onAgentJoined(peer: PeerId): void;
  onLegLost(peer: PeerId, kind: RelayLeg): void;
  readonly counters: RelayCounters;
  readonly legCount: number;
}

export interface RelayServiceOptions {
  readonly log: Log;
  readonly isMember: (peer: PeerId) => boolean;
  readonly mayTalk: (a: PeerId, b: PeerId) => boolean;
  readonly tellLeg: (to: PeerId, peer: PeerId, leg: RelayLeg | null) => void;
}

export function createRelayService(options: RelayServiceOptions): RelayService {
  const { log } = options;
  const hub = new RelayHub(options);
  const ports = new Map<LegId, LegPort>();
  let nextLeg: LegId = 1;
  let isDraining = false;

  function step(input: RelayInput): void {
    try {
      hub.handle(input, instant(performance.now()));
    } catch (error) {
      // A bug of ours; it costs one connection and not all of them.
      log.error(
        `The relay failed on "${input.type}": ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
      );
      if ("leg" in input) ports.get(input.leg)?.close("removed");
    }
    // A port may come back with more input from within its action; the loop that is running already sees what that brings.
    if (isDraining) return;
    isDraining = true;
    try {
      for (let action = hub.poll(); action !== undefined; action = hub.poll()) perform(action);
    } finally {
      isDraining = false;
    }
  }

  function perform(action: RelayAction): void {
    switch (action.type) {
      case "ready":
        return ports.get(action.leg)?.pump();
      case "unbound":
        return ports.get(action.leg)?.unbound(action.peer, action.reason);
      case "close": {
        const port = ports.get(action.leg);
        ports.delete(action.leg);
        return port?.close(action.reason);
      }
      case "peer_leg":
        return options.tellLeg(action.to, action.peer, action.leg);
      default:
        assertNever(action);
    }
  }

  return {
    leg(peer, kind, port) {
      const leg = nextLeg++;
      return {
        open() {
          ports.set(leg, port);
          step({ type: "leg_opened", leg, peer, kind });
        },
        bind: (to) => step({ type: "bind", leg, peer: to }),
        release: (to) => step({ type: "release", leg, peer: to }),
        mayBind: (to) => hub.mayBind(leg, to),
        frames: (frames) => step({ type: "frames", leg, frames }),
        take: (maximumBytes, perFrame, isReady) =>
          hub.take(leg, instant(performance.now()), maximumBytes, perFrame, isReady),
        get queuedBytes() {
          return hub.queuedBytes(leg);
        },
        malformed() {
          hub.counters.droppedMalformed++;
        },
        closed() {
          ports.delete(leg);
          step({ type: "leg_closed", leg });
        },
      };
    },
    onRulesChanged: (peer) => step({ type: "rules_changed", peer }),
    onLegLost: (peer, kind) => step({ type: "leg_lost", peer, kind }),
    onAgentJoined: (peer) => step({ type: "agent_joined", peer }),
    counters: hub.counters,
    get legCount() {
      return hub.legCount;
    },
  };
}
