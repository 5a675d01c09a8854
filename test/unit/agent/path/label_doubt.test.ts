import { describe, expect, test } from "vitest";
import { doubtedLabels } from "../../../../agent/path/label_doubt.ts";
import { isDirectExpected } from "../../../../agent/path/nat_behavior.ts";
import { planPunch } from "../../../../agent/path/punch_plan.ts";
import { type Filtering, type Mapping, type NatReport, UNKNOWN_NAT } from "../../../../shared/wire/candidates.ts";

const nat = (mapping: Mapping, filtering: Filtering): NatReport => ({ ...UNKNOWN_NAT, mapping, filtering });
const FULL = nat("endpoint-independent", "endpoint-independent");
const STRICT = nat("endpoint-independent", "address-and-port-dependent");
const SYMMETRIC = nat("address-and-port-dependent", "address-and-port-dependent");
const FAILED = { failedRounds: 2, failedAttempts: 0 };

describe("labels are believed", () => {
  test.each([
    ["until two whole rounds have failed", FULL, STRICT, { failedRounds: 1, failedAttempts: 0 }],
    ["after four attempts have found nothing either", FULL, STRICT, { failedRounds: 90, failedAttempts: 4 }],
    ["where plain opening cannot do anyway", STRICT, SYMMETRIC, FAILED],
    ["while one of them is not known", STRICT, UNKNOWN_NAT, FAILED],
    ["where UDP is blocked", STRICT, { ...UNKNOWN_NAT, udpBlocked: true }, FAILED],
  ])("%s", (_, a, b, record) => expect(doubtedLabels(a, b, record, true)).toEqual([]));
});

test.each([
  ["first the one whose opposite wants the exact port", FULL, STRICT, 0, "spread"],
  ["then the other", FULL, STRICT, 1, "guess"],
  ["and again", FULL, STRICT, 2, "spread"],
] as const)("in doubt is %s", (_, ours, theirs, failedAttempts, role) => {
  const [first] = doubtedLabels(ours, theirs, { failedRounds: 3, failedAttempts }, true);
  expect(first && planPunch(first.local, first.remote)?.role).toBe(role);
});

test("both sides doubt the same one, whatever the pair and however often it has failed", () => {
  const counterpart = { spread: "guess", guess: "spread", meet: "meet" };
  for (const a of [FULL, STRICT]) {
    for (const b of [FULL, STRICT]) {
      for (let failedAttempts = 0; failedAttempts < 4; failedAttempts++) {
        const record = { failedRounds: 2, failedAttempts };
        const roles = [doubtedLabels(a, b, record, true), doubtedLabels(b, a, record, false)].map(([first]) =>
          first === undefined ? undefined : planPunch(first.local, first.remote)?.role,
        );
        expect(roles[1]).toBe(counterpart[roles[0] ?? "meet"]);
      }
    }
  }
});

test("every assumption is one that plain opening would fail under", () => {
  for (const { local, remote } of doubtedLabels(FULL, FULL, FAILED, false)) {
    expect(isDirectExpected(local, remote)).toBe(false);
  }
});
