/** What makes this coordinator this coordinator, made at the first start and kept: its static key and the mesh's address ranges. */
import { fromBase64, toBase64 } from "../../shared/bytes.ts";
import { keyFingerprint } from "../../shared/session/identity.ts";
import { KEY_BYTES, X25519Key } from "../../shared/session/primitives.ts";
import type { Store } from "../store/store.ts";
import { DEFAULT_MESH_IPV4, randomMeshIPv6 } from "./mesh_addresses.ts";

export interface CoordinatorIdentity {
  readonly staticKey: X25519Key;
  /** Private scalar: other secrets of this coordinator are derived from it. */
  readonly secret: Uint8Array;
  readonly fingerprint: string;
  readonly meshIPv4: string;
  readonly meshIPv6: string;
}

/** A range was asked for that the peers' addresses are not in. */
export class MeshRangeConflict extends Error {}

/** @param wanted canonical ranges that the operator asks for
 *  @param random gives that many random bytes */
export function loadIdentity(
  store: Store,
  wanted: { readonly meshIPv4: string | undefined; readonly meshIPv6: string | undefined },
  random: (length: number) => Uint8Array,
): CoordinatorIdentity {
  return store.transaction(() => {
    const stored = fromBase64(store.meta("static_key") ?? "");
    const secret = stored?.length === KEY_BYTES ? stored : random(KEY_BYTES);
    if (secret !== stored) store.setMeta("static_key", toBase64(secret));
    const staticKey = new X25519Key(secret);
    return {
      staticKey,
      secret,
      fingerprint: keyFingerprint(staticKey.publicKey),
      meshIPv4: loadRange(store, "mesh_ipv4", wanted.meshIPv4, () => DEFAULT_MESH_IPV4),
      meshIPv6: loadRange(store, "mesh_ipv6", wanted.meshIPv6, () => randomMeshIPv6(random(5))),
    };
  });
}

function loadRange(
  store: Store,
  name: "mesh_ipv4" | "mesh_ipv6",
  wanted: string | undefined,
  first: () => string,
): string {
  const stored = store.meta(name);
  const range = wanted ?? stored ?? first();
  if (range === stored) return range;
  // A peer's addresses are stable: nobody may find that his machine has moved because of a flag.
  if (stored !== undefined && store.peers("approved").length > 0) {
    throw new MeshRangeConflict(
      `Cannot change the mesh range from ${stored} to ${range}: peers have addresses in it; remove them or keep the range`,
    );
  }
  store.setMeta(name, range);
  return range;
}
