/** The coordinator as a service: restarts, crashes, other listeners, and starts that cannot succeed. */
import { execFileSync } from "node:child_process";
import { createServer } from "node:net";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { type Agent, coordinatorCommand, LOOPBACK_PORTS, Stage } from "./programs.ts";

const stage = new Stage();
afterAll(() => stage.end());

const isDirect = async (agent: Agent, peer: string): Promise<boolean> => {
  const { peers } = (await agent.json("status")) as { peers: { name: string; path: { kind: string } | null }[] };
  return peers.find(({ name }) => name === peer)?.path?.kind === "direct";
};

describe("a coordinator that goes away", () => {
  test("after kill -9 direct paths live on, and everyone is back by itself once it is, with nothing lost", async () => {
    const before = await stage.coordinator();
    const [a, b] = await Promise.all([stage.member(before, "a"), stage.member(before, "b")]);
    expect((await a.command("wait", "--for", "direct=b", "--timeout", "10")).code).toBe(0);
    const members = (await before.admin("peer", "list"))["peers"] as { name: string; meshIPv4: string }[];
    const port = before.port("http");

    before.process.signal("SIGKILL");
    await before.process.exited;
    await expect
      .poll(async () => ((await a.json("status")) as SelfStatus).self.coordinator.connected, { timeout: 5_000 })
      .toBe(false);
    expect((await a.command("ping", "b", "-c", "2", "-i", "0.1")).code).toBe(0);
    expect(await isDirect(a, "b")).toBe(true);

    const after = await stage.coordinator({ dataDir: before.dataDir, listen: [`127.0.0.1:${port}`] });
    expect(after.events.all("join_line")).toEqual([]);
    await after.events.next("agent_joined", { accept: ({ name }) => name === "a" });
    await after.events.next("agent_joined", { accept: ({ name }) => name === "b" });
    const again = (await after.admin("peer", "list"))["peers"] as { name: string; meshIPv4: string }[];
    const addresses = (list: typeof again) => new Map(list.map(({ name, meshIPv4 }) => [name, meshIPv4]));
    expect(addresses(again)).toEqual(addresses(members));
    await expect
      .poll(async () => ((await a.json("status")) as SelfStatus).self.coordinator.connected, { timeout: 5_000 })
      .toBe(true);
    expect(await isDirect(a, "b")).toBe(true);
    expect(a.events.all("path_changed").filter(({ fields }) => fields["to"] === "none")).toEqual([]);
    await Promise.all([a, b].map((agent) => agent.process.stop()));
  });

  test("SIGTERM stops it in order, with code 0, and the same data directory starts again", async () => {
    const first = await stage.coordinator();
    const stoppedAt = performance.now();
    expect(await first.process.stop()).toBe(0);
    expect(performance.now() - stoppedAt).toBeLessThan(2_000);
    expect(first.events.all("stopped").length).toBe(1);
    const second = await stage.coordinator({ dataDir: first.dataDir });
    expect(second.events.all("ready")[0]?.fields["fingerprint"]).toBe(
      first.events.all("ready")[0]?.fields["fingerprint"],
    );
    expect(await second.isHealthy()).toBe(true);
  });
});

describe("https", () => {
  test("with a private authority agents join by --ca-file, and without it nobody is fooled", async () => {
    const files = certificates(stage.directory("certificates"));
    const coordinator = await stage.coordinator({
      listen: ["https://127.0.0.1:0"],
      extra: ["--tls-cert", files.certificate, "--tls-key", files.key],
    });
    const url = `https://127.0.0.1:${coordinator.port("https")}`;
    const options = [url, "--key", coordinator.joinKey, "--timeout", "3"];
    const trusting = stage.agent([...options, "--ca-file", files.authority]);
    expect((await trusting.joined())["coordinator"]).toBe(url);
    await trusting.process.stop();

    const doubting = stage.agent(options);
    const { code, message } = await doubting.outcome();
    expect([code, message]).toEqual([7, expect.stringMatching(/certificate/i)]);
    const empty = join(stage.directory("empty"), "ca.pem");
    writeFileSync(empty, "nothing\n");
    expect(await stage.agent([...options, "--ca-file", empty]).outcome()).toEqual({
      code: 78,
      message: expect.stringContaining("holds no certificate"),
    });
  });
});

describe("a start that cannot succeed", () => {
  test("without permissions explains itself with the exact command, and asks nothing", async () => {
    const { code, stderr } = await coordinatorCommand([], []);
    expect(code).toBe(78);
    expect(stderr).toContain("Cannot start: Deno does not allow what the coordinator needs");
    expect(stderr).toContain("  deno run -P coordinator/main.ts\n");
    expect(stderr).not.toMatch(/^\s+at /m);
  });

  test("a busy port is code 1 and names the port", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => server.on("listening", resolve));
    const address = server.address();
    const port = typeof address === "object" ? address?.port : undefined;
    const flags = LOOPBACK_PORTS;
    const { code, stderr } = await coordinatorCommand([
      "--listen",
      `127.0.0.1:${port}`,
      "--data-dir",
      stage.directory("coordinator"),
      ...flags,
    ]);
    server.close();
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(new RegExp(`Cannot listen on http://127.0.0.1:${port}: .*in use`)),
    ]);
  });

  test("a second one on the same data directory and ports is refused, and the first goes on", async () => {
    const first = await stage.coordinator();
    const { code } = await coordinatorCommand([
      "--listen",
      `127.0.0.1:${first.port("http")}`,
      "--data-dir",
      first.dataDir,
      ...LOOPBACK_PORTS,
    ]);
    expect(code).toBe(1);
    expect(await first.isHealthy()).toBe(true);
  });

  test("a broken database is code 1, says which file, and is left as it is", async () => {
    const dataDir = stage.directory("coordinator");
    const broken = "not a database, ".repeat(300);
    writeFileSync(join(dataDir, "coordinator.db"), broken);
    const { code, stderr } = await coordinatorCommand([
      "--listen",
      "127.0.0.1:0",
      "--data-dir",
      dataDir,
      ...LOOPBACK_PORTS,
    ]);
    expect([code, stderr]).toEqual([1, expect.stringContaining(dataDir)]);
    expect(existsSync(join(dataDir, "coordinator.db"))).toBe(true);
  });
});

interface SelfStatus {
  readonly self: { readonly coordinator: { readonly connected: boolean } };
}

/** A private authority and a certificate of it for 127.0.0.1. */
function certificates(directory: string): { authority: string; certificate: string; key: string } {
  const path = (name: string): string => join(directory, name);
  const openssl = (...arguments_: string[]): void => {
    execFileSync("openssl", arguments_, { cwd: directory, stdio: "pipe", timeout: 10_000 });
  };
  const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  openssl(
    "req",
    "-x509",
    ...newKey,
    "-keyout",
    "ca.key",
    "-out",
    "ca.pem",
    "-days",
    "2",
    "-subj",
    "/CN=Private authority",
  );
  openssl("req", ...newKey, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=coordinator");
  writeFileSync(path("extensions"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n");
  openssl(
    "x509",
    "-req",
    "-in",
    "server.csr",
    "-CA",
    "ca.pem",
    "-CAkey",
    "ca.key",
    "-CAcreateserial",
    "-out",
    "server.pem",
    "-days",
    "2",
    "-extfile",
    "extensions",
  );
  return { authority: path("ca.pem"), certificate: path("server.pem"), key: path("server.key") };
}
