/**
 * From nothing to the first page, in commands: what docs/quick_start.md tells the friend without root to type is typed, word for word but for the
 * coordinator's address, the key and free ports, and then the page is fetched that it promises.
 */
import { readFileSync, symlinkSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { run } from "../lab/process.ts";
import { AGENT, type Coordinator, ROOT, Stage } from "./programs.ts";

/** "Useful to each other within a minute." */
const LIMIT_SECONDS = 60;
const PAGE = "<h1>Films of the home lab</h1>";

const stage = new Stage();
let coordinator: Coordinator;
let web: ReturnType<typeof Bun.serve>;

beforeAll(async () => {
  web = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response(PAGE) });
  coordinator = await stage.coordinator();
  const words = ["--name", "homelab", "--key", coordinator.joinKey, "--expose", `${web.port}`];
  await stage.agent([coordinator.url, ...words]).joined();
});
afterAll(async () => {
  await stage.end();
  await web.stop(true);
});

test("the friend without root sees the first page of the home lab after one command", async () => {
  const text = readFileSync(join(ROOT, "docs", "quick_start.md"), "utf8");
  const part = /^## The friend's machine\n([\s\S]*?)^## /m.exec(text)?.[1] ?? "";
  // What is to be typed until the text says where the page is.
  const [before = "", promise = ""] = part.split(/(?=While it runs, )/);
  const commands = [...before.matchAll(/^```sh\n([\s\S]*?)^```/gm)].flatMap(([, block = ""]) =>
    block.split("\n").filter((line) => line !== ""),
  );
  const page = /http:\/\/localhost:8096/.exec(promise)?.[0] ?? "";
  expect([commands.length, page]).toEqual([1, "http://localhost:8096"]);

  // Here both machines are one, so the port on this side is another than on that one.
  const port = await freePort();
  const filled = (line: string): string =>
    line
      .replace("http://203.0.113.10:8080", coordinator.url)
      .replace("tmk_...", coordinator.joinKey)
      .replace("8096:homelab:8096", `${port}:homelab:${web.port}`);
  const directory = stage.directory("friend");
  symlinkSync(AGENT, join(directory, "tunnelmesh-agent"));
  const startedAt = performance.now();
  for (const line of commands) {
    // A state directory of its own, since the one of this user is not the test's.
    const env = { TUNNELMESH_STATE_DIR: stage.directory("state") };
    stage.spawn("friend", ["sh", "-c", `cd "$0" && exec ${filled(line)}`, directory], env);
  }
  const fetchPage = async (): Promise<string> =>
    (await run(["curl", "--silent", page.replace("8096", `${port}`)], { timeoutMs: 10_000 })).stdout;
  await expect.poll(fetchPage, { timeout: 15_000, interval: 50 }).toBe(PAGE);
  const seconds = (performance.now() - startedAt) / 1000;
  console.log(`From nothing to the first page: ${commands.length} command, ${seconds.toFixed(1)} s`);
  expect(seconds).toBeLessThan(LIMIT_SECONDS);
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === "object" && address !== null ? address.port : 0;
}
