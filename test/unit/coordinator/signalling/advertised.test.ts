import { describe, expect, test } from "vitest";
import { advertised, type Reachable } from "../../../../coordinator/signalling/advertised.ts";

const own = (changes: Partial<Reachable> = {}): Reachable => ({
  listeners: [
    { scheme: "http", host: "0.0.0.0", port: 8080 },
    { scheme: "https", host: "::", port: 443 },
  ],
  stun: [
    { ip: "192.168.1.5", port: 3478 },
    { ip: "192.168.1.5", port: 3479 },
  ],
  publicHost: undefined,
  ...changes,
});

describe("listeners", () => {
  test("have the host that the agent used, each with its own port", () => {
    expect(advertised(own(), "tm.example:80").listeners).toEqual(["http://tm.example:8080", "https://tm.example"]);
    expect(advertised(own(), "[2001:DB8::1]:80").listeners[0]).toBe("http://[2001:db8::1]:8080");
  });

  test("on one address keep it, and --public-host beats everything", () => {
    const one = own({ listeners: [{ scheme: "http", host: "10.0.0.1", port: 80 }] });
    expect(advertised(one, "tm.example").listeners).toEqual(["http://10.0.0.1"]);
    expect(advertised({ ...one, publicHost: "a.example" }, "tm.example").listeners).toEqual(["http://a.example"]);
  });

  test("without a sound Host header are not guessed", () => {
    expect(advertised(own(), 'evil"host/').listeners).toEqual([]);
    expect(advertised(own(), undefined).listeners).toEqual([]);
  });
});

describe("the SSH endpoint", () => {
  const ssh = (host: string) => own({ ssh: { host, port: 2222, hostKey: Uint8Array.of(1) } });

  test("is told by the name that the agent used where it listens everywhere, else by its own address", () => {
    expect(advertised(ssh("0.0.0.0"), "nas.local:8080").ssh).toEqual({
      host: "nas.local",
      port: 2222,
      hostKey: Uint8Array.of(1),
    });
    expect(advertised(ssh("192.168.1.2"), "nas.local:8080").ssh?.host).toBe("192.168.1.2");
    expect(advertised({ ...ssh("192.168.1.2"), publicHost: "mesh.example" }, "nas.local").ssh?.host).toBe(
      "mesh.example",
    );
  });

  test("is not told where nobody knows its name, or there is none", () => {
    expect(advertised(ssh("0.0.0.0"), undefined).ssh).toBe(undefined);
    expect(advertised(own(), "nas.local").ssh).toBe(undefined);
  });
});

describe("STUN addresses", () => {
  test("are ours when the agent is in our own network", () => {
    expect(advertised(own(), "192.168.1.5:8080").stun).toEqual(own().stun);
    expect(advertised(own(), "127.0.0.1:8080").stun).toEqual(own().stun);
  });

  test("behind a port forward are the public address that the agent used", () => {
    expect(advertised(own(), "203.0.113.9:8080").stun).toEqual([
      { ip: "203.0.113.9", port: 3478 },
      { ip: "203.0.113.9", port: 3479 },
    ]);
    expect(advertised(own({ publicHost: "203.0.113.9" }), "nas.local").stun[0]?.ip).toBe("203.0.113.9");
  });

  test("that are public are never replaced, nor those of the other family", () => {
    const two = [
      { ip: "203.0.113.1", port: 3478 },
      { ip: "203.0.113.2", port: 3478 },
    ];
    expect(advertised(own({ stun: two }), "203.0.113.1").stun).toEqual(two);
    const mixed = [...own().stun, { ip: "2001:db8::1", port: 3478 }];
    expect(advertised(own({ stun: mixed }), "203.0.113.9").stun.map(({ ip }) => ip)).toEqual([
      "203.0.113.9",
      "203.0.113.9",
      "2001:db8::1",
    ]);
  });
});
