/** How a machine gets into the mesh, by key and by approval, and every way of not getting in, with the exit code of the contract. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Agent, agentCommand, type Coordinator, Stage } from "./programs.ts";

const stage = new Stage();
let coordinator: Coordinator;
beforeAll(async () => {
  coordinator = await stage.coordinator();
});
afterAll(() => stage.end());

const OTHER_FINGERPRINT = "a".repeat(26);

async function keyOf(...options: readonly string[]): Promise<{ id: string; key: string }> {
  const { id, key } = await coordinator.admin("key", "create", ...options);
  return { id: String(id), key: String(key) };
}

const refused = async (agent: Agent, code: number, message: RegExp): Promise<void> => {
  expect(await agent.outcome()).toEqual({ code, message: expect.stringMatching(message) });
};

describe("with a join key", () => {
  test("a machine joins, and starts again without the key and the URL, as the same member", async () => {
    const { key } = await keyOf();
    const first = stage.agent([coordinator.url, "--key", key, "--name", "twice"]);
    const before = await first.joined();
    expect(before).toMatchObject({ name: "twice", tun: null, coordinator: coordinator.url });
    expect(await first.process.stop()).toBe(0);
    expect(first.events.all("stopped").at(-1)?.fields["reason"]).toBe("signal");

    const second = stage.agent([], { stateDir: first.stateDir });
    const after = await second.joined();
    expect([after["id"], after["meshIPv4"], after["meshIPv6"], after["name"]]).toEqual([
      before["id"],
      before["meshIPv4"],
      before["meshIPv6"],
      "twice",
    ]);
    expect((await second.command("down")).code).toBe(0);
    expect(await second.process.exited).toBe(0);
  });

  test("the key may come from a file or the environment, and never appears in what is printed", async () => {
    const { key } = await keyOf("--reusable");
    const agent = stage.agent([coordinator.url, "--name", "by-environment"], { env: { TUNNELMESH_KEY: key } });
    await agent.joined();
    expect(agent.process.log()).not.toContain(key.split("_")[2]);
    await agent.process.stop();
  });

  test("caps of guessing ports above the built-in ones are refused, wherever they stand", async () => {
    const { key } = await keyOf("--reusable");
    await refused(stage.agent([coordinator.url, "--key", key, "--punch-packets", "4001"]), 2, /from 0 to 4000/);
    await refused(
      stage.agent([coordinator.url, "--key", key], { env: { TUNNELMESH_PUNCH_SOCKETS: "385" } }),
      2,
      /TUNNELMESH_PUNCH_SOCKETS has the value "385": it must be a whole number from 1 to 384/,
    );
    const agent = stage.agent([coordinator.url, "--key", key, "--punch-packets", "0", "--punch-rate", "100"]);
    await agent.joined();
    await agent.process.stop();
  });

  test("a single-use key lets nobody else in", async () => {
    const { key } = await keyOf();
    const first = stage.agent([coordinator.url, "--key", key]);
    await first.joined();
    await first.process.stop();
    await refused(
      stage.agent([coordinator.url, "--key", key]),
      4,
      /^The join key is unknown, used up or revoked; create/,
    );
  });

  test("a revoked key is refused within two seconds of the command", async () => {
    const { id, key } = await keyOf("--reusable");
    await coordinator.admin("key", "revoke", id);
    await refused(stage.agent([coordinator.url, "--key", key]), 4, /unknown, used up or revoked/);
  });

  test("an expired key is refused", async () => {
    const { key } = await keyOf("--expires", "1s");
    await new Promise((resolve) => setTimeout(resolve, 1100));
    await refused(stage.agent([coordinator.url, "--key", key]), 4, /^The join key has expired/);
  });

  test("a key with a wrong secret, and one that is no key, are refused", async () => {
    const [, id, secret = "", fingerprint] = coordinator.joinKey.split("_");
    const wrong = `tmk_${id}_${(secret.startsWith("a") ? "b" : "a") + secret.slice(1)}_${fingerprint}`;
    await refused(stage.agent([coordinator.url, "--key", wrong]), 4, /unknown, used up or revoked/);
    await refused(stage.agent([coordinator.url, "--key", "tmk_short"]), 4, /^The join key is malformed/);
  });

  test("a coordinator with another fingerprint than the key's is refused", async () => {
    const key = coordinator.joinKey.replace(/[^_]+$/, OTHER_FINGERPRINT);
    await refused(stage.agent([coordinator.url, "--key", key]), 4, /is not the coordinator that this machine knows/);
  });
});

describe("without a key", () => {
  test("a machine shows its code and the coordinator's fingerprint, and joins once approved", async () => {
    const agent = stage.agent([coordinator.url, "--name", "stranger"]);
    const code = await agent.process.waitFor("code", (line) => /peer approve ([A-Z]{8})\b/.exec(line.text)?.[1], 5_000);
    const fingerprint = coordinator.joinKey.split("_")[3] ?? "";
    expect(agent.process.log()).toContain(fingerprint.replace(/(.{4})(?=.)/g, "$1-"));
    expect(await agent.json("status")).toMatchObject({
      self: { name: null, coordinator: { message: `waiting for approval with code ${code}` } },
    });
    expect((await agent.command("wait", "--for", "joined", "--timeout", "0.2")).code).toBe(7);

    const approvedAt = performance.now();
    expect(await coordinator.admin("peer", "approve", code.toLowerCase())).toMatchObject({ name: "stranger" });
    await agent.joined();
    // Two seconds by contract; starting the command itself is part of what was measured.
    expect(performance.now() - approvedAt).toBeLessThan(4_000);
    await agent.process.stop();
  });

  test("one that is not approved in time ends with code 7", async () => {
    const agent = stage.agent([coordinator.url, "--timeout", "0.5"]);
    expect((await agent.outcome()).code).toBe(7);
    const waiting = (await coordinator.admin("peer", "list"))["peers"];
    expect(waiting).toContainEqual(expect.objectContaining({ state: "pending" }));
  });
});

describe("names", () => {
  test("an explicit name that is taken is refused with code 78, a default one gets a number", async () => {
    const holder = await stage.member(coordinator, "nas");
    const rival = stage.agent([coordinator.url, "--key", coordinator.joinKey, "--name", "nas"]);
    await refused(rival, 78, /^The name belongs to another machine; choose another --name than "nas"/);
    const first = stage.agent([coordinator.url, "--key", coordinator.joinKey]);
    const { name } = await first.joined();
    const second = stage.agent([coordinator.url, "--key", coordinator.joinKey]);
    const other = (await second.joined())["name"];
    expect(other).not.toBe(name);
    expect(other).toMatch(/-\d+$/);
    await Promise.all([holder, first, second].map((agent) => agent.process.stop()));
  });
});

describe("membership ends", () => {
  test("removing a peer ends its agent within two seconds, with code 4, and it does not get back in", async () => {
    const agent = await stage.member(coordinator, "goner");
    await coordinator.admin("peer", "remove", "goner");
    const removedAt = performance.now();
    await refused(agent, 4, /^The machine was removed from the mesh/);
    expect(performance.now() - removedAt).toBeLessThan(2_500);
    await refused(stage.agent([], { stateDir: agent.stateDir }), 4, /removed from the mesh; join again with a new key/);
  });
});

describe("an address that cannot be used", () => {
  test.each([
    ["nas:8080", /must begin with http:\/\/ or https:\/\//],
    ["http://user:secret@127.0.0.1:1", /must not contain a user name or password/],
    ["http://", /is not a URL/],
    ["http://127.0.0.1:0", /port 0 cannot be connected to/],
  ])("%s: code 78", async (url, message) => {
    const { code, stderr } = await agentCommand(["up", url, "--state-dir", stage.directory("agent")]);
    expect([code, stderr]).toEqual([78, expect.stringMatching(message)]);
    expect(stderr).not.toContain("secret");
  });

  test("an unreachable coordinator is tried again and again; with --timeout, code 7 says what is wrong", async () => {
    const agent = stage.agent(["http://127.0.0.1:1", "--key", coordinator.joinKey, "--timeout", "1"]);
    await refused(agent, 7, /^Not joined within 1 seconds: cannot reach the coordinator/);
  });
});
