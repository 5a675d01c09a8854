/**
 * What rootless machines do for each other: forwards, SOCKS, CONNECT, `nc`, open ports and refusals, with curl and sockets as programs. Two agents
 * without a network device on loopback; the services and the clients are on the same machine and reach each other only through them.
 */
import { createHash, randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MAX_STREAM_UNSENT_BYTES, MAX_STREAM_WINDOW } from "../../agent/overlay/limits.ts";
import { type LabProcess, run } from "../lab/process.ts";
import { type Agent, AGENT, type Coordinator, residentBytes, Stage } from "./programs.ts";

const FILE = randomBytes(5_000_000);
const FILE_HASH = createHash("sha256").update(FILE).digest("hex");

/** What the two sockets between sender and agent may hold, and the two between agent and reader: the kernel lets them grow to this. */
const SOCKET_BUFFER_BYTES = ["wmem", "rmem"].map(largestBuffer).reduce((sum, bytes) => sum + bytes, 0);
/** A sender may be rid of this much although nobody reads it: the socket buffers at both ends, and one stream's window and queue between them. */
const STALLED_BYTES = 2 * SOCKET_BUFFER_BYTES + MAX_STREAM_WINDOW + MAX_STREAM_UNSENT_BYTES + 64 * 1024;
const SOURCE_BYTES = STALLED_BYTES + 64 * 1024 * 1024;
/** What an agent may grow by: the window, once as it came and once as a copy, and what the collector has not looked at yet. */
const GROWTH_BYTES = 2 * MAX_STREAM_WINDOW + 32 * 1024 * 1024;

const stage = new Stage();
let coordinator: Coordinator;
let nas: Agent;
let laptop: Agent;
let web: ReturnType<typeof Bun.serve>;
/** Sends back what it gets, and ends when its client has. */
let echo: ReturnType<typeof createServer>;
let source: Source;
let udp: Bun.udp.Socket<"uint8array">;
/** Nobody listens there, but it is open to the mesh. */
let deadPort = 0;
let ports: { socks: number; web: number; echo: number; source: number; udp: number };

beforeAll(async () => {
  web = Bun.serve({ hostname: "127.0.0.1", port: 0, idleTimeout: 60, fetch: () => new Response(FILE) });
  echo = createServer({ allowHalfOpen: true }, (socket) => void socket.pipe(socket).on("error", () => {}));
  await new Promise<void>((resolve) => echo.listen(0, "127.0.0.1", resolve));
  source = await Source.start();
  udp = await Bun.udpSocket({
    hostname: "127.0.0.1",
    port: 0,
    binaryType: "uint8array",
    socket: { data: (socket, bytes, port, ip) => void socket.send(bytes.toReversed(), port, ip) },
  });
  deadPort = await freePort();
  const echoPort = portOf(echo);
  const exposed = [web.port, echoPort, source.port, udp.port, deadPort].join(",");
  coordinator = await stage.coordinator();
  const key = ["--key", coordinator.joinKey];
  nas = stage.agent([coordinator.url, "--name", "nas", ...key, "--expose", exposed]);
  await nas.joined();
  const forwards = [
    `0:nas:${web.port}`,
    `0:nas.mesh:${echoPort}`,
    `0:nas:${source.port}`,
    `udp:0:nas:${udp.port}`,
  ].join(",");
  laptop = stage.agent([coordinator.url, "--name", "laptop", ...key, "--socks", "0", "--forward", forwards]);
  await laptop.joined();
  expect((await laptop.command("wait", "--for", "direct=nas", "--timeout", "10")).code).toBe(0);
  ports = {
    socks: loggedPort(/^SOCKS5 and HTTP CONNECT on 127\.0\.0\.1:(\d+)$/),
    web: loggedPort(new RegExp(`^Forwarding tcp 127\\.0\\.0\\.1:(\\d+) to port ${web.port} of "nas"$`)),
    echo: loggedPort(new RegExp(`^Forwarding tcp 127\\.0\\.0\\.1:(\\d+) to port ${echoPort} of "nas"$`)),
    source: loggedPort(new RegExp(`^Forwarding tcp 127\\.0\\.0\\.1:(\\d+) to port ${source.port} of "nas"$`)),
    udp: loggedPort(/^Forwarding udp 127\.0\.0\.1:(\d+) to port \d+ of "nas"$/),
  };
});
afterAll(async () => {
  await stage.end();
  await web.stop(true);
  echo.close();
  source.stop();
  udp.close();
});

describe("a local port that leads to a peer's", () => {
  test("carries a download of curl whole", async () => {
    expect(await download(`http://127.0.0.1:${ports.web}/`)).toEqual({ code: 0, hash: FILE_HASH });
  });

  test("keeps half-close: the end of the input comes through, and then the answer", async () => {
    const bytes = randomBytes(3_000_000);
    expect((await exchange(ports.echo, bytes)).equals(bytes)).toBe(true);
  });

  test("carries a hundred connections at once", async () => {
    const all = await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        const bytes = Buffer.alloc(20_000 + i, i);
        return (await exchange(ports.echo, bytes)).equals(bytes);
      }),
    );
    expect(all.every(Boolean)).toBe(true);
  });

  test("a reader that stops reading holds back its own sender within a bound, costs little memory, and holds back nobody else", async () => {
    const resident = (): number[] => [nas, laptop].map((agent) => residentBytes(agent.process) ?? 0);
    const fetch = async (): Promise<void> =>
      expect(await download(`http://127.0.0.1:${ports.web}/`)).toEqual({ code: 0, hash: FILE_HASH });
    // Traffic of any kind makes the heap larger, once: what is compared below is the same heap with and without the stalled stream.
    for (let i = 0; i < 10; i++) await fetch();
    const before = resident();
    const stalled = connect(ports.source, "127.0.0.1");
    await new Promise((resolve) => stalled.once("connect", resolve));
    stalled.pause();
    const stalledAt = performance.now();
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const growth = resident().map((bytes, i) => bytes - (before[i] ?? 0));
    let finished = 0;
    for (; performance.now() - stalledAt < 2000; finished++) await fetch();
    console.log(
      `taken from the sender: ${mebi(source.takenBytes)} of ${mebi(SOURCE_BYTES)} MiB, at most ${mebi(STALLED_BYTES)}; ` +
        `the agents grew by ${growth.map(mebi).join(" and ")} MiB; ${finished} downloads beside it`,
    );
    expect(source.takenBytes).toBeLessThan(STALLED_BYTES);
    expect(Math.max(...growth)).toBeLessThan(GROWTH_BYTES);
    expect(finished).toBeGreaterThanOrEqual(2);
    const hash = createHash("sha256");
    stalled.on("data", (chunk) => hash.update(chunk));
    stalled.resume();
    await new Promise((resolve) => stalled.once("end", resolve));
    stalled.destroy();
    expect([source.takenBytes, hash.digest("hex")]).toEqual([SOURCE_BYTES, source.hash]);
  });

  test("carries datagrams and their answers to whoever asked", async () => {
    const answers = await Promise.all(["first", "second"].map((text) => askUdp(ports.udp, text)));
    expect(answers).toEqual(["tsrif", "dnoces"]);
  });

  test("comes and goes with the command of that name", async () => {
    const child = stage.spawn("forward", [AGENT, "forward", "0", `nas:${web.port}`, "--state-dir", laptop.stateDir]);
    const port = await child.waitFor("the port", ({ text }) => /127\.0\.0\.1:(\d+)/.exec(text)?.[1], 5000);
    expect(await download(`http://127.0.0.1:${port}/`)).toEqual({ code: 0, hash: FILE_HASH });
    child.signal("SIGINT");
    expect(await child.exited).toBe(0);
    await expect.poll(async () => (await download(`http://127.0.0.1:${port}/`)).code, { timeout: 3000 }).toBe(7);
  });

  test.each(["127.0.0.2", "[::1]"])("and the SOCKS port listen on %s alone when told so", async (bind) => {
    const url = (port: string) => `http://${bind}:${port}/`;
    const start = async (...words: string[]): Promise<{ child: LabProcess; port: string }> => {
      const child = stage.spawn("listener", [AGENT, ...words, "--state-dir", laptop.stateDir]);
      const port = ({ text }: { text: string }) => text.split(`${bind}:`)[1]?.match(/^\d+/)?.[0];
      return { child, port: await child.waitFor("the port", port, 5000) };
    };
    const forward = await start("forward", `${bind}:0`, `nas:${web.port}`);
    const socks = await start("socks", `${bind}:0`);
    expect(await download(url(forward.port))).toEqual({ code: 0, hash: FILE_HASH });
    const proxy = ["--proxy", `socks5h://${bind}:${socks.port}`];
    expect(await download(`http://nas:${web.port}/`, ...proxy)).toEqual({ code: 0, hash: FILE_HASH });
    for (const { port } of [forward, socks]) expect((await download(`http://127.0.0.1:${port}/`)).code).toBe(7);
    await Promise.all([forward.child.stop(), socks.child.stop()]);
  });

  test("gives a small request its answer at once beside ten downloads that take all they get", async () => {
    const downloads = Array.from({ length: 10 }, async () => {
      for (let i = 0; i < 5; i++) {
        expect(await download(`http://127.0.0.1:${ports.web}/`)).toEqual({ code: 0, hash: FILE_HASH });
      }
    });
    const state = { isOver: false };
    const all = Promise.all(downloads).finally(() => {
      state.isOver = true;
    });
    const times: number[] = [];
    while (!state.isOver) {
      const startedAt = performance.now();
      expect((await exchange(ports.echo, Buffer.from("small"))).toString()).toBe("small");
      times.push(performance.now() - startedAt);
    }
    await all;
    times.sort((a, b) => a - b);
    const median = times[Math.floor(times.length / 2)] ?? Number.NaN;
    console.log(
      `small requests beside ten downloads: median ${median.toFixed(1)} ms, worst ${times.at(-1)?.toFixed(1)} ms of ${times.length}`,
    );
    expect(times.length).toBeGreaterThan(5);
    // It takes its turn among eleven: what is queued for the others does not come first.
    expect(median).toBeLessThan(300);
  });

  test("that is taken ends the agent, or the command, with code 1", async () => {
    const taken = await laptop.command("forward", String(web.port), "nas:80");
    expect([taken.code, taken.stderr]).toEqual([1, expect.stringMatching(/Cannot listen on .* already in use/)]);
    const late = stage.agent([coordinator.url, "--name", "late", "--socks", String(web.port)]);
    expect(await late.outcome()).toMatchObject({ code: 1, message: expect.stringContaining("already in use") });
  });
});

describe("the SOCKS port", () => {
  test.each(["nas", "nas.mesh", "NAS"])("finds %s by SOCKS5 with remote names", async (name) => {
    const proxy = ["--proxy", `socks5h://127.0.0.1:${ports.socks}`];
    expect(await download(`http://${name}:${web.port}/`, ...proxy)).toEqual({ code: 0, hash: FILE_HASH });
  });

  test("takes mesh addresses, and HTTP CONNECT on the same port", async () => {
    const status = (await laptop.json("status")) as { peers: { meshIPv4: string; meshIPv6: string }[] };
    const { meshIPv4 = "", meshIPv6 = "" } = status.peers[0] ?? {};
    const http = ["--proxy", `http://127.0.0.1:${ports.socks}`, "--proxytunnel"];
    const socks = ["--proxy", `socks5://127.0.0.1:${ports.socks}`];
    for (const [host, proxy] of [
      [meshIPv4, socks],
      [`[${meshIPv6}]`, socks],
      ["nas", http],
      [meshIPv4, http],
    ] as const) {
      expect([host, await download(`http://${host}:${web.port}/`, ...proxy)]).toEqual([
        host,
        { code: 0, hash: FILE_HASH },
      ]);
    }
  });

  test("says in its protocol what is refused, and why", async () => {
    const ask = async (url: string, ...proxy: string[]) =>
      run(["curl", "--silent", "--show-error", "--verbose", "--max-time", "10", ...proxy, url]);
    const socks = ["--proxy", `socks5h://127.0.0.1:${ports.socks}`];
    const http = ["--proxy", `http://127.0.0.1:${ports.socks}`];
    const hidden = await freePort();
    const outcomes = await Promise.all([
      ask(`http://nas:${deadPort}/`, ...socks),
      ask(`http://nas:${hidden}/`, ...socks),
      ask("http://nobody/", ...socks),
      ask(`http://nas:${hidden}/`, "--proxytunnel", ...http),
      ask("http://nas/", ...http),
    ]);
    // curl names RFC 1928's reply by its number.
    expect(outcomes.map(({ code }) => code)).toEqual([97, 97, 97, 56, 0]);
    expect(outcomes[0]?.stderr).toMatch(/\(5\)/);
    expect(outcomes[1]?.stderr).toMatch(/\(2\)/);
    expect(outcomes[2]?.stderr).toMatch(/\(4\)/);
    expect(outcomes[3]?.stderr).toContain("403");
    expect(outcomes[4]?.stdout).toContain("add --proxytunnel");
  });
});

describe("nc", () => {
  test("is binary clean, ends one direction by itself, and ends at the end", async () => {
    const bytes = randomBytes(2_000_000);
    const child = Bun.spawn([AGENT, "nc", "nas", String(portOf(echo)), "--state-dir", laptop.stateDir], {
      stdin: bytes,
      stdout: "pipe",
      stderr: "pipe",
    });
    const output = Buffer.from(await new Response(child.stdout).arrayBuffer());
    expect([await child.exited, output.equals(bytes)]).toEqual([0, true]);
  });

  test("says what is wrong, with the exit code of the contract", async () => {
    const hidden = await freePort();
    const outcomes = await Promise.all([
      laptop.command("nc", "nas", String(deadPort)),
      laptop.command("nc", "nas", String(hidden)),
      laptop.command("nc", "nobody", "22"),
      laptop.command("nc", "nas", "0"),
    ]);
    expect(outcomes.map(({ code, stderr }) => [code, stderr.split(":")[0]?.split(";")[0]?.trim()])).toEqual([
      [1, "Connection refused"],
      [1, `"nas" does not offer port ${hidden} to the mesh`],
      [5, 'There is no peer "nobody"'],
      [2, expect.any(String)],
    ]);
  });
});

describe("what is open", () => {
  test("without --expose, nothing is", async () => {
    expect((await nas.command("nc", "laptop", String(web.port))).stderr).toContain("does not offer port");
  });

  test("streams go on through every change of rung", async () => {
    const downloads = Array.from({ length: 5 }, () => download(`http://127.0.0.1:${ports.web}/`));
    for (const rung of ["websocket", "ssh", "direct", "websocket", "auto"]) {
      expect((await laptop.command("path", "nas", rung)).code).toBe(0);
      downloads.push(download(`http://127.0.0.1:${ports.web}/`));
    }
    for (const outcome of await Promise.all(downloads)) expect(outcome).toEqual({ code: 0, hash: FILE_HASH });
  });

  test("a peer that stops resets the connections of its streams at once", async () => {
    const guest = stage.agent([coordinator.url, "--name", "guest", "--key", coordinator.joinKey, "--expose", "all"]);
    await guest.joined();
    const child = Bun.spawn([AGENT, "nc", "guest", String(portOf(echo)), "--state-dir", laptop.stateDir], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
    void child.stdin.write("hello\n");
    await child.stdin.flush();
    const reader = child.stdout.getReader();
    expect(Buffer.from((await reader.read()).value ?? []).toString()).toBe("hello\n");
    const stoppedAt = performance.now();
    await guest.process.stop();
    expect([await child.exited, await new Response(child.stderr).text()]).toEqual([
      5,
      'The agent of "guest" has stopped\n',
    ]);
    expect(performance.now() - stoppedAt).toBeLessThan(3000);
  });
});

/** Sends its only client `SOURCE_BYTES` as fast as they are taken. */
class Source {
  readonly #server: ReturnType<typeof createServer>;
  readonly #hash = createHash("sha256");
  /** What the kernel has taken from it. */
  takenBytes = 0;

  private constructor() {
    this.#server = createServer((socket) => {
      socket.on("error", () => {});
      this.#send(socket);
    });
  }

  static async start(): Promise<Source> {
    const source = new Source();
    await new Promise<void>((resolve) => source.#server.listen(0, "127.0.0.1", resolve));
    return source;
  }

  get port(): number {
    return portOf(this.#server);
  }

  /** Of everything, once it is sent. */
  get hash(): string {
    return this.#hash.copy().digest("hex");
  }

  stop(): void {
    this.#server.close();
  }

  #send(socket: Socket): void {
    const left = SOURCE_BYTES - this.takenBytes;
    if (left === 0) {
      socket.end();
      return;
    }
    const piece = randomBytes(Math.min(left, 256 * 1024));
    this.#hash.update(piece);
    socket.write(piece, () => {
      this.takenBytes += piece.length;
      this.#send(socket);
    });
  }
}

/** The largest that the kernel makes the buffer of a TCP socket by itself; where it does not say, what Linux has. */
function largestBuffer(which: string): number {
  const path = `/proc/sys/net/ipv4/tcp_${which}`;
  return existsSync(path) ? Number(readFileSync(path, "utf8").trim().split(/\s+/)[2]) : 6 * 1024 * 1024;
}

const mebi = (bytes: number): string => (bytes / 1024 / 1024).toFixed(1);

function portOf(server: ReturnType<typeof createServer>): number {
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : 0;
}

/** A port that was free a moment ago. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const port = portOf(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function loggedPort(pattern: RegExp): number {
  for (const { text } of laptop.process.lines) {
    if (!text.startsWith("{")) continue;
    const port = pattern.exec((JSON.parse(text) as { message?: string }).message ?? "")?.[1];
    if (port !== undefined) return Number(port);
  }
  throw new Error(`Nothing like ${pattern} was logged:\n${laptop.process.log()}`);
}

async function download(url: string, ...options: string[]): Promise<{ code: number; hash: string }> {
  const child = Bun.spawn(["curl", "--silent", "--max-time", "15", "--noproxy", "", ...options, url], {
    stdout: "pipe",
  });
  const body = Buffer.from(await new Response(child.stdout).arrayBuffer());
  return { code: await child.exited, hash: createHash("sha256").update(body).digest("hex") };
}

/** Sends all bytes and ends; resolves with what came back until the other side ended. */
function exchange(port: number, bytes: Buffer): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const parts: Buffer[] = [];
  const socket: Socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  socket.on("data", (part) => parts.push(part));
  socket.on("end", () => resolve(Buffer.concat(parts)));
  socket.on("error", reject);
  socket.end(bytes);
  return promise;
}

async function askUdp(port: number, text: string): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  const socket = await Bun.udpSocket({
    connect: { hostname: "127.0.0.1", port },
    binaryType: "uint8array",
    socket: { data: (_socket, bytes) => resolve(Buffer.from(bytes).toString()) },
  });
  // Datagrams may be lost, the first ones while a flow is made: ask as programs do, again and again.
  const timer = setInterval(() => socket.send(text), 100);
  socket.send(text);
  const answer = await promise;
  clearInterval(timer);
  socket.close();
  return answer;
}
