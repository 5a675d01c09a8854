/**
 * The coordinator restarts under relayed packets. Each agent gets its WebSocket back first and its SSH connection a moment later, and what
 * the peer sends moves from one to the other without the peer's doing: what is still on its way by the WebSocket, held up there by a lost
 * segment, must not be overtaken.
 */
import { expect, test } from "vitest";
import { LadderTraffic } from "./ladder_traffic.ts";
import { PORT_RESTRICTED_CONE } from "./nats.ts";
import { World } from "./world.ts";

const GAP_MS = 4;
const AWAY_MS = 300;

test.each([
  { roundTripMs: 50, lossPercent: 0.3, jitterMs: 5, seeds: [6, 11, 19] },
  { roundTripMs: 200, lossPercent: 0, jitterMs: 20, seeds: [8, 15] },
])(
  "at $roundTripMs ms, $lossPercent % loss and $jitterMs ms of jitter no packet comes twice, or after a later one",
  ({ roundTripMs, lossPercent, jitterMs, seeds }) => {
    for (const seed of seeds) {
      const world = new World({ seed, roundTripMs, jitterMs, hasRelays: true });
      const one = world.addAgent("one", PORT_RESTRICTED_CONE);
      const two = world.addAgent("two", PORT_RESTRICTED_CONE);
      one.host.isUdpBlocked = true;
      world.joinAll();
      world.run(5000);
      const traffic = new LadderTraffic(world, one, two);
      traffic.talk(3000, GAP_MS);
      expect(traffic.takeFaults(1000)).toEqual({ lost: 0, duplicated: 0, reordered: 0 });
      traffic.talk(500, GAP_MS);
      world.network.lossPercent = lossPercent;
      world.coordinator.stop();
      traffic.talk(AWAY_MS, GAP_MS);
      world.coordinator.start();
      traffic.talk(6000, GAP_MS);
      world.network.lossPercent = 0;
      const { lost, duplicated, reordered } = traffic.takeFaults(2000);
      expect(lost, `seed ${seed}: the coordinator was away`).toBeGreaterThan(0);
      expect({ duplicated, reordered }, `seed ${seed}`).toEqual({ duplicated: 0, reordered: 0 });
      expect(one.view(two.id)?.route?.kind).toBe("ssh");
    }
  },
);
