/** `bench` between two agents: what arrives, over which path, in both directions, and what happens when somebody is busy or gone. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Agent, AGENT, Stage } from "./programs.ts";

const stage = new Stage();
let nas: Agent;
let laptop: Agent;
beforeAll(async () => {
  const coordinator = await stage.coordinator();
  [nas, laptop] = await Promise.all([stage.member(coordinator, "nas"), stage.member(coordinator, "laptop")]);
  expect((await laptop.command("wait", "--for", "direct=nas", "--timeout", "10")).code).toBe(0);
});
afterAll(() => stage.end());

test.each([
  ["to", []],
  ["from", ["--reverse"]],
])("%s a peer", async (direction, flags) => {
  const result = (await laptop.json("bench", "nas", "--seconds", "1", ...flags)) as Bench;
  expect(result).toMatchObject({ schema: 1, peer: "nas", direction, paths: ["direct"] });
  // A second of loopback: far less than it carries, far more than nothing.
  expect(result.bytes).toBeGreaterThan(1_000_000);
  expect(result.ms).toBeGreaterThan(800);
  expect(result.ms).toBeLessThan(4000);
  expect(result.bitsPerSecond).toBeCloseTo((result.bytes * 8000) / result.ms, -1);
});

test("a relayed path, and the move to a direct one, are told", async () => {
  expect((await laptop.command("path", "nas", "ssh")).code).toBe(0);
  const running = laptop.json("bench", "nas", "--seconds", "2");
  await Bun.sleep(700);
  expect((await laptop.command("path", "nas", "auto")).code).toBe(0);
  expect(await running).toMatchObject({ paths: ["ssh", "direct"] });
});

test("one at a time, and one that is interrupted makes room for the next", async () => {
  const first = stage.spawn("bench", [AGENT, "bench", "nas", "--seconds", "30", "--state-dir", laptop.stateDir]);
  await Bun.sleep(500);
  const second = await laptop.command("bench", "nas", "--seconds", "1");
  expect([second.code, second.stderr]).toEqual([1, expect.stringContaining("takes part in another measurement")]);
  first.signal("SIGINT");
  expect(await first.exited).toBe(0);
  expect(first.log()).toMatch(/to nas: [\d.]+ [MG]bit\/s/);
  expect(await laptop.json("bench", "nas", "--seconds", "1")).toMatchObject({ peer: "nas" });
});

test("a peer that stops in the middle is an error, and an unknown one code 5", async () => {
  expect((await laptop.command("bench", "nobody")).code).toBe(5);
  const running = laptop.command("bench", "nas", "--seconds", "10");
  await Bun.sleep(500);
  await nas.process.stop();
  const { code, stderr } = await running;
  expect([code, stderr]).toEqual([5, expect.stringMatching(/^The agent of "nas" has stopped/)]);
});

interface Bench {
  readonly bytes: number;
  readonly ms: number;
  readonly bitsPerSecond: number;
}
