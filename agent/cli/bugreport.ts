/**
 * `bugreport`: what somebody else needs to find a fault, as text that its sender can read through first. Nothing is sent anywhere.
 *
 * Keys are not in it, since nothing that goes in has any. Names, ids and addresses are replaced unless the user wants them left.
 */
import { release, version } from "node:os";
import type { Netcheck, Status } from "../local/contract.ts";
import { Anonymizer } from "./anonymize.ts";
import { VERSION } from "./version.ts";

export interface ReportParts {
  readonly hostName: string;
  readonly isRootUser: boolean;
  readonly nowUnixMs: number;
  /** Or why there is none. */
  readonly status: Status | string;
  readonly netcheck: Netcheck | string;
}

export function bugreport(parts: ReportParts, anonymize: boolean): string {
  const { status, netcheck } = parts;
  const anonymizer = anonymize ? new Anonymizer(wordsIn(parts)) : undefined;
  const clean = (value: unknown): unknown => (anonymizer === undefined ? value : anonymizer.value(value));
  const section = (title: string, value: unknown): string =>
    `== ${title}\n${typeof value === "string" ? value : JSON.stringify(value, null, 2)}\n`;
  const system = {
    "tunnelmesh-agent": VERSION,
    bun: Bun.version,
    system: `${process.platform} ${process.arch} ${release()}`,
    kernel: version(),
    root: parts.isRootUser,
    time: new Date(parts.nowUnixMs).toISOString(),
  };
  const about = anonymize
    ? "Names, ids, fingerprints and addresses are replaced, the same one by the same word; --no-anonymize leaves them."
    : "Names and addresses are left as they are: only for somebody whom you trust with them.";
  return [
    "TunnelMesh bug report. It was sent nowhere; look through it before you pass it on.",
    `It holds: versions and system, status with every peer's path and history, netcheck. ${about}`,
    "No keys are in it, and nothing that was sent through the mesh.",
    "",
    section("versions and system", system),
    section("status", clean(status)),
    section("netcheck", clean(netcheck)),
  ].join("\n");
}

function wordsIn({ hostName, status }: ReportParts): ReadonlyMap<string, string> {
  const words = new Map<string, string>([[hostName, "this-host"]]);
  if (typeof status === "string") return words;
  const { self, peers } = status;
  words.set(new URL(self.coordinator.url).hostname, "coordinator.example");
  if (self.name !== null) words.set(self.name, "this-machine");
  words.set(self.id, "id-0");
  for (const [index, { name, id, fingerprint }] of peers.entries()) {
    words.set(name, `peer-${index + 1}`);
    words.set(id, `id-${index + 1}`);
    words.set(fingerprint, `fingerprint-${index + 1}`);
  }
  return words;
}
