/** The ladder in random worlds with relays: always the same few here, as many as you like with `npm run sim -- --ladder`. */
import { expect, test } from "vitest";
import { runLadderWorld } from "./ladder_world.ts";

test.each([
  [1, "a relay that dies with its router is asked as soon as it falls silent, not when its keepalives fail"],
  [15, "the coordinator forgets an SSH leg that the agent has lost and cannot open again, and uses the WebSocket"],
  [16, "a captive portal opens for a machine that only gets out by WebSocket"],
  [24, "a router that reboots where SSH has been closed meanwhile"],
  [
    3084,
    "reports that went by a relay which was dead at the other end did the same: they go back the way that the packets came",
  ],
  [128, "an SSH connection is tried again soon once the direct path is gone, however long it had been in vain before"],
  [
    1088,
    "reports that went to an old address were taken for data that does not get through, and the path was distrusted",
  ],
  [561296374, "of many sockets that a heavy attempt had opened, the one was closed that carried the path"],
])("seed %i: %s", (seed) => {
  const { story, failures } = runLadderWorld(seed);
  expect(failures, story.join("\n")).toEqual([]);
});

test.each([
  [2108, "more sockets of a heavy attempt were heard than there is room for pairs, and the chosen one was closed"],
  [910415, "an operator wanted SSH that was not there, and for the sake of it no heavy attempt was made for ever"],
])("seed %i with symmetric NATs: %s", (seed) => {
  const { story, failures } = runLadderWorld(seed, true);
  expect(failures, story.join("\n")).toEqual([]);
});

test.each([
  { worlds: 8, hasSymmetric: false },
  { worlds: 4, hasSymmetric: true },
])("$worlds worlds more, always the same (symmetric NATs among them: $hasSymmetric)", ({ worlds, hasSymmetric }) => {
  for (let seed = 3000; seed < 3000 + worlds; seed++)
    expect(runLadderWorld(seed, hasSymmetric)).toMatchObject({ seed, failures: [] });
});
