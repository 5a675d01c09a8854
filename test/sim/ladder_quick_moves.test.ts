/**
 * An operator changes his mind: one move follows another before the old path of the first has brought all that is on its way, as an SSH
 * connection does late that has just begun to carry something. What comes by the third path waits for the first, too.
 */
import { expect, test } from "vitest";
import { LadderTraffic } from "./ladder_traffic.ts";
import { PORT_RESTRICTED_CONE } from "./nats.ts";
import { World } from "./world.ts";

const GAP_MS = 4;
const SLOWER_MS = 150;

test.each([30, 60, 100])("two moves with %i ms between them lose, repeat and reorder nothing", (betweenMs) => {
  for (const roundTripMs of [50, 200]) {
    const world = new World({ seed: 3, roundTripMs, hasRelays: true });
    const agents = [world.addAgent("one", PORT_RESTRICTED_CONE), world.addAgent("two", PORT_RESTRICTED_CONE)] as const;
    const [one, two] = agents;
    world.joinAll();
    const traffic = new LadderTraffic(world, one, two);
    const choose = (wish: "auto" | "ssh" | "websocket"): void =>
      one.do((node, now) => node.choosePath(two.id, wish, now));
    traffic.talk(8000, GAP_MS);
    choose("ssh");
    traffic.talk(3000, GAP_MS);
    traffic.takeFaults(2000);
    const usual = agents.map(({ host }) => host.delay);
    for (const { host } of agents) host.delay = { ...host.delay, upMs: host.delay.upMs + SLOWER_MS };
    traffic.talk(1000, GAP_MS);
    for (const [index, { host }] of agents.entries()) host.delay = usual[index] ?? host.delay;
    choose("websocket");
    traffic.talk(betweenMs, GAP_MS);
    choose("auto");
    traffic.talk(3000, GAP_MS);
    expect(traffic.takeFaults(2000), `${roundTripMs} ms`).toEqual({ lost: 0, duplicated: 0, reordered: 0 });
    const rungs = one.events.flatMap(({ event }) => (event.type === "path_changed" ? [event.to] : []));
    expect(rungs.slice(-3)).toEqual(["ssh", "websocket", "direct"]);
  }
});
