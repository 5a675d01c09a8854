/** docs/troubleshooting.md begins with what `why` says: so it must have each sentence that stands against a direct path. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { explainNoDirect } from "../../../../agent/path/explain_no_direct.ts";
import type { NatReport } from "../../../../shared/wire/candidates.ts";

const text = readFileSync(join(import.meta.dirname, "../../../../docs/troubleshooting.md"), "utf8");

const base = { certain: true, udpBlocked: false, allocation: undefined } as const;
const exact = {
  ...base,
  mapping: "endpoint-independent",
  filtering: "address-and-port-dependent",
} as NatReport;
const symmetric = { ...exact, mapping: "address-and-port-dependent" } as NatReport;
const open = { ...exact, filtering: "endpoint-independent" } as NatReport;
const blocked = { ...open, udpBlocked: true } as NatReport;
const unknown = { ...base, mapping: undefined, filtering: undefined } as unknown as NatReport;

test.each([
  ["UDP blocked here", blocked, open],
  ["UDP blocked there", open, blocked],
  ["UDP blocked on both sides", blocked, blocked],
  ["symmetric here", symmetric, exact],
  ["symmetric there", exact, symmetric],
  ["symmetric on both sides", symmetric, symmetric],
  ["not known", unknown, open],
  ["probes lost", exact, exact],
])("%s", (_what, here, there) => {
  // Without the labels in brackets, and what comes after them.
  const sentence = explainNoDirect(here, there, "PEER").replace(/ \((?!symmetric).*$/, "");
  expect(text).toContain(`| ${sentence.split(";")[0]}`);
});
