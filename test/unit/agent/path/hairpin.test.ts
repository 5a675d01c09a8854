import { expect, test } from "vitest";
import { HairpinTest, type HairpinRequest } from "../../../../agent/path/hairpin.ts";
import { instant } from "../../../../shared/time.ts";

const DATA = { ip: "198.51.100.1", port: 5000 };
const SECOND = { ip: "198.51.100.1", port: 6000 };

test("each of the two sockets sends to the public address of the other, a few times", () => {
  const run = started();
  run.answer(20);
  run.at(2000);
  const crossings = run.sent.flatMap((request) => (request.type === "cross" ? [request] : []));
  expect(crossings).toHaveLength(8);
  for (const { from, to } of crossings) expect(to).toEqual(from === "data" ? SECOND : DATA);
});

test.each(["data", "second"] as const)("works when what the %s socket sent comes back", (from) => {
  const run = started();
  run.answer(20);
  expect(run.test.handleIndication(run.idFrom(from))).toBe(true);
  expect([run.test.isDone, run.test.works, run.test.deadline()]).toEqual([true, true, undefined]);
});

test("does not work after 400 ms of silence and two round trips: a carrier turns packets far away", () => {
  const run = started();
  run.answer(100);
  run.at(100 + 400 + 2 * 100 - 1);
  expect([run.test.isDone, run.test.works]).toEqual([false, undefined]);
  run.at(100 + 400 + 2 * 100);
  expect([run.test.isDone, run.test.works]).toEqual([true, false]);
});

test("an indication that nobody of us has sent says nothing", () => {
  const run = started();
  run.answer(20);
  expect(run.test.handleIndication(new Uint8Array(12).fill(0xee))).toBe(false);
  expect(run.test.isDone).toBe(false);
});

test("is not known where the coordinator does not answer: asked four times, given up after a second", () => {
  const run = started();
  run.at(999);
  expect(run.sent.map(({ type }) => type)).toEqual(["ask", "ask", "ask", "ask"]);
  run.at(1000);
  expect([run.test.isDone, run.test.works]).toEqual([true, undefined]);
});

interface Run {
  readonly test: HairpinTest;
  readonly sent: HairpinRequest[];
  readonly at: (milliseconds: number) => void;
  readonly answer: (milliseconds: number) => void;
  readonly idFrom: (from: "data" | "second") => Uint8Array;
}

function started(): Run {
  let byte = 0;
  const machine = new HairpinTest({ data: DATA, random: (n) => new Uint8Array(n).fill(++byte), now: instant(0) });
  const sent: HairpinRequest[] = [];
  const drain = (): void => {
    for (let request = machine.poll(); request !== undefined; request = machine.poll()) sent.push(request);
  };
  drain();
  const at = (milliseconds: number): void => {
    for (let due = machine.deadline(); due !== undefined && due <= milliseconds; due = machine.deadline()) {
      machine.handleTimeout(due);
      drain();
    }
  };
  const answer = (milliseconds: number): void => {
    at(milliseconds);
    const [ask] = sent;
    expect(machine.handleResponse(ask?.transactionId ?? new Uint8Array(), SECOND, instant(milliseconds))).toBe(true);
    drain();
  };
  const idFrom = (from: "data" | "second"): Uint8Array => {
    const found = sent.find((request) => request.type === "cross" && request.from === from);
    return found?.transactionId ?? new Uint8Array();
  };
  return { test: machine, sent, at, answer, idFrom };
}
