import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { openAgentState } from "../../../../agent/state/agent_state.ts";
import { HandshakeClock } from "../../../../agent/state/handshake_clock.ts";
import { StateFile } from "../../../../agent/state/state_file.ts";
import { isStateDirInUse } from "../../../../agent/state/state_dir.ts";
import { MAX_BLOCKS, MAX_PINS, TrustStore } from "../../../../agent/state/trust_store.ts";
import { EXIT } from "../../../../agent/state/user_error.ts";
import { toBase32 } from "../../../../shared/bytes.ts";
import type { PeerId } from "../../../../shared/session/identity.ts";
import { scratchDir } from "./scratch.ts";

const HOUR_MS = 3_600_000;
const never = (error: unknown): never => {
  throw error;
};

describe("state.json", () => {
  test("starts empty, remembers an update, and keeps what a newer version wrote", () => {
    const dir = scratchDir();
    const state = new StateFile(dir);
    expect(state.value.joined).toBe(false);
    state.update({
      joined: true,
      name: "nas",
      coordinator: { url: "http://c:8080", fingerprint: null, listeners: [] },
    });
    const raw = JSON.parse(readFileSync(state.path, "utf8")) as object;
    writeFileSync(state.path, JSON.stringify({ ...raw, later: { a: 1 } }));
    new StateFile(dir).update({ name: "nas-2" });
    expect(JSON.parse(readFileSync(state.path, "utf8"))).toMatchObject({
      joined: true,
      name: "nas-2",
      later: { a: 1 },
    });
  });

  test("an update that the next start could not read is refused before it reaches the disk", () => {
    const state = new StateFile(scratchDir());
    state.update({ name: "nas" });
    expect(() => state.update({ name: "x".repeat(64) })).toThrow();
    expect(new StateFile(join(state.path, "..")).value.name).toBe("nas");
    expect(state.value.name).toBe("nas");
  });

  test("an update that changes nothing writes nothing", () => {
    const state = new StateFile(scratchDir());
    state.update({ name: "nas" });
    const { ino } = statSync(state.path);
    state.update({ name: "nas" });
    expect(statSync(state.path).ino).toBe(ino);
  });

  test("broken JSON is refused with code 78, the file and the cure", () => {
    const dir = scratchDir();
    writeFileSync(join(dir, "state.json"), '{"schema":1,');
    expect(() => new StateFile(dir)).toThrow(
      expect.objectContaining({
        exitCode: EXIT.badConfiguration,
        message: `${join(dir, "state.json")} is broken: it is not JSON; restore it from a backup, or remove it and join again with a new key`,
      }),
    );
  });

  test("what could not be saved is saved with the next update", () => {
    const dir = scratchDir();
    const state = new StateFile(dir);
    const release = blockWrites(state.path);
    expect(() => state.update({ name: "nas" })).toThrow(expect.objectContaining({ exitCode: EXIT.failed }));
    expect(state.value.name).toBe("nas");
    release();
    state.update({ name: "nas" });
    expect(new StateFile(dir).value.name).toBe("nas");
  });
});

describe("trust", () => {
  test("the first id of a name is pinned, another one is changed until trusted, across restarts", () => {
    const dir = scratchDir();
    const store = new TrustStore(dir);
    expect(store.check("nas", id(1))).toBe("new");
    expect(store.pin("nas", id(1))).toBe(true);
    const restarted = new TrustStore(dir);
    expect(restarted.check("nas", id(1))).toBe("pinned");
    expect(restarted.check("nas", id(2))).toBe("changed");
    expect(restarted.pin("nas", id(2))).toBe(false);
    expect(restarted.trust("nas")).toBe(id(2));
    expect(new TrustStore(dir).check("nas", id(2))).toBe("pinned");
    expect(new TrustStore(dir).check("nas", id(1))).toBe("changed");
  });

  test("a block holds for the name and for its id under any other name, until trusted", () => {
    const dir = scratchDir();
    const store = new TrustStore(dir);
    store.pin("nas", id(1));
    expect(store.block("nas")).toBe(true);
    const restarted = new TrustStore(dir);
    expect(restarted.check("nas", id(1))).toBe("blocked");
    expect(restarted.check("nas", id(9))).toBe("blocked");
    expect(restarted.check("renamed", id(1))).toBe("blocked");
    expect(restarted.blockedIds()).toEqual([id(1)]);
    expect(restarted.trust("nas")).toBe(id(1));
    expect(new TrustStore(dir).check("renamed", id(1))).toBe("new");
  });

  test("names that mean something to JavaScript are names like others", () => {
    const dir = scratchDir();
    new TrustStore(dir).pin("__proto__", id(1));
    expect(new TrustStore(dir).check("__proto__", id(1))).toBe("pinned");
    expect(new TrustStore(dir).check("constructor", id(1))).toBe("new");
  });

  test("a coordinator that invents names cannot grow it for ever", () => {
    const dir = scratchDir();
    const pins = Array.from({ length: MAX_PINS }, (_, n) => ({ name: `p${n}`, id: id(n) }));
    const blocked = Array.from({ length: MAX_BLOCKS }, (_, n) => ({ name: `b${n}`, id: null }));
    writeFileSync(join(dir, "trust.json"), JSON.stringify({ schema: 1, pins, blocked }));
    const store = new TrustStore(dir);
    expect(store.pin("one-more", id(70_000))).toBe(false);
    expect(store.check("p17", id(17))).toBe("pinned");
    expect(store.block("one-more")).toBe(false);
    expect(store.block("b1")).toBe(true);
  });

  test("a block that could not be saved holds all the same", () => {
    const store = new TrustStore(scratchDir());
    blockWrites(store.path);
    expect(() => store.block("nas")).toThrow(expect.objectContaining({ exitCode: EXIT.failed }));
    expect(store.check("nas", id(1))).toBe("blocked");
  });
});

describe("handshake timestamps", () => {
  const now = 1_800_000_000_000;

  test("follow the wall clock, and still grow while it stands or jumps back by hours", () => {
    const clock = new HandshakeClock(scratchDir(), now, never);
    expect(clock.next(now + 5.7)).toBe(now + 5);
    expect(clock.next(now + 5)).toBe(now + 6);
    expect(clock.next(now - 3 * HOUR_MS)).toBe(now + 7);
    expect(clock.next(now + HOUR_MS)).toBe(now + HOUR_MS);
  });

  test("grow across a kill and a wall clock that jumped back", () => {
    const dir = scratchDir();
    const before = new HandshakeClock(dir, now, never);
    const last = [0, 30_000, 90_000].map((later) => before.next(now + later)).at(-1) ?? 0;
    const after = new HandshakeClock(dir, now - 5 * HOUR_MS, never);
    expect(after.next(now - 5 * HOUR_MS)).toBeGreaterThan(last);
  });

  test("a thousand handshakes in a minute cost no write", () => {
    const dir = scratchDir();
    const clock = new HandshakeClock(dir, now, never);
    const { ino } = statSync(clock.path);
    for (let n = 0; n < 1000; n++) clock.next(now + n * 50);
    expect(statSync(clock.path).ino).toBe(ino);
    clock.next(now + 60_001);
    expect(statSync(clock.path).ino).not.toBe(ino);
  });

  test("a replayed or older timestamp of a peer is refused, also after a restart", () => {
    const dir = scratchDir();
    const clock = new HandshakeClock(dir, now, never);
    expect(clock.accept(id(1), 500)).toBe(true);
    expect(clock.accept(id(1), 500)).toBe(false);
    expect(clock.accept(id(2), 400)).toBe(true);
    clock.flush(now);
    const restarted = new HandshakeClock(dir, now, never);
    expect(restarted.accept(id(1), 499)).toBe(false);
    expect(restarted.greatestOf(id(1))).toBe(500);
    expect(restarted.accept(id(1), 501)).toBe(true);
  });

  test("a disk that fills up is reported, retried, and stops no handshake", () => {
    const dir = scratchDir();
    const errors: unknown[] = [];
    const clock = new HandshakeClock(dir, now, (error) => errors.push(error));
    const release = blockWrites(clock.path);
    expect(clock.next(now + HOUR_MS)).toBe(now + HOUR_MS);
    expect(clock.next(now + HOUR_MS + 1)).toBe(now + HOUR_MS + 1);
    expect(errors).toHaveLength(1);
    release();
    clock.next(now + HOUR_MS + 6000);
    expect(new HandshakeClock(dir, now, never).next(now)).toBeGreaterThan(now + HOUR_MS + 6000);
  });
});

describe("the state directory as a whole", () => {
  test("is locked while open, and free again when a part of it is broken", () => {
    const dir = scratchDir();
    const state = openAgentState(dir, () => 1_800_000_000_000, never);
    expect(isStateDirInUse(dir)).toBe(true);
    state.handshakeClock.accept(state.identity.id, 5);
    state.close();
    expect(isStateDirInUse(dir)).toBe(false);
    writeFileSync(join(dir, "trust.json"), "[]");
    expect(() => openAgentState(dir, () => 1_800_000_000_000, never)).toThrow(/trust\.json is broken/);
    expect(isStateDirInUse(dir)).toBe(false);
  });
});

function id(n: number): PeerId {
  const bytes = new Uint8Array(16);
  new DataView(bytes.buffer).setUint32(0, n);
  return toBase32(bytes) as PeerId;
}

/** Makes every save of `path` fail, for root as well: a directory with something in it holds the temporary name. */
function blockWrites(path: string): () => void {
  mkdirSync(join(`${path}.new`, "in the way"), { recursive: true });
  return () => rmSync(`${path}.new`, { recursive: true });
}
