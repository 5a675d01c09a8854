import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Admission, admit, approve, MAX_PENDING, remove } from "../../../../coordinator/registry/admission.ts";
import { loadIdentity } from "../../../../coordinator/registry/coordinator_identity.ts";
import { newJoinKey } from "../../../../coordinator/registry/join_key.ts";
import { allocateMeshIPv4, parseMeshIPv4, parseMeshIPv6 } from "../../../../coordinator/registry/mesh_addresses.ts";
import { freeName, isUsableName, sanitiseName } from "../../../../coordinator/registry/names.ts";
import { MemoryStore } from "../../../../coordinator/store/memory_store.ts";
import { cidrContains } from "../../../../shared/address.ts";
import { type PeerId, peerIdOf } from "../../../../shared/session/identity.ts";

const NOW = 1_790_000_000_000;
const HOUR = 3_600_000;

describe("a new machine with a key", () => {
  test("is admitted with a name and both addresses", () => {
    const { join, mesh } = fresh();
    const admitted = join("a", { key: "reusable" });
    if (admitted.type !== "admitted") throw new Error(admitted.type);
    expect([admitted.isNew, admitted.peer.name]).toEqual([true, "laptop"]);
    expect(cidrContains(mesh.meshIPv4, admitted.peer.meshIPv4)).toBe(true);
    expect(cidrContains(mesh.meshIPv6, admitted.peer.meshIPv6)).toBe(true);
  });

  test("uses up a key that is not reusable, and a second machine is refused", () => {
    const { join } = fresh();
    expect(join("a", { key: "single" }).type).toBe("admitted");
    expect(join("b", { key: "single" })).toMatchObject({ type: "refused", reason: "key_invalid" });
    expect(join("b", { key: "reusable" }).type).toBe("admitted");
    expect(join("c", { key: "reusable" }).type).toBe("admitted");
  });

  test("is refused with a key that has expired, is revoked, altered, unknown or of another coordinator", () => {
    const { join, store, keys } = fresh();
    expect(join("a", { key: "reusable", now: NOW + 25 * HOUR })).toMatchObject({ reason: "key_expired" });
    expect(join("a", { keyText: keys.reusable.text.replace(/_[a-z2-7]{32}_/, `_${"a".repeat(32)}_`) })).toMatchObject({
      reason: "key_invalid",
    });
    expect(join("a", { keyText: "tmk_nonsense" })).toMatchObject({ reason: "key_invalid" });
    expect(join("a", { keyText: keys.reusable.text.replace(/.{26}$/, "a".repeat(26)) })).toMatchObject({
      reason: "key_invalid",
    });
    store.putKey({ ...keys.reusable.record, revoked: true });
    expect(join("a", { key: "reusable" })).toMatchObject({ reason: "key_invalid" });
    expect(store.peers("approved")).toEqual([]);
  });

  test("gets -2 behind a default name that is taken, and is refused with an explicit one", () => {
    const { join } = fresh();
    join("a", { key: "reusable" });
    expect(nameOf(join("b", { key: "reusable" }))).toBe("laptop-2");
    expect(nameOf(join("c", { key: "reusable" }))).toBe("laptop-3");
    const refused = join("d", { key: "single", explicit: true });
    expect(refused).toMatchObject({ type: "refused", reason: "name_taken" });
    expect(join("d", { key: "single" }).type, "a refused name does not use up the key").toBe("admitted");
    expect(join("e", { key: "reusable", explicit: true, name: "my_laptop" })).toMatchObject({ reason: "name_invalid" });
  });

  test("is refused when the range has no address left", () => {
    const { join } = fresh("10.0.0.0/29");
    for (const letter of ["a", "b", "c", "d", "e", "f"])
      expect(join(letter, { key: "reusable" }).type).toBe("admitted");
    expect(join("g", { key: "reusable" })).toMatchObject({ type: "refused", reason: "full" });
  });
});

describe("a machine that is a member", () => {
  test("comes back without a key and keeps name and addresses", () => {
    const { join } = fresh();
    const first = join("a", { key: "single" });
    const again = join("a", { name: "renamed by its owner", now: NOW + 48 * HOUR });
    if (first.type !== "admitted" || again.type !== "admitted") throw new Error("not admitted");
    expect(again.isNew).toBe(false);
    expect(again.peer).toEqual({ ...first.peer, lastSeenUnixMs: NOW + 48 * HOUR });
  });

  test("may take another explicit name that is free, not one that is taken", () => {
    const { join } = fresh();
    join("a", { key: "reusable" });
    join("b", { key: "reusable" });
    expect(nameOf(join("b", { name: "nas", explicit: true }))).toBe("nas");
    expect(join("b", { name: "laptop", explicit: true })).toMatchObject({ reason: "name_taken" });
    expect(nameOf(join("b", {}))).toBe("nas");
  });

  test("that was removed is told so, and may join again with a key", () => {
    const { join, store } = fresh();
    join("a", { key: "reusable" });
    expect(remove(store, "laptop")).toBe(true);
    expect(remove(store, "laptop")).toBe(false);
    expect(join("a", {})).toMatchObject({ type: "refused", reason: "removed" });
    expect(join("a", { key: "reusable" })).toMatchObject({ type: "admitted", isNew: true });
  });
});

describe("a new machine without a key", () => {
  test("waits with eight letters that stay the same, and is in once approved", () => {
    const { join, store, mesh } = fresh();
    const pending = join("a", {});
    if (pending.type !== "pending") throw new Error(pending.type);
    expect(pending.code).toMatch(/^[A-HJ-NP-Z]{8}$/);
    expect(join("a", {})).toMatchObject({ type: "pending", code: pending.code });
    expect(approve(store, mesh, "WRONGWRO")).toBe("unknown");
    const typed = `${pending.code.slice(0, 4)}-${pending.code.slice(4).toLowerCase()}`;
    expect(approve(store, mesh, typed)).toMatchObject({ type: "admitted", isNew: true });
    expect(join("a", {})).toMatchObject({ type: "admitted", isNew: false });
    expect(approve(store, mesh, pending.code)).toBe("unknown");
  });

  test("may be approved by its name when only one has it", () => {
    const { join, store, mesh } = fresh();
    join("a", { name: "nas" });
    join("b", {});
    join("c", {});
    expect(approve(store, mesh, "laptop")).toBe("ambiguous");
    expect(approve(store, mesh, "nas")).toMatchObject({ type: "admitted" });
  });

  test("reserves no name while it waits", () => {
    const { join, store, mesh } = fresh();
    join("a", { name: "nas" });
    expect(nameOf(join("b", { key: "reusable", name: "nas", explicit: true }))).toBe("nas");
    expect(approve(store, mesh, "nas")).toMatchObject({ peer: { name: "nas-2" } });
  });

  test("cannot fill the database: the one not seen for longest makes room", () => {
    const { join, store } = fresh();
    for (let i = 0; i < MAX_PENDING + 5; i++) join(`machine ${i}`, { now: NOW + i });
    const pending = store.peers("pending");
    expect(pending.length).toBe(MAX_PENDING);
    expect(Math.min(...pending.map((peer) => peer.lastSeenUnixMs))).toBe(NOW + 5);
  });
});

describe("the coordinator's identity", () => {
  test("is made once and kept", () => {
    const { store, mesh } = fresh();
    const again = loadIdentity(store, { meshIPv4: undefined, meshIPv6: undefined }, () => {
      throw new Error("asked for randomness again");
    });
    expect([again.fingerprint, again.meshIPv4, again.meshIPv6]).toEqual([
      mesh.fingerprint,
      mesh.meshIPv4,
      mesh.meshIPv6,
    ]);
    expect(mesh.meshIPv6).toMatch(/^fd[0-9a-f:]+::\/48$/);
  });

  test("changes its ranges only while nobody has an address in them", () => {
    const { store, join } = fresh();
    const reload = (meshIPv4: string) => loadIdentity(store, { meshIPv4, meshIPv6: undefined }, random);
    expect(reload("10.0.0.0/8").meshIPv4).toBe("10.0.0.0/8");
    reload("100.96.0.0/12");
    join("a", { key: "reusable" });
    expect(() => reload("10.0.0.0/8")).toThrow("Cannot change the mesh range from 100.96.0.0/12 to 10.0.0.0/8");
    expect(reload("100.96.0.0/12").meshIPv4).toBe("100.96.0.0/12");
  });
});

describe("names and addresses", () => {
  test("any text becomes a usable name, and a usable one stays as it is", () => {
    expect(sanitiseName("Anna's MacBook Pro (2)")).toBe("anna-s-macbook-pro-2");
    expect(sanitiseName("日本")).toBe("machine");
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 200 }), (text) => {
        const name = sanitiseName(text);
        expect(name).toMatch(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/);
        expect(sanitiseName(name)).toBe(name);
        expect(isUsableName(name)).toBe(true);
      }),
    );
  });

  test("a number behind a long name does not make it too long", () => {
    const long = "x".repeat(63);
    expect(freeName(long, (name) => name === long)).toBe(`${"x".repeat(61)}-2`);
  });

  test("every address of a range is handed out once, its first and last never", () => {
    const taken = new Set<string>();
    for (let i = 0; i < 14; i++) taken.add(allocateMeshIPv4("192.168.7.16/28", id(`${i}`), (ip) => taken.has(ip))!);
    expect(taken.size).toBe(14);
    expect(taken.has("192.168.7.16") || taken.has("192.168.7.31")).toBe(false);
    expect(allocateMeshIPv4("192.168.7.16/28", id("x"), (ip) => taken.has(ip))).toBeUndefined();
  });

  test("ranges are made canonical or refused", () => {
    expect(parseMeshIPv4("100.100.1.2/12")).toBe("100.96.0.0/12");
    expect(["1.2.3.4", "1.2.3.4/30", "0.0.0.0/0", "fd00::/48", "x/8"].map(parseMeshIPv4)).toEqual(
      Array(5).fill(undefined),
    );
    expect(parseMeshIPv6("fd00:1:2:3::/48")).toBe("fd00:1:2::/48");
    expect(["fd00::/80", "fd00::", "10.0.0.0/8"].map(parseMeshIPv6)).toEqual(Array(3).fill(undefined));
  });
});

function fresh(meshIPv4?: string) {
  const store = new MemoryStore();
  const mesh = loadIdentity(store, { meshIPv4, meshIPv6: undefined }, random);
  const makeKey = (fill: number, reusable: boolean) => {
    const options = { fingerprint: mesh.fingerprint, nowUnixMs: NOW, lifetimeMs: 24 * HOUR, reusable };
    const key = newJoinKey({ random: new Uint8Array(25).fill(fill), ...options });
    store.putKey(key.record);
    return key;
  };
  const keys = { reusable: makeKey(1, true), single: makeKey(2, false) };
  const join = (
    who: string,
    how: { key?: "reusable" | "single"; keyText?: string; name?: string; explicit?: boolean; now?: number },
  ): Admission => {
    const key = how.keyText ?? (how.key === undefined ? undefined : keys[how.key].text);
    const hello = {
      version: 1 as const,
      features: 0,
      identity: identity(who),
      signature: new Uint8Array(64),
      name: how.name ?? "laptop",
      nameIsExplicit: how.explicit ?? false,
      software: "test",
      instance: 1,
      ...(key === undefined ? {} : { key }),
    };
    return admit(store, mesh, { id: id(who), sessionKey: new Uint8Array(32), hello }, how.now ?? NOW);
  };
  return { store, mesh, keys, join };
}

const identity = (who: string): Uint8Array => new TextEncoder().encode(who.padEnd(32, " "));
const id = (who: string): PeerId => peerIdOf(identity(who));
const random = (length: number): Uint8Array => new Uint8Array(length).fill(7);
const nameOf = (admission: Admission): string | undefined =>
  admission.type === "admitted" ? admission.peer.name : undefined;
