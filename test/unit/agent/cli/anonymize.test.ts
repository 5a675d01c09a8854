import { describe, expect, test } from "vitest";
import { Anonymizer } from "../../../../agent/cli/anonymize.ts";
import { bugreport } from "../../../../agent/cli/bugreport.ts";
import { NETCHECK, NOW, peerStatus, STATUS } from "../local/fake_control.ts";

const words = new Map([
  ["nas", "peer-1"],
  ["nas-2", "peer-2"],
  ["coordinator.lan", "coordinator.example"],
]);

describe("what tells who and where somebody is", () => {
  test("the same word or address becomes the same word, and keeps its kind and port", () => {
    const anonymizer = new Anonymizer(words);
    expect(
      anonymizer.text("nas at 203.0.113.9:5000 and 192.168.1.5, NAS-2 at [2001:db8::7]:5000, nas at 203.0.113.9"),
    ).toBe("peer-1 at public-ipv4-1:5000 and private-ipv4-1, peer-2 at [public-ipv6-1]:5000, peer-1 at public-ipv4-1");
    expect(anonymizer.text("fd17:d0be::1 fe80::1 100.96.0.7 http://coordinator.lan:8080/x")).toBe(
      "private-ipv6-1 link-local-ipv6-1 private-ipv4-2 http://coordinator.example:8080/x",
    );
  });

  test("what is everybody's stays: loopback, times, versions, other words", () => {
    const text = "127.0.0.1 ::1 2026-06-01T12:00:00Z at 12:34:56, version 1.2.3, nasal, a::b::c";
    expect(new Anonymizer(words).text(text)).toBe(text);
  });

  test("keys and the name in a home directory go too", () => {
    const anonymizer = new Anonymizer(words);
    expect(anonymizer.text("tmk_a_b_c in /home/ada/.local and /Users/ada/x")).toBe(
      "tmk_(hidden) in /home/user/.local and /home/user/x",
    );
  });

  test("every text of a value, whatever its shape", () => {
    const value = { nas: ["nas", { at: "10.0.0.1" }, 5, null, true] };
    expect(new Anonymizer(words).value(value)).toEqual({ nas: ["peer-1", { at: "private-ipv4-1" }, 5, null, true] });
  });
});

describe("the bug report", () => {
  const peers = [peerStatus("friends-nas", { why: 'The router of "friends-nas" at 203.0.113.9 is symmetric' })];
  const parts = {
    hostName: "adas-laptop",
    isRootUser: false,
    nowUnixMs: NOW,
    status: { ...STATUS, self: { ...STATUS.self, name: "adas-laptop" }, peers },
    netcheck: NETCHECK,
  };

  test("tells nobody's name or address, and says what it holds", () => {
    const text = bugreport(parts, true);
    for (const secret of [
      "friends-nas",
      "adas",
      "203.0.113.9",
      "198.51.100.7",
      "192.168.1.5",
      "100.96.0",
      "fd00",
      "c.example:",
      "aaaa",
      "bbbb",
    ]) {
      expect(text).not.toContain(secret);
    }
    expect(text).toContain('"why": "The router of \\"peer-1\\" at public-ipv4-');
    expect(text).toContain("port-restricted cone");
    expect(text).toMatch(/^It holds: versions and system, status/m);
  });

  test("--no-anonymize leaves them, and says so", () => {
    const text = bugreport(parts, false);
    expect(text).toContain("friends-nas");
    expect(text).toContain("Names and addresses are left as they are");
  });

  test("without an agent it says why there is no status", () => {
    expect(bugreport({ ...parts, status: "No agent is running in /home/ada/x" }, true)).toContain(
      "No agent is running in /home/user/x",
    );
  });
});
