import { describe, expect, test } from "vitest";
import { Story } from "../../../../agent/cli/story.ts";
import type { AgentEvent, PathKindOrNone } from "../../../../agent/log.ts";

const JOINED: AgentEvent = {
  event: "joined",
  name: "laptop",
  id: "a",
  meshIPv4: "100.96.0.1",
  meshIPv6: "fd00::1",
  tun: "tm0",
  coordinator: "http://c",
};
const online = (peer: string): AgentEvent => ({ event: "peer_online", peer, id: peer });
const path = (peer: string, from: PathKindOrNone, to: PathKindOrNone, rttMs: number | null = null): AgentEvent => ({
  event: "path_changed",
  peer,
  from,
  to,
  reason: "as it goes",
  localAddress: null,
  remoteAddress: null,
  rttMs,
});

/** The lines of these events, a tenth of a second apart. */
function told(...events: readonly AgentEvent[]): string[] {
  const story = new Story();
  return events.flatMap((event, index) => story.tell(event, 1000 + index * 100) || []);
}

describe("the story of up", () => {
  test("tells of the relay at once and of the direct path when it is there, with the time since the peer was online", () => {
    expect(told(JOINED, online("nas"), path("nas", "none", "ssh"), path("nas", "ssh", "direct", 12.34))).toEqual([
      'Joined as "laptop": 100.96.0.1 on tm0',
      '"nas" is online, relayed by ssh after 0.1 s',
      '"nas" is direct after 0.2 s at 12.3 ms',
    ]);
  });

  test("a path that was direct at once is one line, and moves between relays are none", () => {
    expect(
      told(
        JOINED,
        online("nas"),
        path("nas", "none", "direct", 5),
        online("pi"),
        path("pi", "none", "websocket"),
        path("pi", "websocket", "ssh"),
      ),
    ).toEqual([
      'Joined as "laptop": 100.96.0.1 on tm0',
      '"nas" is online, direct after 0.1 s at 5.0 ms',
      '"pi" is online, relayed by websocket after 0.1 s',
    ]);
  });

  test("a large mesh gets five lines, the last of which says where the rest is", () => {
    const names = Array.from({ length: 40 }, (_, index) => `m${index}`);
    const lines = told(
      JOINED,
      ...names.map(online),
      ...names.map((name) => path(name, "none", "ssh")),
      // Still within the story's ten seconds.
      ...names.slice(0, 10).map((name) => path(name, "ssh", "direct", 1)),
    );
    expect(lines).toHaveLength(5);
    expect(lines[4]).toBe('40 machines are online; "tunnelmesh-agent status" shows the path to each');
  });

  test("two peers fit without it", () => {
    const lines = told(
      JOINED,
      online("a"),
      online("b"),
      path("a", "none", "ssh"),
      path("b", "none", "ssh"),
      path("a", "ssh", "direct", 1),
      path("b", "ssh", "direct", 1),
    );
    expect(lines).toHaveLength(5);
    expect(lines[4]).toBe('"b" is direct after 0.4 s at 1.0 ms');
  });

  test("a lost path is the log's to tell, and everything is once ten seconds have passed", () => {
    const story = new Story();
    expect(story.tell(path("nas", "none", "ssh"), 0)).toBe("");
    story.tell(JOINED, 0);
    expect(story.tell(path("nas", "ssh", "none"), 10)).toBeUndefined();
    expect(story.tell(online("nas"), 10_000)).toBe("");
    for (const event of [online("nas"), path("nas", "none", "ssh"), JOINED]) {
      expect(story.tell(event, 10_001)).toBeUndefined();
    }
  });
});
