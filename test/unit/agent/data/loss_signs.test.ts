import { expect, test } from "vitest";
import { LossSigns } from "../../../../agent/data/loss_signs.ts";
import { acknowledgement } from "./super_packets.ts";

const WITHOUT = acknowledgement("100.96.0.2", "100.96.0.1", false).packet;
const WITH = acknowledgement("100.96.0.2", "100.96.0.1", true).packet;

function after(...packets: readonly [number, Uint8Array][]): boolean {
  const signs = new LossSigns();
  for (const [times, packet] of packets) for (let i = 0; i < times; i++) signs.note(packet);
  return signs.isLossy;
}

test("a way loses when acknowledgements with SACK blocks outnumber the others for a while, and until the others do", () => {
  expect(after([31, WITH])).toBe(false);
  expect(after([32, WITH])).toBe(true);
  expect(after([32, WITH], [31, WITHOUT])).toBe(true);
  expect(after([32, WITH], [32, WITHOUT])).toBe(false);
  expect(after([1000, WITHOUT], [32, WITH])).toBe(true);
  expect(
    after(...Array.from({ length: 1000 }, (_, i): [number, Uint8Array] => [1, i % 2 === 0 ? WITH : WITHOUT])),
  ).toBe(false);
});

test("the same over IPv6", () => {
  expect(after([32, acknowledgement("fd00::2", "fd00::1", true).packet])).toBe(true);
  expect(after([32, acknowledgement("fd00::2", "fd00::1", false).packet])).toBe(false);
});

test("SYN, other protocols, packets that end too early and options that make no sense tell nothing", () => {
  const syn = WITH.slice();
  syn[33] = 0x02;
  const udp = WITH.slice();
  udp[9] = 17;
  const broken = WITH.slice();
  broken.fill(0xff, 40);
  broken[41] = 0;
  for (const packet of [syn, udp, WITH.subarray(0, 39), new Uint8Array(0), broken]) {
    expect(after([100, packet])).toBe(false);
  }
});
