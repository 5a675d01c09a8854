import { describe, expect, test } from "vitest";
import { SteadyFlow } from "../../../../agent/path/steady_flow.ts";
import { instant } from "../../../../shared/time.ts";

/** Reports of the data path each 100 ms until then, and what the flow looks like afterwards. */
function flow(untilMs: number, packets: number, gapMs = 100): SteadyFlow {
  const steady = new SteadyFlow();
  for (let at = 0; at <= untilMs; at += gapMs) steady.onReceived(packets, instant(at));
  return steady;
}

describe("the end of a flow", () => {
  test("shows 150 ms after its last packets, if it was dense for half a second", () => {
    expect(flow(500, 100).stopsAt).toBe(instant(650));
    expect(flow(5000, 5).stopsAt).toBe(instant(5150));
  });

  test("says nothing of a burst, of a few packets, or of a flow with pauses", () => {
    expect(flow(400, 100).stopsAt).toBeUndefined();
    expect(flow(5000, 4).stopsAt).toBeUndefined();
    expect(flow(5000, 100, 160).stopsAt).toBeUndefined();
  });

  test("is forgotten when another path carries the data", () => {
    const steady = flow(1000, 100);
    steady.restart();
    expect(steady.stopsAt).toBeUndefined();
  });
});
