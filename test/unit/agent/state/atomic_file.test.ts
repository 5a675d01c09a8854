import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { describe, expect, test } from "vitest";
import { readJsonIfPresent, writeAtomically } from "../../../../agent/state/atomic_file.ts";
import { EXIT, UserError } from "../../../../agent/state/user_error.ts";
import { scratchDir } from "./scratch.ts";

const Schema = v.object({ list: v.array(v.object({ n: v.number() })) });

describe("writeAtomically", () => {
  test("leaves exactly the new content, readable by its owner only, and no temporary file", () => {
    const path = join(scratchDir(), "f.json");
    writeAtomically(path, "one");
    writeAtomically(path, "two");
    expect(readFileSync(path, "utf8")).toBe("two");
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readdirSync(join(path, ".."))).toEqual(["f.json"]);
  });

  test("replaces what a killed agent left half-written", () => {
    const path = join(scratchDir(), "f.json");
    writeFileSync(`${path}.new`, "half");
    writeAtomically(path, "whole");
    expect(readFileSync(path, "utf8")).toBe("whole");
  });

  test("does not follow a symbolic link planted under the temporary name", () => {
    const dir = scratchDir();
    const victim = join(dir, "victim");
    writeFileSync(victim, "precious");
    symlinkSync(victim, join(dir, "f.json.new"));
    writeAtomically(join(dir, "f.json"), "mine");
    expect(readFileSync(victim, "utf8")).toBe("precious");
  });

  test("a failed write keeps the old content, leaves nothing behind and exits 1", () => {
    const dir = scratchDir();
    const path = join(dir, "f.json");
    // A directory in the way fails the rename for root too.
    mkdirSync(path);
    writeFileSync(join(path, "kept"), "");
    const error = failure(() => writeAtomically(path, "new"));
    expect(error.exitCode).toBe(EXIT.failed);
    expect(error.message).toContain(path);
    expect(readdirSync(dir)).toEqual(["f.json"]);
  });
});

describe("readJsonIfPresent", () => {
  test.each([
    ["{", "it is not JSON"],
    ['{"list":[{"n":"x"}]}', '"list.0.n" is not what was expected'],
    ["null", "its content is not what was expected"],
  ])("refuses %j with code 78, the file, the place and the cure", (text, what) => {
    const path = join(scratchDir(), "f.json");
    writeFileSync(path, text);
    const error = failure(() => readJsonIfPresent(path, Schema, "mend it"));
    expect(error.exitCode).toBe(EXIT.badConfiguration);
    expect(error.message).toBe(`${path} is broken: ${what}; mend it`);
    expect(readFileSync(path, "utf8")).toBe(text);
  });

  test("a missing file is undefined, a directory in its place an error", () => {
    const dir = scratchDir();
    expect(readJsonIfPresent(join(dir, "none"), Schema, "")).toBeUndefined();
    expect(failure(() => readJsonIfPresent(dir, Schema, "")).exitCode).toBe(EXIT.badConfiguration);
  });

  test("a broken link in the path is told by name", () => {
    const dir = scratchDir();
    writeFileSync(join(dir, "file"), "");
    chmodSync(join(dir, "file"), 0o600);
    const error = failure(() => readJsonIfPresent(join(dir, "file", "f.json"), Schema, ""));
    expect(error.message).toContain("a part of the path is not a directory");
  });
});

function failure(action: () => unknown): UserError {
  try {
    action();
  } catch (error) {
    if (error instanceof UserError) return error;
    throw error;
  }
  throw new Error("It did not fail");
}
