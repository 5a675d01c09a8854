/**
 * Decides who may be in the mesh: by a join key, by an operator's approval, or because the identity is a member already.
 *
 * The caller has verified that the identity signed the session key, and that the session key is at the other end of the channel
 * (shared/signal/channel.ts). Everything here runs in one transaction of the store.
 */
import { type Hello, type Refusal, REFUSALS } from "../../shared/signal/messages.ts";
import type { PeerId } from "../../shared/session/identity.ts";
import { utf8 } from "../../shared/bytes.ts";
import { hmacSha256 } from "../../shared/session/primitives.ts";
import type { PeerRecord, Store } from "../store/store.ts";
import { checkJoinKey, parseJoinKey } from "./join_key.ts";
import { allocateMeshIPv4, allocateMeshIPv6 } from "./mesh_addresses.ts";
import { freeName, isUsableName, sanitiseName } from "./names.ts";

/** Machines that may wait for approval at once; the one not seen for longest makes room. */
export const MAX_PENDING = 100;
/** Removed machines that are remembered. */
export const MAX_REMOVED = 1000;
/** Letters that nobody mistakes for another one when reading a code aloud. */
const CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ";
const CODE_LENGTH = 8;

export interface Mesh {
  readonly fingerprint: string;
  /** Key for deriving approval codes. */
  readonly secret: Uint8Array;
  readonly meshIPv4: string;
  readonly meshIPv6: string;
}

export interface Applicant {
  readonly id: PeerId;
  readonly sessionKey: Uint8Array;
  readonly hello: Hello;
}

export type Admission =
  | { readonly type: "admitted"; readonly peer: PeerRecord; readonly isNew: boolean }
  | { readonly type: "pending"; readonly peer: PeerRecord; readonly code: string }
  | { readonly type: "refused"; readonly reason: Refusal; readonly message: string };

export function admit(store: Store, mesh: Mesh, applicant: Applicant, nowUnixMs: number): Admission {
  return store.transaction(() => {
    const known = store.peer(applicant.id);
    if (known?.state === "approved") return welcomeBack(store, known, applicant, nowUnixMs);

    const { key, name } = applicant.hello;
    if (applicant.hello.nameIsExplicit) {
      const refusal = refuseName(store, name, applicant.id);
      if (refusal !== undefined) return refusal;
    }
    if (key !== undefined) {
      const parsed = parseJoinKey(key);
      const record = parsed?.fingerprint === mesh.fingerprint ? store.key(parsed.id) : undefined;
      const verdict = checkJoinKey(parsed?.secret ?? "", record, nowUnixMs);
      if (verdict !== "valid" || record === undefined) {
        return refused(verdict === "valid" ? "key_invalid" : verdict, 'create a new one with "key create"');
      }
      const admission = enrol(store, mesh, recordOf(applicant, known, nowUnixMs));
      if (admission.type === "admitted") store.putKey({ ...record, usedUnixMs: nowUnixMs });
      return admission;
    }
    if (known?.state === "removed") return refused("removed", "join again with a new key");
    const peer: PeerRecord = {
      ...recordOf(applicant, known, nowUnixMs),
      state: "pending",
      code: codeOf(mesh.secret, applicant.id),
    };
    if (known === undefined) makeRoom(store, "pending", MAX_PENDING);
    store.putPeer(peer);
    return { type: "pending", peer, code: peer.code ?? "" };
  });
}

/** Approves the pending peer that has this code or, if it is the only one, this name. */
export function approve(store: Store, mesh: Mesh, codeOrName: string): Admission | "unknown" | "ambiguous" {
  return store.transaction(() => {
    const pending = store.peers("pending");
    const code = codeOrName.toUpperCase().replace(/[^A-Z]/g, "");
    const byCode = pending.find((peer) => peer.code === code);
    const byName = pending.filter((peer) => peer.name === codeOrName);
    if (byCode === undefined && byName.length > 1) return "ambiguous";
    const peer = byCode ?? byName[0];
    return peer === undefined ? "unknown" : enrol(store, mesh, peer);
  });
}

/** Throws a peer out; it is told so when it comes back. False when there is none of this name. */
export function remove(store: Store, name: string): boolean {
  return store.transaction(() => {
    const peer =
      store.peers("approved").find((other) => other.name === name) ??
      store.peers("pending").find((other) => other.name === name || other.code === name.toUpperCase());
    if (peer === undefined) return false;
    makeRoom(store, "removed", MAX_REMOVED);
    store.setBlocks(peer.id, []);
    store.putPeer({ ...peer, state: "removed", meshIPv4: "", meshIPv6: "", code: undefined });
    return true;
  });
}

/** Eight letters that are the same each time this machine asks, and that nobody can work out from its id. */
export function codeOf(secret: Uint8Array, id: PeerId): string {
  const hash = hmacSha256(secret, utf8(`approval code ${id}`));
  return Array.from(hash.subarray(0, CODE_LENGTH), (byte) => CODE_LETTERS[byte % CODE_LETTERS.length]).join("");
}

function welcomeBack(store: Store, known: PeerRecord, applicant: Applicant, nowUnixMs: number): Admission {
  const { hello } = applicant;
  let name = known.name;
  if (hello.nameIsExplicit && hello.name.toLowerCase() !== known.name) {
    const refusal = refuseName(store, hello.name, known.id);
    if (refusal !== undefined) return refusal;
    name = hello.name.toLowerCase();
  }
  const peer: PeerRecord = {
    ...known,
    name,
    sessionKey: applicant.sessionKey,
    signature: hello.signature,
    lastSeenUnixMs: nowUnixMs,
  };
  store.putPeer(peer);
  return { type: "admitted", peer, isNew: false };
}

/** Gives a peer its name and addresses and makes it a member. */
function enrol(store: Store, mesh: Mesh, applicant: PeerRecord): Admission {
  const others = store.peers("approved").filter(({ id }) => id !== applicant.id);
  const names = new Set(others.map(({ name }) => name));
  if (applicant.nameIsExplicit && names.has(applicant.name)) return nameTaken(applicant.name);
  const ipv4 = new Set(others.map(({ meshIPv4 }) => meshIPv4));
  const ipv6 = new Set(others.map(({ meshIPv6 }) => meshIPv6));
  const meshIPv4 = allocateMeshIPv4(mesh.meshIPv4, applicant.id, (ip) => ipv4.has(ip));
  if (meshIPv4 === undefined) return refused("full", `${mesh.meshIPv4} is used up; remove machines that are gone`);
  const peer: PeerRecord = {
    ...applicant,
    state: "approved",
    code: undefined,
    name: freeName(applicant.name, (name) => names.has(name)),
    meshIPv4,
    meshIPv6: allocateMeshIPv6(mesh.meshIPv6, applicant.id, (ip) => ipv6.has(ip)),
  };
  store.putPeer(peer);
  return { type: "admitted", peer, isNew: true };
}

function recordOf(applicant: Applicant, known: PeerRecord | undefined, nowUnixMs: number): PeerRecord {
  const { hello } = applicant;
  return {
    id: applicant.id,
    state: "approved",
    name: sanitiseName(hello.name),
    nameIsExplicit: hello.nameIsExplicit,
    identity: hello.identity,
    sessionKey: applicant.sessionKey,
    signature: hello.signature,
    meshIPv4: "",
    meshIPv6: "",
    code: undefined,
    createdUnixMs: known?.createdUnixMs ?? nowUnixMs,
    lastSeenUnixMs: nowUnixMs,
  };
}

function refuseName(store: Store, wanted: string, id: PeerId): Admission | undefined {
  if (!isUsableName(wanted))
    return refused("name_invalid", `"${wanted}" may have letters, digits and single dashes between them, at most 63`);
  const name = wanted.toLowerCase();
  const holder = store.peers("approved").find((peer) => peer.name === name);
  return holder === undefined || holder.id === id ? undefined : nameTaken(name);
}

function makeRoom(store: Store, state: "pending" | "removed", maximum: number): void {
  const peers = store.peers(state).sort((a, b) => a.lastSeenUnixMs - b.lastSeenUnixMs);
  for (const peer of peers.slice(0, Math.max(0, peers.length - maximum + 1))) store.removePeer(peer.id);
}

const nameTaken = (name: string): Admission => refused("name_taken", `choose another --name than "${name}"`);

const refused = (reason: Refusal, advice: string): Admission => ({
  type: "refused",
  reason,
  message: `${sentence(REFUSALS[reason])}; ${advice}`,
});

const sentence = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);
