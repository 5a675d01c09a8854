import { describe, expect, test } from "vitest";
import type { TransportAddress } from "../../../../shared/address.ts";
import { type Instant, instant } from "../../../../shared/time.ts";
import { type DiscoveryRequest, NatDiscovery } from "../../../../agent/path/nat_discovery.ts";
import { SeededRandom } from "../../../sim/random.ts";

const server = (address: 1 | 2, port: 3478 | 3479): TransportAddress => ({ ip: `203.0.113.${address}`, port });
const FOUR = [server(1, 3478), server(1, 3479), server(2, 3478), server(2, 3479)];
const OURS: TransportAddress = { ip: "192.0.2.1", port: 41_641 };
const mapped = (port: number): TransportAddress => ({ ip: "198.51.100.1", port });

describe("mapping, learned on the data socket", () => {
  test.each<[string, readonly TransportAddress[], string]>([
    ["one address everywhere", [mapped(1), mapped(1), mapped(1), mapped(1)], "endpoint-independent"],
    [
      "another port for each of the server's addresses",
      [mapped(1), mapped(1), mapped(2), mapped(2)],
      "address-dependent",
    ],
    ["another port for each port too", [mapped(1), mapped(2), mapped(3), mapped(4)], "address-and-port-dependent"],
    ["our own address", [OURS, OURS, OURS, OURS], "none"],
  ])("%s", (_name, answers, mapping) => {
    const run = started(FOUR);
    answers.forEach((address, index) => run.answer("data", FOUR[index], address, 20));
    expect(run.discovery.result()).toMatchObject({ mapping });
  });

  test("is not told from a single answer before the tests have ended", () => {
    const run = started(FOUR);
    run.answer("data", server(1, 3478), mapped(1), 20);
    expect(run.discovery.result()).toMatchObject({
      mapping: undefined,
      publicAddresses: [mapped(1)],
      isComplete: false,
    });
    run.at(5000);
    expect(run.discovery.result()).toMatchObject({ mapping: "endpoint-independent", isComplete: true });
  });

  test("each public address appears once", () => {
    const run = started(FOUR);
    [mapped(7), mapped(8), mapped(7), mapped(8)].forEach((address, i) => run.answer("data", FOUR[i], address, 20));
    expect(run.discovery.result().publicAddresses).toEqual([mapped(7), mapped(8)]);
  });
});

describe("filtering, learned from silence on fresh sockets", () => {
  test.each<[string, readonly DiscoveryRequest["socket"][], string]>([
    ["both answers come in", ["filter-port", "filter-address"], "endpoint-independent"],
    ["only that of the same address", ["filter-port"], "address-dependent"],
    ["neither", [], "address-and-port-dependent"],
  ])("%s", (_name, heard, filtering) => {
    const run = started(FOUR);
    for (const to of FOUR) run.answer("data", to, mapped(OURS.port), 20);
    for (const socket of heard) run.answer(socket, server(1, 3478), mapped(9), 25);
    expect(run.discovery.result().filtering).toBe(heard.length === 2 ? "endpoint-independent" : undefined);
    run.at(20 + 450 + 3 * 20);
    expect(run.discovery.result()).toMatchObject({ filtering, certain: true, isComplete: true });
  });

  test("an answer that a NAT with few ports lets in at another socket of ours is none", () => {
    const run = started(FOUR);
    for (const to of FOUR) run.answer("data", to, mapped(1), 20);
    const asked = run.sent.find(({ socket }) => socket === "filter-port");
    const answer = { mapped: mapped(9), echo: undefined };
    run.discovery.handleResponse(asked?.transactionId ?? new Uint8Array(12), answer, instant(25), () => false);
    run.at(2000);
    expect(run.discovery.result()).toMatchObject({ filtering: "address-and-port-dependent", isComplete: true });
  });

  test("silence counts only after three round trips more: a slow path is not a strict filter", () => {
    const run = started(FOUR);
    for (const to of FOUR) run.answer("data", to, mapped(1), 400);
    run.at(400 + 450 + 3 * 400 - 1);
    expect(run.discovery.result().isComplete).toBe(false);
    run.at(400 + 450 + 3 * 400);
    expect(run.discovery.result().isComplete).toBe(true);
  });

  test("with one coordinator address full and restricted cone look alike: the stricter, and not certain", () => {
    const one = FOUR.slice(0, 2);
    const run = started(one);
    for (const to of one) run.answer("data", to, mapped(1), 20);
    run.answer("filter-port", server(1, 3478), mapped(9), 25);
    run.at(2000);
    expect(run.discovery.result()).toMatchObject({ filtering: "address-dependent", certain: false });
    expect(run.sent.some(({ socket }) => socket === "filter-address")).toBe(false);
  });

  test("one answer of several that were asked for is not certain: it shows no difference", () => {
    const run = started(FOUR);
    run.answer("data", FOUR[0] ?? server(1, 3478), mapped(1), 20);
    run.at(2000);
    expect(run.discovery.result()).toMatchObject({ isComplete: true, certain: false });
  });

  test("with one coordinator address the strictest filter is certain all the same", () => {
    const one = FOUR.slice(0, 2);
    const run = started(one);
    for (const to of one) run.answer("data", to, mapped(1), 20);
    run.at(2000);
    expect(run.discovery.result()).toMatchObject({ filtering: "address-and-port-dependent", certain: true });
  });
});

describe("allocation of ports", () => {
  const sampled = (run: ReturnType<typeof started>) => run.sent.filter(({ socket }) => socket.startsWith("sample"));

  test("a router that keeps our port is asked for no more", () => {
    const run = started(FOUR);
    for (const to of FOUR) run.answer("data", to, mapped(OURS.port), 20);
    run.at(600);
    expect(sampled(run)).toEqual([]);
    expect(run.discovery.result().allocation).toEqual({ kind: "preserving", ports: undefined });
  });

  test("a symmetric one is asked for a port to each server by five sockets, and its counter is found", () => {
    const run = started(FOUR);
    FOUR.forEach((to, index) => run.answer("data", to, mapped(5000 + index), 20));
    const samples = sampled(run);
    expect(samples).toHaveLength(20);
    expect(new Set(samples.map(({ socket }) => socket)).size).toBe(5);
    // Two ports went to the filtering tests meanwhile.
    samples.forEach(({ socket, to }, index) => run.answer(socket, to, mapped(5006 + index), 40));
    expect(run.discovery.result().allocation).toBeUndefined();
    run.at(600);
    expect(run.discovery.result().allocation).toEqual({
      kind: "sequential",
      ports: { first: 5026, last: 5026, stride: 1 },
    });
  });

  test("a cone with ports of its own has one for each socket", () => {
    const run = started(FOUR);
    for (const to of FOUR) run.answer("data", to, mapped(1), 20);
    expect(sampled(run).map(({ to }) => to)).toEqual(Array.from({ length: 5 }, () => FOUR[0]));
  });

  test("one with a small block is asked by more sockets, and waited for, until it shows whether it shares its ports", () => {
    const run = started(FOUR);
    const port = blockPorts();
    for (const to of FOUR) run.answer("data", to, mapped(port()), 20);
    const first = sampled(run);
    for (const { socket, to } of first) run.answer(socket, to, mapped(port()), 40);
    const more = sampled(run).slice(first.length);
    expect(more.length).toBeGreaterThan(20);
    expect(more.length).toBeLessThanOrEqual(112);
    // Past the time that silence of the filtering tests takes.
    run.at(20 + 450 + 3 * 20 + 1);
    expect(run.discovery.result().isComplete).toBe(false);
    for (const { socket, to } of more) run.answer(socket, to, mapped(port()), 560);
    run.at(561);
    expect(run.discovery.result()).toMatchObject({
      isComplete: true,
      allocation: { kind: "block", sharesPorts: false },
    });
    expect(run.discovery.deadline()).toBeUndefined();
  });

  test("what is not answered then is not waited for any longer", () => {
    const run = started(FOUR);
    const port = blockPorts();
    for (const to of FOUR) run.answer("data", to, mapped(port()), 20);
    for (const { socket, to } of sampled(run)) run.answer(socket, to, mapped(port()), 40);
    run.at(40 + 700 + 3 * 20 - 1);
    expect(run.discovery.result().isComplete).toBe(false);
    run.at(40 + 700 + 3 * 20);
    expect(run.discovery.result()).toMatchObject({ isComplete: true, allocation: { sharesPorts: undefined } });
  });

  test("one whose first answers look like a cone's is asked for the rest once they do not", () => {
    const run = started(FOUR);
    const asked = (): string[] => sampled(run).map(({ socket, to }) => `${socket} ${to.ip} ${to.port}`);
    // The two ports of one address have the same mapping where it depends on the address alone.
    run.answer("data", FOUR[2], mapped(1), 20);
    run.answer("data", FOUR[3], mapped(1), 20);
    expect(asked()).toHaveLength(5);
    run.answer("data", FOUR[0], mapped(2), 21);
    run.answer("data", FOUR[1], mapped(2), 21);
    expect(new Set(asked()).size).toBe(20);
    expect(asked()).toHaveLength(20);
  });
});

test("each answer to the data socket is echoed once, from the data socket, to whom it came from", () => {
  const run = started(FOUR);
  const echo = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
  run.answer("data", server(2, 3478), mapped(1), 20, echo);
  const [echoed, ...more] = run.sent.filter((request) => request.echo !== undefined);
  expect(more).toEqual([]);
  expect(echoed).toMatchObject({ socket: "data", to: server(2, 3478), echo });
  run.discovery.handleResponse(echoed!.transactionId, { mapped: mapped(1), echo }, instant(40));
  run.at(41);
  expect(run.sent.filter((request) => request.echo !== undefined)).toHaveLength(1);
  expect(run.discovery.result().publicAddresses).toEqual([mapped(1)]);
});

describe("requests", () => {
  test("all leave at once: one to each server, and one from each fresh socket", () => {
    const run = started(FOUR);
    expect(run.sent.map(({ socket, change }) => [socket, change])).toEqual([
      ["data", undefined],
      ["data", undefined],
      ["data", undefined],
      ["data", undefined],
      ["filter-port", { ip: false, port: true }],
      ["filter-address", { ip: true, port: true }],
    ]);
  });

  test("a lost one is repeated after 100, 250, 500 ms and more; an answered one is not", () => {
    const run = started(FOUR.slice(0, 1), { testFiltering: false });
    const times: number[] = [];
    for (let at = 0; at <= 2700; at += 10) {
      const before = run.sent.length;
      run.at(at);
      if (run.sent.length > before) times.push(at);
    }
    expect(times).toEqual([100, 250, 500, 1000, 1800]);
    const answered = started(FOUR.slice(0, 1), { testFiltering: false });
    answered.answer("data", server(1, 3478), mapped(1), 50);
    answered.at(1000);
    expect(answered.sent).toHaveLength(1);
  });

  test("nobody answers: UDP is blocked, after 2.8 s", () => {
    const run = started(FOUR);
    run.at(2799);
    expect(run.discovery.result()).toMatchObject({ isComplete: false, udpBlocked: false });
    run.at(2800);
    expect(run.discovery.result()).toMatchObject({ isComplete: true, udpBlocked: true, certain: false });
    expect(run.discovery.deadline()).toBeUndefined();
  });

  test("an answer to nothing that we asked is not ours", () => {
    const run = started(FOUR);
    const answer = { mapped: mapped(1), echo: undefined };
    expect(run.discovery.handleResponse(new Uint8Array(12).fill(99), answer, instant(10))).toBeUndefined();
  });

  test("a second answer to the same question does not count", () => {
    const run = started(FOUR.slice(0, 2));
    run.answer("data", server(1, 3478), mapped(1), 20);
    run.answer("data", server(1, 3478), mapped(2), 21);
    run.answer("data", server(1, 3479), mapped(1), 22);
    expect(run.discovery.result()).toMatchObject({ mapping: "endpoint-independent", publicAddresses: [mapped(1)] });
  });
});

/** One port after the other of a block of 256, in a random order, none of them twice. */
function blockPorts(): () => number {
  const random = new SeededRandom(1);
  const given = new Set<number>();
  return () => {
    let port = random.between(40_000, 40_255);
    while (given.has(port)) port = random.between(40_000, 40_255);
    given.add(port);
    return port;
  };
}

function started(servers: readonly TransportAddress[], options: { readonly testFiltering?: boolean } = {}) {
  let next = 0;
  const discovery = new NatDiscovery({
    servers,
    isLocalAddress: (address) => address.ip === OURS.ip && address.port === OURS.port,
    dataPort: OURS.port,
    random: (length) => new Uint8Array(length).fill(++next),
    testFiltering: options.testFiltering ?? true,
    isAnonymous: false,
    now: instant(0),
  });
  const sent: DiscoveryRequest[] = [];
  const drain = (): void => {
    for (let request = discovery.poll(); request !== undefined; request = discovery.poll()) sent.push(request);
  };
  drain();
  return {
    discovery,
    sent,
    at(milliseconds: number): void {
      discovery.handleTimeout(instant(milliseconds));
      drain();
    },
    answer(
      socket: DiscoveryRequest["socket"],
      to: TransportAddress | undefined,
      address: TransportAddress,
      at: number,
      echo?: Uint8Array,
    ): void {
      const request = sent.find(
        (known) =>
          (known.socket === socket && known.to === to) ||
          (known.socket === socket && known.to.ip === to?.ip && known.to.port === to.port),
      );
      if (request === undefined) throw new Error("Nothing of that kind was asked");
      discovery.handleResponse(request.transactionId, { mapped: address, echo }, at as Instant);
      drain();
    },
  };
}
