import { chmodSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { HostsFile } from "../../../agent/driver/names/hosts_file.ts";
import { scratchDir } from "./state/scratch.ts";

const NAS = { name: "nas", meshIPv4: "100.96.0.2", meshIPv6: undefined };

test("members go into the file and out again; mode, inode and bytes of any encoding stay", () => {
  const path = join(scratchDir(), "hosts");
  // Latin-1: not valid as UTF-8.
  const before = Buffer.from([...Buffer.from("127.0.0.1 localhost # "), 0xe4, 0xff, 0x0a]);
  writeFileSync(path, before);
  chmodSync(path, 0o644);
  const { ino } = statSync(path);
  const hosts = new HostsFile(path);
  hosts.write([NAS]);
  expect(readFileSync(path).subarray(0, before.length)).toEqual(before);
  expect(readFileSync(path, "latin1")).toContain("\n100.96.0.2 nas.mesh nas\n");
  hosts.clear();
  expect(readFileSync(path)).toEqual(before);
  expect(statSync(path)).toMatchObject({ ino, mode: 0o100644 });
});

test("a file without a block of ours is not even opened for writing", () => {
  const path = join(scratchDir(), "hosts");
  writeFileSync(path, "127.0.0.1 localhost\n");
  chmodSync(path, 0o444);
  const { mtimeMs } = statSync(path);
  new HostsFile(path).clear();
  expect(statSync(path).mtimeMs).toBe(mtimeMs);
});
