/** What a coordinator that lies could try: every question it can ask, with logins that were really signed. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { utils } from "ssh2";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { JumpDoor } from "../../../../agent/driver/jump/jump_door.ts";
import { readSignedLogin } from "../../../../agent/driver/jump/signed_login.ts";
import { addJumpKeys, readJumpKeys, removeJumpKeys } from "../../../../agent/state/jump_keys.ts";
import { createLog } from "../../../../agent/log.ts";
import { concatBytes, toBase64, utf8 } from "../../../../shared/bytes.ts";
import { Writer } from "../../../../shared/wire/cursor.ts";
import { scratchDir } from "../state/scratch.ts";

const keys = mkdtempSync(join(tmpdir(), "tunnelmesh-keys-"));
afterAll(() => rmSync(keys, { recursive: true }));
for (const [name, type] of [
  ["owner", "ed25519"],
  ["stranger", "ed25519"],
  ["rsa", "rsa"],
] as const) {
  execFileSync("ssh-keygen", ["-q", "-t", type, "-N", "", "-C", name, "-f", join(keys, name)]);
}
const publicKey = (name: string): string => readFileSync(join(keys, `${name}.pub`), "utf8");
const log = createLog({ level: "error", format: "json", write: () => {}, unixMs: () => 0 });

let stateDir: string;
let door: JumpDoor;
let sessions = 0;
beforeEach(() => {
  stateDir = scratchDir();
  addJumpKeys(stateDir, publicKey("owner"));
  addJumpKeys(stateDir, publicKey("rsa"));
  door = new JumpDoor({ ports: [22], stateDir, name: () => "homelab", log });
});

describe("the agent judges by itself", () => {
  test.each(["owner", "rsa"])("a login that the %s has signed opens an allowed port, once", (name) => {
    const proof = signed(name);
    expect(door.judge({ ask: "login", ...proof })).toEqual({});
    expect(door.judge({ ask: "open", port: 22, ...proof })).toEqual({
      connect: { port: 22, session: expect.any(String) },
    });
    expect(door.judge({ ask: "open", port: 22, ...proof })).toBe("this login has been used before");
    // Nor after a restart.
    const later = new JumpDoor({ ports: [22], stateDir, name: () => "homelab", log });
    expect(later.judge({ ask: "open", port: 22, ...proof })).toBe("this login has been used before");
  });

  test("a key is known or not, and saying so costs no login", () => {
    const blob = (name: string): string => publicKey(name).split(" ")[1] ?? "";
    expect(door.judge({ ask: "key", key: blob("owner") })).toEqual({});
    expect(door.judge({ ask: "key", key: blob("stranger") })).toBe("it does not know this key");
    expect(door.judge({ ask: "key", key: "" })).toBe("it does not know this key");
  });

  test("what opens no door", () => {
    const ask = (proof: object): unknown => door.judge({ ask: "open", port: 22, ...signed("owner"), ...proof });
    expect(ask(signed("stranger"))).toBe("it does not know this key");
    expect(ask(signed("owner", { user: "nas" }))).toBe("this login is for another machine");
    expect(ask({ signature: signed("owner").signature })).toBe("the signature is wrong");
    expect(ask({ signature: "" })).toBe("the signature is wrong");
    expect(ask({ hash: "sha512" })).toBe("the signature is wrong");
    expect(ask({ port: 23 })).toMatch(/^port 23 is not open to jumps/);
    expect(ask(signed("rsa", { algorithm: "ssh-rsa" }))).toBe("keys of this type are not accepted");
    for (const change of [
      { service: "ssh-userauth" },
      { method: "hostbased" },
      { kind: 51 },
      { session: new Uint8Array(8) },
    ]) {
      expect(ask(signed("owner", change))).toBe("this is no login");
    }
    // A login of the stranger that claims the owner's key.
    const claimed = signed("stranger", { claimed: "owner" });
    expect(ask(claimed)).toBe("the signature is wrong");
    // None of this has used anything up.
    expect(ask({})).toHaveProperty("connect");
  });

  test("every byte of what was signed counts", () => {
    const proof = signed("owner");
    const bytes = Buffer.from(proof.signed, "base64");
    for (let at = 0; at < bytes.length; at++) {
      const changed = Buffer.from(bytes);
      changed[at] = (changed[at] ?? 0) ^ 1;
      expect(typeof door.judge({ ask: "open", port: 22, ...proof, signed: changed.toString("base64") })).toBe("string");
    }
  });
});

describe("the keys", () => {
  test("are added once, listed as ssh-keygen names them, and removed by either name", () => {
    expect(addJumpKeys(stateDir, publicKey("owner"))).toEqual([]);
    const listed = execFileSync("ssh-keygen", ["-l", "-f", join(keys, "owner.pub")])
      .toString()
      .split(" ")[1];
    expect(readJumpKeys(stateDir).map(({ fingerprint }) => fingerprint)[0]).toBe(listed);
    expect(removeJumpKeys(stateDir, "rsa")).toHaveLength(1);
    expect(removeJumpKeys(stateDir, listed ?? "")).toHaveLength(1);
    expect(readJumpKeys(stateDir)).toEqual([]);
  });

  test.each(["", "hello", 'command="x" ssh-ed25519 AAAA', "ssh-dss AAAAB3NzaC1kc3MAAACB", "ssh-ed25519 !!!"])(
    "%j is none",
    (text) => {
      expect(() => addJumpKeys(stateDir, text)).toThrow(/no public key/);
    },
  );
});

interface Change {
  readonly user?: string;
  readonly service?: string;
  readonly method?: string;
  readonly kind?: number;
  readonly session?: Uint8Array;
  readonly algorithm?: string;
  /** Whose key the text names. */
  readonly claimed?: string;
}

/** What ssh2 gives the coordinator of a login: the text, the signature, the hash of an RSA one. */
function signed(name: string, change: Change = {}): { signed: string; signature: string; hash: "sha512" | null } {
  const key = utils.parseKey(readFileSync(join(keys, name)));
  if (key instanceof Error) throw key;
  const isRsa = key.type === "ssh-rsa";
  const hash = isRsa ? "sha512" : null;
  const blob = Buffer.from(publicKey(change.claimed ?? name).split(" ")[1] ?? "", "base64");
  const text = concatBytes(
    string(change.session ?? new Uint8Array(32).fill(++sessions)),
    Uint8Array.of(change.kind ?? 50),
    string(utf8(change.user ?? "homelab")),
    string(utf8(change.service ?? "ssh-connection")),
    string(utf8(change.method ?? "publickey")),
    Uint8Array.of(1),
    string(utf8(change.algorithm ?? (isRsa ? "rsa-sha2-512" : "ssh-ed25519"))),
    string(blob),
  );
  if (Object.keys(change).length === 0) expect(readSignedLogin(text)).toMatchObject({ user: "homelab" });
  const signature = key.sign(Buffer.from(text), hash ?? undefined);
  return { signed: toBase64(text), signature: toBase64(new Uint8Array(signature)), hash };
}

const string = (bytes: Uint8Array): Uint8Array => concatBytes(new Writer(4).u32(bytes.length).finish(), bytes);
