import { describe, expect, test } from "vitest";
import { ALL_NATS, directPathExpected } from "./oracle.ts";
import { meshPacket, World } from "./world.ts";

const SEEDS = Number(process.env["SIM_SEEDS"] ?? 3);

describe.each([
  { roundTripMs: 0, lossPercent: 0, jitterMs: 0 },
  { roundTripMs: 50, lossPercent: 0, jitterMs: 3 },
  { roundTripMs: 80, lossPercent: 5, jitterMs: 10 },
])("all 81 pairings at $roundTripMs ms round trip, $lossPercent % loss", (conditions) => {
  const pairings = ALL_NATS.flatMap((a) => ALL_NATS.map((b) => ({ a, b })));

  test.each(pairings)("$a.mapping/$a.filtering x $b.mapping/$b.filtering", ({ a, b }) => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const world = new World({ seed, ...conditions });
      const one = world.addAgent("one", a);
      const two = world.addAgent("two", b);
      world.joinAll();
      const isDirect = () => one.isDirectTo(two.id) && two.isDirectTo(one.id);
      world.run(8000, isDirect);
      expect(isDirect(), `seed ${seed}`).toBe(directPathExpected(a, b));
      if (!isDirect()) continue;
      const packet = meshPacket("100.96.0.1", "100.96.0.2", Uint8Array.of(seed));
      one.sendPacket(packet);
      world.run(500);
      // A single datagram may be lost where the world loses some.
      if (conditions.lossPercent === 0) expect(two.received).toEqual([packet]);
    }
  });
});
