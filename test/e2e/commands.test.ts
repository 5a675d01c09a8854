/** What the commands beside a running agent answer, for people and for programs, and the exit code of each. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Agent, agentCommand, type Coordinator, Stage } from "./programs.ts";

const stage = new Stage();
let coordinator: Coordinator;
let nas: Agent;
let laptop: Agent;
beforeAll(async () => {
  coordinator = await stage.coordinator();
  [nas, laptop] = await Promise.all([stage.member(coordinator, "nas"), stage.member(coordinator, "laptop")]);
});
afterAll(() => stage.end());

describe("two members on one machine", () => {
  test("get a direct path, and both sides say so", async () => {
    expect((await laptop.command("wait", "--for", "direct=nas", "--timeout", "10")).code).toBe(0);
    expect((await nas.command("wait", "--for", "direct=laptop", "--timeout", "10")).code).toBe(0);
    const status = (await laptop.json("status")) as Status;
    expect(status).toMatchObject({
      schema: 1,
      self: {
        name: "laptop",
        tun: null,
        meshIPv4: expect.stringMatching(/^100\.(9[6-9]|1[01]\d)\./),
        coordinator: { url: coordinator.url, connected: true },
      },
      peers: [{ name: "nas", online: true, path: { kind: "direct", legs: null } }],
    });
    const [peer] = status.peers;
    // A relay may have carried the first packets.
    expect(peer?.history[0]?.from).toBeNull();
    expect(peer?.history.at(-1)?.to).toBe("direct");
    expect(peer?.fingerprint.replaceAll("-", "")).toBe(peer?.id);
    expect(Date.parse(peer?.path?.since ?? "")).toBeGreaterThan(Date.now() - 60_000);
  });

  test("status and peers name the other one in a table for people", async () => {
    const { stdout } = await laptop.command("status");
    expect(stdout).toMatch(/^laptop {2}100\./);
    expect(stdout).toMatch(/^nas +direct +[\d.]+ ms/m);
    expect(stdout).toContain("1 peer: 1 direct");
    expect((await laptop.command("peers")).stdout).toMatch(/^nas +online +100\./m);
    expect(await laptop.json("peers")).toMatchObject({ schema: 1, peers: [{ name: "nas" }] });
  });

  test("why explains the path", async () => {
    const { code, stdout } = await laptop.command("why", "nas");
    expect([code, stdout]).toEqual([0, expect.stringMatching(/^nas: direct for \d+ s, [\d.]+ ms\nDirect path /)]);
    expect(await laptop.json("why", "nas")).toMatchObject({ schema: 1, name: "nas", path: { kind: "direct" } });
  });

  test("ping measures over the path, one object a line, and stops when direct is all that was asked", async () => {
    const { code, stdout } = await laptop.command("ping", "nas", "-c", "3", "-i", "0.05", "--json");
    expect(code).toBe(0);
    const answers = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { seq: number });
    const first = answers[0]?.seq ?? 0;
    expect(answers).toEqual([0, 1, 2].map((i) => ({ seq: first + i, rttMs: expect.any(Number), path: "direct" })));
    const until = await laptop.command("ping", "nas", "--until-direct", "--timeout", "5");
    expect([until.code, until.stdout.split("\n")]).toEqual([0, expect.objectContaining({ length: 3 })]);
  });

  test("a peer is found by its mesh addresses and its id too", async () => {
    const { meshIPv4, meshIPv6, id } = ((await laptop.json("status")) as Status).peers[0] ?? {};
    for (const reference of [meshIPv4, meshIPv6, id]) {
      expect((await laptop.command("ping", reference ?? "", "-c", "1")).code).toBe(0);
    }
  });

  test("netcheck tells what the running agent knows", async () => {
    expect(await laptop.json("netcheck")).toMatchObject({
      schema: 1,
      udp: true,
      ipv4: { mapping: "none", publicAddress: expect.stringMatching(/^127\.0\.0\.1:\d+$/) },
      websocket: true,
      proxy: null,
      summary: expect.any(String),
    });
  });

  test("the log has the stable events, one object a line", async () => {
    expect(laptop.events.all().map(({ name }) => name)).toEqual(
      expect.arrayContaining(["started", "joined", "peer_online", "nat_detected", "path_changed"]),
    );
    const changes = laptop.events.all("path_changed").map(({ fields }) => fields);
    expect(changes[0]).toMatchObject({ peer: "nas", from: "none" });
    expect(changes.at(-1)).toMatchObject({ peer: "nas", to: "direct", reason: expect.any(String) });
    const { fields } = await coordinator.events.next("punch_signalled");
    expect(fields["skewMs"]).toEqual(expect.any(Number));
    expect(coordinator.events.all("agent_joined").map(({ fields }) => fields["name"])).toEqual(
      expect.arrayContaining(["nas", "laptop"]),
    );
  });
});

describe("peers that cannot be reached", () => {
  test("an unknown one is code 5 at once, an awaited one code 7", async () => {
    expect((await laptop.command("why", "nobody")).code).toBe(5);
    expect((await laptop.command("trust", "nobody")).code).toBe(5);
    expect((await laptop.command("block", "nobody")).code).toBe(5);
    const { code, stderr } = await laptop.command("ping", "nobody", "-c", "1");
    expect([code, stderr]).toEqual([5, expect.stringContaining('There is no peer "nobody"')]);
    expect((await laptop.command("wait", "--for", "peer=nobody", "--timeout", "0.3")).code).toBe(7);
  });

  test("one that has stopped is offline, and online again when it is back", async () => {
    const guest = await stage.member(coordinator, "guest");
    expect((await laptop.command("wait", "--for", "direct=guest", "--timeout", "10")).code).toBe(0);
    await guest.process.stop();
    await expect
      .poll(async () => (await laptop.command("ping", "guest", "-c", "1")).code, { timeout: 5_000, interval: 100 })
      .toBe(5);
    const back = stage.agent([], { stateDir: guest.stateDir });
    await back.joined();
    expect((await laptop.command("wait", "--for", "direct=guest", "--timeout", "10")).code).toBe(0);
    await back.process.stop();
  });

  test("a blocked one is refused on both sides until it is trusted again", async () => {
    const pest = await stage.member(coordinator, "pest");
    expect((await laptop.command("wait", "--for", "direct=pest", "--timeout", "10")).code).toBe(0);
    expect((await laptop.command("block", "pest")).code).toBe(0);
    expect(await laptop.json("why", "pest")).toMatchObject({ path: null });
    expect((await laptop.command("status")).stdout).toMatch(/^pest +blocked/m);
    const ping = await laptop.command("ping", "pest", "-c", "1", "--timeout", "2");
    expect(ping.code).toBe(5);
    // Being blocked is not announced, so the other side may try in vain.
    expect([5, 7]).toContain((await pest.command("ping", "laptop", "-c", "1", "--timeout", "2")).code);
    expect((await laptop.command("trust", "pest")).code).toBe(0);
    expect((await laptop.command("wait", "--for", "direct=pest", "--timeout", "10")).code).toBe(0);
    await pest.process.stop();
  });

  test("without direct paths an online peer is relayed, and says why", async () => {
    const shy = stage.agent([coordinator.url, "--name", "shy", "--key", coordinator.joinKey, "--no-direct"]);
    await shy.joined();
    expect((await shy.command("ping", "nas", "-c", "1")).code).toBe(0);
    const until = await shy.command("ping", "nas", "--until-direct", "-i", "0.2", "--timeout", "1");
    expect([until.code, until.stderr]).toEqual([6, expect.stringContaining('"tunnelmesh-agent why nas" says why')]);
    expect((await shy.command("wait", "--for", "direct=nas", "--timeout", "0.3")).code).toBe(7);
    expect(await shy.json("why", "nas")).toMatchObject({
      path: { kind: expect.stringMatching(/^(ssh|websocket)$/) },
      why: expect.stringMatching(/--no-direct/),
    });
    // What a rule has ended at the relay is bound anew once the rule is gone.
    expect((await nas.command("block", "shy")).code).toBe(0);
    expect((await nas.command("trust", "shy")).code).toBe(0);
    for (const [from, to] of [
      [shy, "nas"],
      [nas, "shy"],
    ] as const) {
      expect((await from.command("wait", "--for", `peer=${to}`, "--timeout", "5")).code).toBe(0);
      expect((await from.command("ping", to, "-c", "1", "--timeout", "2")).code).toBe(0);
    }
    await shy.process.stop();
  });

  test("without any kind of path an online peer stays without one", async () => {
    const no = ["--no-direct", "--no-ssh", "--no-websocket"];
    const loner = stage.agent([coordinator.url, "--name", "loner", "--key", coordinator.joinKey, ...no]);
    await loner.joined();
    expect((await loner.command("ping", "nas", "-c", "1", "--timeout", "1")).code).toBe(7);
    expect(await loner.json("why", "nas")).toMatchObject({ path: null });
    await loner.process.stop();
  });
});

describe("without an agent", () => {
  test("every command that needs one is code 3 and says how to start it", async () => {
    const stateDir = stage.directory("agent");
    const commands = ["status", "peers", "down", "netcheck", "why nas", "ping nas", "trust nas", "block nas"];
    const outputs = await Promise.all(
      commands.map((command) => agentCommand([...command.split(" "), "--state-dir", stateDir])),
    );
    for (const [index, { code, stderr, stdout }] of outputs.entries()) {
      expect([commands[index], code, stdout]).toEqual([commands[index], 3, ""]);
      expect(stderr).toMatch(/^No agent is running .*"tunnelmesh-agent .*"\n$/);
    }
    expect((await agentCommand(["wait", "--timeout", "0.2", "--state-dir", stateDir])).code).toBe(3);
  });

  test("version and help answer, and a wrong command line is code 2", async () => {
    expect(await agentCommand(["version"])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^tunnelmesh-agent \d/),
    });
    expect(JSON.parse((await agentCommand(["version", "--json"])).stdout)).toMatchObject({ schema: 1 });
    expect((await agentCommand(["--help"])).stdout).toContain("Exit codes: 0 ok, 1 failed, 2 usage");
    for (const wrong of [
      ["frobnicate"],
      ["status", "--frob"],
      ["ping"],
      ["up", "--tun", "maybe"],
      ["ping", "a", "-c", "x"],
    ]) {
      expect([wrong, (await agentCommand(wrong)).code]).toEqual([wrong, 2]);
    }
  });
});

interface Status {
  readonly peers: readonly {
    readonly id: string;
    readonly fingerprint: string;
    readonly meshIPv4: string;
    readonly meshIPv6: string;
    readonly path: { readonly since: string } | null;
    readonly history: readonly { readonly from: string | null; readonly to: string | null }[];
  }[];
}
