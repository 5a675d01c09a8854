/** What `why` says of a relayed path: the rung, what stands against each better one, and on which side. The exact words. */
import { expect, test } from "vitest";
import { PORT_RESTRICTED_CONE } from "./nats.ts";
import { World } from "./world.ts";

const HERE = "This network blocks UDP; allowing outgoing UDP here would make a direct path possible";
const OURS = "this machine does not reach the coordinator's SSH port; allowing it would bring SSH";
const THEIRS = '"two" has no SSH connection to the coordinator; allowing TCP to its SSH port there would bring SSH';
const lower = (text: string): string => text.slice(0, 1).toLowerCase() + text.slice(1);

test.each([
  ["neither side", [], "Relayed through the coordinator by SSH", undefined],
  ["this side", ["one"], "Relayed through the coordinator by WebSocket here and SSH there", `No SSH: ${OURS}`],
  ["that side", ["two"], "Relayed through the coordinator by SSH here and WebSocket there", `No SSH: ${THEIRS}`],
  ["both sides", ["one", "two"], "Relayed through the coordinator by WebSocket", `No SSH: ${OURS}, and ${THEIRS}`],
] as const)("with SSH blocked at %s", (_name, blocked, how, noSsh) => {
  const world = new World({ seed: 4, roundTripMs: 20, hasRelays: true });
  const agents = ["one", "two"].map((name) => world.addAgent(name, PORT_RESTRICTED_CONE));
  const [one, two] = agents;
  if (one === undefined || two === undefined) throw new Error("Two agents expected");
  one.host.isUdpBlocked = true;
  for (const agent of agents) agent.host.isSshBlocked = blocked.some((name) => name === agent.name);
  world.joinAll();
  world.run(12_000);
  const view = one.view(two.id);
  const direct = `No direct path: ${lower(HERE)}`;
  expect(view?.why).toBe(`${how}: ${lower([direct, ...(noSsh === undefined ? [] : [noSsh])].join(". "))}`);
  expect(view?.better).toEqual([
    { kind: "direct", reason: direct },
    ...(noSsh === undefined ? [] : [{ kind: "ssh", reason: noSsh }]),
  ]);
  one.do((node, now) => node.choosePath(two.id, "websocket", now));
  world.run(2000);
  expect(one.view(two.id)?.better).toEqual([
    { kind: "direct", reason: 'The operator chose websocket with "path"' },
    { kind: "ssh", reason: 'The operator chose websocket with "path"' },
  ]);
  expect(two.view(one.id)?.better[0]?.reason).toBe('The operator of "one" chose websocket with "path"');
});
