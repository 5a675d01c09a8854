import { describe, expect, test } from "vitest";
import { createProgram } from "../../../../agent/cli/commands.ts";
import { placeOf, suggestionsAt } from "../../../../agent/cli/complete.ts";
import { peerStatus } from "../local/fake_control.ts";

const PROGRAM = createProgram(() => {});
const PEERS = [peerStatus("nas"), peerStatus("nas-2", { path: null }), peerStatus("pi", { path: null, online: false })];

/** The words for `tunnelmesh-agent <line>` with the cursor at its end. */
const words = (line: string): readonly string[] | undefined =>
  suggestionsAt(placeOf(PROGRAM, line.split(" ")), PEERS)?.map(({ word }) => word);

describe("completion", () => {
  test("commands, and the commands of a command", () => {
    expect(words("")).toEqual(expect.arrayContaining(["up", "status", "ping", "service", "completion", "help"]));
    expect(words("")).not.toContain("complete");
    expect(words("st")).toEqual(["status"]);
    expect(words("service ")).toEqual(expect.arrayContaining(["install", "uninstall", "status"]));
    expect(words("service uninstall --p")).toEqual(["--purge"]);
  });

  test("peers where a peer is meant, with what is known of them", () => {
    expect(words("why ")).toEqual(["nas", "nas-2", "pi"]);
    expect(words("ping na")).toEqual(["nas", "nas-2"]);
    expect(words("trust p")).toEqual(["pi"]);
    expect(words("why nas ")).not.toContain("nas");
    expect(suggestionsAt(placeOf(PROGRAM, ["path", ""]), PEERS)?.map(({ meaning }) => meaning)).toEqual([
      "direct",
      "online",
      "offline",
    ]);
  });

  test("the values of an option and of an argument", () => {
    expect(words("up --tun ")).toEqual(["auto", "on", "off"]);
    expect(words("up --tun=o")).toEqual(["--tun=on", "--tun=off"]);
    expect(words("path nas ")).toEqual(["auto", "direct", "ssh", "websocket"]);
    expect(words("wait --for d")).toEqual(["direct=nas", "direct=nas-2", "direct=pi"]);
    expect(words("completion ")).toEqual(["bash", "zsh", "fish"]);
    expect(words("forward 8080 p")).toEqual(["pi:"]);
  });

  test("options that are not there yet, where nothing else is possible or a dash asks for them", () => {
    expect(words("status -")).toEqual(expect.arrayContaining(["--json", "--watch"]));
    expect(words("status --state-dir /s --")).not.toContain("--state-dir");
    expect(words("up --expose 22 --e")).toEqual(["--expose"]);
    expect(words("status --w")).toEqual(["--watch"]);
    expect(words("down ")).toEqual(["--config", "--state-dir", "--socket"]);
    expect(words("why -- -")).toEqual([]);
  });

  test("files are the shell's", () => {
    for (const line of ["up --key-file ", "status --state-dir ", "up --ca-file=/e", "why --socket /r"]) {
      expect(words(line)).toBeUndefined();
    }
  });

  test("the agent that is meant is found in the line", () => {
    const { given } = placeOf(PROGRAM, ["why", "--state-dir", "/s", "--socket=/x", "n"]);
    expect([...given]).toEqual([
      ["--state-dir", "/s"],
      ["--socket", "/x"],
    ]);
  });

  test("what makes no sense has no suggestions", () => {
    for (const line of ["nonsense ", "why nas pi ", "status --nope ", "up --name ", "--"]) {
      expect(() => words(line)).not.toThrow();
    }
    expect(words("up --name ")).toEqual([]);
  });
});
