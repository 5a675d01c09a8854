/** From argv over a real unix socket to the terminal, with an agent that has no mesh behind it. */
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type Runners, runCommandLine } from "../../../../agent/cli/execute.ts";
import { wantsColour } from "../../../../agent/cli/host.ts";
import { type LocalServer, serveLocalApi } from "../../../../agent/local/server.ts";
import { FileLock } from "../../../../agent/state/file_lock.ts";
import { StateFile } from "../../../../agent/state/state_file.ts";
import { EXIT } from "../../../../agent/state/user_error.ts";
import type { BenchEvent } from "../../../../agent/local/contract.ts";
import { FakeControl, NETCHECK, NOW, peerStatus, STATUS } from "../local/fake_control.ts";
import { scratchDir } from "../state/scratch.ts";
import { FakeHost } from "./fake_host.ts";

let stateDir: string;
let control: FakeControl;
let server: LocalServer;
let host: FakeHost;
let stop: AbortController;

beforeEach(async () => {
  stateDir = scratchDir();
  control = new FakeControl();
  host = new FakeHost();
  stop = new AbortController();
  server = await serveLocalApi(control, { socketPath: join(stateDir, "agent.sock"), stateDir, onBug: () => {} });
});
afterEach(() => server.stop());

describe("status", () => {
  test("tells in one screen who is reached how, and why not better", async () => {
    expect(await run("status")).toBe(EXIT.ok);
    expect(host.stdout).toBe(
      `laptop  100.96.0.1  fd00::1  on tm0
Network      port-restricted cone, seen from outside as 198.51.100.7:41641
Coordinator  connected to http://c.example:8080, 50.2 ms

PEER     PATH                                  ROUND TRIP  SINCE  NAT          WHY
nas      direct                                12.3 ms     3 min  full cone    Direct: both routers let the first packets cross
phone    relayed by ssh here, websocket there  131 ms      2 h    udp blocked  The network of "phone" blocks UDP
old-nas  offline                                                               Offline since yesterday

3 peers: 1 direct, 1 relayed, 1 offline
`,
    );
  });

  test("--json is the contract's, with fields of a newer agent passed through", async () => {
    control.current = { ...STATUS, later: { added: true } };
    expect(await run("status", "--json")).toBe(EXIT.ok);
    expect(JSON.parse(host.stdout)).toEqual({ ...STATUS, later: { added: true } });
  });

  test("a narrow terminal cuts the reason and nothing else", async () => {
    host.width = 123;
    await run("status");
    const lines = host.stdout.split("\n").slice(4, 8);
    expect(Math.max(...lines.map((line) => line.length))).toBe(123);
    expect(lines[1]).toMatch(/Direct: both .*\.\.\.$/);
  });

  test("on one so narrow that hardly anything would be left of it, the reason has a line of its own", async () => {
    host.width = 80;
    control.current = {
      ...STATUS,
      peers: [peerStatus("nas"), peerStatus("old", { online: false, path: null, why: "" })],
    };
    await run("status");
    expect(host.stdout.split("\n").slice(4, 8)).toEqual([
      "PEER  PATH     ROUND TRIP  SINCE  NAT",
      "nas   direct   12.3 ms     3 min  full cone",
      "    Direct: both routers let the first packets cross",
      "old   offline                     full cone",
    ]);
  });

  test("blocked peers and changed keys stand out; states without a path have words", async () => {
    control.current = {
      ...STATUS,
      self: {
        ...STATUS.self,
        name: null,
        meshIPv4: null,
        meshIPv6: null,
        coordinator: {
          url: "http://c",
          connected: false,
          rttMs: null,
          message: "waiting for approval with the code ABCD-EFGH",
        },
      },
      peers: [
        peerStatus("a", { path: null, trust: "changed" }),
        peerStatus("b", { path: null, trust: "blocked" }),
        peerStatus("c", { path: null }),
      ],
    };
    await run("status");
    expect(host.stdout).toMatch(/^not joined yet {2}without an address$/m);
    expect(host.stdout).toMatch(
      /^Coordinator {2}not connected to http:\/\/c: waiting for approval with the code ABCD-EFGH$/m,
    );
    expect(host.stdout).toMatch(/^a {5}key changed /m);
    expect(host.stdout).toMatch(/^b {5}blocked /m);
    expect(host.stdout).toMatch(/^c {5}none /m);
  });

  test("names from the network cannot drive the terminal", async () => {
    control.current = { ...STATUS, peers: [peerStatus("x\u001b]0;owned\u0007", { why: "a\nb\u009b2J" })] };
    await run("status");
    for (const control of ["\u001b", "\u0007", "\u009b"]) expect(host.stdout).not.toContain(control);
    expect(host.stdout).toContain("a?b?2J");
  });

  test("--watch shows it again each second until it is ended, then exits 0", async () => {
    let rounds = 0;
    host.onSleep = () => {
      if (++rounds === 3) stop.abort();
    };
    expect(await run("status", "--watch", "--json")).toBe(EXIT.ok);
    const lines = host.stdout.trimEnd().split("\n");
    expect(lines).toHaveLength(3);
    for (const line of lines) expect(JSON.parse(line)).toEqual(STATUS);
  });

  test("--watch redraws a terminal in place and says when the agent has gone", async () => {
    host.width = 80;
    host.onSleep = () => void server.stop();
    expect(await run("status", "--watch")).toBe(EXIT.agentNotRunning);
    const [before, picture] = host.stdout.split("\u001b[H");
    expect(before).toBe("\u001b[?25l\u001b[?7l\u001b[2J");
    const lines = picture?.split("\n") ?? [];
    for (const line of lines.slice(0, -1)) expect(line.endsWith("\u001b[K")).toBe(true);
    // The cursor and the wrapping of long lines are back.
    expect(lines.at(-1)).toBe("\u001b[J\u001b[?7h\u001b[?25h");
    expect(host.stderr).toContain("No agent is running");
  });

  test("--watch never draws more lines than the terminal has, and says how many are missing", async () => {
    host.width = 200;
    host.height = 6;
    host.onSleep = () => stop.abort();
    expect(await run("status", "--watch")).toBe(EXIT.ok);
    const picture = host.stdout.split("\u001b[H")[1] ?? "";
    expect(picture.split("\n")).toHaveLength(6);
    expect(picture).toContain("... and 6 more lines\u001b[K\n\u001b[J");
  });

  test("colours only where they are wanted", async () => {
    await run("status");
    expect(host.stdout).not.toContain("\u001b");
    host.isColoured = true;
    await run("status");
    expect(host.stdout).toContain("\u001b[32mdirect");
    expect(wantsColour(true, {})).toBe(true);
    expect(wantsColour(true, { NO_COLOR: "1" })).toBe(false);
    expect(wantsColour(true, { TERM: "dumb" })).toBe(false);
    expect(wantsColour(false, {})).toBe(false);
  });
});

describe("peers and why", () => {
  test("peers lists addresses and fingerprints", async () => {
    expect(await run("peers")).toBe(EXIT.ok);
    expect(host.stdout.split("\n")[1]).toBe("nas      online   100.96.0.2  fd00::2  aaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aa");
    host.stdout = "";
    await run("peers", "--json");
    expect(JSON.parse(host.stdout)).toEqual({ schema: 1, peers: STATUS.peers });
  });

  test("why says the path, since when, what stands against a better one and what would help", async () => {
    expect(await run("why", "phone")).toBe(EXIT.ok);
    expect(host.stdout).toBe(
      `phone: relayed by ssh here, websocket there for 2 h, 131 ms
The network of "phone" blocks UDP
NAT here: port-restricted cone; NAT there: udp blocked

Why not better:
  direct: Its network blocks UDP

What would help:
  Allow outgoing UDP there

Before:
  1 min ago: ssh to direct, A direct path was proven
`,
    );
    host.stdout = "";
    await run("why", "phone", "--json");
    expect(JSON.parse(host.stdout)).toMatchObject({ schema: 1, name: "phone", better: [{ kind: "direct" }] });
  });

  test("a peer that nobody is: code 5", async () => {
    expect(await run("why", "nobody")).toBe(EXIT.peerUnavailable);
    expect(host.stderr).toBe('No peer is called "nobody"; "tunnelmesh-agent peers" lists all\n');
  });
});

describe("bench", () => {
  const events: BenchEvent[] = [
    { bytes: 1_000_000, ms: 100, paths: ["ssh"], isFinal: false },
    { bytes: 515_000_000, ms: 10_000, paths: ["ssh", "direct"], isFinal: true },
  ];

  test("prints what has arrived, at what rate, over which paths", async () => {
    control.benchEvents = events;
    expect(await run("bench", "nas", "--seconds", "10")).toBe(EXIT.ok);
    expect(host.stdout).toBe("to nas: 412 Mbit/s, 515 MB in 10.0 s, relayed by ssh, then direct\n");
    expect(control.asked).toEqual([{ peer: "nas", seconds: 10, reverse: false }]);
  });

  test("on a terminal a line of progress comes before, and is drawn over", async () => {
    control.benchEvents = events;
    host.width = 80;
    await run("bench", "nas", "--reverse");
    const clear = "\r\u001b[K";
    expect(host.stdout).toBe(
      `${clear}from nas: 80.0 Mbit/s, 1.0 MB in 0.1 s, relayed by ssh${clear}from nas: 412 Mbit/s, 515 MB in 10.0 s, relayed by ssh, then direct\n`,
    );
  });

  test("--json is one object", async () => {
    control.benchEvents = events;
    host.width = 80;
    await run("bench", "nas", "--json");
    expect(JSON.parse(host.stdout)).toEqual({
      schema: 1,
      peer: "nas",
      direction: "to",
      bytes: 515_000_000,
      ms: 10_000,
      bitsPerSecond: 412_000_000,
      paths: ["ssh", "direct"],
    });
  });

  test("nothing arrived: code 7; more than a minute: code 2", async () => {
    expect(await run("bench", "nas")).toBe(EXIT.timedOut);
    expect(host.stderr).toBe('Nothing arrived; "tunnelmesh-agent why nas" says more\n');
    expect(await run("bench", "nas", "--seconds", "61")).toBe(EXIT.usage);
  });
});

describe("ping", () => {
  test("prints each answer and the summary", async () => {
    control.pings = [
      { seq: 1, rttMs: 130.2, path: "websocket" },
      { seq: 2, lost: true },
      { seq: 3, rttMs: 0.42, path: "direct" },
    ];
    expect(await run("ping", "nas", "-c", "3", "-i", "0.2", "--timeout", "9")).toBe(EXIT.ok);
    expect(host.stdout).toBe(
      `1 nas: 130 ms relayed by websocket
2 nas: no answer
3 nas: 0.42 ms direct
3 sent, 2 answered, 33 % lost; round trip 0.42 ms at best, 130 ms median, 130 ms at worst
`,
    );
    expect(control.asked).toEqual([{ peer: "nas", count: 3, intervalMs: 200, untilDirect: false, timeoutMs: 9000 }]);
  });

  test("tells of each move of the path as it happens", async () => {
    control.pings = [
      { seq: 1, rttMs: 130.2, path: "ssh" },
      { from: "ssh", to: "direct", reason: "the first pair was proven" },
      { seq: 2, rttMs: 12, path: "direct" },
      { from: "direct", to: null, reason: "offline" },
    ];
    expect(await run("ping", "nas", "-c", "2")).toBe(EXIT.ok);
    expect(host.stdout.split("\n").slice(1, 5)).toEqual([
      "-> nas moves from relayed by ssh to direct: the first pair was proven",
      "2 nas: 12.0 ms direct",
      "-> nas has lost its path: offline",
      "2 sent, 2 answered, 0 % lost; round trip 12.0 ms at best, 130 ms median, 130 ms at worst",
    ]);
  });

  test("--json has one object a line and nothing else on stdout", async () => {
    control.pings = [
      { from: null, to: "ssh", reason: "the relay is there" },
      { seq: 1, rttMs: 5, path: "ssh" },
      { seq: 2, lost: true },
    ];
    await run("ping", "nas", "--json");
    expect(host.stdout).toBe('{"seq":1,"rttMs":5,"path":"ssh"}\n{"seq":2,"lost":true}\n');
  });

  test.each([
    ["answered", [{ seq: 1, rttMs: 5, path: "ssh" }], [], EXIT.ok],
    ["not answered", [{ seq: 1, lost: true }], [], EXIT.timedOut],
    ["reached but not direct", [{ seq: 1, rttMs: 5, path: "ssh" }], ["--until-direct"], EXIT.notDirect],
    ["direct", [{ seq: 1, rttMs: 5, path: "direct" }], ["--until-direct"], EXIT.ok],
    ["never reached", [{ seq: 1, lost: true }], ["--until-direct"], EXIT.timedOut],
  ] as const)("%s: the exit code says so", async (_name, pings, flags, code) => {
    control.pings = [...pings];
    expect(await run("ping", "nas", ...flags)).toBe(code);
  });

  test("Ctrl-C ends it with the summary", async () => {
    control.pings = [{ seq: 1, rttMs: 5, path: "direct" }];
    control.pingsForever = true;
    const out = host.out.bind(host);
    host.out = (text) => {
      out(text);
      stop.abort();
    };
    expect(await run("ping", "nas")).toBe(EXIT.ok);
    expect(host.stdout).toContain("1 sent, 1 answered, 0 % lost");
    await control.pingEnded.promise;
  });
});

describe("wait", () => {
  test("passes the condition on and exits 0 when it holds", async () => {
    expect(await run("wait", "--for", "direct=nas", "--timeout", "5")).toBe(EXIT.ok);
    expect(await run("wait")).toBe(EXIT.ok);
    expect(control.asked).toEqual([
      { condition: { for: "direct", peer: "nas" }, timeoutMs: 5000 },
      { condition: { for: "joined" }, timeoutMs: undefined },
    ]);
    expect(host.stdout).toBe("");
  });

  test("code 7 when the time is up, with what to look at", async () => {
    control.reached = false;
    expect(await run("wait", "--for", "direct=nas", "--timeout", "5")).toBe(EXIT.timedOut);
    expect(host.stderr).toBe(
      'Timed out after 5 s: there is no direct path to "nas"; "tunnelmesh-agent why nas" says why\n',
    );
  });

  test("an agent that is only just starting is waited for", async () => {
    await server.stop();
    let pauses = 0;
    host.onSleep = () => {
      if (++pauses !== 3) return;
      void serveLocalApi(control, { socketPath: join(stateDir, "agent.sock"), stateDir, onBug: () => {} }).then(
        (started) => {
          server = started;
        },
      );
    };
    expect(await run("wait")).toBe(EXIT.ok);
  });

  test("code 3 when none starts", async () => {
    await server.stop();
    let now = NOW;
    host.unixMs = () => now;
    host.onSleep = () => {
      now += 500;
    };
    expect(await run("wait")).toBe(EXIT.agentNotRunning);
    expect(now - NOW).toBe(2500);
  });
});

describe("netcheck", () => {
  const alone: Runners = { runNetcheck: () => Promise.resolve({ ...NETCHECK, summary: "Tested alone" }) };

  test("asks the running agent", async () => {
    expect(await run("netcheck")).toBe(EXIT.ok);
    expect(host.stdout).toBe(
      `Direct paths work to everybody but symmetric NATs

UDP           works
IPv4          port-restricted cone, seen from outside as 198.51.100.7:41641
  mapping     endpoint-independent
  filtering   address-and-port-dependent
  hairpin     does not work
IPv6          not available
Port mapping  UPnP works, NAT-PMP no answer, PCP not tested
SSH           not tested
WebSocket     reachable
Proxy         none
`,
    );
    host.stdout = "";
    await run("netcheck", "--json", "--coordinator", "http://c.example:8080/");
    expect(JSON.parse(host.stdout)).toEqual(NETCHECK);
  });

  test("tests by itself when another coordinator is meant, or no agent runs but one is known", async () => {
    expect(await runWith(alone, "netcheck", "--coordinator", "http://other")).toBe(EXIT.ok);
    expect(host.stdout).toContain("Tested alone");
    await server.stop();
    host.stdout = "";
    expect(await runWith(alone, "netcheck")).toBe(EXIT.agentNotRunning);
    expect(host.stderr).toContain("--coordinator URL");
    new StateFile(stateDir).update({ coordinator: { url: "http://c", fingerprint: null, listeners: [] } });
    expect(await runWith(alone, "netcheck")).toBe(EXIT.ok);
    expect(host.stdout).toContain("Tested alone");
  });
});

describe("trust, block, down, version", () => {
  test("trust and block name what they did", async () => {
    expect(await run("trust", "nas")).toBe(EXIT.ok);
    expect(await run("block", "phone")).toBe(EXIT.ok);
    expect(host.stdout).toBe(
      '"nas" is trusted with the fingerprint aaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aa\n"phone" is blocked; "tunnelmesh-agent trust phone" lifts it\n',
    );
    expect(await run("trust", "nobody")).toBe(EXIT.peerUnavailable);
  });

  test("down returns only when the state directory is free again", async () => {
    const taken = FileLock.take(join(stateDir, "agent.lock"));
    if (!taken.locked) throw new Error("locked by somebody else");
    let pauses = 0;
    host.onSleep = () => {
      if (++pauses === 3) taken.lock.release();
    };
    expect(await run("down")).toBe(EXIT.ok);
    expect(pauses).toBe(3);
  });

  test("down copes with an agent that ends before its answer has left", async () => {
    const path = join(stateDir, "cut.sock");
    const cutting = Bun.listen({ unix: path, socket: { data: (socket) => socket.terminate() } });
    expect(await run("down", "--socket", path)).toBe(EXIT.ok);
    cutting.stop(true);
  });

  test("every command says that no agent runs: code 3", async () => {
    await server.stop();
    for (const command of [["status"], ["peers"], ["down"], ["why", "nas"], ["ping", "nas"], ["trust", "nas"]]) {
      host.stderr = "";
      expect(await run(...command)).toBe(EXIT.agentNotRunning);
      expect(host.stderr).toBe(`No agent is running in ${stateDir}; start one with "tunnelmesh-agent up"\n`);
    }
  });

  test("version", async () => {
    expect(await runCommandLine(["version"], host, stop.signal)).toBe(EXIT.ok);
    expect(host.stdout).toMatch(/^tunnelmesh-agent \d+\.\d+\.\d+\n$/);
  });

  test("a fault of our own is one line without a stack", async () => {
    control.netcheckAnswer = () => Promise.reject(new Error("boom"));
    expect(await run("netcheck")).toBe(EXIT.failed);
    expect(host.stderr).toBe("The agent failed to answer because of a fault of its own; its log has the details\n");
  });
});

const run = (...argv: string[]): Promise<number> => runWith({}, ...argv);
const runWith = (runners: Runners, ...argv: string[]): Promise<number> =>
  runCommandLine([...argv, "--state-dir", stateDir], host, stop.signal, runners);
