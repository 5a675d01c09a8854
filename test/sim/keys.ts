/** Keys of simulated agents, made once and used by every world: making them would be most of the work of a short run. */
import { type PeerId, peerIdOf, signSessionKey } from "../../shared/session/identity.ts";
import { Ed25519Key, X25519Key } from "../../shared/session/primitives.ts";
import { SeededRandom } from "./random.ts";

/** Enough that worlds of few agents see both orders of any two keys, which decides who wins a crossing handshake. */
export const KEY_POOL_SIZE = 64;

export interface AgentKeys {
  readonly identity: Ed25519Key;
  readonly sessionKey: X25519Key;
  readonly id: PeerId;
  readonly signature: Uint8Array;
}

const pool = new Map<number, AgentKeys>();

export function pooledKeys(index: number): AgentKeys {
  const known = pool.get(index % KEY_POOL_SIZE);
  if (known !== undefined) return known;
  const random = new SeededRandom(1_000_003 + (index % KEY_POOL_SIZE));
  const keys = keysOf(new Ed25519Key(random.bytes(32)), new X25519Key(random.bytes(32)));
  pool.set(index % KEY_POOL_SIZE, keys);
  return keys;
}

export const keysOf = (identity: Ed25519Key, sessionKey: X25519Key): AgentKeys => ({
  identity,
  sessionKey,
  id: peerIdOf(identity.publicKey),
  signature: signSessionKey(identity, sessionKey.publicKey),
});
