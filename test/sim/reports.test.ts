/** Who receives tells the sender how much: by every rung, at least each 100 ms for as long as something comes. */
import { expect, test, vi } from "vitest";
import { decodeControl } from "../../shared/wire/control.ts";
import { PORT_RESTRICTED_CONE } from "./nats.ts";
import { meshPacket, World } from "./world.ts";

const SECONDS = 5;
/** Of the agent's own clock, which may be a little slow, and of the packet that the report waits for. */
const SLACK_MS = 21;

test.each([
  ["direct", false],
  ["ssh", true],
] as const)("a one-way flow by %s is reported at least every 100 ms", (rung, isUdpBlocked) => {
  const world = new World({ seed: 3, roundTripMs: 20, hasRelays: true });
  const one = world.addAgent("one", PORT_RESTRICTED_CONE);
  const two = world.addAgent("two", PORT_RESTRICTED_CONE);
  two.host.isUdpBlocked = isUdpBlocked;
  world.joinAll();
  world.run(15_000, () => [one.view(two.id), two.view(one.id)].every((view) => view?.route?.kind === rung));
  const reports: { readonly at: number; readonly small: number }[] = [];
  const handle = two.plane.handleCommand.bind(two.plane);
  vi.spyOn(two.plane, "handleCommand").mockImplementation((command, now) => {
    const message = command.type === "send_control" ? decodeControl(command.body) : undefined;
    if (message?.type === "received") reports.push({ at: world.now, small: message.small });
    handle(command, now);
  });
  const startedAt = world.now;
  for (let i = 0; i < SECONDS * 50; i++) {
    one.sendPacket(meshPacket(one.meshIPv4, two.meshIPv4, new Uint8Array(40)));
    world.run(20);
  }
  const gaps = reports.map(({ at }, i) => at - (reports[i - 1]?.at ?? startedAt));
  expect(Math.max(...gaps)).toBeLessThanOrEqual(100 + SLACK_MS);
  expect(reports.length).toBeGreaterThanOrEqual(SECONDS * 8);
  // Nearly all of them are in it by then, and the numbers only grow.
  expect(reports.at(-1)?.small).toBeGreaterThanOrEqual(SECONDS * 50 - 10);
  expect(reports).toEqual(reports.toSorted((a, b) => a.small - b.small));
});
