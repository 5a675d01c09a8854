/**
 * What `up` tells a person in the first moments: joined as whom, who is there, on which path, after what time. At most five lines.
 *
 * It stands in for the log's own lines about those events, and only in the text that a person reads; `status` has the details. Lines
 * that warn, or ask for something, are the log's and come in between. Once the story is over, the log tells every change.
 */
import type { AgentEvent, Log } from "../log.ts";
import { milliseconds } from "./render.ts";

const MAX_LINES = 5;
/** From joining on. First paths take a fraction of a second, the best one a few at most. */
const STORY_MS = 10_000;
/** More peers than this, and telling of some would only use up the lines. */
const MAX_TOLD_PEERS = 2;

type State =
  | { readonly state: "joining" }
  | { readonly state: "telling"; readonly joinedAt: number; readonly lines: number }
  | { readonly state: "over" };

export class Story {
  #state: State = { state: "joining" };
  /** When each peer came online, or we learned that it was. */
  readonly #onlineAt = new Map<string, number>();
  readonly #told = new Set<string>();

  /** The line to print; an empty string: none for this one; undefined: the story is over, or this is none of its events. */
  tell(event: AgentEvent, nowUnixMs: number): string | undefined {
    const state = this.#state;
    if (state.state === "telling" && nowUnixMs - state.joinedAt > STORY_MS) this.#state = { state: "over" };
    if (this.#state.state === "over") return undefined;
    switch (event.event) {
      case "started":
      case "nat_detected":
        return "";
      case "joined":
        this.#state = { state: "telling", joinedAt: nowUnixMs, lines: 1 };
        return `Joined as "${event.name}": ${event.meshIPv4} ${event.tun === null ? "without a network device" : `on ${event.tun}`}`;
      case "peer_online":
        // The map lives for ten seconds after joining and holds no more than the mesh has members.
        if (!this.#onlineAt.has(event.peer)) this.#onlineAt.set(event.peer, nowUnixMs);
        return "";
      case "path_changed":
        return event.to === "none" ? undefined : this.#path(event, nowUnixMs);
      case "stopped":
        return undefined;
      default:
        return undefined;
    }
  }

  #path(event: Extract<AgentEvent, { event: "path_changed" }>, nowUnixMs: number): string {
    const state = this.#state;
    const isNews = event.from === "none" || event.to === "direct";
    if (state.state !== "telling" || state.lines >= MAX_LINES || !isNews || event.from === event.to) return "";
    this.#state = { ...state, lines: state.lines + 1 };
    if (state.lines === MAX_LINES - 1 && this.#onlineAt.size > MAX_TOLD_PEERS) {
      return `${this.#onlineAt.size} machines are online; "tunnelmesh-agent status" shows the path to each`;
    }
    const isFirst = !this.#told.has(event.peer);
    this.#told.add(event.peer);
    const after = ((nowUnixMs - (this.#onlineAt.get(event.peer) ?? state.joinedAt)) / 1000).toFixed(1);
    const kind = event.to === "direct" ? "direct" : `relayed by ${event.to}`;
    const at = event.rttMs === null ? "" : ` at ${milliseconds(event.rttMs)}`;
    return `"${event.peer}" is ${isFirst ? "online, " : ""}${kind} after ${after} s${at}`;
  }
}

/** A log that leaves the first moments to the story. */
export function storyLog(log: Log, write: (line: string) => void, unixMs: () => number): Log {
  const story = new Story();
  return {
    ...log,
    event(event) {
      const line = story.tell(event, unixMs());
      if (line === undefined) log.event(event);
      else if (line !== "") write(line);
    },
  };
}
