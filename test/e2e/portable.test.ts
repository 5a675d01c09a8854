/**
 * The engine of systems without our Linux I/O, for real: streams between an agent that runs on it and one on each engine, direct, both ways,
 * with every byte checked.
 */
import { createHash, randomBytes } from "node:crypto";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { type Agent, type Coordinator, Stage } from "./programs.ts";

const FILE = randomBytes(8_000_000);
const HASH = createHash("sha256").update(FILE).digest("hex");
const PORTABLE = { TUNNELMESH_ENGINE: "portable" };

const stage = new Stage();
let coordinator: Coordinator;
let web: ReturnType<typeof Bun.serve>;
const running: Agent[] = [];

beforeAll(async () => {
  coordinator = await stage.coordinator();
  web = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    idleTimeout: 60,
    fetch: async (request) =>
      request.method === "PUT"
        ? new Response(
            createHash("sha256")
              .update(new Uint8Array(await request.arrayBuffer()))
              .digest("hex"),
          )
        : new Response(FILE),
  });
});
afterEach(async () => {
  await Promise.all(running.splice(0).map(({ process }) => process.stop()));
});
afterAll(async () => {
  await stage.end();
  await web.stop(true);
});

describe.each([
  ["both on the portable engine", PORTABLE, PORTABLE],
  ["one on it, the other on this machine's own", PORTABLE, {}],
  ["the other way round", {}, PORTABLE],
])("%s", (title, serverEnv, clientEnv) => {
  test("a direct path carries files in both directions, right in every byte", async () => {
    const key = ["--key", coordinator.joinKey];
    const server = stage.agent([coordinator.url, ...key, "--expose", `${web.port}`], { env: serverEnv });
    running.push(server);
    const { name } = await server.joined();
    const client = stage.agent([coordinator.url, ...key, "--forward", `0:${String(name)}:${web.port}`], {
      env: clientEnv,
    });
    running.push(client);
    await client.joined();
    expect((await client.command("wait", "--for", `direct=${String(name)}`, "--timeout", "10")).code).toBe(0);
    const port = forwardedPort(client);

    const url = `http://127.0.0.1:${port}/`;
    const got = new Uint8Array(await (await fetch(url)).arrayBuffer());
    expect(createHash("sha256").update(got).digest("hex")).toBe(HASH);
    expect(await (await fetch(url, { method: "PUT", body: FILE })).text()).toBe(HASH);

    const bench = (await client.json("bench", String(name), "--seconds", "1")) as {
      paths: string[];
      bitsPerSecond: number;
    };
    expect(bench.paths).toEqual(["direct"]);
    console.log(`${title}: ${(bench.bitsPerSecond / 1e6).toFixed(0)} Mbit/s on loopback`);
  });
});

function forwardedPort({ process }: Agent): number {
  for (const { text } of process.lines) {
    const port = /Forwarding tcp 127\.0\.0\.1:(\d+)/.exec(text)?.[1];
    if (port !== undefined) return Number(port);
  }
  throw new Error(`No forward was logged:\n${process.log()}`);
}
